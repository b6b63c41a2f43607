"""Joint tuning of plans that leave guidance out of some calls, and the search for the calls that have it."""

from typing import Any

import pytest
import torch
from guided_problem import SMOOTH, guided, reuse
from helpers import seeded

from time_tuner import TUNERS, Joint, NoiseScheduleFlow, Plan, SeededNoise, make_plan, sample, tune, tune_several
from time_tuner.models.batching import BatchedModel
from time_tuner.models.counting import CostLog
from time_tuner.plans.build import reference_plan
from time_tuner.schedules import NoiseSchedule
from time_tuner.tuners import estimate
from time_tuner.tuners.joint.candidates import patterns
from time_tuner.tuners.joint.forward_only import gradients_by_differences
from time_tuner.tuners.joint.loss import TeacherLoss, TimeGradients, robust
from time_tuner.tuners.joint.parameters import Parameters
from time_tuner.tuners.joint.teacher import Pairs

PATTERN = (True, True, False, True, False)
QUICK: dict[str, Any] = {"pairs": 64, "iterations": 30}


def loss_on(schedule: NoiseSchedule, count: int = 48) -> TeacherLoss:
    model, x = guided(schedule, count), seeded(count, 4).double()
    many = reference_plan(schedule, schedule.t_min, 60)
    return TeacherLoss(BatchedModel(model), Pairs(x, sample(model, many, many.initial_state(x))), robust, CostLog())


def held_out(plan: Plan, count: int = 300) -> float:
    """The mean distance to the end of 100 calls with guidance at all of them."""
    model, x = guided(plan.schedule, count), SeededNoise(123)(torch.empty(count, 4))
    many = reference_plan(plan.schedule, float(plan.t[-1]), 100)
    ends = [sample(model, one, one.initial_state(x)) for one in (plan, many)]
    return float((ends[0] - ends[1]).norm(dim=1).mean())


