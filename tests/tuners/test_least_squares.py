"""Corrections by least squares along the run."""

import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import seeded
from joint_problem import EPS, SMOOTH, ZERO_SNR, distance_to_teacher, one_time, run_on, x0_network
from scipy.optimize import minimize
from torch import Tensor

from time_tuner import (
    SAMPLERS,
    NoiseScheduleFlow,
    NoiseScheduleVE,
    Plan,
    estimate,
    make_plan,
    model_wrapper,
    sample,
    trajectory,
    tune,
    tune_several,
)
from time_tuner.models.base import as_model
from time_tuner.models.batching import BatchedModel
from time_tuner.models.exact import Gaussian, Mixture
from time_tuner.schedules import NoiseSchedule, as_float64
from time_tuner.testing import check_tuner
from time_tuner.tuners import Calibration, LeastSquares, Progress, least_squares
from time_tuner.tuners.joint.teacher import states_at, teach, usual_teacher

QUICK: dict[str, Any] = {"shape": (4,), "guard": False}
FEW = LeastSquares(pairs=64)


def plan_of(sampler: str = "ddim", calls: int = 4, spacing: str = "quadratic") -> Plan:
    return make_plan(sampler, SMOOTH, calls, spacing)


def test_it_conforms() -> None:
    check_tuner(FEW)


@pytest.mark.parametrize("name", SAMPLERS)
def test_held_out_ends_are_nearer_from_every_deterministic_sampler(name: str) -> None:
    plan = plan_of(name, 6)
    if plan.stochastic:
        with pytest.raises(ValueError, match=r"least squares need a plan without noise.*take a deterministic sampler"):
            tune(EPS, plan, FEW, **QUICK)
        return
    tuned = tune(EPS, plan, FEW, **QUICK)
    assert torch.equal(tuned.t, plan.t) and torch.equal(tuned.tau, plan.tau)
    assert distance_to_teacher(tuned) < 0.8 * distance_to_teacher(plan)


@pytest.mark.parametrize("end", [0.0, 1e-3])
@pytest.mark.parametrize("calls", [2, 3])
def test_the_ends_of_a_gaussian_are_those_of_the_teacher(calls: int, end: float) -> None:
    """N(0, 1/4): every state is a number times the noise, so that one unknown makes it exact for all noise."""
    eps, grid = Gaussian(torch.zeros(4), 0.5).eps(SMOOTH), plan_of(calls=calls).t.clone()
    grid[-1] = end
    plan = make_plan("ddim", SMOOTH, calls, times=grid)
    tuned = tune(eps, plan, FEW, **QUICK)
    pairs = teach(BatchedModel(as_model(eps, SMOOTH)), usual_teacher(plan), run_on(seed=1), 20)
    before, after = ((sample(eps, one, pairs.x) - pairs.y).norm(dim=1).mean() for one in (plan, tuned))
    assert after < 1e-3 * before


def test_rows_are_the_minima_that_other_routines_find() -> None:
    """From the runs of the tuned plan itself: no row but the last leaves a mean square that `lstsq` lowers by more than
    the ridge may cost, nor the last one a mean robust distance that BFGS lowers."""
    plan, seen = plan_of("unipc", 4), list[Tensor]()
    tuned = tune(EPS, plan, FEW, **QUICK)

    def noted(x: Tensor, t: Any, tau: Any) -> Tensor:
        seen.append(EPS(x, t, tau).double())
        return seen[-1]

    times = plan.t[1:-1].tolist()
    pairs = teach(BatchedModel(as_model(EPS, SMOOTH)), usual_teacher(plan), run_on(), 48, None, times)
    assert pairs.path is not None
    states = list(trajectory(noted, tuned, pairs.x))
    for k, target in enumerate([*pairs.path.unbind(1)[1:], pairs.y], 1):
        columns, residual = torch.stack([noise - seen[k] for noise in seen[:k]], 2), (target - states[k]).double()

        def loss(moved: Any, last: bool = k == 3, columns: Tensor = columns, residual: Tensor = residual) -> float:
            squares = (residual - columns @ torch.as_tensor(moved)).square().sum(1)
            return float((squares + 1e-3).sqrt().mean() if last else squares.mean())

        if k < 3:
            best = torch.linalg.lstsq(columns.flatten(0, 1), residual.flatten()[:, None]).solution[:, 0]
        else:
            best = minimize(loss, [0.0] * k, method="BFGS").x
        assert loss(torch.zeros(k).double()) < 1.001 * loss(best)


