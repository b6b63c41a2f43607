"""The samplers against diffusers' own, against formulas written from the papers, and against one another."""

from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    HeunDiscreteScheduler,
    UniPCMultistepScheduler,
)
from diffusers.schedulers import scheduling_dpmsolver_multistep
from helpers import seeded
from torch import Tensor

from time_tuner import SAMPLERS, NoiseScheduleVP, make_plan, sample, trajectory
from time_tuner.exact import Mixture
from time_tuner.samplers import Sampler

N = 1000
MIXTURE = Mixture(seeded(4, 6), std=0.5)
# In float64 two ways to compute the same agree to rounding. In float32, in which diffusers is used, rounding of 6e-8 is
# multiplied by 1 / alpha_T = 157 where one step goes from pure noise to the data, and adds up over many steps: there
# runs of 6 to 20 calls are compared.
PRECISION = {torch.float64: 1e-11, torch.float32: 1e-5}
DOUBLE, SINGLE = PRECISION


def assert_same(ours: Tensor, theirs: Tensor) -> None:
    assert ours.dtype == theirs.dtype
    torch.testing.assert_close(ours, theirs, rtol=0, atol=PRECISION[ours.dtype] * float(theirs.abs().max()))


def start(dtype: torch.dtype) -> Tensor:
    return seeded(16, 6, seed=1, dtype=dtype)


def drawn(shape: torch.Size, dtype: torch.dtype, seed: int = 2) -> Callable[..., Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return lambda *_: torch.randn(shape, generator=generator, dtype=dtype)


def set_up(scheduler: Any, dtype: torch.dtype) -> NoiseScheduleVP:
    """Our schedule of the scheduler's levels; the scheduler then goes on in `dtype`."""
    schedule = NoiseScheduleVP(alphas_cumprod=scheduler.alphas_cumprod)
    scheduler.alphas_cumprod = scheduler.alphas_cumprod.to(dtype)
    return schedule


def set_sigmas(scheduler: Any, nodes: list[int], last: int | None, repeat: int = 1) -> None:
    """The sigmas that the scheduler has computed, in its dtype: `set_timesteps` rounds them to float32."""
    every = ((1 - scheduler.alphas_cumprod) / scheduler.alphas_cumprod).sqrt()
    end = every[last] if last is not None else torch.zeros_like(every[0])
    sigmas = torch.stack([every[nodes[0]], *every[nodes[1:]].repeat_interleave(repeat), end])
    torch.testing.assert_close(sigmas.float(), scheduler.sigmas, rtol=1e-6, atol=0)
    scheduler.sigmas = sigmas


def times_of(nodes: list[int], last: int | None) -> list[float]:
    return [*((n + 1) / N for n in nodes), 0.0 if last is None else (last + 1) / N]


def diffusers_loop(scheduler: Any, schedule: NoiseScheduleVP, x: Tensor, **options: Any) -> Tensor:
    eps = MIXTURE.eps(schedule)
    for n in scheduler.timesteps:
        said = eps(scheduler.scale_model_input(x, n), (n.double() + 1) / N)
        x = scheduler.step(said, n, x, **options).prev_sample
    return x


# --- diffusers ---


@pytest.mark.parametrize("eta", [0.0, 0.6, 1.0])
@pytest.mark.parametrize(
    # DDIMScheduler steps to n - N // K whatever its own list says: the two agree where strides are equal.
    ("spacing", "offset", "to_one", "calls", "dtype"),
    [
        ("leading", 1, False, 10, DOUBLE),
        ("leading", 1, False, 10, SINGLE),
        ("leading", 0, True, 8, DOUBLE),
        ("trailing", 0, True, 20, DOUBLE),
        ("trailing", 0, True, 20, SINGLE),
        ("leading", 0, True, 250, DOUBLE),
    ],
)
def test_ddim_is_that_of_diffusers(spacing, offset, to_one, calls, dtype, eta) -> None:
    theirs = DDIMScheduler(clip_sample=False, timestep_spacing=spacing, steps_offset=offset, set_alpha_to_one=to_one)
    schedule = set_up(theirs, dtype)
    theirs.final_alpha_cumprod = theirs.final_alpha_cumprod.to(dtype)
    theirs.set_timesteps(calls)
    x = start(dtype)
    eps, y, noise = MIXTURE.eps(schedule), x, drawn(x.shape, dtype)
    for n in theirs.timesteps:
        options = {"eta": eta, "variance_noise": noise()} if eta else {}
        y = theirs.step(eps(y, (n.double() + 1) / N), n, y, **options).prev_sample
    plan = make_plan(
        SAMPLERS["ddim"](eta=eta), schedule, times=times_of(theirs.timesteps.tolist(), None if to_one else 0)
    )
    assert_same(sample(eps, plan, x, drawn(x.shape, dtype)), y)
    if offset or spacing == "trailing":  # our spacings of these names are these grids
        assert torch.equal(make_plan("ddim", schedule, calls=calls, spacing=spacing).t, plan.t)


EIGHT = [999, 700, 500, 301, 120, 50, 11, 0]


@pytest.mark.parametrize("variance", ["large", "small"])
@pytest.mark.parametrize(("nodes", "dtype"), [(EIGHT, DOUBLE), (EIGHT, SINGLE), ([970, 3, 0], DOUBLE)])
def test_ddpm_is_that_of_diffusers(nodes, dtype, variance) -> None:
    # Lists that end at level 0: elsewhere DDPMScheduler draws noise in the last step too, and returns a noisy sample.
    theirs = DDPMScheduler(clip_sample=False, variance_type=f"fixed_{variance}")
    schedule, x = set_up(theirs, dtype), start(dtype)
    theirs.set_timesteps(timesteps=nodes)
    y = diffusers_loop(theirs, schedule, x, generator=torch.Generator().manual_seed(2))
    plan = make_plan(SAMPLERS["ddpm"](variance=variance), schedule, times=times_of(nodes, None))
    assert_same(sample(MIXTURE.eps(schedule), plan, x, drawn(x.shape, dtype)), y)


class InDouble:
    """torch, with float64 by the name of float32: DPMSolverMultistepScheduler.step casts its state to that."""

    float32 = torch.float64

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)


