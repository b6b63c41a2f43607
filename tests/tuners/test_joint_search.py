"""The search of joint tuning: Gauss-Newton, its candidates, and successive halving of them."""

import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from helpers import seeded, tune_by
from joint_problem import EPS, QUICK, SMOOTH, distance_to_teacher

from time_tuner import Plan, make_plan
from time_tuner.tuners.base import PARTS
from time_tuner.tuners.joint import successive_halving
from time_tuner.tuners.joint.candidates import candidate_plans, warm_starts
from time_tuner.tuners.joint.gauss_newton import GaussNewton
from time_tuner.tuners.joint.loss import Gradients, robust
from time_tuner.tuners.joint.parameters import Parameters
from time_tuner.tuners.joint.successive_halving import TRIAL_SHARE, SuccessiveHalving, max_candidates
from time_tuner.tuners.ranking import Ranked, untuned_plans


def better(plan: Plan) -> float:
    """The loss after a step."""
    return 0.0


def test_a_step_that_gains_nothing_is_rejected_and_the_next_is_half_as_long() -> None:
    taken, refused = (GaussNewton(Parameters(make_plan("ddim", SMOOTH, 3, "quadratic"))) for _ in range(2))
    gradients = Gradients(1.0, 0.01 * torch.ones(len(taken.v), dtype=torch.float64), torch.eye(len(taken.v)).double())
    for after in (1.0, 2.0, math.nan):
        refused.step(gradients, lambda plan, after=after: after)
        assert not refused.v.any()
    assert refused.step_scale == 1 / 8
    taken.step(gradients, lambda plan: 0.99999)  # less than was predicted
    assert taken.v.any() and taken.step_scale == 1
    taken.step(gradients, better)
    assert taken.step_scale == 1.5
    for _ in range(5):
        taken.step(gradients, better)
    assert taken.step_scale == 3


def test_a_nonfinite_step_restarts_from_the_best() -> None:
    plan = make_plan("ddim", SMOOTH, 3, "quadratic")
    solver = GaussNewton(Parameters(plan))
    gradients = Gradients(1.0, torch.ones(len(solver.v), dtype=torch.float64), torch.eye(len(solver.v)).double())
    solver.validate(1.0, 0.0)
    solver.step(gradients, better)
    solver.validate(0.5, 0.1)
    best = solver.v.clone()
    solver.step(gradients, better)
    assert not torch.equal(solver.v, best)
    solver.step(replace(gradients, loss=math.nan), better)
    assert torch.equal(solver.v, best) and best.any()


def test_no_progress_restarts_from_the_best_at_half_the_rate() -> None:
    solver, again = (GaussNewton(Parameters(make_plan("ddim", SMOOTH, 3, "quadratic"))) for _ in range(2))
    gradients = Gradients(1.0, torch.ones(len(solver.v), dtype=torch.float64), torch.eye(len(solver.v)).double())
    solver.validate(1.0, 0.0)
    for share in (0.1, 0.2):
        solver.step(gradients, better)
        solver.validate(2.0, share)
    assert solver.v.any() and solver.restarts == 0
    solver.validate(2.0, 0.3)
    assert not solver.v.any() and solver.restarts == 1
    assert solver.best_loss == 1.0 and not solver.best_v.any()
    again.restore({**solver.to_dict(), "restarts": 0})
    for one in (solver, again):
        one.step(gradients, better)
    torch.testing.assert_close(2 * solver.v, again.v)


def test_the_result_is_the_mean_of_iterates() -> None:
    solver = GaussNewton(Parameters(make_plan("ddim", SMOOTH, 3, "quadratic")))
    places = []
    for i in range(6):
        gradients = Gradients(1.0, 0.01 * seeded(len(solver.v), seed=i).double(), torch.eye(len(solver.v)).double())
        solver.step(gradients, better)
        places.append(solver.v.clone())
    weights = torch.tensor([i * (i + 1) * (i + 2) for i in range(1, 7)]).double()
    mean = (weights[:, None] * torch.stack(places)).sum(0) / weights.sum()
    torch.testing.assert_close(solver.mean_v, mean)
    assert solver.plan() == solver.parameters.plan(solver.mean_v)
    solver.validate(0.5, 0.1)
    torch.testing.assert_close(solver.best_v, mean)
    solver.validate(0.6, 0.9)  # no progress: a restart from the mean, which begins anew
    solver.step(gradients, better)
    torch.testing.assert_close(solver.mean_v, solver.v)