@pytest.mark.parametrize("schedule", [SMOOTH, ZERO_SNR, NoiseScheduleVE(), NoiseScheduleFlow()], ids=repr)
@pytest.mark.parametrize("end", ["least", "zero"])
@pytest.mark.parametrize("sampler", ["unipc(order=3)", "heun"])
def test_the_path_is_exact_where_the_teacher_is(schedule: NoiseSchedule, end: str, sampler: str) -> None:
    """All data in one point: data and noise are constant on a path, so that few steps are exact, and the states between
    their ends are too, from alpha = 0 and to sigma = 0. Straight lines would not be."""
    model = as_model(Gaussian(torch.full((4,), 0.5), 1e-6).eps(schedule), schedule)
    last = 0.0 if end == "zero" else schedule.t_min
    teacher, x = make_plan(sampler, schedule, times=schedule.even_times(8, end=last)), seeded(8, 4)
    start, first = teacher.initial_state(x), teacher.point(0)
    noise = (start - first.alpha * 0.5) / first.sigma
    times = torch.linspace(schedule.T, last, 50).double()[1:]
    for t, state in zip(times, states_at(model, teacher, start, times.tolist()[:-1]).unbind(1), strict=True):
        p = schedule.at(t)
        bound = 1e-3 * float(p.scale)
        torch.testing.assert_close(state, p.alpha * 0.5 + p.sigma * noise, rtol=0, atol=bound)


def test_rows_that_predict_x0_and_an_end_without_noise_are_tuned() -> None:
    """A schedule that begins at alpha = 0, to sigma = 0."""
    mixture = Mixture(seeded(12, 4, seed=3), 0.15).eps(ZERO_SNR)
    plan = make_plan("unipc", ZERO_SNR, 4, "trailing")
    assert plan.rows[0].predicts == "x0" and plan.sigma[-1] == 0
    distance = tune(mixture, plan, FEW, shape=(4,)).provenance["distance"]
    assert distance["unguarded"] < 0.8 * distance["untuned"]


def test_a_network_without_a_gradient_is_tuned_to_the_same_plan() -> None:
    @torch.inference_mode()
    def eps(x: Tensor, t: Any, tau: Any) -> Tensor:
        return EPS(x, t, tau)

    with torch.inference_mode():
        inside = tune(EPS, plan_of(), FEW, **QUICK)
    tuned = tune(EPS, plan_of(), FEW, **QUICK)
    assert tuned.corrections is not None and tuned.corrections.any()
    assert inside.corrections is not None and torch.equal(inside.corrections, tuned.corrections)
    assert tune(eps, plan_of(), FEW, **QUICK) == tuned


def test_no_prediction_needs_a_gradient() -> None:
    weight = torch.ones((), requires_grad=True)

    def eps(x: Tensor, t: Any, tau: Any) -> Tensor:
        assert not torch.is_grad_enabled()
        return weight * EPS(x, t, tau)

    tune(eps, plan_of(), FEW, **QUICK)


def test_an_x0_network_is_tuned() -> None:
    model, plan = model_wrapper(x0_network, SMOOTH, model_type="x_start").bind(), plan_of()
    tuned, other = tune(model, plan, FEW, **QUICK), tune(EPS, plan, FEW, **QUICK)
    assert tuned.corrections is not None and other.corrections is not None
    torch.testing.assert_close(tuned.corrections, other.corrections, rtol=1e-2, atol=1e-2)


def test_tuned_times_stay() -> None:
    """A plan whose ratios are tuned keeps them, and gets corrections that suit them."""
    plan = plan_of().with_ratios([0.99, 0.97, 0.98, 1.0])
    tuned = tune(EPS, plan, FEW, **QUICK)
    assert torch.equal(tuned.tau, plan.tau)
    assert distance_to_teacher(tuned) < distance_to_teacher(plan)


