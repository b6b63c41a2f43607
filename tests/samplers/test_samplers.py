"""The samplers against formulas written from the papers, and against one another."""

from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from helpers import seeded
from torch import Tensor

from time_tuner import SAMPLERS, NoiseScheduleVP, make_plan, sample, trajectory
from time_tuner.models.exact import Mixture
from time_tuner.samplers import Sampler
from time_tuner.sampling import coefficients

MIXTURE = Mixture(seeded(4, 6), std=0.5)


def start(dtype: torch.dtype) -> Tensor:
    return seeded(16, 6, seed=1, dtype=dtype)


def drawn(shape: torch.Size, dtype: torch.dtype, seed: int = 2) -> Callable[..., Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return lambda *_: torch.randn(shape, generator=generator, dtype=dtype)


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
def test_lcm_is_multistep_consistency_sampling_on_any_grid(end, discrete) -> None:
    eps, times = MIXTURE.eps(discrete), [*GRID, end]
    x = start(torch.float64)
    noise, y = drawn(x.shape, x.dtype), x
    for t, next_t in pairwise(times):
        p, q = discrete.at(t), discrete.at(next_t)
        y = q.alpha * (y - p.sigma * eps(y, t)) / p.alpha
        if q.sigma > 0:
            y = y + q.sigma * noise()
    plan = make_plan("lcm", discrete, times=times)
    torch.testing.assert_close(sample(eps, plan, x, drawn(x.shape, x.dtype)), y, rtol=1e-11, atol=1e-12)


def test_dpm_of_order_3_is_algorithm_2(discrete) -> None:
    eps, times, y = MIXTURE.eps(discrete), GRID, start(torch.float64)
    for t, next_t in pairwise(times):
        p, q = discrete.at(t), discrete.at(next_t)
        h = q.lam - p.lam
        one, two = (discrete.at(discrete.inverse_lambda(p.lam + r * h)) for r in (1 / 3, 2 / 3))
        at_p = eps(y, t)
        u = one.alpha / p.alpha * y - one.sigma * torch.expm1(h / 3) * at_p
        d1 = eps(u, one.t) - at_p
        u = two.alpha / p.alpha * y - two.sigma * torch.expm1(2 / 3 * h) * at_p
        u = u - two.sigma * 2 * (torch.expm1(2 / 3 * h) / (2 / 3 * h) - 1) * d1
        d2 = eps(u, two.t) - at_p
        y = q.alpha / p.alpha * y - q.sigma * torch.expm1(h) * at_p - q.sigma * 1.5 * (torch.expm1(h) / h - 1) * d2
    plan = make_plan("dpm(order=3)", discrete, times=times)
    torch.testing.assert_close(sample(eps, plan, start(torch.float64)), y, rtol=1e-9, atol=1e-10)


def test_lcm_runs_on_the_grid_of_its_training(discrete) -> None:
    """Down to sigma = 0, where no noise is added."""
    plan = make_plan("lcm", discrete, 4)
    assert torch.equal(plan.t, make_plan("ddim", discrete, 4, "trailing").t) and plan.sigma[-1] == 0
    assert [row.uses_noise for row in plan.rows] == [True, True, True, False]


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
        (SAMPLERS["ddim"](), SAMPLERS["dpm"](order=1)),
        (SAMPLERS["ddim"](), SAMPLERS["dpmpp"](order=1, algorithm_type="dpmsolver")),
        (SAMPLERS["ddim"](), SAMPLERS["dpmpp_single"](order=1)),
        (SAMPLERS["ddim"](), SAMPLERS["unipc"](order=1, corrector=False)),
        (SAMPLERS["ddim"](), SAMPLERS["deis"](order=1)),
        (SAMPLERS["ddim"](), SAMPLERS["ipndm"](order=1)),
        (SAMPLERS["ddim"](eta=1.0), SAMPLERS["sde_dpmpp"](order=1)),
        (SAMPLERS["unipc"](corrector=False), SAMPLERS["dpmpp"](order=2)),
        (SAMPLERS["unipc"](order=3, corrector=False), SAMPLERS["dpmpp"](order=3, third_order_weight="taylor")),
    ],
    ids=repr,
)
def test_two_formulas_have_the_same_result(one: Sampler, other: Sampler, end: float, linear) -> None:
    x, times = start(torch.float64), [*GRID, end]
    paths = [
        torch.stack(
            list(trajectory(MIXTURE.eps(linear), make_plan(s, linear, times=times), x, drawn(x.shape, x.dtype)))
        )
        for s in (one, other)
    ]
    torch.testing.assert_close(*paths, rtol=1e-11, atol=1e-12)


