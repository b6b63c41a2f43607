"""Runs that end at a time above 0, with noise left in the state."""

from typing import Any

import pytest
import torch
from helpers import seeded
from torch import Tensor

from time_tuner import SPACINGS, NoiseScheduleFlow, NoiseScheduleVE, NoiseScheduleVP, exact, make_plan, sample
from time_tuner.schedules import NoiseSchedule, as_float64

SCHEDULES = [NoiseScheduleVP("linear"), NoiseScheduleFlow(shift=3.0), NoiseScheduleVE()]


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda one: type(one).__name__)
def test_a_run_that_ends_early_leaves_the_state_of_that_time(schedule: NoiseSchedule) -> None:
    """The flow of N(m, s^2) maps a state to the same number of deviations from the mean at every time."""
    end = 0.3 * schedule.T
    plan = make_plan("dpmpp", schedule, 200, "logsnr", end=end)
    mean, std = 0.4, 0.5
    first, last = plan.point(0), plan.point(200)
    x = plan.initial_state(seeded(50, 1))
    deviations = (x - first.alpha * mean) / torch.hypot(first.alpha * std, first.sigma)
    truth = last.alpha * mean + torch.hypot(last.alpha * std, last.sigma) * deviations
    assert float(plan.t[-1]) == end and last.sigma > 0.02
    assert (sample(exact.Gaussian(mean, std).eps(schedule), plan, x) - truth).abs().max() < 2e-3


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("end", [0.0, 0.05, 0.3])
def test_every_spacing_ends_at_the_given_time(discrete: NoiseScheduleVP, spacing: str, end: float) -> None:
    schedule = discrete
    if spacing == "ays":
        schedule = NoiseScheduleVP(betas=torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2)
    plan = make_plan("unipc", schedule, 5, spacing, end=end)
    assert len(plan) == 5 and float(plan.t[-1]) == end and float(plan.t[0]) > 0.75
    assert torch.equal(plan.tau, plan.t[:-1])


def test_singlestep_samplers_make_the_calls_of_a_run_to_that_end(discrete: NoiseScheduleVP) -> None:
    assert make_plan("heun", discrete, 4, end=0.05).steps == (2, 2)
    assert make_plan("heun", discrete, 5, end=0).steps == (2, 2, 1)
    with pytest.raises(ValueError, match=r"and end=0\.05: calls of Heun must be even in a run down to t > 0, got 5"):
        make_plan("heun", discrete, 5, end=0.05)


def own(schedule: NoiseSchedule, steps: int) -> Tensor:
    return as_float64([1.0 - 0.9 * i / steps for i in range(steps + 1)])


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"end": 1.0}, r"end must be a time t of the schedule, 0 or in \[0.001, 1\), got 1.0"),
        ({"end": -0.1}, "end must be a time t of the schedule"),
        ({"end": 1e-4}, "end must be a time t of the schedule"),
        ({"end": float("nan")}, "end must be a time t of the schedule"),
        ({"end": "0.1"}, "end must be a time t of the schedule"),
        ({"end": True}, "end must be a time t of the schedule"),
        ({"end": 0.998, "spacing": "trailing"}, "and end=0.998: this spacing does not divide 2 noise levels"),
        ({"end": 0.1, "spacing": own}, "a spacing needs the argument end= for a run with end="),
        ({"end": 0.1, "times": [1.0, 0.5, 0.3, 0.2, 0.1, 0.05]}, "give either end or times, whose last is the end"),
    ],
)
def test_an_end_that_cannot_be_reached_is_refused(
    discrete: NoiseScheduleVP, more: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        make_plan("ddim", discrete, 5, **more)
