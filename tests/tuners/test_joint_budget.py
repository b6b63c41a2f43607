"""What joint tuning may spend, what it refuses before it spends anything, and how it continues."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from clock import Clock
from helpers import tune_by
from joint_problem import EPS, QUICK, SMOOTH, counted, distance_to_teacher
from torch import Tensor

from time_tuner import Joint, NoiseScheduleFlow, Plan, make_plan, tune_several
from time_tuner.tuners import Budget, Progress
from time_tuner.tuners.joint import sizing, successive_halving, tuner
from time_tuner.tuners.joint.sizing import num_iterations, num_pairs

# --- what it may spend ---


def test_a_budget_of_calls_is_kept() -> None:
    plan = make_plan("ddim", SMOOTH, 4, "quadratic")
    for calls in (200, 1000):
        options = {**QUICK, "iterations": None}
        cost = tune_by(EPS, plan, "joint", budget=f"{calls}calls", **options).provenance["cost"]["tuning"]["calls"]
        assert 0.9 * calls <= cost <= 1.1 * calls


@pytest.mark.parametrize("budget", [1, 16, 40, 90])
@pytest.mark.parametrize("candidates", [1, 3])
def test_the_smallest_budgets_are_kept_too(budget: int, candidates: int) -> None:
    """Where one is not enough for an iteration, the plan is returned as it is."""
    plan = make_plan("dpmpp", SMOOTH, 5, "quadratic")
    tuned = tune_by(EPS, plan, "joint", **{**QUICK, "iterations": None, "candidates": candidates}, budget=budget)
    assert tuned.provenance["cost"].get("tuning", {"calls": 0})["calls"] <= budget
    assert f"budget of {budget} calls" in tuned.provenance["stopped"]
    assert budget > 16 or (torch.equal(tuned.tau, plan.tau) and tuned.corrections is None)


def test_corrections_are_not_lost_by_tuning_the_conditioning_times() -> None:
    plan = make_plan("ddim", SMOOTH, 3, "quadratic")
    tuned = tune_by(EPS, plan, "joint", **QUICK)
    with pytest.raises(ValueError, match=r"tuning is for plans without corrections.*take 'joint\(parts=tau\)'"):
        tune_by(EPS, tuned, "sequential", shape=(4,))
    again = tune_by(EPS, tuned, "joint", **{**QUICK, "parts": ("tau",)})
    assert again.corrections is not None and torch.equal(again.corrections, tuned.corrections)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"teacher": 5}, "teacher must be a Plan, got 5"),
        ({"distance": 3}, "distance must be a function"),
        (
            {"distance": lambda x, y: (x - y).norm(dim=1).detach()},
            "distance must have a gradient in its first argument",
        ),
        ({"distance": lambda x, y: (x - y).norm(dim=1) / 0}, "eps or distance returned such values"),
        ({"parts": None}, "parts must be some of times, tau, corrections, reuse, got None"),
        ({"teacher": make_plan("ddim", NoiseScheduleFlow(), 9, "quadratic")}, "teacher must be on the plan's schedule"),
        (
            {"distance": lambda x, y: 1.0},
            r"distance must return a tensor .* of shape \(2,\), or their mean, got float",
        ),
        ({"distance": lambda x: x.norm(dim=1)}, r"distance must be a function \(x, y\), got <function"),
        ({"teacher": make_plan("ddim", SMOOTH, 2, "quadratic")}, "teacher must make no fewer calls than the plan"),
        ({"checkpoint_steps": 1}, "checkpoint_steps must be True, False or None, got 1"),
        ({"gradients": 1}, "gradients must be True, False or None, got 1"),
        ({"gradients": False, "checkpoint_steps": True}, "checkpoint_steps must be None with gradients=False"),
    ],
)
def test_values_that_cannot_be_used_are_named(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tune_by(EPS, make_plan("ddim", SMOOTH, 3, "quadratic"), "joint", **QUICK, **wrong)


def test_data_are_refused() -> None:
    with pytest.raises(ValueError, match="data must be left out for joint tuning"):
        tune_by(EPS, make_plan("ddim", SMOOTH, 3, "quadratic"), "joint", torch.zeros(8, 4), **QUICK)


def test_gradients_in_inference_mode_are_refused() -> None:
    with torch.inference_mode(), pytest.raises(ValueError, match=r"call it outside of torch\.inference_mode"):
        tune_by(EPS, make_plan("ddim", SMOOTH, 3, "quadratic"), "joint", gradients=True, **QUICK)


def test_a_distance_may_return_the_mean() -> None:
    plan = make_plan("ddim", SMOOTH, 3, "quadratic")
    tuned = tune_by(EPS, plan, "joint", **QUICK, distance=lambda x, y: (x - y).norm(dim=1).mean())
    assert distance_to_teacher(tuned) < 0.7 * distance_to_teacher(plan)


@pytest.mark.parametrize("broken", ["network", "distance", "shape"])
def test_a_broken_network_or_distance_is_found_before_the_teacher_runs(broken: str) -> None:
    calls: list[int] = []

    def eps(x: Tensor, t: Any, tau: Any = None) -> Tensor:
        calls.append(len(x))
        noise = EPS(x, t, tau)
        return noise.detach() if broken == "network" else noise

    def distance(x: Tensor, y: Tensor) -> Tensor:
        distances = (x - y).norm(dim=1)
        return {"distance": distances.detach(), "shape": distances[:, None]}.get(broken, distances)

    message = "of shape (2,)" if broken == "shape" else "gradient"
    with pytest.raises(ValueError, match=re.escape(message)):
        tune_by(eps, make_plan("ddim", SMOOTH, 3, "quadratic"), "joint", gradients=True, **QUICK, distance=distance)
    assert sum(calls) <= 20


def test_a_small_batch_makes_a_budget_smaller() -> None:
    """In calls of 4 samples, a quarter of the pairs and of the iterations that calls of 16 are enough for."""
    plan = make_plan("ddim", SMOOTH, 4, "quadratic")
    for batch, share in ((None, 1), (64, 1), (16, 1), (4, 4)):
        assert num_pairs(40, Budget(calls=9600), batch) == 1280 // share
        assert num_iterations(plan, Budget(calls=9600), batch) == 436 // share


def test_a_budget_of_time_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    plan, clock = make_plan("ddim", SMOOTH, 4, "quadratic"), Clock(monkeypatch, 2e-4)
    how = {**QUICK, "iterations": None, "pairs": None}
    before = clock.now
    tuned = tune_by(clock(EPS), plan, "joint", budget="3s", **how)
    assert 2.7 < clock.now - before <= 3.1  # a trial of two samples comes before
    assert tuned.provenance["stopped"] == f"the budget of 3 s was spent at iteration {tuned.provenance['iterations']}"


@pytest.mark.parametrize("look", [3, 8])
def test_an_interrupted_run_finds_the_same_plan(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, look: int
) -> None:
    """Here amid successive halving, whose trials of 6 iterations end more often than validations are due, or less."""
    monkeypatch.setattr(sizing, "FIRST_LOOK", look)
    monkeypatch.setattr(successive_halving, "FEWEST_ITERATIONS", 6)
    plan, file = make_plan("dpmpp", SMOOTH, 4, "quadratic"), tmp_path / "partial.json"
    options = {**QUICK, "pairs": 64, "iterations": 36, "candidates": 3, "seed": 5, "checkpoint_steps": False}
    whole = tune_by(EPS, plan, "joint", **options)

    class StopError(Exception):
        pass

    def stop(progress: Any) -> None:
        if progress.step >= 8:
            raise StopError

    with pytest.raises(StopError):
        tune_by(EPS, plan, "joint", checkpoint=file, progress=stop, **options)
    assert file.exists()
    caplog.set_level("INFO")
    again = tune_by(EPS, plan, "joint", checkpoint=file, **options)
    assert caplog.messages == [f"continuing from {file}"]
    assert tune_by(EPS, plan, "joint", checkpoint=file, **options) == again  # it is kept, too
    for name in ("t", "tau", "corrections"):
        assert torch.equal(getattr(again, name), getattr(whole, name))
    assert again.provenance["iterations"] == whole.provenance["iterations"]
    assert again.provenance["cost"]["tuning"] == whole.provenance["cost"]["tuning"]  # not one validation more or less


def test_it_continues_under_a_smaller_budget(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(successive_halving, "FEWEST_ITERATIONS", 5)  # so that there are several candidates
    plan, file = make_plan("ddim", SMOOTH, 3, "quadratic"), tmp_path / "partial.json"
    options = {**QUICK, "iterations": None, "candidates": 4, "checkpoint": file}
    found = [tune_by(EPS, plan, "joint", budget=budget, **options) for budget in (600, 60)]
    assert len(json.loads(file.read_text())["state"]["solvers"]) > 1
    assert found[0].provenance["validation_loss"]["tuned"] == found[1].provenance["validation_loss"]["tuned"]


@pytest.mark.parametrize("second", [np.int64(750), None])
def test_it_continues_under_another_budget(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, second: Any) -> None:
    monkeypatch.setattr(tuner, "MOST_ITERATIONS", 50)  # without a budget
    plan, file = make_plan("ddim", SMOOTH, 3, "quadratic"), tmp_path / "partial.json"
    options = {**QUICK, "iterations": None, "candidates": 4, "checkpoint": file}
    seen: list[Any] = []
    first = tune_by(EPS, plan, "joint", budget=250, **options).provenance
    after = tune_by(EPS, plan, "joint", budget=second, progress=seen.append, **options).provenance
    assert first["iterations"] < after["iterations"] <= 50 and after["pairs"] == first["pairs"]
    assert after["validation_loss"]["tuned"] <= first["validation_loss"]["tuned"]
    assert len(seen) > 2 and seen[-1].step == after["iterations"] and seen[-1].fraction == 1
    assert json.loads(file.read_text())["state"]["done"] == after["iterations"]


def test_the_end_is_reported_however_short_it_is() -> None:
    seen: list[Progress] = []
    tune_by(EPS, make_plan("ddim", SMOOTH, 3, "quadratic"), "joint", progress=seen.append, **{**QUICK, "iterations": 3})
    assert [each.step for each in seen if each.step] == [3, 3] and seen[-1].fraction == 1


def test_the_result_is_never_worse_than_the_plan() -> None:
    """Two iterations at a high rate do harm; the result is the best plan that was validated, the given one included."""
    plan = make_plan("unipc", SMOOTH, 12, "quadratic")
    tuned = tune_by(EPS, plan, "joint", **{**QUICK, "iterations": 1})
    assert tuned.provenance["validation_loss"]["tuned"] <= tuned.provenance["validation_loss"]["untuned"]


def test_budgets_name_what_is_wrong() -> None:
    plan = make_plan("ddim", SMOOTH, 4, "quadratic")
    for options, message in (
        ({"pairs": 3}, "pairs must be a whole number of at least 8, got 3"),
        ({"iterations": 0}, "iterations must be a whole number of at least 1, got 0"),
    ):
        with pytest.raises(ValueError, match=message):
            tune_by(EPS, plan, "joint", **{**QUICK, **options})


def test_several_numbers_of_calls(tmp_path: Path) -> None:
    """By the same runs of the teacher, each with its neighbour as a candidate, in one file."""
    calls: list[int] = []
    finished: list[int] = []
    plans = [make_plan("ddim", SMOOTH, k, "quadratic") for k in (5, 3, 4)]
    by = Joint(pairs=128, iterations=20, candidates=1)
    how: dict[str, Any] = {"shape": (4,), "guard": False}
    tuned = tune_several(counted(calls), plans, by, done=lambda plans: finished.append(len(plans)), **how)
    assert [len(plan) for plan in tuned] == [3, 4, 5] and finished == [1, 2, 3]
    assert [plan.provenance["cost"].get("teacher", {}).get("evaluations") for plan in tuned] == [40 * 128, None, None]
    for plan in tuned:
        assert distance_to_teacher(plan) < distance_to_teacher(make_plan("ddim", SMOOTH, len(plan), "quadratic"))
    Plan.save_several(tuned[::-1], tmp_path / "plans.json")
    assert [Plan.load(tmp_path / "plans.json", k) for k in (3, 4, 5)] == tuned
    for twice in (tuned[:1] * 2, []):
        with pytest.raises(ValueError, match="different numbers of calls"):
            Plan.save_several(twice, tmp_path / "plans.json")
        with pytest.raises(ValueError, match="different numbers of calls"):
            tune_several(EPS, twice, by, **how)


def test_several_that_were_interrupted_lose_no_finished_plan(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    plans = [make_plan("ddim", SMOOTH, k, "quadratic") for k in (3, 4)]
    options: dict[str, Any] = {"tuner": "joint(candidates=1)", "shape": (4,), "guard": False, "budget": 300}
    whole = tune_several(EPS, plans, **options)

    def stop(progress: Any) -> None:
        if len(finished) and progress.step >= 8:
            raise KeyboardInterrupt

    finished: list[int] = []
    kept = {**options, "checkpoint": tmp_path / "partial"}
    with pytest.raises(KeyboardInterrupt):
        tune_several(EPS, plans, done=lambda few: finished.append(len(few)), progress=stop, **kept)
    caplog.set_level("INFO")
    caplog.clear()
    again = tune_several(EPS, plans, **kept)
    for a, b in zip(again, whole, strict=True):  # the cost differs: the teacher's runs are made again
        assert torch.equal(a.t, b.t) and torch.equal(a.tau, b.tau) and torch.equal(a.corrections, b.corrections)
    continued = [message for message in caplog.messages if "continuing" in message]
    assert continued == [f"continuing from {tmp_path / 'partial'}-{k}" for k in (3, 4)]


def test_pairs_follow_a_budget_in_calls() -> None:
    """And not the clock: the same command finds the same plan."""
    plan = make_plan("ddim", SMOOTH, 3, "quadratic")
    found = [tune_by(EPS, plan, "joint", shape=(4,), guard=False, budget=300).provenance for _ in range(2)]
    assert found[0] == found[1] and found[0]["pairs"] == 300 // 3 * 16 // 40
