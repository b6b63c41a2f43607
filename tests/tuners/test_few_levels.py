"""Networks with fewer noise levels than tuning's own runs have calls, and steps with no trained time inside."""

import pytest
import torch
from helpers import seeded

from time_tuner import (
    TUNERS,
    NoiseScheduleFlow,
    NoiseScheduleVE,
    NoiseScheduleVP,
    TimeTuner,
    exact,
    make_plan,
    model_wrapper,
    sample,
    tune,
)
from time_tuner.plans.build import reference_plan
from time_tuner.schedules import NoiseSchedule
from time_tuner.tuners import Calibration, ReferenceDistance, estimate
from time_tuner.tuners.joint.teacher import usual_teacher

LEVELS = 20
SCHEDULE = NoiseScheduleVP(betas=torch.linspace(0.005, 0.5, LEVELS, dtype=torch.float64))
EPS = exact.Mixture([[-1.0, 0.5], [1.0, 0.0], [0.2, -0.7]], 0.2).eps(SCHEDULE)
OPTIONS = {"joint": {"pairs": 32, "iterations": 3, "candidates": 1}}


@pytest.mark.parametrize("method", TUNERS)
@pytest.mark.parametrize("calls", [4, LEVELS])
def test_every_method_tunes_a_network_of_few_levels(method: str, calls: int) -> None:
    plan = make_plan("ddim", SCHEDULE, calls)
    tuner = TUNERS[method](**OPTIONS.get(method, {}))
    tuned = tune(EPS, plan, tuner, samples=32, shape=(2,))
    assert tuned.provenance["reference_calls"] == LEVELS
    assert tuned.provenance["distance"]["tuned"] <= tuned.provenance["distance"]["untuned"]
    if method == "joint":
        assert f"calls={LEVELS}" in tuned.provenance["teacher"]
    cost, foretold = tuned.provenance["cost"], estimate(EPS, plan, tuner, samples=32, shape=(2,)).costs
    assert cost["reference"]["calls"] == foretold["reference"][0].calls == LEVELS
    if "data" in foretold:
        assert cost["data"]["calls"] == foretold["data"][0].calls == LEVELS


def test_reference_runs_have_a_call_for_each_level() -> None:
    for end in (0.0, SCHEDULE.t_min):
        assert len(reference_plan(SCHEDULE, end)) == LEVELS
        assert len(reference_plan(SCHEDULE, end, 10)) == 10
    assert len(usual_teacher(make_plan("ddim", SCHEDULE, 5))) == LEVELS
    calibration = Calibration(EPS, SCHEDULE, samples=16, shape=(2,))
    assert calibration.x0.isfinite().all()
    assert ReferenceDistance(EPS, SCHEDULE, 0.0, calibration.held_out()).calls == LEVELS


def test_the_published_interface_tunes_a_network_of_few_levels() -> None:
    wrapped = model_wrapper(lambda x, n: EPS(x, SCHEDULE.from_network_time(n[0])), SCHEDULE)
    tuner = TimeTuner(wrapped, SCHEDULE)
    data = sample(EPS, reference_plan(SCHEDULE, 0.0), seeded(64, 2))
    ratios = tuner.optimize_timesteps([{"image": data}], num_steps=4, samples=32)
    assert ratios.shape == (4,) and ratios[-1] == 1


@pytest.mark.parametrize(
    "schedule", [SCHEDULE, NoiseScheduleVP("linear"), NoiseScheduleVE(), NoiseScheduleFlow()], ids=repr
)
@pytest.mark.parametrize("spacing", ["karras", "kl_optimal", "quadratic"])
def test_every_last_step_has_substeps(schedule: NoiseSchedule, spacing: str) -> None:
    """Also the step from the least trained time to 0, which no trained time divides."""
    plan = make_plan("ddim", schedule, 4, spacing)
    model = exact.Mixture([-1.0, 1.0], 0.3).eps(schedule)
    tuned = tune(model, plan, "sequential(last=true)", samples=16, shape=(1,), guard=False)
    losses = tuned.provenance["loss"]["untuned"], tuned.provenance["loss"]["tuned"]
    assert len(losses[0]) == 4 and all(after <= before for before, after in zip(*losses, strict=True))
