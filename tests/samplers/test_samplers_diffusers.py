"""The samplers against diffusers' own, on their grids, fed the same network and noise."""

import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DEISMultistepScheduler,
    DPMSolverMultistepScheduler,
    DPMSolverSinglestepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    FlowMatchLCMScheduler,
    HeunDiscreteScheduler,
    IPNDMScheduler,
    LCMScheduler,
    PNDMScheduler,
    UniPCMultistepScheduler,
)
from helpers import seeded
from torch import Tensor

from time_tuner import SAMPLERS, NoiseScheduleFlow, NoiseScheduleVP, Plan, make_plan, model_wrapper, sample, trajectory
from time_tuner.models.exact import Mixture
from time_tuner.samplers import Sampler, sampler_of

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


def times_of(nodes: list[int], last: int | None) -> list[float]:
    return [*((n + 1) / N for n in nodes), 0.0 if last is None else (last + 1) / N]


def diffusers_loop(scheduler: Any, schedule: NoiseScheduleVP, x: Tensor, **options: Any) -> Tensor:
    eps = MIXTURE.eps(schedule)
    for n in scheduler.timesteps:
        said = eps(scheduler.scale_model_input(x, n), (n.double() + 1) / N)
        x = scheduler.step(said, n, x, **options).prev_sample
    return x


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


@pytest.mark.parametrize("scaling", [10.0, 1e-3])
@pytest.mark.parametrize(("calls", "dtype"), [(1, DOUBLE), (4, DOUBLE), (4, SINGLE), (8, DOUBLE)])
def test_lcm_is_that_of_diffusers(calls, dtype, scaling, monkeypatch) -> None:
    """With the boundary condition f(x) = c_skip x + c_out x_0, which with the usual scaling of 10 is x_0 to 1e-7."""
    theirs = LCMScheduler(timestep_scaling=scaling)
    schedule, x = set_up(theirs, dtype), start(dtype)
    theirs.set_timesteps(calls)
    y, noise = x, drawn(x.shape, dtype)
    monkeypatch.setattr(sys.modules[LCMScheduler.__module__], "randn_tensor", lambda *_, **__: noise())

    def predicted(x: Tensor, n: Tensor) -> Tensor:
        return torch.tanh(x + n.to(x) / N)

    theirs.register_to_config(prediction_type="sample")
    for n in theirs.timesteps:
        y = theirs.step(predicted(y, n), n, y).prev_sample

    def bounded(x: Tensor, n: Tensor) -> Tensor:
        skip = 0.25 / ((scaling * n) ** 2 + 0.25)
        return skip[:, None].to(x) * x + (1 - skip).sqrt()[:, None].to(x) * predicted(x, n[:, None])

    plan = make_plan("lcm", schedule, times=times_of(theirs.timesteps.tolist(), None))
    model = model_wrapper(bounded, schedule, "x_start").bind()
    torch.testing.assert_close(sample(model, plan, x, drawn(x.shape, dtype)), y, rtol=0, atol=1e-6)


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_lcm_of_a_flow_is_that_of_diffusers(shift, monkeypatch) -> None:
    theirs = FlowMatchLCMScheduler(shift=shift)
    theirs.set_timesteps(sigmas=[1.0, 0.75, 0.5, 0.25])
    schedule, x = NoiseScheduleFlow(shift), start(SINGLE)
    y, noise = x, drawn(x.shape, SINGLE)
    monkeypatch.setattr(sys.modules[FlowMatchLCMScheduler.__module__], "randn_tensor", lambda *_, **__: noise())

    def velocity(x: Tensor, n: Tensor) -> Tensor:
        return torch.tanh(x + n.to(x).view(-1, 1) / 1000)

    for n in theirs.timesteps:
        y = theirs.step(velocity(y, n), n, y).prev_sample
    model, plan = model_wrapper(velocity, schedule, "flow").bind(), make_plan("lcm", schedule, 4)
    torch.testing.assert_close(sample(model, plan, x, drawn(x.shape, SINGLE)), y, rtol=0, atol=1e-5)


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
    """torch, with float64 by the name of float32: some schedulers cast their state to that."""

    float32 = torch.float64

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)


IN_SIGMA = (EulerDiscreteScheduler, EulerAncestralDiscreteScheduler, HeunDiscreteScheduler)  # their state is x / alpha


def plan_of(theirs: Any, schedule: NoiseScheduleVP, sampler: Sampler) -> Plan:
    """The run of a scheduler that goes by its `sigmas` (sigma / alpha here): at these, told its timesteps."""
    t = schedule.inverse_lambda(-theirs.sigmas.double().log()).clamp(0, 1)
    p = schedule.at(t)
    return Plan(sampler, schedule, t, p.alpha, p.sigma, (theirs.timesteps.double() + 1) / N)


