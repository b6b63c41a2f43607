import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler
from hypothesis import given
from hypothesis import strategies as st

from time_tuner import SAMPLERS as SAMPLER_TABLE
from time_tuner import SCHEDULES as SCHEDULE_TABLE
from time_tuner import (
    SPACINGS,
    NoiseScheduleFlow,
    NoiseScheduleVE,
    NoiseScheduleVP,
    Plan,
    exact,
    make_plan,
    named_betas,
    rescale_zero_terminal_snr,
    sample,
    schedule_from,
    tune,
)
from time_tuner.schedules import NoiseSchedule, Point, as_float64, schedule_from_dict

SHORT = [0.01, 0.05, 0.2, 0.4]
SCHEDULES = {
    "discrete": NoiseScheduleVP(betas=torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)),
    "short": NoiseScheduleVP(betas=SHORT),
    "linear": NoiseScheduleVP("linear"),
    "constant": NoiseScheduleVP("linear", continuous_beta_0=2.0, continuous_beta_1=2.0),
    "cosine": NoiseScheduleVP("cosine"),
}
each = pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES.keys())


def test_discrete_is_exact_at_the_levels_and_log_linear_between() -> None:
    schedule = NoiseScheduleVP(betas=SHORT)
    alpha = np.sqrt(np.cumprod(1 - np.array(SHORT)))
    np.testing.assert_allclose(schedule.at([0.25, 0.5, 0.75, 1.0]).alpha, alpha, rtol=1e-15)
    middle = np.sqrt(np.concatenate([[1.0], alpha[:-1]]) * alpha)  # of the logarithms; the first with alpha(0) = 1
    np.testing.assert_allclose(schedule.at([0.125, 0.375, 0.625, 0.875]).alpha, middle, rtol=1e-15)


def test_linear_is_the_integral_of_its_beta() -> None:
    schedule, t = NoiseScheduleVP("linear", continuous_beta_0=0.3, continuous_beta_1=7.0), 0.8
    s = (torch.arange(2000, dtype=torch.float64) + 0.5) * t / 2000  # the midpoint rule is exact for a linear beta
    integral = (0.3 + s * (7.0 - 0.3)).mean() * t
    assert float(schedule.at(t).alpha) == pytest.approx(math.exp(-0.5 * integral), rel=1e-13)


def test_cosine_has_its_closed_form() -> None:
    schedule, s = NoiseScheduleVP("cosine"), 0.008
    for t in (0.1, 0.5, 0.99):
        alpha = math.cos(math.pi / 2 * (t + s) / (1 + s)) / math.cos(math.pi / 2 * s / (1 + s))
        assert float(schedule.at(t).alpha) == pytest.approx(alpha, rel=1e-13)


@each
@given(data=st.data())
def test_variance_is_preserved_and_lambda_is_inverted(schedule: NoiseScheduleVP, data: st.DataObject) -> None:
    t = data.draw(st.floats(1e-4, schedule.T))
    p = schedule.at(t)
    assert float(p.alpha**2 + p.sigma**2) == pytest.approx(1, abs=1e-15)
    assert float(p.lam) == pytest.approx(float(torch.log(p.alpha / p.sigma)), abs=1e-13)
    assert float(schedule.inverse_lambda(p.lam)) == pytest.approx(t, rel=1e-9)


@given(betas=st.lists(st.floats(1e-6, 0.999), min_size=1, max_size=30))
def test_any_levels_give_a_falling_lambda_that_is_inverted(betas: list[float]) -> None:
    schedule = NoiseScheduleVP(betas=betas)
    t = torch.linspace(0.01, 1, 50, dtype=torch.float64)
    lam = schedule.at(t).lam
    assert (lam.diff() < 0).all()
    torch.testing.assert_close(schedule.inverse_lambda(lam), t, rtol=1e-7, atol=0)