def test_every_pair_is_used_before_any_is_used_again() -> None:
    seen: list[list[tuple[float, ...]]] = []

    def distance(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        if x.requires_grad:
            seen.append([tuple(row) for row in y.tolist()])
        return robust(x, y)

    plan = make_plan("ddim", SMOOTH, 3, "quadratic")
    tune_by(EPS, plan, "joint", distance=distance, **{**QUICK, "pairs": 40, "iterations": 15})
    assert len(seen.pop(0)) == 2  # whether there is a gradient at all
    assert [len(rows) for rows in seen] == [16] * 15
    counts = Counter(row for rows in seen for row in rows)
    assert len(counts) == 30 and set(counts.values()) == {8}
    assert seen[0] != seen[-1]


def test_an_iterate_whose_runs_break_is_not_the_result() -> None:
    """The network is broken all around a time that it receives from the untuned plan."""
    plan = make_plan("ddim", SMOOTH, 4, "quadratic")
    seen: list[bool] = []

    def broken(x: torch.Tensor, t: Any, tau: Any = None) -> torch.Tensor:
        noise = EPS(x, t, tau)
        away = (torch.as_tensor(tau).detach() / plan.tau[2] - 1).abs()
        seen.append(bool(((away > 0.02) & (away < 0.3)).any()))
        return noise * math.nan if seen[-1] else noise

    broken.schedule = EPS.schedule  # type: ignore[attr-defined]
    tuned = tune_by(broken, plan, "joint", **{**QUICK, "teacher": make_plan("dpmpp", SMOOTH, 6, "quadratic")})
    assert any(seen) and tuned.provenance["validation_loss"]["tuned"] < tuned.provenance["validation_loss"]["untuned"]


# --- candidates ---


def candidates(plan: Plan, parts: Sequence[str] = PARTS) -> list[Plan]:
    """All candidates, where the untuned plans are ranked in the order of their table."""
    ranking = [Ranked(name, other, 0.0) for name, other in untuned_plans(plan).items()]
    return candidate_plans(plan, ranking, parts, 1000)


def solvers(*losses: float) -> list[GaussNewton]:
    """Solvers with these validation losses."""
    made = [GaussNewton(Parameters(make_plan("ddim", SMOOTH, 3, "quadratic"))) for _ in losses]
    for one, loss in zip(made, losses, strict=True):
        one.validate(loss, 0.0)
    return made


def test_the_worse_half_is_out_after_every_round() -> None:
    tried = solvers(4.0, 1.0, 3.0, 2.0, 5.0)
    halving, share, order = SuccessiveHalving(tried, {}), 0.0, []
    while not halving.decided:
        order.append(tried.index(halving.solver))
        while not halving.trial_ends(share):
            share += 0.001
        halving = SuccessiveHalving(tried, json.loads(json.dumps(halving.to_dict())))  # as if interrupted
        halving.next_trial(share)
    assert order == [0, 1, 2, 3, 4, 1, 3, 2, 1, 3]
    assert halving.solver is tried[1]
    assert share == pytest.approx(TRIAL_SHARE, abs=0.02)
    assert not halving.trial_ends(1.0)
    halving.rescale(0.5)  # it continues in a budget of twice as much
    assert all(one.improved_at < 0.2 for one in tried)


def test_there_are_as_many_candidates_as_there_is_time_for() -> None:
    sizes = [max_candidates(iterations) for iterations in range(1, 1000)]
    assert sizes[:20] == [1] * 20 and sizes == sorted(sizes) and sizes[-1] > 6
    for count, iterations in ((2, 115), (4, 343)):
        assert max_candidates(iterations) == count


def test_one_candidate_needs_no_trials() -> None:
    halving = SuccessiveHalving(solvers(1.0), {})
    assert halving.decided and not halving.trial_ends(0.9)


def test_the_last_candidate_may_win() -> None:
    """Its loss after its trial counts, not that before."""
    tried = solvers(1.0, 2.0, 3.0)
    halving, share = SuccessiveHalving(tried, {}), 0.0
    while not halving.decided:
        share += TRIAL_SHARE / 5
        halving.solver.validate(0.1 if halving.solver is tried[2] else 0.9, share)
        halving.next_trial(share)
    assert halving.solver is tried[2]


@pytest.mark.parametrize("name", ["ddim", "dpmpp"])
def test_a_late_beginning_wins_where_few_calls_must_do(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Of two calls, one that is made where there is only noise is wasted."""
    monkeypatch.setattr(successive_halving, "FEWEST_ITERATIONS", 10)  # so that there are two candidates
    plan = make_plan(name, SMOOTH, 2, "quadratic")
    late, given = (tune_by(EPS, plan, "joint", **{**QUICK, "iterations": 60, "candidates": n}) for n in (4, 1))
    assert late.t[0] < 0.8 < given.t[0] and late.t[-1] == given.t[-1]
    assert distance_to_teacher(late) < 0.8 * distance_to_teacher(given)


def test_candidates_end_where_the_plan_does() -> None:
    plan = make_plan("dpmpp", SMOOTH, 5, "quadratic")
    found = candidates(plan)
    assert len(found) > 5
    assert all(len(one) == 5 and one.t[-1] == plan.t[-1] for one in found)
    assert min(float(one.t[0]) for one in found) < 0.9 < max(float(one.t[0]) for one in found)
    to_zero = candidates(make_plan("ddim", SMOOTH, 5, "trailing"))
    assert len(to_zero) > 5 and all(one.t[-1] == 0 for one in to_zero)
    with pytest.raises(ValueError, match=r"warm_starts must be deterministic plans to t = 0\.001"):
        warm_starts(plan, [make_plan("dpmpp", SMOOTH, 5, "linspace")])


def test_no_two_candidates_have_the_same_calls() -> None:
    found = candidates(make_plan("dpmpp", SMOOTH, 4, "karras"))
    for i, one in enumerate(found):
        assert not any(torch.allclose(one.t, other.t, rtol=1e-3) for other in found[:i])


def test_few_iterations_are_all_of_the_best_candidate() -> None:
    """Another candidate costs a look at its validation loss, and is tuned in place of the plan if that is better."""
    plan = make_plan("ddim", SMOOTH, 3, "quadratic")
    alone, more = (
        tune_by(EPS, plan, "joint", **{**QUICK, "iterations": 20, "candidates": candidates}).provenance
        for candidates in (1, 4)
    )
    looks = more["cost"]["tuning"]["calls"] - alone["cost"]["tuning"]["calls"]
    assert 0 < looks <= len(plan)
    assert more["validation_loss"]["untuned"] == alone["validation_loss"]["untuned"]
    assert more["validation_loss"]["tuned"] < alone["validation_loss"]["untuned"]


def test_the_best_candidates_by_their_validation_loss_take_part() -> None:
    halving = SuccessiveHalving(solvers(3.0, 1.0, 2.0), {})
    halving.keep_best(2)
    assert halving.remaining == [1, 2] and halving.entered == 2
    halving.keep_best(None)
    assert halving.remaining == [1, 2]


@pytest.mark.parametrize("candidates", [1, 4])
def test_a_warm_start_takes_part_in_any_case(candidates: int) -> None:
    good = tune_by(EPS, make_plan("ddim", SMOOTH, 4, "quadratic"), "joint", **QUICK)
    how = {**QUICK, "iterations": 4, "candidates": candidates}
    tuned = tune_by(EPS, make_plan("ddim", SMOOTH, 4, "uniform"), "joint", warm_starts=[good], **how)
    assert tuned.provenance["validation_loss"]["tuned"] <= 1.000001 * good.provenance["validation_loss"]["tuned"]
    if candidates == 1:
        assert tuned.provenance["start_times"] == [round(float(t), 6) for t in good.step_times]


@pytest.mark.parametrize("wrong", [make_plan("ddim", SMOOTH, 3), ["plan"], [None], 3])
def test_warm_starts_must_be_plans(wrong: Any) -> None:
    with pytest.raises(ValueError, match="warm_starts must be a list of plans, got"):
        tune_by(EPS, make_plan("ddim", SMOOTH, 3, "quadratic"), "joint", warm_starts=wrong, **QUICK)


@pytest.mark.parametrize("part", PARTS)
def test_candidates_differ_in_what_is_tuned_alone(part: str) -> None:
    plain = make_plan("dpmpp", SMOOTH, 4, "quadratic")
    lower = torch.full((4, 4), 0.1, dtype=torch.float64).tril(-1)
    plan = plain.with_tau(plain.tau * 0.9).with_corrections(lower)
    found = candidates(plan, (part,))
    assert found or part in ("tau", "reuse")
    for one in found:
        assert part == "times" or torch.equal(one.step_times, plan.step_times)
        assert part == "tau" or torch.allclose(one.tau / one.t[:-1], plan.tau / plan.t[:-1])
        assert part == "corrections" or (one.sampler == plan.sampler and torch.equal(one.corrections, lower))


def test_a_neighbour_is_a_better_start_than_none() -> None:
    plan = make_plan("ddim", SMOOTH, 5, "quadratic")
    tuned = tune_by(EPS, make_plan("ddim", SMOOTH, 6, "quadratic"), "joint", parts=("times",), **QUICK)
    few = {**QUICK, "iterations": 4}
    cold, warm = (tune_by(EPS, plan, "joint", parts=("times",), warm_starts=starts, **few) for starts in ((), (tuned,)))
    assert warm.provenance["validation_loss"]["tuned"] < cold.provenance["validation_loss"]["tuned"]
