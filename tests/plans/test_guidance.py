"""Plans that leave guidance out of some calls: what is evaluated, what is reused, and the file."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from guided_problem import POINTS, SCALE, SMOOTH, guided, reuse
from helpers import seeded
from torch import Tensor

from time_tuner import (
    SAMPLERS,
    NoiseScheduleFlow,
    NoiseScheduleVE,
    NoiseScheduleVP,
    Plan,
    make_plan,
    model_wrapper,
    sample,
)
from time_tuner.models.base import Model, ModelAround
from time_tuner.models.batching import BatchedModel
from time_tuner.models.counting import CostLog, CountedModel
from time_tuner.models.thresholding import clipped
from time_tuner.schedules import NoiseSchedule

ALTERNATING = (True, False, True, False, True, False)
PATTERNS = [6, 4, 1, 0, ALTERNATING, (False, True, True, True, False, False)]
SCHEDULES = [SMOOTH, NoiseScheduleFlow(), NoiseScheduleVE()]


def states(plan: Plan, count: int = 3) -> Tensor:
    return plan.initial_state(seeded(count, 4, seed=1).double())


def test_guidance_at_every_call_is_the_plan_without_the_entries() -> None:
    for name in SAMPLERS:
        plan = make_plan(name, SMOOTH, 6)
        same = plan.with_guidance(6)
        assert same == plan and same.rows == plan.rows and not {"guided", "reuse"} & plan.to_dict().keys()
        torch.manual_seed(0)
        first = sample(guided(), plan, states(plan))
        torch.manual_seed(0)
        assert torch.equal(sample(guided(), same, states(plan)), first)
        assert plan.evaluations == 12


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("reused", [False, True])
def test_a_run_evaluates_what_the_plan_says(pattern: Any, reused: bool) -> None:
    plan = make_plan("dpmpp", SMOOTH, 6, guided=pattern)
    plan = plan.with_guidance(plan.guided, reuse(plan.guided) if reused else None)
    log = CostLog()
    sample(BatchedModel(CountedModel(guided(count=5), log), 2), plan, states(plan, 5))
    assert log.total.evaluations == 5 * plan.evaluations
    assert plan.evaluations == 6 + sum(plan.guided)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=["vp", "flow", "ve"])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_a_run_is_that_of_the_formula(schedule: NoiseSchedule, pattern: Any) -> None:
    """DDIM by hand: c + (w - 1)(c - u) at guided calls, c + sum_j G[k, j] g_j at the others; on a flow, too, where the
    first prediction is one of the data."""
    plan = make_plan("ddim", schedule, 6, "uniform" if schedule is SMOOTH else None, guided=pattern)
    g = reuse(plan.guided)
    plan = plan.with_guidance(plan.guided, g if g.any() else None)
    conditional, everything = (
        POINTS.guided(schedule, torch.tensor([1]), 1.0),
        POINTS.guided(schedule, torch.tensor([1]), 0.0),
    )
    x, added = states(plan), dict[int, Tensor]()
    for k in range(6):
        p, q = plan.point(k), plan.point(k + 1)
        if p.alpha == 0:  # the noise is the state; the data are predicted, and nothing of them can be reused as noise
            c, u = (model.x0(x, p.t, plan.taus[k]) for model in (conditional, everything))
            data, added[k] = (c + (SCALE - 1) * (c - u)) if plan.guided[k] else c, torch.zeros_like(x)
            x = q.alpha * data + q.sigma * x / p.sigma
            continue
        c, u = (model(x, p.t, plan.taus[k]) for model in (conditional, everything))
        if plan.guided[k]:
            added[k] = (SCALE - 1) * (c - u)
            noise = c + added[k]
        else:
            noise = c + sum(g[k, j] * one for j, one in added.items())
        x = q.alpha * (x - p.sigma * noise) / p.alpha + q.sigma * noise
    torch.testing.assert_close(sample(guided(schedule), plan, states(plan)), x, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    "name", ["ddim", "dpmpp", "unipc", "heun", "ipndm", "sde_dpmpp_2m" if "sde_dpmpp_2m" in SAMPLERS else "ddim(eta=1)"]
)
def test_the_rows_of_the_file_are_the_run(name: str) -> None:
    """A runner in numpy that knows the file alone, as in the manual."""
    plan = make_plan(name, SMOOTH, 6)
    plan = plan.with_guidance(ALTERNATING, reuse(ALTERNATING)).with_corrections(0.1 * seeded(6, 6).double().tril(-1))
    model, x = guided(), states(plan)
    torch.manual_seed(0)
    expected = sample(model, plan, x)
    torch.manual_seed(0)
    calls: list[dict[str, np.ndarray]] = []

    def total(terms: list[Any]) -> np.ndarray:
        return sum(weight * calls[-1 - ago][kind] for kind, ago, weight in terms)

    now = x.numpy()
    for k, row in enumerate(json.loads(json.dumps(plan.to_dict()))["rows"]):
        state, calls = torch.tensor(now), [*calls, {"x": now}]
        if "guidance" in row:
            c, _ = model.parts("eps", state, plan.t[k], plan.tau[k], guided=False)
            calls[-1]["eps"] = c.numpy() + total(row["guidance"])
        else:
            c, g = model.both(state, plan.t[k], plan.tau[k])
            calls[-1] |= {"eps": (c + g).numpy(), "g": g.numpy()}
        if "corrected" in row:
            calls[-1]["c"] = total(row["corrected"])
        if any(kind == "z" for kind, _, _ in row["next_state"]):
            calls[-1]["z"] = torch.randn_like(state).numpy()
        now = total(row["next_state"])
    torch.testing.assert_close(torch.tensor(now), expected, rtol=1e-6, atol=1e-6)


def test_a_plan_file_keeps_guidance(tmp_path: Path) -> None:
    plan = make_plan("unipc", SMOOTH, 6, guided=ALTERNATING).with_guidance(ALTERNATING, reuse(ALTERNATING))
    plan.save(tmp_path / "plan.json")
    again = Plan.load(tmp_path / "plan.json")
    assert again == plan and again.guided == ALTERNATING and again.evaluations == 9
    assert again != plan.with_guidance(ALTERNATING)
    for changed in (plan.with_times(plan.t), plan.with_tau(plan.tau), plan.with_corrections(None)):
        assert (
            changed.guided == ALTERNATING
            and changed.reuse is not None
            and torch.equal(changed.reuse, reuse(ALTERNATING))
        )


def set_in(values: list[list[float]], k: int, j: int) -> list[list[float]]:
    values[k][j] = 1.0
    return values


@pytest.mark.parametrize(
    ("entry", "value", "message"),
    [
        ("guided", [True] * 5, "true or false for each of 6 calls"),
        ("guided", [1, 0, 1, 0, 1, 0], "true or false for each of 6 calls"),
        ("guided", [], "true or false for each of 6 calls"),
        ("guided", "first", "true or false for each of 6 calls"),
        ("reuse", [[0.0] * 6] * 5, r"reuse must be \(6, 6\)"),
        ("reuse", set_in(torch.zeros(6, 6).tolist(), 1, 1), "strictly lower triangular"),
        ("reuse", set_in(torch.zeros(6, 6).tolist(), 2, 0), "reuse of call 2 must be 0"),
        ("reuse", set_in(torch.zeros(6, 6).tolist(), 5, 3), "reuse must be 0 in column 3"),
        ("reuse", "much", "must be a list of numbers"),
        ("reuse", set_in(torch.full((6, 6), float("nan")).tolist(), 5, 0), "must be finite"),
    ],
)
def test_wrong_guidance_is_refused(entry: str, value: Any, message: str) -> None:
    values = make_plan("ddim", SMOOTH, 6, guided=ALTERNATING).to_dict() | {entry: value}
    del values["rows"]
    with pytest.raises(ValueError, match=message):
        Plan.from_dict(values)


@pytest.mark.parametrize(
    ("guided", "message"),
    [(7, "at most the number of calls, 6"), (-1, "guided must"), ("4", "true or false"), (2.0, "guided must be")],
)
def test_wrong_numbers_of_guided_calls_are_refused(guided: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_plan("ddim", SMOOTH, 6, guided=guided)


class Louder(ModelAround):
    """A wrapper of the user's that acts on predictions."""

    def predict(self, quantity: str, x: Tensor, t: Any, tau: Any = None) -> Tensor:
        return 2 * self.inner.predict(quantity, x, t, tau)