@each
def test_no_noise_at_time_zero(schedule: NoiseScheduleVP) -> None:
    t = torch.tensor([0.0, 0.3], dtype=torch.float64, requires_grad=True)
    p = schedule.at(t)
    assert [float(value.detach()[0]) for value in (p.alpha, p.sigma, p.lam)] == [1, 0, math.inf]
    for value in (p.alpha, p.sigma):
        (gradient,) = torch.autograd.grad(value.sum(), t, retain_graph=True)
        assert gradient.isfinite().all() and gradient[1] != 0
    assert torch.autograd.grad(p.sigma[0], t)[0][0] == 0


@each
def test_gradients_to_time_are_those_of_finite_differences(schedule: NoiseScheduleVP) -> None:
    t = torch.tensor([0.1103, 0.4607, 0.8301], dtype=torch.float64, requires_grad=True)  # between the levels
    assert torch.autograd.gradcheck(lambda t: (schedule.at(t).alpha, schedule.at(t).sigma, schedule.at(t).lam), (t,))
    assert torch.autograd.gradcheck(lambda t: schedule.inverse_lambda(schedule.at(t).lam), (t,))


@each
def test_marginals_are_the_point_in_the_schedules_dtype(schedule: NoiseScheduleVP) -> None:
    t, p = [0.2, 0.7], schedule.at([0.2, 0.7])
    marginals = (
        schedule.marginal_log_mean_coeff,
        schedule.marginal_alpha,
        schedule.marginal_std,
        schedule.marginal_lambda,
    )
    for marginal, expected in zip(marginals, (p.alpha.log(), p.alpha, p.sigma, p.lam), strict=True):
        torch.testing.assert_close(marginal(t), expected, rtol=1e-13, atol=1e-15)
    single = NoiseScheduleVP("linear", dtype=torch.float32)
    assert single.marginal_lambda(0.5).dtype == single.inverse_lambda(0.1).dtype == torch.float32
    assert single.at(0.5).alpha.dtype == torch.float64


@pytest.mark.parametrize("kind", ["linear", "scaled_linear", "squaredcos_cap_v2"])
def test_agrees_with_diffusers(kind: str) -> None:
    theirs = DDPMScheduler(beta_schedule=kind)
    schedule = NoiseScheduleVP(betas=theirs.betas)
    nodes = (torch.arange(1000, dtype=torch.float64) + 1) / 1000
    # Theirs is a product of 1000 factors, each rounded to float32.
    rounding = 1000 * torch.finfo(torch.float32).eps
    torch.testing.assert_close(schedule.at(nodes).alpha ** 2, theirs.alphas_cumprod.double(), rtol=rounding, atol=0)
    exact = NoiseScheduleVP(alphas_cumprod=theirs.alphas_cumprod)
    torch.testing.assert_close(exact.at(nodes).alpha ** 2, theirs.alphas_cumprod.double(), rtol=1e-14, atol=0)


@pytest.mark.parametrize("container", [list, tuple, np.array, torch.tensor, lambda b: np.array(b, dtype=np.float32)])
def test_levels_come_in_any_container(container) -> None:
    got, expected = NoiseScheduleVP(betas=container(SHORT)), NoiseScheduleVP(betas=SHORT)
    torch.testing.assert_close(got.at(0.6).alpha, expected.at(0.6).alpha, rtol=1e-7, atol=0)
    assert (got.total_N, got.t_min, got.T) == (4, 0.25, 1.0)
    cumulative = NoiseScheduleVP(alphas_cumprod=container(np.cumprod(1 - np.array(SHORT)).tolist()))
    torch.testing.assert_close(cumulative.at(0.6).alpha, expected.at(0.6).alpha, rtol=1e-7, atol=0)


