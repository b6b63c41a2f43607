"""The teacher of joint tuning: its runs, the file that keeps them, and how many of them there is time for."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from clock import Clock
from helpers import tune_by
from joint_problem import EPS, MIXTURE, POINTS, QUICK, SMOOTH, ZERO_SNR, counted, run_on
from torch import Tensor

from time_tuner import NoiseScheduleFlow, NoiseScheduleVE, NoiseScheduleVP, SeededNoise, make_plan, sample
from time_tuner.models.base import as_model
from time_tuner.models.batching import BatchedModel
from time_tuner.models.exact import Mixture
from time_tuner.plans.build import reference_plan
from time_tuner.schedules import NoiseSchedule
from time_tuner.tuners import Budget
from time_tuner.tuners.joint.teacher import TeacherPath, states_at, teach, usual_teacher

PLAN = reference_plan(SMOOTH, 0.001, 10)


def batched(eps: object, batch: int | None = None) -> BatchedModel:
    return BatchedModel(as_model(eps, SMOOTH), batch)


@pytest.mark.parametrize(("batch", "at_once"), [(None, 64), (64, 64), (100, 64), (24, 48)])
def test_the_teacher_continues_where_it_was_stopped(tmp_path: Path, batch: int | None, at_once: int) -> None:
    """Runs are kept in groups of at most 64, which fill network calls of the batch."""
    cache = tmp_path / "teacher.safetensors"
    whole = teach(batched(EPS), PLAN, run_on(), 100)

    calls: list[int] = []
    done = counted(calls)

    def stopped(x: Tensor, t: Tensor, tau: Tensor) -> Tensor:
        if sum(calls) >= 10 * at_once + 5:  # in the second group
            raise KeyboardInterrupt
        return done(x, t, tau)

    with pytest.raises(KeyboardInterrupt):
        teach(batched(stopped, batch), PLAN, run_on(), 100, cache)
    calls.clear()
    pairs = teach(batched(done, batch), PLAN, run_on(), 100, cache)
    assert sum(calls) == 10 * (1 + 100 - at_once)  # one to see that it is the same model, and those left
    torch.testing.assert_close(pairs.y, whole.y)
    assert torch.equal(pairs.x, whole.x)
    calls.clear()
    again = teach(batched(done, batch), PLAN, run_on(), 100, cache)
    assert sum(calls) == 10
    assert torch.equal(again.y, pairs.y)


def test_a_cache_of_something_else_is_refused(tmp_path: Path) -> None:
    cache = tmp_path / "teacher.safetensors"
    teach(batched(EPS), PLAN, run_on(), 6, cache)
    other = Mixture(POINTS + 1, 0.15).eps(SMOOTH)
    for model, teacher, seed, message in (
        (other, PLAN, 0, "another model"),
        (EPS, reference_plan(SMOOTH, 0.001, 12), 0, "another teacher"),
        (EPS, PLAN, 1, "another seed"),
    ):
        with pytest.raises(ValueError, match=message):
            teach(batched(model), teacher, run_on(seed=seed), 6, cache)
    cache.write_text("no")
    with pytest.raises(ValueError, match="no teacher file"):
        teach(batched(EPS), PLAN, run_on(), 6, cache)


@pytest.mark.parametrize("end", ["least", "zero"])
@pytest.mark.parametrize(
    "schedule",
    [SMOOTH, ZERO_SNR, NoiseScheduleVP("cosine"), NoiseScheduleVE(), NoiseScheduleFlow(), NoiseScheduleFlow(shift=3.0)],
)
def test_the_usual_teacher_ends_nearer_than_more_calls_of_a_lower_order(schedule: NoiseSchedule, end: str) -> None:
    last = 0.0 if end == "zero" else schedule.t_min
    plans = [reference_plan(schedule, last, calls) for calls in (200, 60)]
    eps = MIXTURE.eps(schedule)
    ends = [
        sample(eps, plan, plan.initial_state(SeededNoise(5)(torch.empty(200, 4))))
        for plan in (usual_teacher(plans[0]), *plans)
    ]
    teacher, other = ((one - ends[1]).norm(dim=1).mean() for one in (ends[0], ends[2]))
    assert teacher < other


def test_a_teacher_must_end_where_the_plan_does() -> None:
    plan = make_plan("ddim", SMOOTH, 4, "quadratic")
    for teacher in (reference_plan(SMOOTH, 0.0, 20), make_plan("ddpm", SMOOTH, 20, "quadratic")):
        with pytest.raises(ValueError, match="teacher must be a deterministic plan that ends where the plan does"):
            tune_by(EPS, plan, "joint", teacher=teacher, **QUICK)


def test_a_plan_of_many_calls_has_a_teacher_of_as_many() -> None:
    plan = make_plan("ddim", SMOOTH, 50, "quadratic")
    assert len(usual_teacher(plan)) == 50
    assert len(usual_teacher(plan)) > len(usual_teacher(make_plan("ddim", SMOOTH, 5, "quadratic"))) == 40


# --- by the clock ---


@pytest.mark.parametrize("wanted", [None, 2000])
def test_a_quarter_of_the_seconds_is_for_the_teacher(monkeypatch: pytest.MonkeyPatch, wanted: int | None) -> None:
    clock = Clock(monkeypatch, 0.01)
    run = run_on(budget=Budget(seconds=100))
    pairs = teach(batched(clock(EPS)), PLAN, run, wanted)
    assert 23.9 <= run.seconds <= 25.001
    assert len(pairs) == pytest.approx(run.seconds / 10 / 0.01)


@pytest.mark.parametrize("slower", [2, 4])
@pytest.mark.parametrize("after", [100, 700, 2000])
def test_the_teacher_stops_early_on_a_machine_that_slows_down(
    monkeypatch: pytest.MonkeyPatch, after: int, slower: int
) -> None:
    clock = Clock(monkeypatch, lambda n: 0.01 * (slower if n > after else 1))
    run = run_on(budget=Budget(seconds=100))
    pairs = teach(batched(clock(EPS)), PLAN, run)
    assert 20 <= run.seconds <= 25 + 8 * 10 * 0.01 * slower  # and a group of eight runs
    assert 8 <= len(pairs) < 250
    assert torch.equal(pairs.x, teach(batched(EPS), PLAN, run_on(), len(pairs)).x)


def test_the_fewest_pairs_may_take_more_but_not_all(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch, 0.1)
    for spent, count in ((0, 8), (21, 0)):
        run = run_on(budget=Budget(seconds=20))
        clock.now += spent
        assert len(teach(batched(clock(EPS)), PLAN, run)) == count


@pytest.mark.parametrize("pace", [lambda n: 1e-3, lambda n: 4e-3, lambda n: 1e-3 * (10 if n > 2000 else 1)])
def test_tuning_ends_in_time_however_slow_the_machine_is_or_becomes(
    monkeypatch: pytest.MonkeyPatch, pace: Callable[[int], float]
) -> None:
    clock = Clock(monkeypatch, pace)
    plan = make_plan("ddim", SMOOTH, 4, "quadratic")
    tuned = tune_by(clock(EPS), plan, "joint", shape=(4,), guard=False, budget="20s")
    # An iteration makes 4 runs of 16 pairs here, and looks at the validation pairs, a quarter of all.
    iteration = 4 * (4 * 16 + tuned.provenance["pairs"] / 4) * pace(10**6)
    # The last look, at up to 64 pairs, is at the pace of the end.
    assert 20 <= clock.now - 1000 <= 20 + iteration + 4 * 64 * pace(10**6)
    # After the slow-down an iteration takes 3 s of the 20, of which the ranking of untuned plans has 2.
    assert tuned.provenance["iterations"] >= (2 if pace(10**6) == 1e-2 else 10) and tuned.tuned
    assert tuned.provenance["stopped"] == f"the budget of 20 s was spent at iteration {tuned.provenance['iterations']}"


def test_a_machine_four_times_as_slow_does_less(monkeypatch: pytest.MonkeyPatch) -> None:
    plan, notes = make_plan("ddim", SMOOTH, 4, "quadratic"), []
    for pace in (1e-3, 4e-3):
        clock = Clock(monkeypatch, pace)
        notes.append(tune_by(clock(EPS), plan, "joint", shape=(4,), guard=False, budget="20s").provenance)
    for name in ("pairs", "iterations"):
        assert 3 < notes[0][name] / notes[1][name] < 5


def test_a_budget_of_time_that_is_too_small_is_reported(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    clock = Clock(monkeypatch, 0.01)
    plan = make_plan("ddim", SMOOTH, 4, "quadratic")
    for budget, why in ((2, "the runs of the teacher"), (3.5, "one iteration")):
        caplog.clear()
        before = clock.now
        tuned = tune_by(clock(EPS), plan, "joint", shape=(4,), guard=False, budget=f"{budget}s")
        assert tuned.provenance["stopped"] == f"the budget of {budget} s is not enough for {why}: give a larger one"
        assert (
            caplog.messages == [f"{tuned.provenance['stopped']}; the plan is not tuned"]
            and caplog.records[0].levelname == "WARNING"
        )
        assert not tuned.tuned and tuned.provenance["iterations"] == 0
        assert clock.now - before < budget + 1.5  # and the trials of the network before


@pytest.mark.parametrize("name", ["dpmpp", "heun"])
def test_a_path_has_the_states_that_are_kept_at_given_times(name: str) -> None:
    teacher, x = make_plan(name, SMOOTH, 10, "quadratic"), SeededNoise(7)(torch.empty(5, 4))
    times = [1.0, 0.7, float(teacher.step_times[2]), 0.2, 0.01, 0.0012]
    path, states = TeacherPath(batched(EPS), teacher, x), states_at(batched(EPS), teacher, x, times)
    for t, state in zip(times, states.unbind(1), strict=False):
        assert torch.equal(path.at(torch.tensor(t, dtype=torch.float64)), state)
    torch.testing.assert_close(path.at(teacher.t[-1]), sample(EPS, teacher, x))
