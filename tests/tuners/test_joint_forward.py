"""Joint tuning with forward calls only."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from clock import Clock
from helpers import seeded, tune_by
from joint_problem import EPS, POINTS, QUICK, SMOOTH, counted, distance_to_teacher, loss_of, x0_of_one_time
from torch import Tensor

from time_tuner import Joint, Plan, make_plan, model_wrapper, trajectory, tune
from time_tuner.models.exact import Mixture
from time_tuner.tuners import estimate
from time_tuner.tuners.joint import forward_only
from time_tuner.tuners.joint.forward_only import gradients_by_differences
from time_tuner.tuners.joint.loss import TeacherLoss, TimeGradients, robust
from time_tuner.tuners.joint.parameters import PARTS, Parameters
from time_tuner.tuners.joint.sizing import difference_calls

FORWARD: dict[str, Any] = {**QUICK, "pairs": 64, "iterations": 25, "gradients": False}
SUBSETS = [*((part,) for part in PARTS if part != "reuse"), PARTS]


def plan_of(calls: int = 4, name: str = "ddim") -> Plan:
    return make_plan(name, SMOOTH, calls, "quadratic")


def close(one: Tensor, other: Tensor, within: float) -> bool:
    return bool((one - other).norm() < within * other.norm())


# --- the derivatives ---


@pytest.mark.parametrize("name", ["ddim", "unipc", "heun", "dpmpp"])
@pytest.mark.parametrize("parts", SUBSETS, ids=str)
def test_the_gradient_is_that_of_backward_passes(
    monkeypatch: pytest.MonkeyPatch, name: str, parts: tuple[str, ...]
) -> None:
    monkeypatch.setattr(forward_only, "STEP", 1e-5)
    loss, rows, parameters = loss_of(EPS), torch.arange(64), Parameters(plan_of(name=name), parts)
    v = 0.05 * seeded(len(parameters))
    backward = loss.gradients(parameters, v, rows, TimeGradients(exact=True, differences=("tau",)))
    forward = gradients_by_differences(loss, parameters, v, rows)
    assert forward.loss == pytest.approx(backward.loss, rel=1e-9)
    assert close(forward.gradient, backward.gradient, 1e-3)


@pytest.mark.parametrize("mean", [False, True])
def test_a_distance_of_the_users_has_the_same_derivatives(monkeypatch: pytest.MonkeyPatch, mean: bool) -> None:
    """Here of the usual distance, whose slope is known; the curvature is by random directions."""
    monkeypatch.setattr(forward_only, "STEP", 1e-5)

    def distance(x: Tensor, y: Tensor) -> Tensor:
        distances = robust(x, y)
        return distances.mean() if mean else distances

    loss, rows, parameters = loss_of(EPS), torch.arange(64), Parameters(plan_of())
    v, given = 0.05 * seeded(len(parameters)), TeacherLoss(loss.model, loss.pairs, distance, loss.cost_log)
    known, found = (gradients_by_differences(one, parameters, v, rows) for one in (loss, given))
    assert known.curvature is not None and found.curvature is not None
    assert close(found.gradient, known.gradient, 1e-3) and close(found.curvature, known.curvature, 0.4)


def test_the_curvature_is_the_mean_of_the_squared_derivative_of_the_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """Against the derivative of every end by torch, of a few pairs at a time too."""
    loss, rows, parameters = loss_of(EPS, 8), torch.arange(8), Parameters(plan_of(3), ("corrections",))
    v = torch.tensor([0.1, -0.2, 0.3], dtype=torch.float64)

    def ends(v: Tensor) -> Tensor:
        return list(trajectory(EPS, parameters.plan(v), loss.pairs.x))[-1]

    derivative = torch.autograd.functional.jacobian(ends, v)
    distances = robust(ends(v), loss.pairs.y)
    q = (ends(v) - loss.pairs.y) / distances[:, None]
    expected = torch.einsum("b,bfp,bfq->pq", q.square().sum(1) / distances, derivative, derivative) / 8
    monkeypatch.setattr(forward_only, "STEP", 1e-5)
    found = gradients_by_differences(loss, parameters, v, rows)
    assert found.curvature is not None and close(found.curvature, expected, 1e-3)
    monkeypatch.setattr(forward_only, "MOST_BYTES", 3 * 4 * 3 * 4)  # for three pairs
    again = gradients_by_differences(loss, parameters, v, rows)
    assert again.loss == pytest.approx(found.loss)
    torch.testing.assert_close(again.gradient, found.gradient)
    torch.testing.assert_close(again.curvature, found.curvature)


@pytest.mark.parametrize("parts", SUBSETS, ids=str)
@pytest.mark.parametrize("calls", [2, 5])
def test_only_calls_on_which_a_number_has_an_effect_are_made_again(parts: tuple[str, ...], calls: int) -> None:
    made: list[int] = []
    loss, parameters = loss_of(counted(made)), Parameters(plan_of(calls), parts)
    made.clear()
    gradients_by_differences(loss, parameters, torch.zeros(len(parameters)).double(), torch.arange(64))
    assert len(made) == calls + difference_calls(plan_of(calls), parts)


# --- tuning ---


class NoGradientFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, tau: Tensor) -> Tensor:
        return EPS(x, tau, tau)


def in_numpy(x: Tensor, t: Tensor, tau: Tensor) -> Tensor:
    """As of a network in another runtime: an error for a tensor with a gradient."""
    return EPS(torch.from_numpy(x.numpy()), t, tau)


def without_backward(x: Tensor, t: Tensor, tau: Tensor) -> Tensor:
    found: Tensor = NoGradientFunction.apply(x, tau)
    return found


INSIDE = Mixture(POINTS, 0.15).eps(SMOOTH)  # its own tensors have no gradient after the first call


@torch.inference_mode()
def inference(x: Tensor, t: Tensor, tau: Tensor) -> Tensor:
    return INSIDE(x, t, tau)


@pytest.mark.parametrize("network", [in_numpy, without_backward, inference])
def test_a_network_without_a_gradient_is_tuned_by_itself(network: Any, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    how, plan = {**FORWARD, "gradients": None, "iterations": 4}, plan_of(3)
    tuned, known = tune_by(network, plan, "joint", **how), tune_by(EPS, plan, "joint", **{**how, "gradients": False})
    assert any("differences between runs, because the network has no gradient: " in one for one in caplog.messages)
    assert tuned.provenance["gradients"] is False
    for name in ("t", "tau", "corrections"):
        torch.testing.assert_close(getattr(tuned, name), getattr(known, name))
    assert tune_by(EPS, plan, "joint", **how).provenance["gradients"] is True


def test_inference_mode_changes_nothing() -> None:
    with torch.inference_mode():
        inside = tune_by(INSIDE, plan_of(3), "joint", **{**FORWARD, "iterations": 4})
    tuned = tune_by(EPS, plan_of(3), "joint", **{**FORWARD, "iterations": 4})
    for name in ("t", "tau", "corrections"):
        torch.testing.assert_close(getattr(inside, name), getattr(tuned, name))


def test_no_gradient_is_computed() -> None:
    weight = torch.ones((), requires_grad=True)

    def eps(x: Tensor, t: Any, tau: Any) -> Tensor:
        assert not torch.is_grad_enabled()
        return weight * EPS(x, t, tau)

    def distance(x: Tensor, y: Tensor) -> Tensor:
        assert not torch.is_grad_enabled()
        return robust(x, y)

    tune_by(eps, plan_of(3), "joint", **{**FORWARD, "iterations": 3, "guard": True, "distance": distance})


@pytest.mark.parametrize("name", ["ddim", "unipc"])
def test_held_out_ends_are_nearer_than_by_least_squares(name: str) -> None:
    plan = plan_of(3, name)
    by_rows = tune(EPS, plan, "least_squares(pairs=128)", shape=(4,), guard=False)
    tuned = tune_by(EPS, plan, "joint", **{**FORWARD, "pairs": 128})
    assert distance_to_teacher(tuned) < 0.8 * distance_to_teacher(by_rows)


def test_it_is_as_near_as_with_gradients() -> None:
    plan, how = plan_of(3), {**FORWARD, "iterations": 40}
    forward, backward = (tune_by(EPS, plan, "joint", **{**how, "gradients": flag}) for flag in (False, True))
    assert distance_to_teacher(forward) < 1.15 * distance_to_teacher(backward)


@pytest.mark.parametrize("parts", [("times",), ("tau",), ("corrections",), ("times", "corrections")], ids=str)
def test_only_the_named_parts_move(parts: tuple[str, ...]) -> None:
    plan = plan_of(4)
    tuned = tune_by(EPS, plan, "joint", **{**FORWARD, "iterations": 12, "parts": parts})
    assert distance_to_teacher(tuned) < 0.95 * distance_to_teacher(plan)
    assert torch.equal(tuned.t, plan.t) == ("times" not in parts)
    assert (tuned.corrections is None) == ("corrections" not in parts)
    ratios = tuned.tau / tuned.t[:-1]
    assert torch.allclose(ratios, torch.ones_like(ratios)) == ("tau" not in parts)


def test_an_x0_network_that_takes_one_time_is_tuned() -> None:
    losses = tune_by(x0_of_one_time, plan_of(), "joint", **FORWARD).provenance["validation_loss"]
    assert losses["tuned"] < 0.6 * losses["untuned"]


@pytest.mark.parametrize("mean", [False, True])
def test_a_distance_without_a_gradient_is_minimised(mean: bool) -> None:
    """Of the first coordinate, by numbers alone."""

    def distance(x: Tensor, y: Tensor) -> Tensor:
        found = torch.from_numpy(abs(x.numpy() - y.numpy())[:, 0])
        return found.mean() if mean else found

    plan = plan_of(3)
    tuned = tune_by(EPS, plan, "joint", **{**FORWARD, "distance": distance, "parts": ("tau", "corrections")})
    losses = tuned.provenance["validation_loss"]
    assert losses["tuned"] < 0.9 * losses["untuned"]


def test_it_begins_from_least_squares() -> None:
    """Where there is hardly an iteration, the corrections are nearer than those of the plan."""
    tuned = tune_by(EPS, plan_of(), "joint", **{**FORWARD, "iterations": 1})
    losses = tuned.provenance["validation_loss"]
    assert losses["tuned"] < 0.4 * losses["untuned"]
    again = tune_by(EPS, tuned, "joint", **{**FORWARD, "iterations": 1}).provenance["validation_loss"]
    assert again["untuned"] == pytest.approx(losses["tuned"]) and again["tuned"] <= again["untuned"]


@pytest.mark.parametrize("late", [0.5, 0.999])
def test_a_teacher_that_begins_late_is_no_path_for_least_squares(late: float) -> None:
    times = torch.linspace(late, SMOOTH.t_min, 12, dtype=torch.float64)
    teacher = make_plan("dpmpp", SMOOTH, times=times)
    tuned = tune_by(EPS, plan_of(), "joint", **{**FORWARD, "iterations": 1, "teacher": teacher})
    losses = tuned.provenance["validation_loss"]
    assert losses["tuned"] <= losses["untuned"]


def test_an_interrupted_run_finds_the_same_plan(tmp_path: Path) -> None:
    file, how = tmp_path / "partial.json", {**FORWARD, "iterations": 30, "candidates": 1}
    whole = tune_by(EPS, plan_of(3), "joint", **how)

    def stop(progress: Any) -> None:
        if progress.step >= 20:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tune_by(EPS, plan_of(3), "joint", checkpoint=file, progress=stop, **how)
    again = tune_by(EPS, plan_of(3), "joint", checkpoint=file, **how)
    for name in ("t", "tau", "corrections"):
        assert torch.equal(getattr(again, name), getattr(whole, name))
    assert again.provenance["cost"]["tuning"] == whole.provenance["cost"]["tuning"]


@pytest.mark.parametrize("budget", [1, 30, 120, 700])
def test_a_budget_of_calls_is_kept(budget: int) -> None:
    tuned = tune_by(EPS, plan_of(), "joint", budget=budget, **{**FORWARD, "iterations": None, "candidates": 3})
    spent = tuned.provenance["cost"].get("tuning", {"calls": 0})["calls"]
    assert spent <= budget and (budget < 700 or spent > 0.85 * budget)
    assert "stopped" in tuned.provenance
    losses = tuned.provenance.get("validation_loss")
    assert losses is None or losses["tuned"] <= losses["untuned"]


@pytest.mark.parametrize("seconds", [1, 12])
def test_a_budget_of_time_is_kept(monkeypatch: pytest.MonkeyPatch, seconds: int) -> None:
    """By iterations that take several seconds each: where none ends in time the corrections of least squares stay."""
    clock = Clock(monkeypatch, 1e-3)
    before = clock.now
    how = {**FORWARD, "iterations": None, "pairs": None, "parts": ("tau", "corrections")}
    tuned = tune_by(clock(EPS), plan_of(8), "joint", budget=f"{seconds}s", **how)
    assert clock.now - before <= 1.1 * seconds
    assert tuned.corrections is not None and "stopped" in tuned.provenance
    assert (tuned.provenance["iterations"] > 0) == (seconds > 1)


def test_the_estimate_is_its_cost_and_every_evaluation_is_counted() -> None:
    made: list[int] = []
    tuner = Joint(pairs=40, iterations=25, candidates=1, gradients=False)
    how: dict[str, Any] = {"shape": (4,), "guard": False}
    spent = tune(counted(made), plan_of(5), tuner, **how).provenance["cost"]
    assert sum(made) == sum(cost["evaluations"] for cost in spent.values())
    costs = estimate(EPS, plan_of(5), tuner, **how).costs
    for name in ("teacher", "tuning"):
        usual, most = costs[name]
        assert usual.evaluations == pytest.approx(spent[name]["evaluations"], rel=0.05)
        assert spent[name]["calls"] <= most.calls and spent[name]["evaluations"] <= most.evaluations


def test_runs_that_break_are_not_the_result() -> None:
    """The network is broken all around a time that it receives from the untuned plan."""
    plan = plan_of(4)
    seen: list[bool] = []

    def broken(x: Tensor, t: Any, tau: Any = None) -> Tensor:
        away = (torch.as_tensor(tau) / plan.tau[2] - 1).abs()
        seen.append(bool(((away > 0.06) & (away < 0.3)).any()))
        return EPS(x, t, tau) * (math.nan if seen[-1] else 1)

    broken.schedule = EPS.schedule  # type: ignore[attr-defined]
    teacher = make_plan("dpmpp", SMOOTH, 6, "quadratic")
    tuned = tune_by(broken, plan, "joint", **{**FORWARD, "teacher": teacher})
    losses = tuned.provenance["validation_loss"]
    assert any(seen) and math.isfinite(losses["tuned"]) and losses["tuned"] <= losses["untuned"]


def test_a_network_that_returns_nan_is_named() -> None:
    with pytest.raises(ValueError, match="where eps returned NaN or infinity"):
        tune_by(lambda x, t, tau: EPS(x, t, tau) / 0 * 0, plan_of(), "joint", **FORWARD)


def test_pairs_are_under_their_conditions() -> None:
    """In calls of any size."""

    def network(x: Tensor, t: Tensor, c: Tensor) -> Tensor:
        return EPS(x + 0.1 * c[:, None], SMOOTH.from_network_time(t.double()))

    model = model_wrapper(network, SMOOTH, guidance_type="classifier-free").bind(torch.arange(3))
    whole, parts = (
        tune_by(model, plan_of(3), "joint", batch=batch, **{**FORWARD, "iterations": 3}) for batch in (None, 5)
    )
    assert whole.corrections is not None and parts.corrections is not None
    torch.testing.assert_close(whole.corrections, parts.corrections, rtol=0, atol=1e-4)
