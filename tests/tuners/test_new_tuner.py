"""A new tuner is one frozen dataclass and one entry of the table."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from time_tuner import TUNERS, NoiseScheduleVP, Plan, estimate, exact, make_plan, sample, tune, tune_several
from time_tuner.models.batching import BatchedModel
from time_tuner.models.counting import Cost
from time_tuner.plans.build import reference_plan
from time_tuner.testing import check_tuner
from time_tuner.tuners import Budget, Progress, Tuner, TuningRun
from time_tuner.tuners.budget import Speed, forward

SCHEDULE = NoiseScheduleVP("linear")
EPS = exact.Mixture([[2.0, 0.0], [-1.0, 1.5], [0.5, -2.0]], 0.2).eps(SCHEDULE)
PLAN = make_plan("ddim", SCHEDULE, 5, "quadratic")
CALLS = 20  # of the run to whose end the runs of trials are compared


@dataclass(frozen=True)
class RandomSearch(Tuner):
    """Conditioning times at random: the best of some trials, by the distance to the end of a longer run."""

    trials: int = 12
    width: float = 0.05

    def tune(self, model: BatchedModel, plan: Plan, run: TuningRun) -> Plan:
        x = run.calibration.fixed(model).noise
        many = reference_plan(plan.schedule, float(plan.t[-1]), CALLS)
        end = sample(model, many, many.initial_state(x))

        def loss(plan: Plan) -> float:
            return float((sample(model, plan, plan.initial_state(x)) - end).flatten(1).norm(dim=1).mean())

        state = run.state or {"done": 0, "ratios": [1.0] * len(plan), "losses": [loss(plan)] * 2}
        for i in range(state["done"], self.trials):
            run.resume()
            if not run.can_afford(len(plan) * forward(len(x), model.batch).calls):
                run.stop(f"was spent at trial {i} of {self.trials}")
                break
            generator = torch.Generator().manual_seed(i)
            ratios = torch.tensor(state["ratios"]) + self.width * torch.randn(len(plan), generator=generator)
            value = loss(plan.with_ratios(ratios))
            if value < state["losses"][1]:
                state = {**state, "ratios": ratios.tolist(), "losses": [state["losses"][0], value]}
            state = {**state, "done": i + 1}
            run.save_step(i + 1, (i + 1) / self.trials, tuple(state["losses"]), state)
        return plan.with_ratios(state["ratios"]).with_provenance(trials=state["done"])

    def cost(
        self, plan: Plan, samples: int, batch: int | None, budget: Budget, speed: Speed | None
    ) -> dict[str, tuple[Cost, Cost]]:
        exact = forward(samples, batch) * (CALLS + (1 + self.trials) * len(plan))
        return {"tuning": (exact, exact)}


@pytest.fixture(autouse=True)
def registered() -> Iterator[None]:
    TUNERS["random"] = RandomSearch
    yield
    del TUNERS["random"]


def test_it_tunes_by_its_text_and_as_a_value() -> None:
    start = {"calls": 5, "samples": 64}
    tuned = tune(EPS, tuner="random(trials=30)", **start)
    assert tuned == tune(EPS, tuner=RandomSearch(trials=30), **start)
    assert tuned.tuned and tuned.provenance["tuner"] == "random" and tuned.provenance["data"] == "own samples"
    assert tuned.provenance["distance"]["tuned"] < tuned.provenance["distance"]["untuned"]
    with pytest.raises(ValueError, match="tuner 'random' has no option 'trails'; its options: trials, width"):
        tune(EPS, PLAN, "random(trails=30)")
    check_tuner(RandomSearch())


def test_it_is_estimated() -> None:
    costs = estimate(EPS, PLAN, "random(trials=5)", samples=32, batch=16).costs
    spent = tune(EPS, PLAN, "random(trials=5)", samples=32, batch=16).provenance["cost"]
    for purpose in ("data", "tuning", "reference"):
        usual, _ = costs[purpose]
        assert spent[purpose] == {"calls": usual.calls, "evaluations": usual.evaluations}
    cut = estimate(EPS, PLAN, "random", samples=32, budget=30).costs["tuning"]
    assert [cost.calls for cost in cut] == [30, 30]


def test_it_continues_and_keeps_its_budget(tmp_path: Path) -> None:
    how: dict[str, Any] = {"samples": 32, "guard": False}
    whole = tune(EPS, PLAN, "random", **how)

    def stop(progress: Progress) -> None:
        if progress.step == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tune(EPS, PLAN, "random", checkpoint=tmp_path / "partial", progress=stop, **how)
    seen: list[Progress] = []
    assert tune(EPS, PLAN, "random", checkpoint=tmp_path / "partial", progress=seen.append, **how) == whole
    assert next(progress.step for progress in seen if progress.step) == 6
    few = tune(EPS, PLAN, "random", budget=60, **how)
    assert few.provenance["stopped"] == "the budget of 60 calls was spent at trial 7 of 12"
    assert few.provenance["cost"]["tuning"]["calls"] == 60


def test_it_tunes_several() -> None:
    plans = [make_plan("ddim", SCHEDULE, calls, "quadratic") for calls in (4, 3)]
    assert [len(plan) for plan in tune_several(EPS, plans, "random(trials=2)", samples=16, shape=(2,))] == [3, 4]


def test_one_that_knows_no_cost_is_tuned_all_the_same() -> None:
    @dataclass(frozen=True)
    class Nothing(Tuner):
        def tune(self, model: BatchedModel, plan: Plan, run: TuningRun) -> Plan:
            return plan

    seen: list[Progress] = []
    tuned = tune(EPS, PLAN, Nothing(), samples=16, progress=seen.append)
    assert tuned.provenance["tuner"] == "Nothing" and seen[-1].fraction == 1
    assert estimate(EPS, PLAN, Nothing(), samples=16).costs.keys() == {
        "data",
        "teacher",
        "ranking",
        "reference",
        "guard",
    }
    for wrong in (Nothing, 3):
        with pytest.raises(ValueError, match="tuner must be a tuner or a text such as"):
            tune(EPS, PLAN, wrong)  # type: ignore[arg-type]


def test_a_budget_that_ends_without_a_gain_is_reported(caplog: pytest.LogCaptureFixture) -> None:
    @dataclass(frozen=True)
    class Idle(Tuner):
        def tune(self, model: BatchedModel, plan: Plan, run: TuningRun) -> Plan:
            run.save_step(1, 1.0, (1.0, 1.0), {"done": 1})
            run.stop("was spent at trial 1")
            return plan

    assert not tune(EPS, PLAN, Idle(), samples=16).tuned
    assert "was spent at trial 1, and nothing was gained: give a larger one" in caplog.text