def no_guidance() -> Model:
    return POINTS.eps(SMOOTH)


@pytest.mark.parametrize("model", [no_guidance(), guided(scale=1.0), lambda x, t, tau: x, Louder(guided())])
def test_models_without_guidance_to_leave_out_are_refused(model: Any) -> None:
    plan = make_plan("ddim", SMOOTH, 6, guided=4)
    with pytest.raises(ValueError, match="the plan leaves guidance out"):
        sample(model, plan, states(plan))


def test_data_in_a_range_are_those_of_the_condition_alone_and_nothing_is_reused() -> None:
    plan = make_plan("ddim", SMOOTH, 6, guided=0)
    x = states(plan)
    alone = sample(clipped(guided(scale=1.0)), make_plan("ddim", SMOOTH, 6), x)
    torch.testing.assert_close(sample(clipped(guided()), plan, x), alone)
    some = make_plan("ddim", SMOOTH, 6).with_guidance(ALTERNATING, reuse(ALTERNATING))
    with pytest.raises(ValueError, match="data are not kept in a range"):
        sample(clipped(guided()), some, x)


def test_classifier_guidance_is_left_out_alike() -> None:
    """Its classifier is then not called."""
    called = list[int]()

    def log_probability(x: Tensor, time: Tensor, condition: Tensor) -> Tensor:
        called.append(len(x))
        return -(x - 1).square().sum(1)

    wrapped = model_wrapper(
        lambda x, time, condition: x,
        SMOOTH,
        guidance_type="classifier",
        guidance_scale=2.0,
        classifier_fn=log_probability,
    )
    model = wrapped.bind(torch.tensor([0]))
    plan = make_plan("ddim", SMOOTH, 6, guided=4)
    end = sample(model, plan, states(plan))
    assert len(called) == 4 and model.evaluations == 1
    assert not torch.allclose(end, sample(model, make_plan("ddim", SMOOTH, 6), states(plan)))