def check(theirs: Any, sampler: Sampler, dtype: torch.dtype, monkeypatch: Any, calls: int) -> None:
    """Both run on the scheduler's grid, whose sigmas it rounds to float32, and then computes in `dtype`."""
    schedule, x = NoiseScheduleVP(alphas_cumprod=theirs.alphas_cumprod), start(dtype)
    theirs.set_timesteps(calls)
    plan = plan_of(theirs, schedule, sampler)
    if dtype == DOUBLE:
        sigmas = plan.sigma / plan.alpha
        torch.testing.assert_close(sigmas.float(), theirs.sigmas, rtol=1e-6, atol=0)
        theirs.sigmas = sigmas
        monkeypatch.setattr(sys.modules[type(theirs).__module__], "torch", InDouble())
    scaled = isinstance(theirs, IN_SIGMA)
    y, eps, theirs_draws = x / plan.alpha[0] if scaled else x, MIXTURE.eps(schedule), drawn(x.shape, dtype)
    options: dict[str, Any] = {}
    for n in theirs.timesteps:
        if isinstance(theirs, EulerAncestralDiscreteScheduler):
            options["generator"] = options.get("generator", torch.Generator().manual_seed(2))
        elif getattr(theirs.config, "algorithm_type", "").startswith("sde"):
            options["variance_noise"] = theirs_draws()
        y = theirs.step(eps(theirs.scale_model_input(y, n), (n.double() + 1) / N), n, y, **options).prev_sample
    assert_same(sample(eps, plan, x, drawn(x.shape, dtype)), y * plan.alpha[-1] if scaled else y)


# Below 15 steps diffusers lowers the order of multistep solvers at the end.
RUNS = [*((calls, DOUBLE) for calls in (2, 6, 14, 15, 25)), (6, SINGLE), (20, SINGLE)]
ENDS = pytest.mark.parametrize("end", ["zero", "sigma_min"])


@pytest.mark.parametrize(("calls", "dtype"), RUNS)
@pytest.mark.parametrize("order", [1, 2, 3])
@ENDS
def test_dpmpp_is_that_of_diffusers(order, calls, dtype, end, monkeypatch) -> None:
    theirs = DPMSolverMultistepScheduler(solver_order=order, final_sigmas_type=end)
    check(theirs, SAMPLERS["dpmpp"](order=order), dtype, monkeypatch, calls)


@pytest.mark.parametrize(("calls", "dtype"), RUNS)
@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.filterwarnings("ignore:.*dpmsolver.* is deprecated:FutureWarning")
def test_noise_prediction_is_that_of_diffusers(order, calls, dtype, monkeypatch) -> None:
    options = {"algorithm_type": "dpmsolver"}
    theirs = DPMSolverMultistepScheduler(solver_order=order, final_sigmas_type="sigma_min", **options)
    check(theirs, SAMPLERS["dpmpp"](order=order, **options), dtype, monkeypatch, calls)


@pytest.mark.parametrize(("calls", "dtype"), RUNS)
@pytest.mark.parametrize("order", [1, 2])
@ENDS
def test_sde_dpmpp_is_that_of_diffusers(order, calls, dtype, end, monkeypatch) -> None:
    theirs = DPMSolverMultistepScheduler(
        solver_order=order, final_sigmas_type=end, algorithm_type="sde-dpmsolver++", lower_order_final=True
    )
    check(theirs, SAMPLERS["sde_dpmpp"](order=order), dtype, monkeypatch, calls)


@pytest.mark.parametrize(
    ("calls", "dtype"), [*((calls, DOUBLE) for calls in (4, 5, 6, 7, 8, 9)), (9, SINGLE), (15, SINGLE)]
)
@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("dpmpp_single", {"final_sigmas_type": "zero"}),
        ("dpmpp_single", {"final_sigmas_type": "sigma_min"}),
        ("dpm", {"final_sigmas_type": "sigma_min", "algorithm_type": "dpmsolver"}),
    ],
)
@pytest.mark.filterwarnings("ignore:.*dpmsolver.* is deprecated:FutureWarning")
def test_singlestep_is_that_of_diffusers(name, options, order, calls, dtype, monkeypatch) -> None:
    if (name, order, calls, dtype) == ("dpm", 3, 9, SINGLE):
        pytest.skip("three steps of three calls: diffusers itself is 2e-5 from its own float64 there, by rounding")
    theirs = DPMSolverSinglestepScheduler(solver_order=order, **options)
    check(theirs, SAMPLERS[name](order=order, stage_weight="midpoint"), dtype, monkeypatch, calls)


@pytest.mark.parametrize(("calls", "dtype"), RUNS)
@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize(("solver_type", "end"), [("bh1", "sigma_min"), ("bh2", "sigma_min"), ("bh2", "zero")])
@pytest.mark.parametrize("corrector", [True, False])
def test_unipc_is_that_of_diffusers(order, solver_type, corrector, calls, dtype, end, monkeypatch) -> None:
    theirs = UniPCMultistepScheduler(
        solver_order=order,
        solver_type=solver_type,
        final_sigmas_type=end,
        disable_corrector=[] if corrector else list(range(calls)),
    )
    ours = SAMPLERS["unipc"](order=order, solver_type=solver_type, corrector=corrector)
    check(theirs, ours, dtype, monkeypatch, calls)


