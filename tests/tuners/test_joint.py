"""Joint tuning: its parameters, its loss, and that it helps."""

import json
from typing import Any

import pytest
import torch
from helpers import seeded, tune_by
from joint_problem import (
    EPS,
    MIXTURE,
    POINTS,
    QUICK,
    SMOOTH,
    ZERO_SNR,
    distance_to_teacher,
    loss_of,
    one_time,
    x0_network,
    x0_of_one_time,
)
from torch import Tensor

from time_tuner import (
    SAMPLERS,
    NoiseScheduleFlow,
    NoiseScheduleVE,
    Plan,
    SeededNoise,
    make_plan,
    model_wrapper,
    sample,
)
from time_tuner.models.base import as_model
from time_tuner.models.batching import BatchedModel
from time_tuner.models.checkpointing import CheckpointedModel, kept_bytes
from time_tuner.models.counting import CostLog
from time_tuner.models.exact import Mixture
from time_tuner.plans.build import reference_plan, resample
from time_tuner.schedules import NoiseSchedule
from time_tuner.tuners.joint.loss import TeacherLoss, TimeGradients, robust, run_each
from time_tuner.tuners.joint.parameters import PARTS, Parameters
from time_tuner.tuners.joint.teacher import Pairs

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
        tau = v.split(parameters.sizes)[1].exp() * plan.tau / plan.t[:-1] * made.t[:-1]
        torch.testing.assert_close(tau, made.tau)  # no number lies where it has no effect


def test_only_the_named_parts_move() -> None:
    plan = make_plan("dpmpp", SMOOTH, 5, "quadratic")
    for part in PARTS:
        parameters = Parameters(plan, (part,))
        made = parameters.plan(0.1 * seeded(len(parameters)).double())
        assert (not torch.equal(made.step_times, plan.step_times)) == (part == "times")
        assert torch.allclose(made.tau / made.t[:-1], plan.tau / plan.t[:-1], atol=1e-12) == (part != "tau")
        assert (made.corrections is not None) == (part == "corrections")


def test_a_tuned_plan_is_tuned_further() -> None:
    """Its numbers are kept, and moved from there."""
    plan = make_plan("ddim", SMOOTH, 4, "quadratic")
    plan = plan.with_tau(plan.tau * 0.97).with_corrections(0.1 * seeded(4, 4).double().tril(-1))
    parameters = Parameters(plan)
    here = parameters.plan(torch.zeros(len(parameters), dtype=torch.float64))
    assert plan.corrections is not None and here.corrections is not None
    torch.testing.assert_close(here.corrections, plan.corrections)
    torch.testing.assert_close(here.tau, plan.tau, rtol=1e-9, atol=0)


@pytest.mark.parametrize("schedule", [SMOOTH, NoiseScheduleFlow(shift=3.0)], ids=["vp", "flow"])
@pytest.mark.parametrize("name", ["ddim", "heun", "unipc"])
def test_the_plan_beside_its_derivative_is_the_plan_without_gradient(name: str, schedule: NoiseSchedule) -> None:
    for guided in (6, 3):
        parameters = Parameters(make_plan(name, schedule, 6, "quadratic", guided=guided))
        v = 0.05 * seeded(len(parameters)).double()
        plan, _, _ = parameters.linear(v)
        assert plan == parameters.plan(v)
        tensors = [plan.t, plan.tau, plan.corrections, plan.reuse_weights, plan.rows[-1].next_state.weights]
        assert not any(tensor.requires_grad for tensor in [*tensors, *plan.taus, plan.point(1).alpha])


def test_unknown_parts_are_refused() -> None:
    plan = make_plan("ddim", SMOOTH, 4, "quadratic")
    for parts, got in ((("time",), "time"), ((), "none")):
        with pytest.raises(ValueError, match=f"parts must be some of times, tau, corrections, reuse, got '{got}'"):
            Parameters(plan, parts)