def test_corrections_that_are_no_better_are_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = plan_of().with_corrections(0.01 * torch.ones(4, 4, dtype=torch.float64).tril(-1))
    monkeypatch.setattr(least_squares, "_rows", lambda *given: 9 * torch.ones(4, 4, dtype=torch.float64).tril(-1))
    tuned = tune(EPS, plan, FEW, **QUICK)
    losses = tuned.provenance["validation_loss"]
    assert losses["untuned"] == losses["tuned"]
    assert tuned.corrections is not None and torch.equal(tuned.corrections, as_float64(plan.corrections))


@pytest.mark.parametrize(("sampler", "batch"), [("unipc", None), ("heun", 24)])
@pytest.mark.parametrize("how", [{}, {"pairs": 90}, {"budget": 30}, {"budget": "1h"}], ids=str)
def test_the_estimate_is_its_cost(sampler: str, batch: int | None, how: dict[str, Any]) -> None:
    plan, tuner = plan_of(sampler, 6), LeastSquares(how.get("pairs"))
    options = {"shape": (4,), "batch": batch, "budget": how.get("budget")}
    spent = tune(one_time, plan, tuner, **options).provenance["cost"]
    costs = estimate(one_time, plan, tuner, **options).costs
    by_the_clock = how.get("budget") == "1h" or not how  # the first runs of the teacher show how long they take
    for purpose in ("teacher", "tuning", "reference"):
        usual, most = costs[purpose]
        assert spent[purpose]["evaluations"] == usual.evaluations and (usual == most or purpose == "reference")
        if purpose != "teacher" or not by_the_clock:
            assert spent[purpose]["calls"] == usual.calls


def test_a_budget_of_calls_makes_the_pairs_fewer() -> None:
    found = [tune(EPS, plan_of(), "least_squares", budget=budget, batch=16, **QUICK) for budget in (1000, 48, 3)]
    assert [plan.provenance["pairs"] for plan in found[::2]] == [256, 0]
    assert 8 <= found[1].provenance["pairs"] < 256 and found[1].provenance["cost"]["tuning"]["calls"] <= 48
    assert found[2].provenance["stopped"] == (
        "the budget of 3 calls is not enough for the runs of the teacher: give a larger one"
    )
    assert found[2].corrections is None


def test_a_budget_that_is_too_small_for_the_pairs_leaves_the_plan() -> None:
    tuned = tune(EPS, plan_of(), LeastSquares(pairs=128), budget=10, batch=16, **QUICK)
    assert tuned.corrections is None and "give a larger one, or fewer pairs" in tuned.provenance["stopped"]
    assert tuned.provenance["cost"].keys() == {"sizing", "teacher"}


def test_an_interrupted_run_finds_the_same_plan(tmp_path: Path) -> None:
    how: dict[str, Any] = {"budget": 300, **QUICK}
    whole = tune(EPS, plan_of(calls=5), "least_squares", **how)

    def stop(progress: Progress) -> None:
        if progress.step == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tune(EPS, plan_of(calls=5), "least_squares", checkpoint=tmp_path / "partial", progress=stop, **how)
    steps: list[int] = []
    again = tune(
        EPS, plan_of(calls=5), "least_squares", checkpoint=tmp_path / "partial",
        progress=lambda progress: steps.append(progress.step), **how,
    )  # fmt: skip
    assert again == whole
    assert [step for step in dict.fromkeys(steps) if step] == [4, 5]


def test_a_cache_keeps_the_path(tmp_path: Path) -> None:
    cache, plan = tmp_path / "teacher.safetensors", plan_of()
    tuner = LeastSquares(pairs=64, teacher_cache=cache)
    first, again = (tune(EPS, plan, tuner, **QUICK) for _ in range(2))
    assert first.corrections is not None and again.corrections is not None
    assert torch.equal(first.corrections, again.corrections)
    assert again.provenance["cost"]["teacher"] == {"calls": 40, "evaluations": 40}
    costs = estimate(EPS, plan, tuner, shape=(4,), guard=False).costs
    assert asdict(costs["teacher"][0]) == {"calls": 40, "evaluations": 40}
    with pytest.raises(ValueError, match="holds runs with another grid of the plan"):
        tune(EPS, plan_of(spacing="logsnr"), tuner, **QUICK)


