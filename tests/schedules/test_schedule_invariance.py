"""The same ODE in the coordinates of every kind of schedule, for every sampler of the table."""

import math
from collections.abc import Callable
from itertools import cycle, product
from typing import Any

import pytest
import torch
from helpers import seeded
from pairwise import every_pair
from tables import EVERY
from torch import Tensor

from time_tuner import (
    NoiseScheduleFlow,
    NoiseScheduleVE,
    NoiseScheduleVP,
    Plan,
    SeededNoise,
    make_plan,
    named_betas,
    rescale_zero_terminal_snr,
    sample,
)
from time_tuner.metrics import exact_moments
from time_tuner.models.exact import Gaussian, Mixture
from time_tuner.samplers import Sampler
from time_tuner.samplers.ddpm import DDPM
from time_tuner.schedules import NoiseSchedule
from time_tuner.tuners import Calibration, ReferenceDistance, reference_plan

VP = NoiseScheduleVP("linear")
OTHERS = {
    "ve": NoiseScheduleVE(0.002, 200.0),
    "flow": NoiseScheduleFlow(),
    "shifted flow": NoiseScheduleFlow(shift=3.0),
    "zero terminal": NoiseScheduleVP(alphas_cumprod=rescale_zero_terminal_snr(named_betas("scaled_linear"))),
}
MIXTURE = Mixture([-1.0, 0.5, 1.5], 0.4, [0.3, 0.3, 0.4])

# The large variance is beta of the coordinates that a run is in: the one thing here that depends on them.
INVARIANT = [sampler for sampler in EVERY if sampler != DDPM("large")]


def name_of(value: Any) -> str | None:
    """The name of a sampler in the name of a test."""
    return repr(value) if isinstance(value, Sampler) else None


def ends_of(schedule: NoiseSchedule, to_zero: bool) -> Tensor:
    """Step ends of the same lam on every schedule."""
    lam = VP.at([0.97, 0.8, 0.55, 0.3, 0.1, 0.03]).lam
    times = schedule.inverse_lambda(lam).double()
    return torch.cat([times, torch.zeros(1, dtype=torch.float64)]) if to_zero else times


def untuned(sampler: Sampler, schedule: NoiseSchedule, to_zero: bool) -> Plan:
    return make_plan(sampler, schedule, times=ends_of(schedule, to_zero))


def tuned(sampler: Sampler, schedule: NoiseSchedule, to_zero: bool) -> Plan:
    """A plan that is told other times, of the same lam on every schedule, and has corrections."""
    plan = untuned(sampler, schedule, to_zero)
    lam = torch.stack([plan.point(k).lam for k in range(len(plan))])
    plan = plan.with_tau(schedule.inverse_lambda(lam + torch.linspace(-0.05, 0.1, len(plan), dtype=torch.float64)))
    return plan.with_corrections(0.1 * seeded(len(plan), len(plan)).tril(-1))


def one_network(schedule: NoiseSchedule) -> Callable[..., Tensor]:
    """A network that is shown x / alpha and told lam, whatever the schedule."""

    def eps(x: Tensor, t: Tensor, tau: Tensor) -> Tensor:
        return MIXTURE.noise(x / schedule.at(t).alpha, torch.ones(()).double(), torch.exp(-schedule.at(tau).lam))

    return eps