OWN = TimeGradients(exact=True, differences=("tau",))
MODELS = {
    "a time for each sample": (lambda x, t, tau: EPS(x, t, tau), OWN, 1e-5),
    "one time": (one_time, TimeGradients(differences=("tau",)), 0.15),
    "x0": (model_wrapper(x0_network, SMOOTH, model_type="x_start").bind(), OWN, 0.02),  # its time is float32
    "x0, one time": (x0_of_one_time, TimeGradients(differences=("tau", "t")), 0.15),
}


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize(("name", "parts"), [("ddim", PARTS), ("unipc", PARTS), ("heun", PARTS), ("dpmpp", ("times",))])
def test_the_gradient_is_that_of_the_mean_distance(model: str, name: str, parts: tuple[str, ...]) -> None:
    eps, by, within = MODELS[model]
    loss, rows, parameters = loss_of(eps), torch.arange(64), Parameters(make_plan(name, SMOOTH, 4, "quadratic"), parts)
    v = 0.05 * seeded(len(parameters)).double()
    assert loss.time_gradients(parameters.start, parts) == by
    gradients = loss.gradients(parameters, v, rows, by)
    assert gradients.loss == pytest.approx(loss.mean(parameters.plan(v), rows), rel=1e-6)
    assert gradients.curvature is None
    steps = 1e-5 * torch.eye(len(v), dtype=torch.float64)
    ends = [[loss.mean(parameters.plan(v + sign * step), rows) for sign in (1, -1)] for step in steps]
    expected = torch.tensor([(above - below) / 2e-5 for above, below in ends], dtype=torch.float64)
    assert (gradients.gradient - expected).norm() < within * expected.norm()


def test_the_curvature_is_that_of_gauss_and_newton() -> None:
    """In one dimension, where u is a number: the mean of J^2 / d, by the number of pairs."""
    eps, count = Mixture(seeded(5, 1, seed=3), 0.15).eps(SMOOTH), 2000
    x = seeded(count, 1).double()
    loss = TeacherLoss(BatchedModel(as_model(eps, SMOOTH)), Pairs(x, x + 3.0), robust, CostLog())
    parameters, rows = Parameters(make_plan("ddim", SMOOTH, 2, "quadratic"), ("corrections",)), torch.arange(count)
    v = torch.tensor([0.1], dtype=torch.float64)
    draw = torch.Generator().manual_seed(0)
    found = [loss.gradients(parameters, v, rows, TimeGradients(), draw).curvature for _ in range(20)]
    above, below, here = (sample(eps, parameters.plan(v + by), x) for by in (1e-4, -1e-4, 0.0))
    expected = ((above - below) / 2e-4).square() / robust(here, x + 3.0)[:, None]
    assert float(sum(found)) / 20 == pytest.approx(float(expected.mean()), rel=0.05)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", sorted(SAMPLERS))
def test_every_sampler_comes_closer_to_the_teacher(name: str) -> None:
    calls = 5
    plan = make_plan(name, SMOOTH, calls, "quadratic") if name != "heun" else make_plan(name, SMOOTH, 6, "quadratic")
    if plan.stochastic:
        with pytest.raises(ValueError, match=r"joint tuning needs a plan without noise.*take a deterministic sampler"):
            tune_by(EPS, plan, "joint", **QUICK)
        return
    tuned = tune_by(EPS, plan, "joint", **{**QUICK, "pairs": 128, "iterations": 40})
    assert len(tuned) == len(plan)
    assert distance_to_teacher(tuned) < 0.6 * distance_to_teacher(plan)
    assert Plan.from_dict(json.loads(json.dumps(tuned.to_dict()))) == tuned


def test_three_parts_are_better_than_one() -> None:
    plan = make_plan("ddim", SMOOTH, 4, "quadratic")
    all_, tau = (distance_to_teacher(tune_by(EPS, plan, "joint", parts=parts, **QUICK)) for parts in (PARTS, "tau"))
    assert all_ < 0.7 * tau < 0.7 * distance_to_teacher(plan)