MULTISTEP = {
    "dpmpp": (DPMSolverMultistepScheduler, scheduling_dpmsolver_multistep),
    "unipc": (UniPCMultistepScheduler, None),
}


# Below 15 steps diffusers lowers the order of DPM-Solver++ at the end.
RUNS = [*((calls, DOUBLE) for calls in (1, 2, 6, 14, 15, 25)), (6, SINGLE)]


@pytest.mark.parametrize("name", MULTISTEP)
@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize(("calls", "dtype"), RUNS)
@pytest.mark.parametrize("last", [None, 0], ids=["zero", "sigma_min"])
def test_multistep_is_that_of_diffusers(name, order, calls, dtype, last, monkeypatch) -> None:
    kind, module = MULTISTEP[name]
    theirs = kind(solver_order=order, final_sigmas_type="zero" if last is None else "sigma_min")
    schedule, x = set_up(theirs, torch.float32), start(dtype)
    theirs.set_timesteps(calls)
    nodes = theirs.timesteps.tolist()
    if dtype == DOUBLE:
        theirs.alphas_cumprod = theirs.alphas_cumprod.double()
        set_sigmas(theirs, nodes, last)
        if isinstance(module, ModuleType):
            monkeypatch.setattr(module, "torch", InDouble())
    plan = make_plan(SAMPLERS[name](order=order), schedule, times=times_of(nodes, last))
    assert_same(sample(MIXTURE.eps(schedule), plan, x), diffusers_loop(theirs, schedule, x))


@pytest.mark.parametrize("dtype", [DOUBLE, SINGLE])
def test_heun_is_that_of_diffusers(dtype) -> None:
    nodes = [999, 800, 600, 399, 250, 120, 40, 3]  # levels: between them it interpolates sigma, not log alpha
    theirs = HeunDiscreteScheduler(beta_start=1e-4, beta_end=0.02)
    schedule, x = NoiseScheduleVP(alphas_cumprod=theirs.alphas_cumprod), start(dtype)
    theirs.set_timesteps(timesteps=nodes)
    if dtype == DOUBLE:
        theirs.alphas_cumprod = theirs.alphas_cumprod.double()
        set_sigmas(theirs, nodes, None, repeat=2)
    plan = make_plan("heun", schedule, times=times_of(nodes, None))
    assert len(plan) == len(theirs.timesteps) == 15
    # Its state is x / alpha; at the end alpha is 1.
    assert_same(sample(MIXTURE.eps(schedule), plan, x), diffusers_loop(theirs, schedule, x / plan.alpha[0]))