def test_the_taylor_weight_of_third_order_is_that_of_the_integral(linear) -> None:
    """Of the polynomial through three predictions, which is what DEIS takes; the published one is half of it."""
    options = {"order": 3, "algorithm_type": "dpmsolver"}
    deis, full, published = (
        make_plan(sampler, linear, times=GRID).rows[3].next_state.weights
        for sampler in (
            SAMPLERS["deis"](order=3),
            SAMPLERS["dpmpp"](**options, third_order_weight="taylor"),
            SAMPLERS["dpmpp"](**options),
        )
    )
    torch.testing.assert_close(deis, full, rtol=1e-11, atol=1e-12)
    assert not torch.allclose(deis, published, atol=1e-3)
    # To three points of a parabola in lam: its integral, by quadrature.
    lam, q = linear.at(GRID).lam, linear.at(GRID[4])
    nodes = torch.linspace(0, 1, 200_001, dtype=torch.float64) * (q.lam - lam[3]) + lam[3]
    integral = -torch.trapezoid(torch.exp(-nodes) * nodes**2, nodes)  # drho = -e^{-lam} dlam
    terms = make_plan(SAMPLERS["deis"](order=3), linear, times=GRID).rows[3].next_state.terms
    got = sum(w * lam[3 - ago] ** 2 for (what, ago), w in zip(terms, deis, strict=True) if what == "eps")
    torch.testing.assert_close(got, q.alpha * integral, rtol=1e-8, atol=0)


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
    assert not torch.allclose(coefficients(plan), coefficients(plain), atol=1e-3)


@pytest.mark.parametrize(
    ("name", "options", "stochastic"),
    [
        ("ddpm", {}, True),
        ("ddim", {}, False),
        ("ddim", {"eta": 0.1}, True),
        ("dpmpp", {}, False),
        ("unipc", {}, False),
        ("sde_dpmpp", {}, True),
        *((name, {}, False) for name in ("heun", "dpm", "dpmpp_single", "deis", "ipndm", "pndm")),
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
        ("ddpm", {"variance": "fixed_large"}, "variance of DDPM must be one of large, small, got 'fixed_large'"),
        ("dpmpp", {"order": 4}, "order of DPMSolverPP must be one of 1, 2, 3, got 4"),
        ("dpmpp", {"order": True}, "order of DPMSolverPP must be one of 1, 2, 3, got True"),
        ("dpmpp", {"lower_order_final": 1}, "lower_order_final of DPMSolverPP must be one of None, True, False, got 1"),
        (
            "dpmpp",
            {"algorithm_type": "sde"},
            "algorithm_type of DPMSolverPP must be one of dpmsolver\\+\\+, dpmsolver, got 'sde'",
        ),
        (
            "dpmpp",
            {"third_order_weight": 2},
            "third_order_weight of DPMSolverPP must be one of published, taylor, got 2",
        ),
        ("sde_dpmpp", {"order": 3}, "order of SDEDPMSolverPP must be one of 1, 2, got 3"),
        ("dpm", {"order": 4}, "order of DPMSolver must be one of 1, 2, 3, got 4"),
        (
            "dpm",
            {"stage_weight": "heun"},
            "stage_weight of DPMSolver must be one of taylor, midpoint, got 'heun'",
        ),
        ("unipc", {"order": 0}, "order of UniPC must be one of 1, 2, 3, got 0"),
        (
            "unipc",
            {"solver_type": "bh3"},
            "solver_type of UniPC must be one of bh1, bh2, got 'bh3': did you mean 'bh2'",
        ),
        ("unipc", {"corrector": 1}, "corrector of UniPC must be one of True, False, got 1"),
        ("deis", {"order": 4}, "order of DEIS must be one of 1, 2, 3, got 4"),
        ("deis", {"lower_order_final": 0}, "lower_order_final of DEIS must be one of None, True, False, got 0"),
        ("ipndm", {"order": 5}, "order of IPNDM must be one of 1, 2, 3, 4, got 5"),
        ("pndm", {"skip_prk_steps": None}, "skip_prk_steps of PNDM must be one of True, False, got None"),
    ],
)
def test_bad_options_are_named(name, options, says) -> None:
    with pytest.raises(ValueError, match=says):
        SAMPLERS[name](**options)