def test_a_distance_of_the_users_is_minimised() -> None:
    """One to half of the teacher's ends gets smaller by itself than by the robust norm, and vice versa."""
    plan = make_plan("ddim", SMOOTH, 3, "quadratic")
    x = SeededNoise(123)(torch.empty(400, 4))
    end = sample(EPS, reference_plan(SMOOTH, float(plan.t[-1]), 100), x)

    def half(x: Tensor, y: Tensor) -> Tensor:
        return (x - y / 2).norm(dim=1)

    ends = [sample(EPS, tune_by(EPS, plan, "joint", distance=distance, **QUICK), x) for distance in (half, robust)]
    assert half(ends[0], end).mean() < 0.9 * half(ends[1], end).mean()
    assert robust(ends[1], end).mean() < 0.9 * robust(ends[0], end).mean()


@pytest.mark.slow  # of few iterations the difference is that of the seeds
def test_a_distance_of_one_coordinate_is_minimised() -> None:
    """It brings a small coordinate closer than the robust norm of all does, in which it counts for little."""
    eps = Mixture(POINTS * torch.tensor([0.3, 2.0, 2.0, 2.0], dtype=POINTS.dtype), 0.15).eps(SMOOTH)
    plan = make_plan("ddim", SMOOTH, 3, "quadratic")
    x = SeededNoise(123)(torch.empty(400, 4))
    end = sample(eps, reference_plan(SMOOTH, float(plan.t[-1]), 100), x)

    def first(x: Tensor, y: Tensor) -> Tensor:
        return (x - y)[:, 0].abs()

    def mean(**distance: Any) -> float:
        """Over seeds, since runs end in one of several minima."""
        how = {**QUICK, "iterations": 100, "pairs": 256, **distance}
        tuned = [tune_by(eps, plan, "joint", seed=seed, **how) for seed in range(3)]
        return sum(float(first(sample(eps, one, x), end).mean()) for one in tuned)

    assert mean(distance=first) < 0.9 * mean()


def test_the_plan_holds_over_conditions() -> None:
    """Two data sets, one for each condition: each pair is made and tuned under its own."""
    shifted = Mixture(POINTS + 3.0, 0.15).eps(SMOOTH)

    def network(x: Tensor, t: Tensor, cond: Tensor) -> Tensor:
        tau = t[0].double()
        return torch.where(cond[:, None] == 0, EPS(x, tau, tau), shifted(x, tau, tau))

    wrapped = model_wrapper(network, SMOOTH, guidance_type="classifier-free")
    bound = wrapped.bind(torch.tensor([0, 1] * 8))
    plan = make_plan("ddim", SMOOTH, 4, "quadratic")
    tuned = tune_by(bound, plan, "joint", samples=16, **QUICK)
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

    plan, how = make_plan("ddim", SMOOTH, 3, "quadratic"), {**QUICK, "gradients": True}
    with pytest.raises(ValueError, match=r"needs a network with a gradient in its input.*take gradients=False"):
        tune_by(still, plan, "joint", parts=("tau",), **how)
    # The arithmetic around it has a gradient, which is not enough.
    for wrapped in (still, torch.inference_mode()(lambda x, t, tau: EPS(x, t, tau))):
        with pytest.raises(ValueError, match=r"needs a network with a gradient in its input.*take gradients=False"):
            tune_by(wrapped, plan, "joint", **how)
    with pytest.raises(ValueError, match="NaN or infin"):
        tune_by(broken, plan, "joint", **how)


