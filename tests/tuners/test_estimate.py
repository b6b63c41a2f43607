"""`estimate`: the costs of the real run, in calls, sample evaluations and seconds."""

from dataclasses import asdict
from typing import Any

import pytest
from clock import Clock
from helpers import tune_by
from joint_problem import EPS, SMOOTH, one_time
from mixture_runs import DATA, METHODS, SCHEDULE, Counted, tuned
from pairwise import every_pair

from time_tuner import TUNERS, estimate, make_plan, tune
from time_tuner.models.counting import Cost
from time_tuner.tuners import Joint
from time_tuner.tuners.budget import Speed
from time_tuner.tuners.costs import memory_needed, seconds_on
from time_tuner.tuners.joint import successive_halving
from time_tuner.tuners.timesteps import search as ratios
from time_tuner.tuners.timesteps import tuner as timesteps


def total(costs: dict[str, dict[str, int]]) -> int:
    """The sample evaluations of a run, without those that show how fast and of what kind the network is."""
    return sum(cost["evaluations"] for purpose, cost in costs.items() if purpose != "sizing")


@every_pair(
    "method, optimizer, objective, batch",
    ["sequential", "parallel"],
    ["search", "adam"],
    ["published", "noise", "substeps"],
    [None, 24],
)
@pytest.mark.usefixtures("short_runs")
def test_the_estimate_is_the_cost_of_timestep_tuning(
    method: str, optimizer: str, objective: str, batch: int | None
) -> None:
    how = {"optimizer": optimizer, "objective": objective} | ({"iterations": 3} if optimizer == "adam" else {})
    plan, model = make_plan("dpmpp", SCHEDULE, 6), Counted()
    notes = tuned(model, plan, method, data=None, guard=True, batch=batch, **how).provenance
    spent, more = notes["cost"], notes["distance_samples"] > 64  # where the first noise did not decide
    assert sum(made["calls"] for made in spent.values()) == model.calls
    assert sum(made["evaluations"] for made in spent.values()) == model.evaluations
    assert spent.pop("sizing", {"evaluations": 0})["evaluations"] <= 40  # what the network is like
    costs = estimate(model, plan, TUNERS[method](**how), samples=64, batch=batch).costs
    assert spent.keys() == costs.keys()
    for purpose, (usual, most) in costs.items():
        made = spent[purpose]
        # The first runs of a teacher show how long they take, and are calls of their own.
        assert (made["calls"] <= most.calls or purpose == "teacher") and made["evaluations"] <= most.evaluations
        exact = ("data", "reference", "tuning") if optimizer == "adam" else ("data", "reference")
        if purpose in exact and not (purpose == "reference" and more):
            assert made == {"calls": usual.calls, "evaluations": usual.evaluations}
    if not more:
        assert total(spent) == pytest.approx(sum(usual.evaluations for usual, _ in costs.values()), rel=0.25)


@every_pair(
    "method, objective, sampler",
    ["sequential", "parallel"],
    ["published", "noise", "substeps"],
    ["ddim", "dpmpp", "heun"],
)
def test_the_cost_of_one_value_a_step_is_estimated_exactly(
    monkeypatch: pytest.MonkeyPatch, method: str, objective: str, sampler: str
) -> None:
    """No prediction is made twice: one that a step has made is not made again by the next step."""
    monkeypatch.setattr(ratios, "MOST", 1)
    monkeypatch.setattr(timesteps, "MOST", 1)
    plan = make_plan(sampler, SCHEDULE, 6)
    spent = tuned(plan=plan, method=method, objective=objective).provenance["cost"]["tuning"]
    _, most = estimate(Counted(), plan, TUNERS[method](objective=objective), samples=64).costs["tuning"]
    assert spent == {"calls": most.calls, "evaluations": most.evaluations}


@METHODS
@pytest.mark.parametrize("budget", [40, 10**6])
def test_the_estimate_of_timestep_tuning_knows_the_budget(method: str, budget: int) -> None:
    plan = make_plan("ddim", SCHEDULE, 6)
    spent = tuned(plan=plan, method=method, budget=budget).provenance["cost"]
    costs = estimate(Counted(), plan, method, samples=64, budget=budget, own_samples=False, guard=False).costs
    assert spent["tuning"]["evaluations"] == pytest.approx(costs["tuning"][0].evaluations, rel=0.3)
    assert spent["tuning"]["calls"] <= costs["tuning"][1].calls <= budget


@every_pair(
    "size, batch, model",
    [
        {"budget": 800},
        {"budget": 1000, "candidates": 4},
        {"pairs": 40, "iterations": 20},
        {"pairs": 64, "iterations": 30, "candidates": 4},
        {"pairs": 1024, "iterations": 4, "warm_starts": [make_plan("ddim", SMOOTH, 4, "leading")]},
        {"pairs": 40, "iterations": 20, "checkpoint_steps": True},
    ],
    [None, 4, 24],
    [EPS, one_time],
    ids=lambda value: str(value) if isinstance(value, dict) else None,
)
@pytest.mark.usefixtures("short_runs")
def test_the_estimate_is_the_cost_of_joint_tuning(
    monkeypatch: pytest.MonkeyPatch, model: Any, batch: int | None, size: dict[str, Any]
) -> None:
    monkeypatch.setattr(successive_halving, "FEWEST_ITERATIONS", 5)  # so that there are two candidates in short runs
    plan, size = make_plan("ddim", SMOOTH, 4, "quadratic"), {"candidates": 1, **size}
    budget, how = size.pop("budget", None), {"shape": (4,), "batch": batch, "guard": False}
    spent = tune(model, plan, Joint(**size), budget=budget, **how).provenance["cost"]
    costs = estimate(model, plan, Joint(**size), budget=budget, **how).costs
    usual, most = costs["teacher"]
    assert spent["teacher"] == asdict(usual) == asdict(most)
    usual, most = costs["tuning"]
    assert usual.calls <= most.calls and usual.evaluations <= most.evaluations
    for name, made in spent["tuning"].items():
        assert 0.75 * getattr(usual, name) <= made <= getattr(most, name)
    assert total(spent) == pytest.approx(sum(usual.evaluations for usual, _ in costs.values()), rel=0.25)