def test_unipc_with_bh1_goes_to_sigma_0_where_diffusers_does_not() -> None:
    """B(h) = -h is infinite there: diffusers multiplies it by the 0 that is left; the step is x0."""
    theirs, x = UniPCMultistepScheduler(solver_type="bh1", final_sigmas_type="zero"), start(DOUBLE)
    schedule = set_up(theirs, DOUBLE)
    theirs.set_timesteps(4)
    assert diffusers_loop(theirs, schedule, x).isnan().all()
    plan = make_plan(SAMPLERS["unipc"](solver_type="bh1"), schedule, times=times_of(theirs.timesteps.tolist(), None))
    assert plan.rows[-1].next_state.terms == (("x", 0), ("eps", 0))
    assert sample(MIXTURE.eps(schedule), plan, x).isfinite().all()


@pytest.mark.parametrize(("calls", "dtype"), RUNS)
@pytest.mark.parametrize("order", [1, 2, 3])
def test_deis_is_that_of_diffusers(order, calls, dtype, monkeypatch) -> None:
    check(DEISMultistepScheduler(solver_order=order), SAMPLERS["deis"](order=order), dtype, monkeypatch, calls)


@pytest.mark.parametrize("dtype", [DOUBLE, SINGLE])
@pytest.mark.parametrize(
    ("sampler", "kind", "options"),
    [
        (sampler, kind, options)
        for sampler, kind in zip(("ddim(eta=0)", "ddim(eta=1)", "heun"), IN_SIGMA, strict=True)
        for options in ({}, {"timestep_spacing": "trailing"}, {"use_karras_sigmas": True})
        if kind is not EulerAncestralDiscreteScheduler or "use_karras_sigmas" not in options  # it has no such option
    ],
)
def test_samplers_in_sigma_are_those_of_diffusers(sampler, kind, options, dtype, monkeypatch) -> None:
    # Between levels they interpolate sigma, not log alpha; Karras's sigmas have levels of their own.
    theirs = kind(beta_start=1e-4, beta_end=0.02, **options)
    check(theirs, sampler_of(sampler), dtype, monkeypatch, calls=8)


@pytest.mark.parametrize("dtype", [DOUBLE, SINGLE])
@pytest.mark.parametrize("skip", [True, False])
@pytest.mark.parametrize("steps", [5, 10, 20])
def test_pndm_is_that_of_diffusers(steps, skip, dtype) -> None:
    theirs = PNDMScheduler(skip_prk_steps=skip, steps_offset=1)
    schedule, x = set_up(theirs, dtype), start(dtype)
    theirs.final_alpha_cumprod = theirs.final_alpha_cumprod.to(dtype)
    theirs.set_timesteps(steps)
    t = torch.tensor(times_of(theirs.timesteps.tolist(), 0), dtype=torch.float64)
    p = schedule.at(t)
    plan = Plan(SAMPLERS["pndm"](skip_prk_steps=skip), schedule, t, p.alpha, p.sigma, t[:-1])
    assert_same(sample(MIXTURE.eps(schedule), plan, x), diffusers_loop(theirs, schedule, x))


@pytest.mark.parametrize("dtype", [DOUBLE, SINGLE])
@pytest.mark.parametrize("times", [None, [0.95, 0.7, 0.52, 0.3, 0.2, 0.1, 0.02]], ids=["own", "given"])
def test_ipndm_is_that_of_diffusers(times, dtype, linear) -> None:
    theirs, x = IPNDMScheduler(trained_betas=None if times is None else linear.at(times).sigma.tolist()), start(dtype)
    theirs.set_timesteps(8 if times is None else len(times) - 1)
    theirs.betas = theirs.betas.to(dtype)
    theirs.alphas = (1 - theirs.betas**2).sqrt()
    # Its own grid begins at alpha = 0, where what it multiplies by infinity is 0: here at the point after that.
    first = 0 if times is not None else 1
    theirs.set_begin_index(first)
    t = linear.inverse_lambda((theirs.alphas / theirs.betas).double().log())[first:].clamp(0, 1)
    plan = Plan(SAMPLERS["ipndm"](), linear, t, linear.at(t).alpha, linear.at(t).sigma, t[:-1])
    y, states, ours = x, [], list(trajectory(MIXTURE.eps(linear), plan, x))
    for k, n in enumerate(theirs.timesteps[first:]):
        sigma, alpha = theirs.betas[first + k], theirs.alphas[first + k]
        v = (MIXTURE.eps(linear)(y, plan.t[k]) - sigma * y) / alpha  # what it takes its input for
        y = theirs.step(v, n, y).prev_sample
        states.append(y)
    # Its own grid ends at sigma = 0, where the step here is x0, and there still the multistep one.
    last = len(states) - (times is None)
    assert_same(torch.stack(ours[:last]), torch.stack(states[:last]))


def test_ddim_of_every_level_is_that_of_diffusers() -> None:
    theirs, x = DDIMScheduler(clip_sample=False), start(DOUBLE)
    schedule = set_up(theirs, DOUBLE)
    theirs.set_timesteps(N)
    plan = make_plan("ddim", schedule, calls=N, spacing="trailing")
    assert_same(sample(MIXTURE.eps(schedule), plan, x), diffusers_loop(theirs, schedule, x))