@pytest.mark.parametrize("schedule", [SMOOTH, NoiseScheduleFlow()], ids=["vp", "flow"])
@pytest.mark.parametrize("name", ["ddim", "unipc"])
def test_the_gradient_is_that_of_the_run(schedule: NoiseSchedule, name: str) -> None:
    """By every number of the plan, those of reuse among them; by backward passes and by differences between runs."""
    loss, rows = loss_on(schedule), torch.arange(48)
    plan = make_plan(name, schedule, 5).with_guidance(PATTERN, 0.1 * reuse(PATTERN))
    parameters = Parameters(plan)
    assert parameters.sizes[-1] == 5  # two guided calls before call 2, three before call 4, all of which are reused
    assert Parameters(plan.with_guidance(PATTERN)).pairs.tolist() == [[2, 4], [1, 3]]  # else the last one before each
    v = 0.05 * seeded(len(parameters), seed=2).double()
    v[parameters.sizes[0]] = -0.2  # tau of the first call is at T, beyond which it does not move
    parameters.keep_inside(v)
    by_quotient = [parameters.sizes[0]] if plan.rows[0].predicts == "x0" else []  # tau of that call
    assert abs(loss.mean(parameters.plan(v), rows) - loss.gradients(parameters, v, rows, TimeGradients()).loss) < 1e-6
    exact = loss.gradients(parameters, v, rows, loss.time_gradients(plan, parameters.parts))
    forward = gradients_by_differences(loss, parameters, v, rows)
    assert abs(forward.loss - exact.loss) < 1e-6
    for i in range(len(v)):
        step = torch.zeros_like(v)
        step[i] = 1e-4
        slope = (loss.mean(parameters.plan(v + step), rows) - loss.mean(parameters.plan(v - step), rows)) / 2e-4
        close = (1.0 if i in by_quotient else 0.01) * abs(slope) + 1e-3 * float(exact.gradient.norm())
        assert abs(float(exact.gradient[i]) - slope) < close, i
    # Steps of 5 % are long for a narrow mixture; those of the last reuse have no error.
    torch.testing.assert_close(forward.gradient[-2:], exact.gradient[-2:], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("gradients", [True, False])
def test_reuse_is_tuned_where_guidance_is_left_out(gradients: bool) -> None:
    plan = make_plan("ddim", SMOOTH, 6, "quadratic", guided=3)
    model = guided(count=100)
    tuned = tune(model, plan, Joint(gradients=gradients, **QUICK), samples=100, guard=False)
    assert tuned.guided == plan.guided and tuned.evaluations == 9
    assert tuned.reuse is not None and tuned.reuse[3:, :3].any()
    assert "reuse" in tuned.provenance["parts"]
    assert held_out(tuned) < 0.6 * held_out(plan)
    few = {"pairs": 16, "iterations": 2}
    without = tune(model, plan, Joint(parts=("tau",), gradients=gradients, **few), samples=100, guard=False)
    assert without.reuse is None and without.guided == plan.guided


def test_a_plan_with_guidance_at_every_call_has_no_reuse_to_tune() -> None:
    few = Joint(pairs=16, iterations=2)
    tuned = tune(guided(count=16), make_plan("ddim", SMOOTH, 4), few, samples=16, guard=False)
    assert tuned.reuse is None and tuned.provenance["parts"] == ["times", "tau", "corrections"]
    with pytest.raises(ValueError, match="no reuse to tune"):
        tune(guided(count=16), make_plan("ddim", SMOOTH, 4), Joint(parts="reuse"), samples=16)


def test_patterns_cost_the_evaluations_and_have_guidance_first() -> None:
    found = patterns(make_plan("dpmpp", SMOOTH, 6), 12)
    assert [(len(one), sum(one.guided)) for one in found] == [(6, 6), (7, 5), (8, 4), (9, 3), (10, 2)]
    for one in found:
        assert one.evaluations == 12 and list(one.guided) == sorted(one.guided, reverse=True)
        assert one.t[0] == 1.0 and abs(float(one.t[-1]) - SMOOTH.t_min) < 1e-9


def test_the_search_for_evaluations_finds_a_plan_no_worse_than_guidance_at_every_call() -> None:
    model = guided(count=100)
    found = tune(model, evaluations=8, tuner=Joint(pairs=64, iterations=60), samples=100)
    assert found.evaluations <= 8 and found.provenance["cost"]["tuning"]["evaluations"] > 0
    all_ = tune(model, calls=4, tuner=Joint(pairs=64, iterations=60), samples=100)
    assert held_out(found) < 1.05 * held_out(all_)


def test_the_search_for_evaluations_is_repeatable() -> None:
    how: dict[str, Any] = {"evaluations": 6, "tuner": Joint(pairs=16, iterations=8), "samples": 16}
    assert tune(guided(count=16), **how) == tune(guided(count=16), **how)


def test_the_ranking_names_patterns() -> None:
    found = tune(guided(count=64), evaluations=6, tuner=Joint(pairs=64, iterations=10), samples=64)
    names, known = found.provenance["untuned_plans"], {"": 3, ", guidance at the first 2": 4}
    for name in (names["best"], names["runner-up"]):
        plan, guidance, _ = name.partition(", guidance at the first 2")
        assert f":{known[guidance]}@" in plan


def test_evaluations_of_guided_models_are_two_for_each_sample() -> None:
    cost = estimate(guided(count=64), calls=4, tuner=Joint(pairs=64, iterations=10), samples=64)
    found = tune(guided(count=64), calls=4, tuner=Joint(pairs=64, iterations=10), samples=64)
    spent = found.provenance["cost"]["reference"]["evaluations"]
    assert cost.costs["reference"][0].evaluations == spent == 2 * 64 * found.provenance["reference_calls"]


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"evaluations": 8, "calls": 4}, "give one of plan=, calls= and evaluations="),
        ({"evaluations": 8, "tuner": "sequential"}, "needs joint tuning"),
        ({"evaluations": 1}, "evaluations must be"),
        ({"plan": make_plan("ddim", SMOOTH, 6), "tuner": "joint(evaluations=8)"}, "fewer than the 12 of the plan"),
    ],
)
def test_wrong_evaluations_are_refused(how: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tune(guided(count=64), samples=64, **how)


def test_evaluations_need_guidance_and_one_plan() -> None:
    with pytest.raises(ValueError, match="needs a model under classifier-free guidance"):
        tune(guided(count=64, scale=1.0), evaluations=8, samples=64)
    with pytest.raises(ValueError, match="one plan"):
        tune_several(guided(count=64), calls=[2, 3], tuner="joint(evaluations=8)", samples=64)


@pytest.mark.parametrize("reused", [False, True])
@pytest.mark.parametrize("name", TUNERS)
def test_every_tuner_keeps_the_calls_that_have_guidance(name: str, reused: bool) -> None:
    plan = make_plan("dpmpp", SMOOTH, 5, guided=PATTERN)
    plan = plan.with_guidance(PATTERN, 0.1 * reuse(PATTERN) if reused else None)
    tuned = tune(guided(count=32), plan, name, samples=32, budget="300calls", guard=False)
    assert tuned.guided == PATTERN and (tuned.reuse is not None or name != "joint")
    if reused and name != "joint":
        assert tuned.reuse is not None and torch.equal(tuned.reuse, 0.1 * reuse(PATTERN))