def test_ddim_of_every_level_is_that_of_diffusers() -> None:
    theirs, x = DDIMScheduler(clip_sample=False), start(DOUBLE)
    schedule = set_up(theirs, DOUBLE)
    theirs.set_timesteps(N)
    plan = make_plan("ddim", schedule, calls=N, spacing="trailing")
    assert_same(sample(MIXTURE.eps(schedule), plan, x), diffusers_loop(theirs, schedule, x))


# --- the papers' formulas, on grids that diffusers' schedulers cannot follow ---

GRID = [1.0, 0.83, 0.8, 0.4451, 0.2, 0.0372, 0.01]


def respaced(schedule: NoiseScheduleVP, times: list[float]) -> tuple[Tensor, Tensor]:
    """alpha_bar at the times, in rising order, and the betas that lead from each to the next, the first of them 0."""
    alpha_bar = schedule.at(times).alpha.flip(0) ** 2
    return alpha_bar, torch.cat([torch.zeros(1), 1 - alpha_bar[1:] / alpha_bar[:-1]])


@pytest.mark.parametrize("end", [0.0, 0.001])
@pytest.mark.parametrize("variance", ["large", "small"])
def test_ddpm_is_the_score_form_on_respaced_betas(end, variance, discrete) -> None:
    times = [*GRID, end]
    alpha_bar, beta = respaced(discrete, times)
    x = start(torch.float64)
    eps, noise, y = MIXTURE.eps(discrete), drawn(x.shape, x.dtype), x
    for i in range(len(times) - 1, 0, -1):
        score = -eps(y, times[len(times) - 1 - i]) / (1 - alpha_bar[i]).sqrt()
        y = (y + beta[i] * score) / (1 - beta[i]).sqrt()
        if alpha_bar[i - 1] < 1:  # no noise in the last step
            small = beta[i] * (1 - alpha_bar[i - 1]) / (1 - alpha_bar[i])
            y = y + (beta[i] if variance == "large" else small).sqrt() * noise()
    plan = make_plan(SAMPLERS["ddpm"](variance=variance), discrete, times=times)
    torch.testing.assert_close(sample(eps, plan, x, drawn(x.shape, x.dtype)), y, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("end", [0.0, 0.001])
@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
def test_ddim_is_equation_12_on_any_grid(end, eta, discrete) -> None:
    times = [*GRID, end]
    alpha_bar, beta = respaced(discrete, times)
    x = start(torch.float64)
    eps, noise, y = MIXTURE.eps(discrete), drawn(x.shape, x.dtype), x
    for i in range(len(times) - 1, 0, -1):
        said = eps(y, times[len(times) - 1 - i])
        x0 = (y - (1 - alpha_bar[i]).sqrt() * said) / alpha_bar[i].sqrt()
        s = eta * ((1 - alpha_bar[i - 1]) / (1 - alpha_bar[i]) * beta[i]).sqrt()
        y = alpha_bar[i - 1].sqrt() * x0 + (1 - alpha_bar[i - 1] - s**2).sqrt() * said + s * (noise() if eta else 0)
    plan = make_plan(SAMPLERS["ddim"](eta=eta), discrete, times=times)
    torch.testing.assert_close(sample(eps, plan, x, drawn(x.shape, x.dtype)), y, rtol=1e-11, atol=1e-12)


# --- one another ---


@pytest.mark.parametrize("end", [0.0, 0.001])
@pytest.mark.parametrize(
    ("one", "other"),
    [
        (SAMPLERS["ddim"](), SAMPLERS["dpmpp"](order=1)),
        (SAMPLERS["ddim"](eta=1.0), SAMPLERS["ddpm"](variance="small")),
        (SAMPLERS["dpmpp"](order=3), SAMPLERS["dpmpp"](order=3, lower_order_final=True)),  # 7 steps are fewer than 15
    ],
    ids=repr,
)
def test_two_ways_to_the_same_result(one: Sampler, other: Sampler, end: float, linear) -> None:
    x, times = start(torch.float64), [*GRID, end]
    paths = [
        torch.stack(
            list(trajectory(MIXTURE.eps(linear), make_plan(s, linear, times=times), x, drawn(x.shape, x.dtype)))
        )
        for s in (one, other)
    ]
    torch.testing.assert_close(*paths, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize(("steps", "lowers"), [(14, True), (15, False)])
def test_the_order_is_lowered_at_the_end_of_short_runs_only(steps, lowers, linear) -> None:
    def run(setting: bool | None) -> Tensor:
        plan = make_plan(SAMPLERS["dpmpp"](order=2, lower_order_final=setting), linear, calls=steps)
        return sample(MIXTURE.eps(linear), plan, start(torch.float64))

    assert torch.equal(run(None), run(lowers))
    assert not torch.allclose(run(None), run(not lowers))


@pytest.mark.parametrize("order", [1, 2, 3])
def test_the_corrector_of_unipc_is_not_idle(order, linear) -> None:
    plan = make_plan(SAMPLERS["unipc"](order=order), linear, calls=6)
    assert [row.corrected is not None for row in plan.rows] == [False] + [True] * 5
    plain = make_plan(SAMPLERS["dpmpp"](order=1), linear, calls=6)
    assert not torch.allclose(plan.coefficients(), plain.coefficients(), atol=1e-3)


@pytest.mark.parametrize(
    ("name", "options", "stochastic"),
    [
        ("ddpm", {}, True),
        ("ddim", {}, False),
        ("ddim", {"eta": 0.1}, True),
        ("dpmpp", {}, False),
        ("unipc", {}, False),
        ("heun", {}, False),
    ],
)
def test_who_draws_noise(name, options, stochastic, linear) -> None:
    assert make_plan(SAMPLERS[name](**options), linear, times=[1.0, 0.5, 0.0]).stochastic == stochastic
    assert not make_plan(SAMPLERS[name](**options), linear, times=[1.0, 0.0]).stochastic  # none in the last step


@pytest.mark.parametrize(
    ("name", "options", "says"),
    [
        ("ddim", {"eta": -0.1}, "eta of DDIM must be a number from 0 .* got -0.1"),
        ("ddim", {"eta": 1.5}, "eta of DDIM must be"),
        ("ddim", {"eta": float("nan")}, "eta of DDIM must be .* got nan"),
        ("ddim", {"eta": "0.5"}, "eta of DDIM must be .* got '0.5'"),
        ("ddpm", {"variance": "fixed_large"}, "variance of DDPM must be one of 'large', 'small', got 'fixed_large'"),
        ("dpmpp", {"order": 4}, "order of DPMSolverPP must be one of 1, 2, 3, got 4"),
        ("dpmpp", {"order": True}, "order of DPMSolverPP must be one of 1, 2, 3, got True"),
        ("dpmpp", {"lower_order_final": 1}, "lower_order_final of DPMSolverPP must be one of None, True, False, got 1"),
        ("unipc", {"order": 0}, "order of UniPC must be one of 1, 2, 3, got 0"),
    ],
)
def test_bad_options_are_named(name, options, says) -> None:
    with pytest.raises(ValueError, match=says):
        SAMPLERS[name](**options)


@pytest.mark.parametrize(
    ("calls", "to_zero", "says"),
    [
        (10, True, "calls of Heun must be odd in a run down to 0, got 10: take 9 or 11"),
        (9, False, "calls of Heun must be even in a run down to t > 0, got 9: take 8 or 10"),
        (1, False, "got 1: take 2$"),
    ],
)
def test_heun_names_the_nearest_numbers_of_calls(calls, to_zero, says) -> None:
    with pytest.raises(ValueError, match=says):
        SAMPLERS["heun"]().steps(calls, to_zero)


def test_heun_takes_two_calls_a_step_but_one_down_to_zero() -> None:
    assert SAMPLERS["heun"]().steps(9, True) == (2, 2, 2, 2, 1)
    assert SAMPLERS["heun"]().steps(8, False) == (2, 2, 2, 2)