def test_samples_do_not_depend_on_the_batch() -> None:
    plan = make_plan("unipc", SMOOTH, 6).with_guidance(ALTERNATING, reuse(ALTERNATING))
    model, x = guided(count=7), states(plan, 7)
    whole = sample(model, plan, x)
    for batch in (1, 2, 3):
        torch.testing.assert_close(sample(BatchedModel(model, batch), plan, x), whole, rtol=1e-9, atol=1e-9)
    for i in range(7):
        alone = sample(model.select(torch.tensor([i])), plan, x[i : i + 1])
        torch.testing.assert_close(alone, whole[i : i + 1], rtol=1e-9, atol=1e-9)


def test_a_function_brings_its_own_parts() -> None:
    class Function:
        schedule: NoiseScheduleVP = SMOOTH
        evaluations = 2

        def __call__(self, x: Tensor, t: Any, tau: Any) -> Tensor:
            return guided()(x, t, tau)

        def parts(self, quantity: str, x: Tensor, t: Any, tau: Any, guided_: bool) -> tuple[Tensor, Tensor | None]:
            return guided().parts(quantity, x, t, tau, guided_)

    plan = make_plan("dpmpp", SMOOTH, 6).with_guidance(ALTERNATING, reuse(ALTERNATING))
    assert torch.equal(sample(Function(), plan, states(plan)), sample(guided(), plan, states(plan)))