@every_pair("name, batch, pace", ["joint", "sequential", "parallel"], [16, 64], [1e-3, 4e-3])
def test_the_estimate_knows_the_speed_of_the_network(
    monkeypatch: pytest.MonkeyPatch, name: str, batch: int, pace: float
) -> None:
    """In a budget of seconds; the seconds of the estimate are those of the run, too."""
    plan, how = make_plan("ddim", SMOOTH, 4, "quadratic"), {"budget": "15s", "samples": 64}
    clock, tuner = Clock(monkeypatch, pace), TUNERS[name](**{"optimizer": "adam"} if name == "sequential" else {})
    foretold = estimate(clock(EPS), plan, tuner, shape=(4,), batch=batch, **how)
    before = clock.now
    spent = tune(clock(EPS), plan, tuner, shape=(4,), batch=batch, **how).provenance["cost"]
    assert total(spent) == pytest.approx(sum(usual.evaluations for usual, _ in foretold.costs.values()), rel=0.2)
    assert clock.now - before == pytest.approx(foretold.seconds, rel=0.2)


def test_the_estimate_knows_what_a_call_takes_in_any_case(monkeypatch: pytest.MonkeyPatch) -> None:
    plan, clock = make_plan("ddim", SMOOTH, 4, "quadratic"), Clock(monkeypatch, 5e-5, call=2e-3)
    foretold = estimate(clock(EPS), plan, "sequential", samples=32, shape=(4,), batch=16)
    before = clock.now
    tune_by(clock(EPS), plan, samples=32, shape=(4,), batch=16)
    assert clock.now - before == pytest.approx(foretold.seconds, rel=0.25)


def test_the_estimate_refuses_what_tuning_refuses() -> None:
    plan = make_plan("ddpm", SMOOTH, 4)
    for tuner, message in (("joint", "without noise"), ("sequential(objective=substeps)", "compares with a run")):
        with pytest.raises(ValueError, match=message):
            estimate(EPS, plan, tuner, shape=(4,))
    with pytest.raises(ValueError, match="data must be left out"):
        estimate(EPS, make_plan("ddim", SMOOTH, 4), "joint", shape=(4,), own_samples=False)


def test_runs_in_a_cache_are_not_estimated_again(tmp_path: Any) -> None:
    cache, plan = tmp_path / "teacher.safetensors", make_plan("ddim", SMOOTH, 4, "quadratic")
    tuner = Joint(pairs=64, iterations=1, candidates=1, teacher_cache=cache)
    costs = []
    for _ in range(2):
        costs.append(estimate(EPS, plan, tuner, shape=(4,), guard=False).costs["teacher"][0])
        assert tune(EPS, plan, tuner, shape=(4,), guard=False).provenance["cost"]["teacher"] == asdict(costs[-1])
    assert costs == [Cost(40, 40 * 64), Cost(40, 40)]


def test_what_is_not_needed_costs_nothing() -> None:
    plan = make_plan("ddim", SCHEDULE, 4)
    assert estimate(Counted(), plan, "sequential", own_samples=False, guard=False).costs.keys() == {"tuning"}
    assert tuned(plan=plan, data=DATA).provenance["cost"].keys() == {"sizing", "tuning"}


def test_the_time_on_several_devices_is_that_of_the_largest_share() -> None:
    costs = {"tuning": (Cost(10, 100), Cost(20, 200)), "guard": (Cost(1, 3), Cost(1, 3))}
    speed = Speed(1.0, 0.5)
    for devices, expected in ((1, 10 * (1 + 5.0) + 1 + 1.5), (4, 10 * (1 + 1.5) + 1 + 0.5), (64, 11 * 1.5)):
        assert seconds_on(devices, costs, speed) == pytest.approx(expected)


def test_the_estimate_has_the_time_and_the_exchange_on_several_devices() -> None:
    found = estimate(EPS, make_plan("ddim", SMOOTH, 3), "least_squares(pairs=16)", samples=16, shape=(4,), guard=False)
    seconds, exchanged = zip(*found.devices.values(), strict=True)
    assert list(found.devices) == [1, 8, 64]
    assert seconds[0] >= found.seconds and list(seconds) == sorted(seconds, reverse=True)
    # 16 ends, 16 x 2 states of the path, and the problems of 12 + 2 x 4 pairs at each of 3 calls.
    assert exchanged == (0, *(2 * [4 * 4 * 16 * 3 + 8 * (2 + 5 + 10) * 20]))


def test_the_memory_of_a_device_is_that_of_its_parts() -> None:
    found = memory_needed(
        make_plan("ddim", SMOOTH, 3), 10, weights=1000, activations=100, samples=2, pairs=5, path=True
    )
    assert found.device == 1000 + 2 * (100 + 8 * 40) + 2 * 5 * 40
    assert found.host == 2 * 5 * 40 + 5 * 2 * 40
