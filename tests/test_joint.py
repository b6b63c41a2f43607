"""Joint tuning: its parameters, its teacher, what it may spend, and that it helps."""

import json
import math
import time
from collections import Counter
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import seeded
from torch import Tensor

from time_tuner import (
    SAMPLERS,
    NoiseScheduleFlow,
    NoiseScheduleVE,
    NoiseScheduleVP,
    Plan,
    SeededNoise,
    make_plan,
    model_wrapper,
    named_betas,
    rescale_zero_terminal_snr,
    sample,
    tune,
)
from time_tuner.models.base import as_model
from time_tuner.models.batching import BatchedModel
from time_tuner.models.checkpointing import CheckpointedModel, kept_bytes
from time_tuner.models.counting import CostLog
from time_tuner.models.exact import Mixture
from time_tuner.plans.build import reference_plan, resample
from time_tuner.schedules import NoiseSchedule
from time_tuner.tuners.base import TuningRun
from time_tuner.tuners.budget import Budget
from time_tuner.tuners.joint import sizing as extent
from time_tuner.tuners.joint.candidates import candidate_plans
from time_tuner.tuners.joint.gauss_newton import GaussNewton
from time_tuner.tuners.joint.loss import Gradients, TeacherLoss, TimeGradients, run_each
from time_tuner.tuners.joint.parameters import PARTS, Parameters
from time_tuner.tuners.joint.successive_halving import TRIAL_SHARE, SuccessiveHalving, max_candidates
from time_tuner.tuners.joint.teacher import Pairs, teach, usual_teacher
from time_tuner.tuners.joint.tuner import robust
from time_tuner.tuners.tune import estimate, tune_several

SMOOTH = NoiseScheduleVP("linear")
POINTS = seeded(12, 4, seed=3)
MIXTURE = Mixture(POINTS, 0.15)
EPS = MIXTURE.eps(SMOOTH)
ZERO_SNR = NoiseScheduleVP(alphas_cumprod=rescale_zero_terminal_snr(named_betas("scaled_linear", 1000)))
QUICK: dict[str, Any] = {"shape": (4,), "pairs": 128, "iterations": 60, "starts": 1, "guard": False}


def distance_to_teacher(plan: Plan, n: int = 400) -> float:
    """On noise that tuning never has: its seeds are in other blocks."""
    x = SeededNoise(123)(torch.empty(n, 4))
    end = sample(EPS, reference_plan(SMOOTH, float(plan.t[-1]), 100), x)
    return float((sample(EPS, plan, x) - end).norm(dim=1).mean())


# --- the parameters ---


