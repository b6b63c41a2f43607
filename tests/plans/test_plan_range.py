"""Conditioning times lie in the range that the network was trained at."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import seeded

from time_tuner import (
    SAMPLERS,
    SPACINGS,
    NoiseScheduleFlow,
    NoiseScheduleVE,
    NoiseScheduleVP,
    Plan,
    make_plan,
    resample,
)
from time_tuner.schedules import NoiseSchedule
from time_tuner.tuners.base import PARTS
from time_tuner.tuners.joint.candidates import candidate_plans
from time_tuner.tuners.joint.parameters import Parameters
from time_tuner.tuners.ranking import Ranked, untuned_plans

DISCRETE = NoiseScheduleVP(betas=torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64))
FEW = NoiseScheduleVP(betas=[0.1, 0.2, 0.3, 0.4])
SCHEDULES: list[NoiseSchedule] = [
    DISCRETE,
    FEW,
    NoiseScheduleVP("linear"),
    NoiseScheduleVP("cosine"),
    NoiseScheduleVE(),
    NoiseScheduleFlow(),
    NoiseScheduleFlow(shift=3.0),
]
every_schedule = pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)


def whole(schedule: NoiseSchedule) -> Plan:
    """A run over the whole range: its first call is at T, its last one at the least trained time."""
    low, high = schedule.t_min, schedule.T
    return make_plan("ddim", schedule, times=[high, (low + high) / 2, low, 0.0])


def with_one(plan: Plan, k: int, tau: float) -> Plan:
    values = plan.tau.clone()
    values[k] = tau
    return plan.with_tau(values)


@every_schedule
@pytest.mark.parametrize("k", [0, 1, 2])
def test_a_time_out_of_the_trained_range_is_refused(k: int, schedule: NoiseSchedule) -> None:
    plan = whole(schedule)
    for tau in (5.0 * schedule.T, 1.05 * schedule.T, 0.9 * schedule.t_min, 1e-12):
        with pytest.raises(ValueError, match=rf"^tau of call {k} must lie in .*\[{schedule.t_min:.6g}, {schedule.T:.6g}"
                           rf"\], got {tau:.6g}: tune the plan again, or set tau with Plan.with_ratios"):  # fmt: skip
            with_one(plan, k, tau)


@every_schedule
@pytest.mark.parametrize("k", [0, 1, 2])
def test_the_ends_of_the_range_are_in_it_up_to_rounding(k: int, schedule: NoiseSchedule) -> None:
    for tau in (schedule.T, schedule.T + 9e-10, schedule.t_min, schedule.t_min - 9e-10):
        assert with_one(whole(schedule), k, tau).tau[k] == tau


def test_a_file_with_a_time_out_of_range_is_refused(tmp_path: Path) -> None:
    values: dict[str, Any] = make_plan("unipc", DISCRETE, calls=4).to_dict()
    values["tau"][2] = 5.0
    (tmp_path / "plan.json").write_text(json.dumps(values))
    with pytest.raises(ValueError, match=r"plan\.json: tau of call 2 must lie in the range .* \[0.001, 1\], got 5: "):
        Plan.load(tmp_path / "plan.json")


@every_schedule
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_a_plan_may_hold_the_rounded_times_of_a_network(dtype: torch.dtype, schedule: NoiseSchedule) -> None:
    plan = whole(schedule)
    received = schedule.network_time(plan.tau).to(dtype).double()
    rounded = plan.with_tau(schedule.from_network_time(received))
    torch.testing.assert_close(schedule.network_time(rounded.tau), received, rtol=1e-9, atol=1e-9)


def test_level_999_in_bfloat16_is_level_1000() -> None:
    """Which is why a plan may hold it: the network receives it, whatever the plan says."""
    n = DISCRETE.network_time(torch.ones(())).to(torch.bfloat16)
    assert n == 1000 and with_one(whole(DISCRETE), 0, 1.001).tau[0] == 1.001


# --- what the library makes is in it ---


def tuned(schedule: NoiseSchedule, sampler: str = "ddim", calls: int = 6) -> Plan:
    """A plan whose times are at both ends of the range."""
    plan = make_plan(sampler, schedule, calls, "logsnr")
    wide = torch.linspace(0.0, 1.0, len(plan), dtype=torch.float64)
    return plan.with_tau(schedule.t_min + (schedule.T - schedule.t_min) * wide.flip(0) ** 0.5)


@every_schedule
def test_ratios_are_kept_in_the_range(schedule: NoiseSchedule) -> None:
    plan = whole(schedule)
    for ratio in (1e-6, 0.5, 1.0, 1.5, 1e6):
        got = plan.with_ratios([ratio] * 3)
        expected = (ratio * plan.t[:-1]).clamp(schedule.t_min, schedule.T)
        torch.testing.assert_close(got.tau, expected, rtol=0, atol=0)
    assert plan.with_ratios([1.0] * 3) == plan


@pytest.mark.parametrize("schedule", [one for one in SCHEDULES if one != FEW], ids=repr)
@pytest.mark.parametrize("sampler", ["ddim", "heun", "dpm(order=3)"])
def test_changes_of_a_tuned_plan_stay_in_the_range(sampler: str, schedule: NoiseSchedule) -> None:
    plan = tuned(schedule, sampler)
    for seed in range(5):
        inner = seeded(len(plan.step_times) - 2, seed=seed).sigmoid().sort(descending=True).values
        low, high = float(plan.step_times[-1]), schedule.T
        moved = plan.with_times(torch.cat([plan.step_times[:1], low + (high - low) * inner, plan.step_times[-1:]]))
        assert (moved.tau >= schedule.t_min).all() and (moved.tau <= schedule.T).all()
        for parts in (*((part,) for part in PARTS), PARTS):
            parameters = Parameters(plan, parts)
            assert len(parameters.plan(seeded(len(parameters), seed=seed))) == len(plan)
            torch.testing.assert_close(parameters.plan(torch.zeros(len(parameters)).double()).tau, plan.tau)
    for calls in (2, 4, 12, 24):
        assert len(resample(plan, calls)) == calls


@pytest.mark.parametrize("calls", [1, 2, 4, 12])
@pytest.mark.parametrize("known", [1, 3])
def test_a_step_to_zero_stays_one_step_when_a_plan_is_resampled(known: int, calls: int) -> None:
    plan = make_plan("ddim", DISCRETE, known, "linspace")
    assert plan.t[-1] == 0
    other = resample(plan.with_times([1.0, 0.4, 0.001, 0.0]) if known == 3 else plan, calls)
    assert other.t[-1] == 0 and (other.t[:-1] >= DISCRETE.t_min).all() and other.t[0] == 1
    assert calls == 1 or other.t[-2] == DISCRETE.t_min


@pytest.mark.parametrize("part", PARTS)
def test_candidates_of_a_tuned_plan_stay_in_the_range(part: str) -> None:
    plan = make_plan("ddim", DISCRETE, calls=5, spacing="linspace")
    low = plan.with_tau(torch.maximum(0.5 * plan.t[:-1], torch.tensor(0.001).double()))
    for one in (low, tuned(DISCRETE)):
        ranking = [Ranked(name, other, 0.0) for name, other in untuned_plans(one).items()]
        assert len(candidate_plans(one, ranking, (part,), 100)) >= (part in ("times", "corrections"))


@pytest.mark.parametrize("spacing", [name for name in SPACINGS if name != "ays"])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_an_untuned_plan_is_in_the_range(sampler: str, spacing: str) -> None:
    to_zero = SPACINGS[spacing](DISCRETE, 5)[-1] == 0
    calls = 13 if sampler == "heun" and to_zero else 14
    plan = make_plan(sampler, DISCRETE, calls, spacing)
    assert plan.with_ratios(torch.ones(calls)) == plan


def test_on_a_bound_of_the_range_the_derivative_is_that_of_the_way_inside() -> None:
    """Whatever that of `clamp` is there, which depends on the version of torch."""
    plan = make_plan("ddim", NoiseScheduleVP("linear"), 3, "quadratic")
    ratios, ends = torch.ones(3, dtype=torch.float64, requires_grad=True), plan.t.clone().requires_grad_()
    assert plan.tau[0] == plan.schedule.T
    for moved in (plan.with_ratios(ratios), plan.with_times(ends, ratios)):
        (derivative,) = torch.autograd.grad(moved.tau.sum(), ratios)
        assert torch.equal(derivative, plan.t[:-1])
    (derivative,) = torch.autograd.grad(plan.with_times(ends).tau.sum(), ends)
    torch.testing.assert_close(derivative[:-1], torch.ones(3, dtype=torch.float64))
