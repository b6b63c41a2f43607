"""Tuning of plans that end at a time above 0."""

from typing import Any

import pytest
import torch
from helpers import seeded
from mixture_runs import EPS, SCHEDULE

from time_tuner import Plan, make_plan, tune, tune_several
from time_tuner.plans.build import resample
from time_tuner.tuners import Joint, ReferenceDistance, estimate
from time_tuner.tuners.joint.teacher import usual_teacher
from time_tuner.tuners.ranking import untuned_plans

END = 0.2
SMALL = Joint(pairs=32, iterations=20)
MODEL: dict[str, Any] = {"shape": (2,), "samples": 32}


def test_untuned_plans_and_teacher_end_where_the_plan_does() -> None:
    plan = make_plan("dpmpp", SCHEDULE, 5, end=END)
    table = untuned_plans(plan)
    assert all(float(one.t[-1]) == END for one in table.values())
    assert {name.partition("@")[2].partition(",")[0] for name in table} >= {"logsnr", "quadratic", "uniform", "karras"}
    for name, one in table.items():
        text, _, spacing = name.partition(":5@")
        if "late" not in spacing:
            assert torch.allclose(one.t, make_plan(text, SCHEDULE, 5, spacing, end=END).t)
    assert float(usual_teacher(plan).t[-1]) == float(resample(plan, 3).t[-1]) == END


def test_a_plan_is_tuned_to_its_end() -> None:
    found = tune(EPS, calls=4, end=END, tuner=SMALL, **MODEL)
    assert float(found.t[-1]) == END
    judge = ReferenceDistance(EPS, SCHEDULE, END, seeded(200, 2, seed=7))
    start = make_plan("dpmpp", SCHEDULE, 4, end=END)
    assert judge(found) < 0.5 * judge(start)
    distance = found.provenance["distance"]
    assert distance["tuned"] <= distance["best untuned"]


@pytest.mark.parametrize("method", ["sequential", "least_squares"])
def test_other_tuners_keep_the_end(method: str) -> None:
    assert float(tune(EPS, calls=3, end=END, tuner=method, budget="20000calls", **MODEL).t[-1]) == END


def test_several_plans_end_there() -> None:
    found = tune_several(EPS, calls=[2, 3], end=END, tuner=Joint(pairs=8, iterations=2), **MODEL)
    assert [float(plan.t[-1]) for plan in found] == [END, END]


def test_a_plan_has_its_own_end() -> None:
    plan: Plan = make_plan("ddim", SCHEDULE, 3)
    for function in (tune, estimate):
        with pytest.raises(ValueError, match=r"end must be left out with plan=, which has its own, got 0\.2"):
            function(EPS, plan, end=END, **MODEL)
    with pytest.raises(ValueError, match="end must be left out with plans="):
        tune_several(EPS, [plan], end=END, **MODEL)