@every_pair("sampler, kind, to_zero", INVARIANT, [*OTHERS], [True, False], ids=name_of)
def test_a_change_of_schedule_changes_nothing(sampler: Sampler, kind: str, to_zero: bool) -> None:
    """x / alpha is the same everywhere on the same lam grid."""
    schedule = OTHERS[kind]

    def end(plan: Plan, eps: Callable[..., Tensor], dtype: torch.dtype) -> Tensor:
        draws = SeededNoise(3)
        x = plan.initial_state(seeded(16, 1)).to(dtype)
        got = sample(eps, plan, x, lambda x: draws(x.double()).to(x))
        assert got.dtype == dtype
        return got.double() / plan.alpha[-1]

    for make, model in ((tuned, one_network), (untuned, MIXTURE.eps)):
        expected = end(make(sampler, VP, to_zero), model(VP), torch.float64)
        plan = make(sampler, schedule, to_zero)
        torch.testing.assert_close(end(plan, model(schedule), torch.float64), expected, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(end(plan, model(schedule), torch.float32), expected, rtol=1e-5, atol=1e-4)


def quantile_of(x: Tensor) -> Tensor:
    """Where the probability-flow ODE takes standard normal x from pure noise to the data: its quantile."""
    quantile, low, high = torch.special.ndtr(x), torch.full_like(x, -9), torch.full_like(x, 9)
    for _ in range(60):
        middle = (low + high) / 2
        parts = torch.special.ndtr((middle - MIXTURE.means[:, 0]) / MIXTURE.std)
        below = (MIXTURE.weights * parts).sum(1, keepdim=True) < quantile
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    return (low + high) / 2


def fine(sampler: Sampler, schedule: NoiseSchedule, steps: int) -> Plan:
    """A run from T down to 0, even in lam, as far as that reaches."""
    top = max(float(schedule.at(schedule.T).lam), -7.0)
    times = schedule.inverse_lambda(torch.linspace(top, 4.0, steps, dtype=torch.float64)).double()
    times[0] = schedule.T
    return make_plan(sampler, schedule, times=[*times.tolist(), 0.0])


CONVERGENT = [sampler for sampler in EVERY if sampler.convergence]
USUAL = [sampler for sampler in CONVERGENT if sampler == type(sampler)()]


@pytest.mark.parametrize(
    ("sampler", "kind"),
    [
        *product(USUAL, OTHERS),
        *zip([sampler for sampler in CONVERGENT if sampler not in USUAL], cycle(OTHERS)),  # with other options
    ],
    ids=name_of,
)
def test_the_exact_models_data_come_out(sampler: Sampler, kind: str) -> None:
    """From T itself, where a flow and a zero terminal signal-to-noise ratio have alpha = 0."""
    schedule = OTHERS[kind]
    plan = fine(sampler, schedule, 60)
    mean, std = exact_moments(Gaussian([1.5, -0.5], [0.5, 1.2]), plan)
    near = 0.08 if sampler.convergence == 1 or plan.stochastic else 0.02
    torch.testing.assert_close(mean, torch.tensor([1.5, -0.5]).double(), rtol=0, atol=near)
    torch.testing.assert_close(std, torch.tensor([0.5, 1.2]).double(), rtol=0, atol=2 * near)
    if not plan.stochastic:
        x = torch.linspace(-1.5, 1.5, 7, dtype=torch.float64)[:, None]
        got = sample(MIXTURE.eps(schedule), plan, plan.initial_state(x))
        assert float((got - quantile_of(x)).square().mean().sqrt()) < near


@pytest.mark.parametrize("schedule", [VP, *OTHERS.values()], ids=["vp", *OTHERS])
def test_moments_of_a_gaussian_are_those_of_samples(schedule: NoiseSchedule) -> None:
    plan, model = make_plan("ddim", schedule, times=[schedule.T, *ends_of(schedule, True).tolist()]), Gaussian(1.0, 0.5)
    mean, std = exact_moments(model, plan)
    x = torch.special.ndtri((torch.arange(4001, dtype=torch.float64)[:, None] + 0.5) / 4001)
    got = sample(model.eps(schedule), plan, plan.initial_state(x))
    assert float(got.mean()) == pytest.approx(float(mean), abs=1e-9)
    assert float(got.std()) == pytest.approx(float(std), rel=1e-3)


@pytest.mark.parametrize("schedule", [VP, *OTHERS.values()], ids=["vp", *OTHERS])
@pytest.mark.parametrize("model", [Gaussian([1.0, -2.0], [0.5, 1.5]), Mixture([[1.0, 0.0], [-1.0, 2.0]], 0.7)])
def test_noise_and_data_of_exact_models_make_the_state(schedule: NoiseSchedule, model: Any) -> None:
    exact = model.eps(schedule)
    for t in (schedule.T, 0.4 * schedule.T, 0.02 * schedule.T):
        p = schedule.at(t)
        x = p.scale * seeded(5, 2)
        torch.testing.assert_close(p.alpha * exact.x0(x, t) + p.sigma * exact(x, t), x, rtol=1e-12, atol=1e-12)


def test_judging_and_calibrating_start_with_the_noise_of_the_schedule() -> None:
    """Data of the right mean and deviation come out of the runs that tuners make for themselves."""
    schedule, model = NoiseScheduleVE(), Gaussian([2.0, -1.0], [0.3, 1.5])
    eps = model.eps(schedule)
    calibration = Calibration(eps, schedule, samples=2000)
    judge = ReferenceDistance(eps, schedule, 0.0, calibration.held_out())
    for ends in (calibration.x0, judge.reference):
        torch.testing.assert_close(ends.mean(0).double(), model.mean, rtol=0, atol=0.1)
        torch.testing.assert_close(ends.std(0).double(), model.std, rtol=0.05, atol=0)
    assert judge(reference_plan(schedule, 0.0, 60)) < 0.01


def test_alpha_falls_in_a_line_to_a_last_level_with_no_data() -> None:
    schedule = OTHERS["zero terminal"]
    t = torch.linspace(0.999, 1.0, 11, dtype=torch.float64)
    p = schedule.at(t)
    torch.testing.assert_close(p.alpha, p.alpha[0] * torch.linspace(1, 0, 11, dtype=torch.float64))
    torch.testing.assert_close(schedule.inverse_lambda(p.lam), t, rtol=0, atol=1e-12)


def test_noise_starts_as_large_as_the_first_point_has_it() -> None:
    noise = seeded(4, 2)
    assert torch.allclose(make_plan("ddim", VP, 4, "quadratic").initial_state(noise), noise, rtol=1e-15)
    ve = make_plan("ddim", NoiseScheduleVE(), times=[80.0, 3.0, 0.0])
    torch.testing.assert_close(ve.initial_state(noise), math.sqrt(80**2 + 1) * noise)
    assert torch.equal(make_plan("ddim", NoiseScheduleFlow(3.0), times=[1.0, 0.5, 0.0]).initial_state(noise), noise)