class Wide(torch.nn.Module):
    """A network whose activations are far larger than its input."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = torch.nn.Linear(5, 2000), torch.nn.Linear(2000, 4)

    def forward(self, x: Tensor, t: Tensor, tau: Tensor) -> Tensor:
        time = tau.to(x).expand(len(x), 1)
        hidden: Tensor = self.last(torch.tanh(self.first(torch.cat([x, time], 1))))
        return hidden


def saved_bytes(network: Wide, calls: int, checkpointed: bool) -> int:
    """The memory that a run keeps for its backward pass."""
    parameters, x = Parameters(make_plan("ddim", SMOOTH, calls, "quadratic")), seeded(32, 4).float()
    plan, numbers, _ = parameters.linear(torch.zeros(len(parameters), dtype=torch.float64))
    eps = CheckpointedModel(as_model(network, SMOOTH)) if checkpointed else as_model(network, SMOOTH)
    return kept_bytes(lambda: run_each(eps, plan, x, numbers, parameters.pairs, TimeGradients())[0])


def test_checkpoints_keep_one_call_at_a_time() -> None:
    torch.manual_seed(0)
    network = Wide().requires_grad_(False)
    x, t = seeded(32, 4).float().requires_grad_(), torch.tensor(0.5)
    one = kept_bytes(lambda: network(x, t, t))
    assert one > 32 * 2000 * 4
    assert saved_bytes(network, 16, checkpointed=False) > 3 * saved_bytes(network, 4, checkpointed=False)
    # Only states and predictions remain, which are small here, and no activations of 32 x 2000 numbers.
    assert saved_bytes(network, 16, checkpointed=True) < one


def test_checkpoints_change_nothing() -> None:
    plan = make_plan("dpmpp", SMOOTH, 4, "quadratic")
    with_, without = (
        tune_by(EPS, plan, "joint", checkpoint_steps=flag, **{**QUICK, "iterations": 10}) for flag in (True, False)
    )
    torch.testing.assert_close(with_.t, without.t)
    torch.testing.assert_close(with_.corrections, without.corrections)
    assert with_.provenance["cost"]["tuning"]["evaluations"] > without.provenance["cost"]["tuning"]["evaluations"]


def test_a_half_precision_network_is_tuned_with_full_states() -> None:
    def half(x: Tensor, t: Tensor, tau: Tensor) -> Tensor:
        assert x.dtype == torch.float32 and tau.dtype == torch.float64
        return EPS(x.bfloat16().float(), t, tau).bfloat16()

    plan = make_plan("ddim", SMOOTH, 4, "quadratic")
    tuned = tune_by(half, plan, "joint", **QUICK)
    assert tuned.t.dtype == torch.float64
    assert distance_to_teacher(tuned) < 0.6 * distance_to_teacher(plan)


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
    """A ratio compensates for the error of a step: of shorter steps it is less, but not nothing."""
    few, many = 4, 8
    plan = tune_by(EPS, make_plan("ddim", SMOOTH, few, "quadratic"), "joint", parts=("tau",), **QUICK)
    other = resample(plan, many)
    alike = other.with_tau((other.t[:-1] * (other.tau / other.t[:-1]) ** (many / few)).clamp(max=SMOOTH.T))
    untuned = other.with_tau(other.t[:-1])
    assert distance_to_teacher(other) < min(distance_to_teacher(alike), distance_to_teacher(untuned))


def test_one_call_has_no_times_or_corrections() -> None:
    plan = make_plan("ddim", SMOOTH, 1, "quadratic")
    with pytest.raises(ValueError, match="a plan for 1 calls has no times or corrections to tune: add 'tau'"):
        tune_by(EPS, plan, "joint", **QUICK, parts=("times", "corrections"))


@pytest.mark.parametrize(
    "schedule",
    [NoiseScheduleVE(), NoiseScheduleFlow(shift=3.0), ZERO_SNR],
    ids=["ve", "flow", "zero_snr"],
)
def test_on_every_kind_of_schedule(schedule: NoiseSchedule) -> None:
    """Also where alpha is 0 at the start, and where sigma is large."""
    eps = MIXTURE.eps(schedule)
    plan = make_plan("dpmpp", schedule, 5)
    tuned = tune_by(eps, plan, "joint", **QUICK)
    x = SeededNoise(123)(torch.empty(400, 4))
    many = reference_plan(schedule, float(plan.t[-1]), 100)
    end = sample(eps, many, many.initial_state(x))
    before, after = (float((sample(eps, p, p.initial_state(x)) - end).norm(dim=1).mean()) for p in (plan, tuned))
    assert after < 0.7 * before
    assert tuned.t[0] == plan.t[0] and abs(float(tuned.t[-1] - plan.t[-1])) < 1e-9


def test_a_plan_that_is_the_teacher_stays_as_it_is() -> None:
    plan = reference_plan(SMOOTH, SMOOTH.t_min, 6)
    tuned = tune_by(EPS, plan, "joint", teacher=plan, **{**QUICK, "iterations": 8})
    assert tuned.provenance["validation_loss"]["tuned"] == tuned.provenance["validation_loss"]["untuned"]
    torch.testing.assert_close(tuned.t, plan.t)