@pytest.mark.parametrize("spacing", ["quadratic", "linspace", "leading"])
@pytest.mark.parametrize("name", ["ddim", "dpmpp", "unipc", "heun"])
def test_zero_is_the_plan_itself(name: str, spacing: str) -> None:
    calls = 7 if name == "heun" and spacing == "linspace" else 6
    plan = make_plan(name, SMOOTH, calls, spacing)
    here = Parameters(plan).plan(torch.zeros(len(Parameters(plan)), dtype=torch.float64))
    torch.testing.assert_close(here.t, plan.t, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(here.tau, plan.tau, rtol=1e-9, atol=1e-9)
    assert here.corrections is not None and not here.corrections.any()
    x = seeded(5, 4)
    torch.testing.assert_close(sample(EPS, here, x.double()), sample(EPS, plan, x.double()), rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("scale", [0.1, 1.0, 30.0])
def test_any_numbers_give_a_valid_plan(scale: float) -> None:
    plan = make_plan("ddim", SMOOTH, 6, "quadratic")
    parameters = Parameters(plan)
    for seed in range(20):
        v = (scale * seeded(len(parameters), seed=seed)).double()
        parameters.keep_inside(v)
        made = parameters.plan(v)
        assert (made.t.diff() < 0).all()
        assert made.t[0] == plan.t[0] and made.t[-1] == plan.t[-1]
        assert (made.tau >= SMOOTH.t_min - 1e-12).all() and (made.tau <= SMOOTH.T).all()
        told = v.split(parameters.sizes)[1].exp() * plan.tau / plan.t[:-1] * made.t[:-1]
        torch.testing.assert_close(told, made.tau)  # no number lies where it has no effect


def test_only_the_named_parts_move() -> None:
    plan = make_plan("dpmpp", SMOOTH, 5, "quadratic")
    for part in PARTS:
        parameters = Parameters(plan, (part,))
        made = parameters.plan(0.1 * seeded(len(parameters)).double())
        assert (not torch.equal(made.step_times, plan.step_times)) == (part == "times")
        assert torch.allclose(made.tau / made.t[:-1], plan.tau / plan.t[:-1], atol=1e-12) == (part != "tau")
        assert (made.corrections is not None) == (part == "corrections")


def test_a_tuned_plan_is_a_start() -> None:
    """What it has is kept, and moved from there."""
    plan = make_plan("ddim", SMOOTH, 4, "quadratic")
    plan = plan.with_tau(plan.tau * 0.97).with_corrections(0.1 * seeded(4, 4).double().tril(-1))
    parameters = Parameters(plan)
    here = parameters.plan(torch.zeros(len(parameters), dtype=torch.float64))
    assert plan.corrections is not None and here.corrections is not None
    torch.testing.assert_close(here.corrections, plan.corrections)
    torch.testing.assert_close(here.tau, plan.tau, rtol=1e-9, atol=0)


def test_unknown_parts_are_refused() -> None:
    plan = make_plan("ddim", SMOOTH, 4, "quadratic")
    for parts, got in ((("time",), "time"), ((), "none")):
        with pytest.raises(ValueError, match=f"tune must name some of times, tau, corrections, got '{got}'"):
            Parameters(plan, parts)


# --- that it helps ---


def lesson_of(eps: Any, count: int = 64) -> TeacherLoss:
    """Pairs in float64, for derivatives that differences can tell."""
    x = seeded(count, 4).double()
    return TeacherLoss(
        BatchedModel(as_model(eps, SMOOTH)),
        Pairs(x, sample(EPS, reference_plan(SMOOTH, SMOOTH.t_min, 60), x)),
        robust,
        CostLog(),
    )


def x0_network(x: Tensor, t: Tensor) -> Tensor:
    """What says x0 of a state, told the label of t: the noise that follows from it depends on the solver's time too."""
    p = SMOOTH.at(tau := SMOOTH.from_network_time(t.double()))
    shape = (-1, *(1,) * (x.dim() - 1))
    return (x - p.sigma.view(shape) * EPS(x, tau, tau)) / p.alpha.view(shape)


def one_time(x: Tensor, t: Tensor, tau: Tensor) -> Tensor:
    """A model that takes one time for all samples, not one for each."""
    assert not tau.dim()
    return EPS(x, t, tau)


def x0_of_one_time(x: Tensor, t: Tensor, tau: Tensor) -> Tensor:
    assert not tau.dim() and not t.dim()
    return model_wrapper(x0_network, SMOOTH, model_type="x_start").bind()(x, t, tau)


OWN = TimeGradients(by_gradient=True, by_asking=("tau",))
MODELS = {
    "a time for each sample": (lambda x, t, tau: EPS(x, t, tau), OWN, 1e-5),
    "one time": (one_time, TimeGradients(by_asking=("tau",)), 0.15),
    "x0": (model_wrapper(x0_network, SMOOTH, model_type="x_start").bind(), OWN, 0.02),  # it is told float32
    "x0, one time": (x0_of_one_time, TimeGradients(by_asking=("tau", "t")), 0.15),
}


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize(("name", "parts"), [("ddim", PARTS), ("unipc", PARTS), ("heun", PARTS), ("dpmpp", ("times",))])
def test_the_gradient_is_that_of_the_mean_distance(model: str, name: str, parts: tuple[str, ...]) -> None:
    eps, by, within = MODELS[model]
    lesson, rows, parameters = lesson_of(eps), torch.arange(64), Parameters(make_plan(name, SMOOTH, 4), parts)
    v = 0.05 * seeded(len(parameters)).double()
    assert lesson.time_slopes(parameters.start, parts) == by
    slopes = lesson.slopes(parameters, v, rows, by)
    assert slopes.loss == pytest.approx(lesson.of(parameters.plan(v), rows), rel=1e-6) and slopes.curvature is None
    steps = 1e-5 * torch.eye(len(v), dtype=torch.float64)
    ends = [[lesson.of(parameters.plan(v + sign * step), rows) for sign in (1, -1)] for step in steps]
    expected = torch.tensor([(above - below) / 2e-5 for above, below in ends], dtype=torch.float64)
    assert (slopes.gradient - expected).norm() < within * expected.norm()


def test_the_curvature_is_that_of_gauss_and_newton() -> None:
    """In one dimension, where u is a number: the mean of J^2 / d, by the number of pairs."""
    eps, count = Mixture(seeded(5, 1, seed=3), 0.15).eps(SMOOTH), 2000
    x = seeded(count, 1).double()
    lesson = TeacherLoss(BatchedModel(as_model(eps, SMOOTH)), Pairs(x, x + 3.0), robust, CostLog())
    parameters, rows = Parameters(make_plan("ddim", SMOOTH, 2, "quadratic"), ("corrections",)), torch.arange(count)
    v = torch.tensor([0.1], dtype=torch.float64)
    draw = torch.Generator().manual_seed(0)
    found = [lesson.slopes(parameters, v, rows, TimeGradients(), draw).curvature for _ in range(20)]
    above, below, here = (sample(eps, parameters.plan(v + by), x) for by in (1e-4, -1e-4, 0.0))
    expected = ((above - below) / 2e-4).square() / robust(here, x + 3.0)[:, None]
    assert float(sum(found)) / 20 == pytest.approx(float(expected.mean()), rel=0.05)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", sorted(SAMPLERS))
def test_every_sampler_comes_closer_to_the_teacher(name: str) -> None:
    calls = 5
    plan = make_plan(name, SMOOTH, calls, "quadratic") if name != "heun" else make_plan(name, SMOOTH, 6, "quadratic")
    if plan.stochastic:
        with pytest.raises(ValueError, match=r"joint tuning needs a plan without noise.*take a deterministic sampler"):
            tune(EPS, plan, "joint", **QUICK)
        return
    assert distance_to_teacher(tune(EPS, plan, "joint", **QUICK)) < 0.75 * distance_to_teacher(plan)
    tuned = tune(EPS, plan, "joint", **{**QUICK, "iterations": 120})
    assert len(tuned) == len(plan)
    assert distance_to_teacher(tuned) < 0.6 * distance_to_teacher(plan)
    assert Plan.from_dict(json.loads(json.dumps(tuned.to_dict()))) == tuned


def test_three_parts_are_better_than_one() -> None:
    plan = make_plan("ddim", SMOOTH, 4, "quadratic")
    found = {parts: distance_to_teacher(tune(EPS, plan, "joint", tune=parts, **QUICK)) for parts in (PARTS, ("tau",))}
    assert found[PARTS] < 0.7 * found[("tau",)] < 0.7 * distance_to_teacher(plan)


def test_a_distance_of_the_users() -> None:
    """One that asks for half of what the teacher drew gets nearer to that than the robust norm does, and vice versa."""
    plan = make_plan("ddim", SMOOTH, 3, "quadratic")
    x = SeededNoise(123)(torch.empty(400, 4))
    end = sample(EPS, reference_plan(SMOOTH, float(plan.t[-1]), 100), x)

    def half(x: Tensor, y: Tensor) -> Tensor:
        return (x - y / 2).norm(dim=1)

    asked = [sample(EPS, tune(EPS, plan, "joint", distance=distance, **QUICK), x) for distance in (half, robust)]
    assert half(asked[0], end).mean() < 0.9 * half(asked[1], end).mean()
    assert robust(asked[1], end).mean() < 0.9 * robust(asked[0], end).mean()


def test_a_distance_that_looks_at_one_coordinate() -> None:
    """It brings a small coordinate closer than the robust norm of all does, in which it counts for little."""
    eps = Mixture(POINTS * torch.tensor([0.3, 2.0, 2.0, 2.0], dtype=POINTS.dtype), 0.15).eps(SMOOTH)
    plan = make_plan("ddim", SMOOTH, 3, "quadratic")
    x = SeededNoise(123)(torch.empty(400, 4))
    end = sample(eps, reference_plan(SMOOTH, float(plan.t[-1]), 100), x)

    def first(x: Tensor, y: Tensor) -> Tensor:
        return (x - y)[:, 0].abs()

    def mean(**distance: Any) -> float:
        """Over seeds, for which valley a run ends in is a matter of chance."""
        how = {**QUICK, "iterations": 100, "pairs": 256, **distance}
        tuned = [tune(eps, plan, "joint", seed=seed, **how) for seed in range(3)]
        return sum(float(first(sample(eps, one, x), end).mean()) for one in tuned)

    assert mean(distance=first) < 0.9 * mean()


def test_the_plan_holds_over_conditions() -> None:
    """Two data sets, one for each condition: each pair is taught and tuned under its own."""
    shifted = Mixture(POINTS + 3.0, 0.15).eps(SMOOTH)

    def network(x: Tensor, t: Tensor, cond: Tensor) -> Tensor:
        told = t[0].double()
        return torch.where(cond[:, None] == 0, EPS(x, told, told), shifted(x, told, told))

    wrapped = model_wrapper(network, SMOOTH, guidance_type="classifier-free")
    bound = wrapped.bind(torch.tensor([0, 1] * 8))
    plan = make_plan("ddim", SMOOTH, 4, "quadratic")
    tuned = tune(bound, plan, "joint", samples=16, **QUICK)
    x = SeededNoise(77)(torch.empty(16, 4))
    end = sample(bound, reference_plan(SMOOTH, float(plan.t[-1]), 100), x)
    for row in (0, 1):
        before, after = ((sample(bound, p, x) - end)[row::2].norm(dim=1).mean() for p in (plan, tuned))
        assert after < 0.7 * before


# --- the network ---


def test_a_network_without_gradient_is_refused() -> None:
    def still(x: Tensor, t: Tensor, tau: Tensor) -> Tensor:
        with torch.no_grad():
            return EPS(x.detach(), t.detach(), tau.detach())

    def broken(x: Tensor, t: Tensor, tau: Tensor) -> Tensor:
        return EPS(x, t, tau) / 0

    plan = make_plan("ddim", SMOOTH, 3, "quadratic")
    with pytest.raises(ValueError, match=r"needs a network with a gradient in its input.*method='sequential'"):
        tune(still, plan, "joint", tune=("tau",), **QUICK)
    # The arithmetic around it has a gradient, which is not enough.
    for wrapped in (still, torch.inference_mode()(lambda x, t, tau: EPS(x, t, tau))):
        with pytest.raises(ValueError, match=r"needs a network with a gradient in its input.*method='sequential'"):
            tune(wrapped, plan, "joint", **QUICK)
    with pytest.raises(ValueError, match="NaN or infin"):
        tune(broken, plan, "joint", **QUICK)


class Wide(torch.nn.Module):
    """A network whose activations are far larger than its input."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = torch.nn.Linear(5, 2000), torch.nn.Linear(2000, 4)

    def forward(self, x: Tensor, t: Tensor, tau: Tensor) -> Tensor:
        told = tau.to(x).expand(len(x), 1)
        hidden: Tensor = self.last(torch.tanh(self.first(torch.cat([x, told], 1))))
        return hidden


def saved_bytes(network: Wide, calls: int, checkpointed: bool) -> int:
    """What a run keeps for its backward pass."""
    parameters, x = Parameters(make_plan("ddim", SMOOTH, calls, "quadratic")), seeded(32, 4).float()
    plan, numbers, _ = parameters.linear(torch.zeros(len(parameters), dtype=torch.float64))
    eps = CheckpointedModel(as_model(network, SMOOTH)) if checkpointed else as_model(network, SMOOTH)
    return kept_bytes(lambda: run_each(eps, plan, plan.initial_state(x), numbers, TimeGradients())[0])


def test_checkpoints_keep_one_call_at_a_time() -> None:
    torch.manual_seed(0)
    network = Wide().requires_grad_(False)
    x, t = seeded(32, 4).float().requires_grad_(), torch.tensor(0.5)
    one = kept_bytes(lambda: network(x, t, t))
    assert one > 32 * 2000 * 4
    assert saved_bytes(network, 16, checkpointed=False) > 3 * saved_bytes(network, 4, checkpointed=False)
    # Only states and answers remain, which are small here, and no activations of 32 x 2000 numbers.
    assert saved_bytes(network, 16, checkpointed=True) < one


def test_checkpoints_change_nothing() -> None:
    plan = make_plan("dpmpp", SMOOTH, 4, "quadratic")
    with_, without = (
        tune(EPS, plan, "joint", checkpoint_steps=flag, **{**QUICK, "iterations": 10}) for flag in (True, False)
    )
    torch.testing.assert_close(with_.t, without.t)
    torch.testing.assert_close(with_.corrections, without.corrections)
    assert with_.provenance["cost"]["tuning"]["evaluations"] > without.provenance["cost"]["tuning"]["evaluations"]


def test_a_half_precision_network_is_tuned_with_full_states() -> None:
    def half(x: Tensor, t: Tensor, tau: Tensor) -> Tensor:
        assert x.dtype == torch.float32 and tau.dtype == torch.float64
        return EPS(x.bfloat16().float(), t, tau).bfloat16()

    plan = make_plan("ddim", SMOOTH, 4, "quadratic")
    tuned = tune(half, plan, "joint", **QUICK)
    assert tuned.t.dtype == torch.float64
    assert distance_to_teacher(tuned) < 0.6 * distance_to_teacher(plan)


# --- the teacher ---


def counted(calls: list[int]) -> Any:
    def eps(x: Tensor, t: Tensor, tau: Tensor) -> Tensor:
        calls.append(len(x))
        return EPS(x, t, tau)

    return eps


@pytest.mark.parametrize(("batch", "at_once"), [(None, 64), (64, 64), (100, 64), (24, 48)])
def test_the_teacher_goes_on_where_it_was_stopped(tmp_path: Path, batch: int | None, at_once: int) -> None:
    """Runs are kept in groups of at most 64, which fill network calls of the batch."""
    plan, like, cache = reference_plan(SMOOTH, 0.001, 10), torch.empty(100, 4), tmp_path / "teacher.safetensors"
    whole = teach(as_model(EPS, SMOOTH), plan, 7, like, TuningRun(), None)

    calls: list[int] = []
    done = counted(calls)

    def stopped(x: Tensor, t: Tensor, tau: Tensor) -> Tensor:
        if len(calls) == 15:  # in the second group
            raise KeyboardInterrupt
        return done(x, t, tau)

    with pytest.raises(KeyboardInterrupt):
        teach(as_model(stopped, SMOOTH), plan, 7, like, TuningRun(), cache, batch)
    calls.clear()
    pairs = teach(as_model(done, SMOOTH), plan, 7, like, TuningRun(), cache, batch)
    assert sum(calls) == 10 * (1 + 100 - at_once)  # one to see that it is the same model, and what was missing
    torch.testing.assert_close(pairs.y, whole.y)
    assert torch.equal(pairs.x, whole.x)
    calls.clear()
    again = teach(as_model(done, SMOOTH), plan, 7, like, TuningRun(), cache, batch)
    assert sum(calls) == 10
    assert torch.equal(again.y, pairs.y)


def test_a_cache_of_something_else_is_refused(tmp_path: Path) -> None:
    plan, like, cache = reference_plan(SMOOTH, 0.001, 10), torch.empty(6, 4), tmp_path / "teacher.safetensors"
    teach(as_model(EPS, SMOOTH), plan, 7, like, TuningRun(), cache)
    other = Mixture(POINTS + 1, 0.15).eps(SMOOTH)
    for model, teacher, first, message in (
        (other, plan, 7, "another model"),
        (EPS, reference_plan(SMOOTH, 0.001, 12), 7, "another teacher"),
        (EPS, plan, 8, "another seed"),
    ):
        with pytest.raises(ValueError, match=message):
            teach(as_model(model, SMOOTH), teacher, first, like, TuningRun(), cache)
    cache.write_text("no")
    with pytest.raises(ValueError, match="no teacher file"):
        teach(as_model(EPS, SMOOTH), plan, 7, like, TuningRun(), cache)


@pytest.mark.parametrize("end", ["least", "zero"])
@pytest.mark.parametrize(
    "schedule",
    [SMOOTH, ZERO_SNR, NoiseScheduleVP("cosine"), NoiseScheduleVE(), NoiseScheduleFlow(), NoiseScheduleFlow(shift=3.0)],
)
def test_the_usual_teacher_ends_nearer_than_more_calls_of_a_lower_order(schedule: NoiseSchedule, end: str) -> None:
    last = 0.0 if end == "zero" else schedule.t_min
    plans = [reference_plan(schedule, last, calls) for calls in (400, 60)]
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
            tune(EPS, plan, "joint", teacher=teacher, **QUICK)


# --- what it may spend ---


def test_a_budget_of_calls_is_kept() -> None:
    plan = make_plan("ddim", SMOOTH, 4, "quadratic")
    for calls in (200, 1000):
        options = {**QUICK, "iterations": None}
        cost = tune(EPS, plan, "joint", budget=f"{calls}calls", **options).provenance["cost"]["tuning"]["calls"]
        assert 0.9 * calls <= cost <= 1.1 * calls


@pytest.mark.parametrize("budget", [1, 16, 40, 90])
@pytest.mark.parametrize("starts", [1, 3])
def test_the_smallest_budgets_are_kept_too(budget: int, starts: int) -> None:
    """Where it is not even enough for one iteration, the plan is handed back as it is."""
    plan = make_plan("dpmpp", SMOOTH, 5, "quadratic")
    tuned = tune(EPS, plan, "joint", **{**QUICK, "iterations": None, "starts": starts}, budget=budget)
    assert tuned.provenance["cost"].get("tuning", {"calls": 0})["calls"] <= budget
    assert f"budget of {budget} calls" in tuned.provenance["stopped"]
    assert budget > 16 or (torch.equal(tuned.tau, plan.tau) and tuned.corrections is None)


def test_corrections_are_not_lost_by_tuning_what_the_network_is_told() -> None:
    plan = make_plan("ddim", SMOOTH, 3, "quadratic")
    tuned = tune(EPS, plan, "joint", **QUICK)
    with pytest.raises(ValueError, match=r"tunes plans without corrections.*take method='joint' with tune=\('tau',\)"):
        tune(EPS, tuned, "sequential", shape=(4,))
    again = tune(EPS, tuned, "joint", **{**QUICK, "tune": ("tau",)})
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
        ({"tune": None}, "tune must name some of times, tau, corrections, got None"),
        ({"teacher": make_plan("ddim", NoiseScheduleFlow(), 9, "quadratic")}, "teacher must be on the plan's schedule"),
        ({"distance": lambda x, y: 1.0}, "distance must return a tensor, a number for each sample, got float"),
        ({"distance": lambda x: x.norm(dim=1)}, r"distance must be a function \(x, y\), got <function"),
        ({"teacher": make_plan("ddim", SMOOTH, 2, "quadratic")}, "teacher must make no fewer calls than the plan"),
        ({"checkpoint_steps": 1}, "checkpoint_steps must be True, False or None, got 1"),
    ],
)
def test_a_teacher_or_distance_that_is_none_is_named(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tune(EPS, make_plan("ddim", SMOOTH, 3, "quadratic"), "joint", **QUICK, **wrong)


def test_data_are_not_passed_over_in_silence() -> None:
    with pytest.raises(ValueError, match="data must be left out for method='joint'"):
        tune(EPS, make_plan("ddim", SMOOTH, 3, "quadratic"), "joint", torch.zeros(8, 4), **QUICK)


def test_no_gradients_are_to_be_had_in_inference_mode() -> None:
    with torch.inference_mode(), pytest.raises(ValueError, match=r"call it outside of torch\.inference_mode"):
        tune(EPS, make_plan("ddim", SMOOTH, 3, "quadratic"), "joint", **QUICK)


def test_a_plan_of_many_calls_has_a_teacher_of_as_many() -> None:
    plan = make_plan("ddim", SMOOTH, 50, "quadratic")
    assert len(usual_teacher(plan)) == 50
    assert len(usual_teacher(plan)) > len(usual_teacher(make_plan("ddim", SMOOTH, 5, "quadratic"))) == 40


@pytest.mark.parametrize("broken", ["network", "distance"])
def test_what_has_no_gradient_is_found_before_the_teacher_runs(broken: str) -> None:
    asked: list[int] = []

    def eps(x: Tensor, t: Any, tau: Any = None) -> Tensor:
        asked.append(len(x))
        said = EPS(x, t, tau)
        return said.detach() if broken == "network" else said

    def distance(x: Tensor, y: Tensor) -> Tensor:
        apart = (x - y).norm(dim=1)
        return apart.detach() if broken == "distance" else apart

    with pytest.raises(ValueError, match="gradient"):
        tune(eps, make_plan("ddim", SMOOTH, 3, "quadratic"), "joint", **QUICK, distance=distance)
    assert sum(asked) <= 3 * 2


FORETOLD: list[dict[str, Any]] = [
    {"budget": 2000},
    {"budget": 6000, "starts": 4},
    {"pairs": 40, "iterations": 20},
    {"pairs": 64, "iterations": 150, "starts": 4},
    {"pairs": 1024, "iterations": 4, "others": [make_plan("ddim", SMOOTH, 4, "leading")]},
    {"pairs": 40, "iterations": 20, "checkpoint_steps": True},
]


@pytest.mark.parametrize("batch", [None, 4, 24])
@pytest.mark.parametrize("size", FORETOLD)
@pytest.mark.parametrize("model", [EPS, one_time])
def test_the_cost_is_foretold(model: Any, batch: int | None, size: dict[str, Any]) -> None:
    plan = make_plan("ddim", SMOOTH, 4, "quadratic")
    options = {**QUICK, "iterations": None, "pairs": None, **size}
    foretold = estimate(plan, "joint", batch=batch, **{name: options[name] for name in options if name != "shape"})
    spent = tune(model, plan, "joint", batch=batch, **options).provenance["cost"]
    usual, most = foretold["teacher"]
    assert spent["teacher"] == asdict(usual) == asdict(most)
    usual, most = foretold["tuning"]
    assert most.calls >= usual.calls and most.evaluations >= usual.evaluations
    for name, made in spent["tuning"].items():
        assert 0.6 * getattr(usual, name) <= made <= getattr(most, name)


def test_a_small_batch_makes_a_budget_smaller() -> None:
    """In calls of 4 samples, a quarter of the pairs and of the iterations that calls of 16 are enough for."""
    plan = make_plan("ddim", SMOOTH, 4, "quadratic")
    sizes = [extent.sizes(plan, 40, 0.0, Budget(calls=9600), batch=batch) for batch in (None, 64, 16, 4)]
    assert sizes[0] == sizes[1] == sizes[2] and sizes[0]["pairs"] == 1280 and sizes[0]["expected"] == 400
    assert sizes[3]["pairs"] == 320 and sizes[3]["expected"] == 100


def test_a_budget_of_time_is_kept() -> None:
    plan = make_plan("ddim", SMOOTH, 4, "quadratic")
    tune(EPS, plan, "joint", **{**QUICK, "iterations": 2})  # what is loaded on first use
    began = time.monotonic()
    tuned = tune(EPS, plan, "joint", budget="3s", **{**QUICK, "iterations": None, "pairs": None})
    assert 2.7 < time.monotonic() - began < 3.3 + 0.7  # other work on the machine
    assert tuned.provenance["stopped"] == f"the budget of 3 s was spent at iteration {tuned.provenance['iterations']}"


@pytest.mark.parametrize("look", [13, 33])
def test_an_interrupted_run_comes_to_the_same_plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, look: int) -> None:
    """Here amid a tournament, whose turns end more often than looks are due, or less."""
    monkeypatch.setattr(extent, "LOOK", look)
    plan, file = make_plan("dpmpp", SMOOTH, 4, "quadratic"), tmp_path / "partial.json"
    options = {**QUICK, "iterations": 150, "starts": 3, "seed": 5, "checkpoint_steps": False}
    whole = tune(EPS, plan, "joint", **options)

    class StopError(Exception):
        pass

    def stop(progress: Any) -> None:
        if progress.step >= 30:
            raise StopError

    with pytest.raises(StopError):
        tune(EPS, plan, "joint", checkpoint=file, progress=stop, **options)
    assert file.exists()
    told: list[str] = []
    again = tune(EPS, plan, "joint", checkpoint=file, say=told.append, **options)
    assert "going on" in told[0]
    assert tune(EPS, plan, "joint", checkpoint=file, say=told.append, **options) == again  # it is kept, too
    for name in ("t", "tau", "corrections"):
        assert torch.equal(getattr(again, name), getattr(whole, name))
    assert again.provenance["iterations"] == whole.provenance["iterations"]
    assert again.provenance["cost"]["tuning"] == whole.provenance["cost"]["tuning"]  # no look more, and none less


def test_it_goes_on_under_a_smaller_budget(tmp_path: Path) -> None:
    plan, file = make_plan("ddim", SMOOTH, 3, "quadratic"), tmp_path / "partial.json"
    options = {**QUICK, "iterations": None, "starts": 4, "checkpoint": file, "say": lambda sentence: None}
    found = [tune(EPS, plan, "joint", budget=budget, **options) for budget in (3000, 300)]
    assert len(json.loads(file.read_text())["state"]["order"]) > 1
    assert found[0].provenance["loss_after"] == found[1].provenance["loss_after"]


@pytest.mark.parametrize("second", [np.int64(1500), None])
def test_it_goes_on_under_another_budget(tmp_path: Path, second: Any) -> None:
    plan, file = make_plan("ddim", SMOOTH, 3, "quadratic"), tmp_path / "partial.json"
    options = {**QUICK, "iterations": None, "starts": 4, "checkpoint": file, "say": lambda sentence: None}
    seen: list[Any] = []
    first = tune(EPS, plan, "joint", budget=500, **options).provenance
    after = tune(EPS, plan, "joint", budget=second, progress=seen.append, **options).provenance
    assert first["iterations"] < after["iterations"] <= extent.MOST_ITERATIONS and after["pairs"] == first["pairs"]
    assert after["loss_after"] <= first["loss_after"]
    assert len(seen) > 2 and seen[-1].step == seen[-1].steps == after["iterations"]
    assert json.loads(file.read_text())["state"]["done"] == after["iterations"]


def test_the_end_is_told_however_short_it_is() -> None:
    seen: list[Any] = []
    tune(EPS, make_plan("ddim", SMOOTH, 3, "quadratic"), "joint", progress=seen.append, **{**QUICK, "iterations": 3})
    assert [(each.step, each.steps) for each in seen] == [(3, 3)]


def test_it_never_hands_over_less_than_it_was_given() -> None:
    """Two iterations at a high rate do harm; what is kept is the best of what was seen, the start included."""
    plan = make_plan("unipc", SMOOTH, 12, "quadratic")
    tuned = tune(EPS, plan, "joint", **{**QUICK, "iterations": 1})
    assert tuned.provenance["loss_after"] <= tuned.provenance["loss_before"]


def better(plan: Plan) -> float:
    """The loss after a step."""
    return 0.0


def test_a_step_that_gains_nothing_is_taken_back_and_the_next_is_half_as_long() -> None:
    taken, refused = (GaussNewton(Parameters(make_plan("ddim", SMOOTH, 3, "quadratic"))) for _ in range(2))
    downhill = Gradients(1.0, 0.01 * torch.ones(len(taken.v), dtype=torch.float64), torch.eye(len(taken.v)).double())
    for after in (1.0, 2.0, math.nan):
        refused.step(downhill, lambda plan, after=after: after)
        assert not refused.v.any()
    assert refused.step_scale == 1 / 8
    taken.step(downhill, lambda plan: 0.99999)  # less than was promised
    assert taken.v.any() and taken.step_scale == 1
    taken.step(downhill, better)
    assert taken.step_scale == 1.5
    for _ in range(5):
        taken.step(downhill, better)
    assert taken.step_scale == 3


def test_a_step_into_nowhere_is_taken_back() -> None:
    plan = make_plan("ddim", SMOOTH, 3, "quadratic")
    solver = GaussNewton(Parameters(plan))
    downhill = Gradients(1.0, torch.ones(len(solver.v), dtype=torch.float64), torch.eye(len(solver.v)).double())
    solver.look(1.0, 0.0)
    solver.step(downhill, better)
    solver.look(0.5, 0.1)
    best = solver.v.clone()
    solver.step(downhill, better)
    assert not torch.equal(solver.v, best)
    solver.step(replace(downhill, loss=math.nan), better)
    assert torch.equal(solver.v, best) and best.any()


def test_no_progress_leads_back_to_the_best_at_half_the_rate() -> None:
    solver, again = (GaussNewton(Parameters(make_plan("ddim", SMOOTH, 3, "quadratic"))) for _ in range(2))
    downhill = Gradients(1.0, torch.ones(len(solver.v), dtype=torch.float64), torch.eye(len(solver.v)).double())
    solver.look(1.0, 0.0)
    for share in (0.1, 0.2):
        solver.step(downhill, better)
        solver.look(2.0, share)
    assert solver.v.any() and solver.restarts == 0
    solver.look(2.0, 0.3)
    assert not solver.v.any() and solver.restarts == 1
    assert solver.best == 1.0 and not solver.best_v.any()
    again.restore({**solver.to_dict(), "restarts": 0})
    for one in (solver, again):
        one.step(downhill, better)
    torch.testing.assert_close(2 * solver.v, again.v)


def test_what_counts_is_the_mean_of_the_way() -> None:
    solver = GaussNewton(Parameters(make_plan("ddim", SMOOTH, 3, "quadratic")))
    places = []
    for i in range(6):
        downhill = Gradients(1.0, 0.01 * seeded(len(solver.v), seed=i).double(), torch.eye(len(solver.v)).double())
        solver.step(downhill, better)
        places.append(solver.v.clone())
    weights = torch.tensor([i * (i + 1) * (i + 2) for i in range(1, 7)]).double()
    mean = (weights[:, None] * torch.stack(places)).sum(0) / weights.sum()
    torch.testing.assert_close(solver.mean_v, mean)
    assert solver.plan() == solver.parameters.plan(solver.mean_v)
    solver.look(0.5, 0.1)
    torch.testing.assert_close(solver.best_v, mean)
    solver.look(0.6, 0.9)  # no progress: the way goes on from the mean, which begins anew
    solver.step(downhill, better)
    torch.testing.assert_close(solver.mean_v, solver.v)


def test_every_pair_has_its_turn_before_any_has_another() -> None:
    asked: list[list[tuple[float, ...]]] = []

    def distance(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        if x.requires_grad:
            asked.append([tuple(row) for row in y.tolist()])
        return robust(x, y)

    plan = make_plan("ddim", SMOOTH, 3, "quadratic")
    tune(EPS, plan, "joint", distance=distance, **{**QUICK, "pairs": 40, "iterations": 15})
    assert len(asked.pop(0)) == 2  # whether there is a gradient at all
    assert [len(rows) for rows in asked] == [16] * 15
    counts = Counter(row for rows in asked for row in rows)
    assert len(counts) == 30 and set(counts.values()) == {8}
    assert asked[0] != asked[-1]


def test_a_plan_on_the_way_whose_runs_break_is_no_plan_to_take() -> None:
    """The network is broken all around a time that the untuned plan tells it."""
    plan = make_plan("ddim", SMOOTH, 4, "quadratic")
    asked: list[bool] = []

    def broken(x: torch.Tensor, t: Any, tau: Any = None) -> torch.Tensor:
        said = EPS(x, t, tau)
        away = (torch.as_tensor(tau).detach() / plan.tau[2] - 1).abs()
        asked.append(bool(((away > 0.02) & (away < 0.3)).any()))
        return said * math.nan if asked[-1] else said

    broken.schedule = EPS.schedule  # type: ignore[attr-defined]
    tuned = tune(broken, plan, "joint", **{**QUICK, "teacher": make_plan("dpmpp", SMOOTH, 6, "quadratic")})
    assert any(asked) and tuned.provenance["loss_after"] < tuned.provenance["loss_before"]


# --- where it starts from ---


def descents(*losses: float) -> list[GaussNewton]:
    """As many, the validation losses of which are known."""
    made = [GaussNewton(Parameters(make_plan("ddim", SMOOTH, 3, "quadratic"))) for _ in losses]
    for one, loss in zip(made, losses, strict=True):
        one.look(loss, 0.0)
    return made


def test_the_worse_half_is_out_after_every_round() -> None:
    tried = descents(4.0, 1.0, 3.0, 2.0, 5.0)
    tournament, share, order = SuccessiveHalving(tried, {}), 0.0, []
    while not tournament.decided:
        order.append(tried.index(tournament.solver))
        while not tournament.over(share):
            share += 0.001
        tournament = SuccessiveHalving(tried, json.loads(json.dumps(tournament.to_dict())))  # as if interrupted
        tournament.next(share)
    assert order == [0, 1, 2, 3, 4, 1, 3, 2, 1, 3]
    assert tournament.solver is tried[1]
    assert share == pytest.approx(TRIAL_SHARE, abs=0.02)
    assert not tournament.over(1.0)
    tournament.stretch(0.5)  # it goes on in a budget of twice as much
    assert all(one.moved_at < 0.2 for one in tried)


def test_a_tournament_is_as_large_as_there_is_time_for() -> None:
    sizes = [max_candidates(iterations) for iterations in range(1, 1000)]
    assert sizes[:20] == [1] * 20 and sizes == sorted(sizes) and sizes[-1] > 6
    for count, iterations in ((2, 115), (4, 343)):
        assert max_candidates(iterations) == count


def test_one_start_needs_no_tournament() -> None:
    tournament = SuccessiveHalving(descents(1.0), {})
    assert tournament.decided and not tournament.over(0.9)


def test_the_last_start_may_win() -> None:
    """What counts is where a start gets to, not where it begins."""
    tried = descents(1.0, 2.0, 3.0)
    tournament, share = SuccessiveHalving(tried, {}), 0.0
    while not tournament.decided:
        share += TRIAL_SHARE / 5
        tournament.solver.look(0.1 if tournament.solver is tried[2] else 0.9, share)
        tournament.next(share)
    assert tournament.solver is tried[2]


@pytest.mark.parametrize("name", ["ddim", "dpmpp"])
def test_a_late_beginning_wins_where_few_calls_must_do(name: str) -> None:
    """Of two calls one that is made where there is only noise is wasted."""
    plan = make_plan(name, SMOOTH, 2, "quadratic")
    late, given = (tune(EPS, plan, "joint", **{**QUICK, "iterations": 120, "starts": n}) for n in (4, 1))
    assert late.t[0] < 0.8 < given.t[0] and late.t[-1] == given.t[-1]
    assert distance_to_teacher(late) < 0.8 * distance_to_teacher(given)


def test_starts_end_where_the_plan_does() -> None:
    plan = make_plan("dpmpp", SMOOTH, 5, "quadratic")
    found = candidate_plans(plan, 3)
    assert found[0] is plan and len(found) > 5
    assert {one.sampler.order for one in found} == {1, 2, 3}  # type: ignore[attr-defined]
    assert all(len(one) == 5 and one.t[-1] == plan.t[-1] for one in found)
    assert min(float(one.t[0]) for one in found) < 0.9 < max(float(one.t[0]) for one in found)
    assert candidate_plans(plan, 1) == [plan]
    to_zero = candidate_plans(make_plan("ddim", SMOOTH, 5, "trailing"), 3)
    assert len(to_zero) > 5 and all(one.t[-1] == 0 for one in to_zero)
    with pytest.raises(ValueError, match="starts must be a whole number"):
        candidate_plans(plan, 0)
    with pytest.raises(ValueError, match=r"others must be deterministic plans to t = 0\.001"):
        candidate_plans(plan, 1, [make_plan("dpmpp", SMOOTH, 5, "linspace")])


@pytest.mark.parametrize("name", ["ddim", "dpm", "unipc"])
@pytest.mark.parametrize("schedule", [SMOOTH, NoiseScheduleVE(), NoiseScheduleFlow(shift=3.0), ZERO_SNR])
def test_no_start_is_there_twice_or_wastes_a_call(name: str, schedule: NoiseSchedule) -> None:
    plan = make_plan(name, schedule, 4, "karras").with_provenance(model="of the user")
    found = candidate_plans(plan, 3)
    assert len(found) > 5
    for i, one in enumerate(found):
        assert one.step_times[-2] > 1.01 * one.step_times[-1]
        for other in found[:i]:
            same = len(one.step_times) == len(other.step_times) and torch.allclose(one.step_times, other.step_times)
            assert not same or one.sampler != other.sampler


def test_no_start_asks_where_the_plan_was_made_not_to() -> None:
    plan = make_plan("ddim", ZERO_SNR, 4, times=[0.99, 0.6, 0.3, 0.1, 0.001])
    assert all(ZERO_SNR.at(one.step_times[0]).alpha > 0 for one in candidate_plans(plan, 3))
    assert any(not ZERO_SNR.at(one.step_times[0]).alpha for one in candidate_plans(make_plan("ddim", ZERO_SNR, 4), 3))


def test_few_iterations_are_not_spent_on_ranking() -> None:
    plan = make_plan("ddim", SMOOTH, 3, "quadratic")
    alone, more = (
        tune(EPS, plan, "joint", **{**QUICK, "iterations": 20, "starts": starts}).provenance for starts in (1, 4)
    )
    assert alone["cost"]["tuning"] == more["cost"]["tuning"] and alone["loss_after"] == more["loss_after"]


@pytest.mark.parametrize("starts", [1, 4])
def test_what_was_given_takes_part_in_any_case(starts: int) -> None:
    good = tune(EPS, make_plan("ddim", SMOOTH, 4, "quadratic"), "joint", **QUICK)
    how = {**QUICK, "iterations": 4, "starts": starts}
    tuned = tune(EPS, make_plan("ddim", SMOOTH, 4, "uniform"), "joint", others=[good], **how)
    assert tuned.provenance["loss_after"] <= 1.000001 * good.provenance["loss_after"]
    assert tuned.provenance["start"] == [round(float(t), 6) for t in good.step_times]


@pytest.mark.parametrize("wrong", [make_plan("ddim", SMOOTH, 3), ["plan"], [None], 3])
def test_others_must_be_plans(wrong: Any) -> None:
    with pytest.raises(ValueError, match="others must be a list of plans, got"):
        tune(EPS, make_plan("ddim", SMOOTH, 3, "quadratic"), "joint", others=wrong, **QUICK)


@pytest.mark.parametrize("part", PARTS)
def test_starts_differ_in_what_is_tuned_alone(part: str) -> None:
    plain = make_plan("dpmpp", SMOOTH, 4, "quadratic")
    lower = torch.full((4, 4), 0.1, dtype=torch.float64).tril(-1)
    plan = plain.with_tau(plain.tau * 0.9).with_corrections(lower)
    for one in candidate_plans(plan, 3, parts=(part,)):
        assert part == "times" or torch.equal(one.step_times, plan.step_times)
        assert part == "tau" or torch.allclose(one.tau / one.t[:-1], plan.tau / plan.t[:-1])
        assert part == "corrections" or (one.sampler == plan.sampler and torch.equal(one.corrections, lower))


def test_a_neighbour_is_a_better_start_than_none() -> None:
    plan = make_plan("ddim", SMOOTH, 5, "quadratic")
    tuned = tune(EPS, make_plan("ddim", SMOOTH, 6, "quadratic"), "joint", tune=("times",), **QUICK)
    few = {**QUICK, "iterations": 4}
    cold, warm = (tune(EPS, plan, "joint", tune=("times",), others=others, **few) for others in ((), (tuned,)))
    assert warm.provenance["loss_after"] < cold.provenance["loss_after"]


@pytest.mark.parametrize("name", ["ddim", "dpmpp", "unipc"])
def test_resampling(name: str) -> None:
    """An untuned quadratic plan becomes nearly that of the other number of calls, and there and back is close."""
    plan = make_plan(name, SMOOTH, 12, "quadratic")
    assert resample(plan, 12) is plan
    other = resample(plan, 8)
    assert len(other) == 8 and not other.tuned
    torch.testing.assert_close(other.t, make_plan(name, SMOOTH, 8, "quadratic").t, rtol=0, atol=2e-2)
    torch.testing.assert_close(resample(other, 12).t, plan.t, rtol=0, atol=2e-2)


def test_resampling_keeps_the_ratios() -> None:
    plan = make_plan("ddim", SMOOTH, 8, "quadratic")
    plan = plan.with_tau(plan.t[:-1] * torch.linspace(0.9, 1.0, 8, dtype=torch.float64))
    other = resample(plan, 5)
    ratios = other.tau / other.t[:-1]
    assert float(ratios[0]) == pytest.approx(0.9) and (ratios.diff() > 0).all() and float(ratios[-1]) < 1
    assert other.provenance["resampled_from"] == 8


def test_ratios_are_nearer_to_one_in_more_calls() -> None:
    """What a ratio makes up for is the error of a step: of shorter steps it is less, but not nothing."""
    few, many = 4, 8
    plan = tune(EPS, make_plan("ddim", SMOOTH, few, "quadratic"), "joint", tune=("tau",), **QUICK)
    other = resample(plan, many)
    alike = other.with_tau((other.t[:-1] * (other.tau / other.t[:-1]) ** (many / few)).clamp(max=SMOOTH.T))
    untuned = other.with_tau(other.t[:-1])
    assert distance_to_teacher(other) < min(distance_to_teacher(alike), distance_to_teacher(untuned))


def test_budgets_name_what_is_wrong() -> None:
    plan = make_plan("ddim", SMOOTH, 4, "quadratic")
    for options, message in (
        ({"pairs": 3}, "pairs must be a whole number of at least 8, got 3"),
        ({"iterations": 0}, "iterations must be a whole number of at least 1, got 0"),
    ):
        with pytest.raises(ValueError, match=message):
            tune(EPS, plan, "joint", **{**QUICK, **options})
    assert TuningRun(Budget(), CostLog()).meter.share == 0


def test_several_numbers_of_calls(tmp_path: Path) -> None:
    """By the same runs of the teacher, each beside its neighbour, in one file."""
    calls: list[int] = []
    finished: list[int] = []
    plans = [make_plan("ddim", SMOOTH, k, "quadratic") for k in (5, 3, 4)]
    options = {**QUICK, "iterations": 20}
    tuned = tune_several(counted(calls), plans, done=lambda plans: finished.append(len(plans)), **options)
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
            tune_several(EPS, twice, **options)


def test_several_that_were_interrupted_lose_no_finished_plan(tmp_path: Path) -> None:
    plans = [make_plan("ddim", SMOOTH, k, "quadratic") for k in (3, 4)]
    options = {**QUICK, "iterations": None, "pairs": None, "budget": 600}
    whole = tune_several(EPS, plans, **options)

    def stop(progress: Any) -> None:
        if len(finished) and progress.step >= 20:
            raise KeyboardInterrupt

    finished: list[int] = []
    kept = {**options, "checkpoint": tmp_path / "partial"}
    with pytest.raises(KeyboardInterrupt):
        tune_several(EPS, plans, done=lambda few: finished.append(len(few)), progress=stop, **kept)
    said: list[str] = []
    again = tune_several(EPS, plans, say=said.append, **kept)
    for a, b in zip(again, whole, strict=True):  # what it has cost differs: the teacher's runs are made again
        assert torch.equal(a.t, b.t) and torch.equal(a.tau, b.tau) and torch.equal(a.corrections, b.corrections)
    assert said == [f"going on from {tmp_path / 'partial'}-{k}" for k in (3, 4)]


def test_pairs_follow_a_budget_in_calls() -> None:
    """Not the clock: the same command comes to the same plan."""
    plan = make_plan("ddim", SMOOTH, 3, "quadratic")
    found = [tune(EPS, plan, "joint", shape=(4,), guard=False, budget=600).provenance for _ in range(2)]
    assert found[0] == found[1] and found[0]["pairs"] == 600 // 3 * 16 // 40


def test_one_call_has_no_grid_and_no_past() -> None:
    plan = make_plan("ddim", SMOOTH, 1, "quadratic")
    with pytest.raises(ValueError, match="a plan for 1 calls has no times or corrections to tune: add 'tau'"):
        tune(EPS, plan, "joint", **QUICK, tune=("times", "corrections"))


@pytest.mark.parametrize(
    "schedule",
    [NoiseScheduleVE(), NoiseScheduleFlow(shift=3.0), ZERO_SNR],
    ids=["ve", "flow", "zero_snr"],
)
def test_on_every_kind_of_schedule(schedule: NoiseSchedule) -> None:
    """Also where alpha is 0 at the start, and where sigma is large."""
    eps = MIXTURE.eps(schedule)
    plan = make_plan("dpmpp", schedule, 5)
    tuned = tune(eps, plan, "joint", **QUICK)
    x = SeededNoise(123)(torch.empty(400, 4))
    many = reference_plan(schedule, float(plan.t[-1]), 100)
    end = sample(eps, many, many.initial_state(x))
    before, after = (float((sample(eps, p, p.initial_state(x)) - end).norm(dim=1).mean()) for p in (plan, tuned))
    assert after < 0.7 * before
    assert tuned.t[0] == plan.t[0] and abs(float(tuned.t[-1] - plan.t[-1])) < 1e-9


def test_a_plan_that_is_the_teacher_stays_as_it_is() -> None:
    plan = reference_plan(SMOOTH, SMOOTH.t_min, 6)
    tuned = tune(EPS, plan, "joint", teacher=plan, **{**QUICK, "iterations": 8})
    assert tuned.provenance["loss_after"] == tuned.provenance["loss_before"]
    torch.testing.assert_close(tuned.t, plan.t)