@pytest.mark.parametrize(
    ("sampler", "calls", "to_zero", "says"),
    [
        (SAMPLERS["heun"](), 10, True, "calls of Heun must be odd in a run down to 0, got 10: take 9 or 11"),
        (SAMPLERS["heun"](), 9, False, "calls of Heun must be even in a run down to t > 0, got 9: take 8 or 10"),
        (SAMPLERS["heun"](), 1, False, "got 1: take 2$"),
        (SAMPLERS["pndm"](), 2, True, "calls of PNDM must be 1 or at least 3 in a run down to 0, got 2: take 3$"),
        (
            SAMPLERS["pndm"](skip_prk_steps=False),
            11,
            False,
            "calls of PNDM must be 1 or at least 12 in a run down to t > 0, got 11: take 12, or skip_prk_steps=True",
        ),
    ],
)
def test_numbers_of_calls_that_will_not_do_are_named(sampler, calls, to_zero, says) -> None:
    with pytest.raises(ValueError, match=says):
        sampler.steps(calls, to_zero)


@pytest.mark.parametrize(
    ("sampler", "calls", "to_zero", "steps"),
    [
        (SAMPLERS["dpm"](order=3), 9, False, (3, 3, 3)),
        (SAMPLERS["dpm"](order=3), 8, False, (3, 3, 2)),
        (SAMPLERS["dpm"](order=3), 7, False, (3, 3, 1)),
        (SAMPLERS["dpm"](order=3), 9, True, (3, 3, 2, 1)),
        (SAMPLERS["dpm"](order=3), 7, True, (3, 3, 1)),
        (SAMPLERS["dpm"](order=3), 1, True, (1,)),
        (SAMPLERS["dpm"](order=2), 6, True, (2, 2, 1, 1)),
        (SAMPLERS["dpmpp_single"](), 5, False, (2, 2, 1)),
        (SAMPLERS["pndm"](), 1, True, (1,)),
        (SAMPLERS["pndm"](), 2, False, (2,)),
        (SAMPLERS["pndm"](), 6, True, (2, 1, 1, 1, 1)),
        (SAMPLERS["pndm"](skip_prk_steps=False), 14, False, (4, 4, 4, 1, 1)),
    ],
)
def test_calls_of_each_step(sampler, calls, to_zero, steps, linear) -> None:
    assert sampler.steps(calls, to_zero) == steps
    times = torch.linspace(1, 0 if to_zero else 0.1, len(steps) + 1)
    assert make_plan(sampler, linear, calls=calls, times=times).steps == steps


def test_steps_that_are_given_are_of_full_order(linear) -> None:
    assert make_plan(SAMPLERS["dpm"](order=3), linear, times=[1.0, 0.5, 0.2]).steps == (3, 3)
    assert make_plan(SAMPLERS["dpm"](order=3), linear, times=[1.0, 0.5, 0.2, 0.0]).steps == (3, 3, 1)


@pytest.mark.parametrize("name", ["dpm", "dpmpp_single"])
@pytest.mark.parametrize("calls", [4, 5])
def test_a_last_step_of_order_2_is_that_of_the_solver_of_order_2(name, calls, linear) -> None:
    """3, 1 and 3, 2 calls: the last step alone, from where the first one ends."""
    times = [0.9, 0.6, 0.3]
    sampler = SAMPLERS[name](order=3, stage_weight="midpoint")
    plan, x = make_plan(sampler, linear, calls=calls, times=times), start(torch.float64)
    states = list(trajectory(MIXTURE.eps(linear), plan, x))
    alone = make_plan(SAMPLERS[name](order=calls - 3), linear, times=times[1:])
    torch.testing.assert_close(sample(MIXTURE.eps(linear), alone, states[2]), states[-1])


def test_heun_takes_two_calls_a_step_but_one_down_to_zero() -> None:
    assert SAMPLERS["heun"]().steps(9, True) == (2, 2, 2, 2, 1)
    assert SAMPLERS["heun"]().steps(8, False) == (2, 2, 2, 2)