@pytest.mark.parametrize(
    "schedule", [*SCHEDULES.values(), NoiseScheduleVP(alphas_cumprod=np.array([0.9, 0.5], dtype=np.float32))], ids=repr
)
def test_json_round_trip(schedule: NoiseScheduleVP) -> None:
    again = schedule_from_dict(json.loads(json.dumps(schedule.to_dict())))
    assert again == schedule
    assert torch.equal(again.at(0.3).sigma, schedule.at(0.3).sigma)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"schedule": "quadratic"}, "schedule must be 'discrete', 'linear' or 'cosine', got 'quadratic'"),
        ({}, "needs either betas= or alphas_cumprod="),
        ({"betas": [0.1], "alphas_cumprod": [0.9]}, "needs either betas= or alphas_cumprod="),
        ({"schedule": "linear", "betas": [0.1]}, "belong to schedule='discrete'"),
        ({"betas": [0.1, math.nan]}, "betas must be finite, got nan"),
        ({"betas": [0.1, math.inf]}, "betas must be finite, got inf"),
        ({"betas": [0.1, 0.0]}, r"betas must lie in \(0, 1\), got 0.0 at level 1"),
        ({"betas": [1.0, 0.1]}, r"betas must lie in \(0, 1\), got 1.0 at level 0"),
        ({"betas": []}, r"betas must have shape \(N,\)"),
        ({"betas": 0.1}, r"betas must have shape \(N,\) with N >= 1, got \(\)"),
        ({"betas": [[0.1], [0.2]]}, r"betas must have shape .* got \(2, 1\)"),
        ({"betas": "0.1"}, "betas must be N numbers, got str"),
        ({"betas": [0.1, None]}, "betas must be N numbers, got list"),
        ({"alphas_cumprod": [0.9, 0.9]}, "alphas_cumprod must lie in .* and fall .* got 0.9 at level 1"),
        ({"alphas_cumprod": [0.9, 1.0]}, "alphas_cumprod must lie in"),
        ({"schedule": "linear", "continuous_beta_0": 0.0}, "continuous_beta_0 and continuous_beta_1 must satisfy"),
        ({"schedule": "linear", "continuous_beta_1": math.inf}, "continuous_beta_0 and continuous_beta_1 must satisfy"),
    ],
)
def test_bad_values_are_named(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        NoiseScheduleVP(**options)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"name": "vx"}, r"schedule name must be one of vp, ve, flow, got 'vx'"),
        ({"schedule": "linear"}, "got None"),
        ({"name": "vp", "gammas": [1]}, "schedule 'vp' does not take these values: .*gammas"),
        ({"name": "vp", "schedule": "linear", "continuous_beta_0": "a"}, "does not take these values"),
    ],
)
def test_bad_dictionaries_are_named(values: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        schedule_from_dict(values)


# --- what schedules answer ---

ZERO = NoiseScheduleVP(alphas_cumprod=rescale_zero_terminal_snr(named_betas("scaled_linear")))
OTHERS = {"zero": ZERO, "flow": NoiseScheduleFlow(3.0), "flow of sigma": NoiseScheduleFlow(scale=1.0)}
OTHERS |= {"ve": NoiseScheduleVE(), "ve of sigma": NoiseScheduleVE(network_input="sigma")}
every = pytest.mark.parametrize("schedule", [*SCHEDULES.values(), *OTHERS.values()], ids=[*SCHEDULES, *OTHERS])


@every
def test_network_time_and_sigma_ratio_are_inverted(schedule: NoiseSchedule) -> None:
    t = torch.linspace(schedule.t_min, schedule.T, 9, dtype=torch.float64)
    torch.testing.assert_close(schedule.from_network_time(schedule.network_time(t)), t, rtol=1e-12, atol=0)
    sigma = schedule.sigma_ratio(t)
    assert (sigma.diff() > 0).all()
    torch.testing.assert_close(schedule.from_sigma_ratio(sigma), t, rtol=1e-9, atol=0)  # also an infinite one
    assert schedule.from_sigma_ratio([0.0]).tolist() == [0]
    assert schedule.sigma_ratio(0.0) == 0


@every
def test_sigma_is_counted_as_in_diffusers(schedule: NoiseSchedule) -> None:
    """As sigma / alpha, where alpha is divided out of the state; in a flow as sigma itself."""
    p = schedule.at(schedule.T / 3)
    flow = isinstance(schedule, NoiseScheduleFlow)
    assert float(schedule.sigma_ratio(p.t)) == pytest.approx(float(p.sigma if flow else p.sigma / p.alpha), rel=1e-14)


@every
def test_even_times_are_even_and_end_exactly(schedule: NoiseSchedule) -> None:
    even = torch.log if isinstance(schedule, NoiseScheduleVE) else torch.sqrt
    high, low = 0.83 * schedule.T, max(0.31 * schedule.T, schedule.t_min)
    for start, end in ((None, None), (high, None), (None, low), (high, low)):
        times = schedule.even_times(5, start, end)
        ends = (schedule.T if start is None else start, schedule.t_min if end is None else end)
        assert (float(times[0]), float(times[-1])) == ends
        steps = even(times).diff()
        torch.testing.assert_close(steps, steps.mean().expand(5), rtol=1e-9, atol=0)
    assert schedule.even_times(6, end=0.0).tolist() == [*schedule.even_times(5).tolist(), 0]
    assert schedule.even_times(1, end=0.0).tolist() == [schedule.T, 0]


DRIVEN = [SCHEDULES["discrete"], SCHEDULES["short"], ZERO, *(OTHERS[name] for name in OTHERS if name != "ve of sigma")]


@pytest.mark.parametrize("schedule", DRIVEN, ids=repr)
def test_the_scheduler_config_describes_the_schedule(schedule: NoiseSchedule) -> None:
    again = schedule_from(json.loads(json.dumps(schedule.scheduler_config())))
    t = torch.linspace(0.05, 1, 20, dtype=torch.float64)
    torch.testing.assert_close(again.at(t).alpha, schedule.at(t).alpha, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(again.network_time(t), schedule.network_time(t))
    assert again.levels == schedule.levels


@pytest.mark.parametrize("schedule", [SCHEDULES["linear"], SCHEDULES["cosine"]], ids=repr)
def test_pipelines_are_not_driven_in_continuous_time(schedule: NoiseSchedule) -> None:
    with pytest.raises(ValueError, match=r"discrete betas or as a rectified flow, got NoiseScheduleVP.*`sample`"):
        schedule.scheduler_config()


def test_pipelines_are_not_driven_where_the_network_receives_sigma() -> None:
    with pytest.raises(ValueError, match=r"networks of pipelines receive log\(sigma\) / 4 .*, got NoiseScheduleVE"):
        NoiseScheduleVE(network_input="sigma").scheduler_config()


def test_a_flow_has_one_of_three_network_inputs() -> None:
    t = torch.linspace(0.05, 1, 20, dtype=torch.float64)
    for name in ("sigma", "t", "1 - sigma"):
        schedule = NoiseScheduleFlow(3.0, 10.0, name)
        torch.testing.assert_close(schedule.from_network_time(schedule.network_time(t)), t)
    plain, unshifted, inverted = (NoiseScheduleFlow(3.0, 10.0, name) for name in ("sigma", "t", "1 - sigma"))
    torch.testing.assert_close(plain.network_time(t), 10 - inverted.network_time(t))
    torch.testing.assert_close(unshifted.network_time(t), 10 * t)
    with pytest.raises(ValueError, match="network_input must be one of sigma, t, 1 - sigma, got 'x'"):
        NoiseScheduleFlow(network_input="x")


def test_a_schedule_without_levels_has_no_limit_of_calls() -> None:
    assert len(make_plan("ddim", NoiseScheduleVE(), 1500)) == 1500
    with pytest.raises(ValueError, match="at most the schedule's 1000 trained noise levels, got 1500"):
        make_plan("ddim", NoiseScheduleFlow(), 1500)


# --- a new schedule is one class and one entry ---


@dataclass(frozen=True)
class PowerLaw(NoiseSchedule):
    """alpha = 1 - t^power, variance-preserving; `end` is T, where alpha may be 0."""

    power: float = 2.0
    end: float = 1.0

    @property
    def T(self) -> float:
        return self.end

    @property
    def t_min(self) -> float:
        return 0.01

    def at(self, t: Any) -> Point:
        t = as_float64(t)
        alpha = 1 - t**self.power
        return Point(t, alpha, torch.sqrt(1 - alpha**2))

    def inverse_lambda(self, lam: Any) -> torch.Tensor:
        return (1 - torch.sqrt(torch.sigmoid(2 * as_float64(lam)))) ** (1 / self.power)

    def network_time(self, t: Any) -> torch.Tensor:
        return as_float64(t)

    def from_network_time(self, time: Any) -> torch.Tensor:
        return as_float64(time)

    def to_dict(self) -> dict[str, Any]:
        return {"name": "power", **asdict(self)}


@dataclass(frozen=True)
class PowerLevels(PowerLaw):
    """The same of a network with 30 levels."""

    @property
    def levels(self) -> int:
        return 30

    def to_dict(self) -> dict[str, Any]:
        return {"name": "levels", **asdict(self)}


NEW = [PowerLaw(), PowerLaw(3.0, 0.9), PowerLevels(2.0, 0.9)]


@pytest.fixture
def entered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SCHEDULE_TABLE, "power", PowerLaw)
    monkeypatch.setitem(SCHEDULE_TABLE, "levels", PowerLevels)


@pytest.mark.usefixtures("entered")
@pytest.mark.parametrize("schedule", NEW, ids=repr)
@pytest.mark.parametrize("sampler", SAMPLER_TABLE)
def test_a_new_schedule_is_planned_saved_and_sampled(sampler: str, schedule: NoiseSchedule, tmp_path: Path) -> None:
    model = exact.Gaussian([0.3, -0.2], [0.5, 1.2])
    plan = make_plan(sampler, schedule, 24)
    plan.save(tmp_path / "plan.json")
    again = Plan.load(tmp_path / "plan.json")
    assert again == plan and again.schedule == schedule
    x = torch.randn(2000, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    end = sample(model.eps(schedule), again, again.initial_state(x))
    torch.testing.assert_close(end.mean(0), model.mean, rtol=0, atol=0.1)
    if plan.sampler.convergence:  # a sampler of distilled models loses deviation with other networks
        torch.testing.assert_close(end.std(0), model.std, rtol=0.2, atol=0)


@pytest.mark.usefixtures("entered")
@pytest.mark.parametrize("schedule", NEW, ids=repr)
@pytest.mark.parametrize("spacing", sorted(SPACINGS.keys() - {"ays"}))
def test_a_new_schedule_has_every_spacing(spacing: str, schedule: NoiseSchedule) -> None:
    if schedule.levels is None and spacing in ("linspace", "leading", "trailing"):
        with pytest.raises(ValueError, match="has no noise levels to choose from"):
            make_plan("ddim", schedule, 5, spacing)
        return
    times = make_plan("ddim", schedule, 5, spacing).t
    assert (times.diff() < 0).all() and float(times[-2]) >= schedule.t_min


@pytest.mark.usefixtures("entered")
@pytest.mark.parametrize("schedule", NEW, ids=repr)
def test_a_new_schedule_is_tuned(schedule: NoiseSchedule) -> None:
    eps = exact.Mixture([[-1.0, 0.5], [1.0, 0.0]], 0.3).eps(schedule)
    plan = tune(eps, make_plan("ddim", schedule, 4), "sequential", samples=64, shape=(2,))
    assert plan.provenance["distance"]["tuned"] <= plan.provenance["distance"]["untuned"]
    assert plan.provenance["reference_calls"] == (schedule.levels or 100)