def test_plans_for_several_numbers_of_calls_are_tuned() -> None:
    plans = [plan_of(calls=calls) for calls in (4, 3)]
    assert [len(plan) for plan in tune_several(EPS, plans, FEW, samples=16, shape=(4,))] == [3, 4]


def test_pairs_are_under_their_conditions() -> None:
    """A model of several conditions is tuned as one that predicts for each sample by its own condition."""

    class Shifted:
        schedule, shape, num_conditions = SMOOTH, (4,), 3

        def __init__(self, rows: Tensor) -> None:
            self.rows = rows
            self.eps = [Mixture(seeded(12, 4, seed=3) + shift, 0.15).eps(SMOOTH) for shift in range(3)]

        def __call__(self, x: Tensor, t: Any, tau: Any) -> Tensor:
            return torch.stack([self.eps[int(i)](one[None], t, tau)[0] for i, one in zip(self.rows, x, strict=True)])

        def select(self, rows: Tensor) -> "Shifted":
            found = Shifted(self.rows[rows])
            found.num_conditions = len(rows)
            return found

    tuned = [
        tune(Shifted(torch.arange(3)), plan_of(calls=3), LeastSquares(pairs=16), samples=8, batch=batch, guard=False)
        for batch in (5, 8)
    ]
    assert tuned[0].corrections is not None and tuned[1].corrections is not None
    torch.testing.assert_close(tuned[0].corrections, tuned[1].corrections, rtol=1e-3, atol=1e-3)
    losses = tuned[0].provenance["validation_loss"]
    assert losses["tuned"] < losses["untuned"]


def test_what_cannot_be_tuned_is_refused_by_name() -> None:
    late = make_plan("unipc", SMOOTH, times=torch.linspace(0.3, SMOOTH.t_min, 41))
    for plan, tuner, data, message in (
        (plan_of("ddpm"), FEW, None, "least squares need a plan without noise"),
        (plan_of(calls=1), FEW, None, "a plan for 1 call has no corrections to tune"),
        (plan_of(), FEW, torch.randn(8, 4), "data must be left out for least squares"),
        (plan_of(), LeastSquares(64, late), None, "teacher must begin no later than the plan's second call"),
        (plan_of(), LeastSquares(64, plan_of(calls=3)), None, "teacher must make no fewer calls"),
    ):
        with pytest.raises(ValueError, match=message):
            tune(EPS, plan, tuner, data, **QUICK)
    for options, message in (
        ({"pairs": 4}, "pairs must be"),
        ({"teacher": "unipc"}, "teacher must be a Plan"),
        ({"teacher_cache": 3}, "teacher_cache must be a path"),
    ):
        with pytest.raises(ValueError, match=message):
            LeastSquares(**options)


@pytest.mark.parametrize(
    ("tau", "where"),
    [(None, "the teacher begins at t = 1, where eps returned NaN"), (float(plan_of().tau[2]), "infinity at call 2")],
    ids=["everywhere", "at a time of the plan alone"],
)
def test_a_network_that_returns_nan_is_named(tau: float | None, where: str) -> None:
    def broken(x: Tensor, t: Any, at: Any) -> Tensor:
        return EPS(x, t, at) * (math.nan if tau in (None, float(at)) else 1)

    with pytest.raises(ValueError, match=where):
        tune(broken, plan_of(), FEW, **QUICK)


def test_predictions_that_are_all_the_same_leave_nothing_to_correct() -> None:
    tuned = tune(lambda x, t, tau: torch.ones_like(x), plan_of(), FEW, **QUICK)
    assert tuned.corrections is None


def test_the_guard_and_a_given_calibration_are_those_of_every_tuner() -> None:
    calibration = Calibration(EPS, SMOOTH, samples=64, shape=(4,))
    distance = tune(EPS, plan_of(), FEW, calibration).provenance["distance"]
    assert distance["tuned"] == distance["unguarded"] < distance["untuned"]
