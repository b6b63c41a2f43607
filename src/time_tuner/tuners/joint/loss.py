"""How far plans end from where the teacher ends, and how that changes with their numbers."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor

from ...models.base import HookedModel, Model, for_rows
from ...models.batching import BatchedModel, accepts_times
from ...models.checkpointing import CheckpointedModel, needs_checkpointing
from ...models.counting import CostLog
from ...plans.plan import Plan
from ...sampling import predict, sample, trajectory
from ..timesteps.objectives import numbers_of
from .parameters import Parameters
from .teacher import Pairs

Distance: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""`distance(x, y)` of two batches (B, ...): (B,), or their mean."""

FLOOR = 1e-3  # of the mean distance, as which a smaller one counts in the curvature
NUDGE = 0.05  # of a time, by which the network is asked again for its slope


@dataclass(frozen=True)
class Gradients:
    """The mean distance over some pairs, its gradient (P,) by the numbers of a plan, and its curvature (P, P) where
    that was asked for."""

    loss: float
    gradient: Tensor
    curvature: Tensor | None

    def finite(self) -> bool:
        known = (torch.tensor(self.loss), self.gradient, self.gradient if self.curvature is None else self.curvature)
        return all(bool(one.isfinite().all()) for one in known)


@dataclass(frozen=True)
class TimeGradients:
    """How it is told what a change of a model's times does to what it says.

    Attributes:
        by_gradient: the model takes times for each sample and has a gradient by them, where it is asked for the noise.
        by_asking: "tau", "t": elsewhere it is asked again with another one of these.
    """

    by_gradient: bool = False
    by_asking: tuple[str, ...] = ()


@dataclass(frozen=True)
class TeacherLoss:
    """How far plans end from where the teacher ends.

    Attributes:
        model: the model.
        pairs: the teacher's.
        distance: of two ends.
        cost_log: where its network calls are counted.
    """

    model: BatchedModel
    pairs: Pairs
    distance: Distance
    cost_log: CostLog

    def time_slopes(self, plan: Plan, parts: Sequence[str]) -> TimeGradients:
        """How the slopes in the times are told of this model, where any of them change."""
        if not {"times", "tau"} & set(parts):
            return TimeGradients()
        two = torch.arange(min(2, len(self.pairs.x)))
        model, x = for_rows(self.model, two), self.pairs.x[two]
        with self.cost_log.purpose("sizing"):
            if accepts_times(model, x, plan.taus[-1].detach()):
                with torch.enable_grad():
                    tau = plan.taus[-1].detach().expand(len(x)).clone().requires_grad_()
                    said = model(x, tau.detach(), tau)
                    if said.requires_grad and (torch.autograd.grad(said.sum(), tau, allow_unused=True)[0] is not None):
                        return TimeGradients(by_gradient=True, by_asking=("tau",))
            with torch.no_grad():
                first, last = (model(x, plan.t[k], plan.taus[-1]) for k in (0, -2))
        # Where steps move, tau moves with them; t matters to what a network for x0 or v says of the noise.
        alike = torch.equal(first, last) or "times" not in parts
        return TimeGradients(by_asking=("tau",) if alike else ("tau", "t"))

    @torch.no_grad()
    def of(self, plan: Plan, rows: Tensor) -> float:
        """The mean distance over some of the pairs; infinite where the runs of the plan break."""
        taken, pairs = for_rows(self.model, rows), self.pairs[rows]
        end = plan.initial_state(pairs.x)
        for end in trajectory(taken, plan, end):  # noqa: B007, B020 - the last state is what is wanted
            pass
        if not end.isfinite().all():
            return math.inf
        return float(numbers_of("distance", self.distance(end, pairs.y)).mean())

    def check(self, plan: Plan, loss: float, rows: Tensor) -> None:
        """Raise a ValueError that says where the runs of the plan break, if its loss on these pairs is infinite."""
        if math.isinf(loss):
            sample(for_rows(self.model, rows), plan, plan.initial_state(self.pairs[rows].x))

    def crowded(self, plan: Plan, rows: Tensor) -> bool:
        """Whether the activations of a run of these pairs are more than memory should hold."""
        with self.cost_log.purpose("sizing"):  # not of the tuning: it is asked again when a run is continued
            p = plan.point(len(plan) - 1)
            return needs_checkpointing(for_rows(self.model, rows), self.pairs.x[rows], p.t, len(plan))

    def slopes(
        self,
        parameters: Parameters,
        v: Tensor,
        rows: Tensor,
        times: TimeGradients,
        draw: torch.Generator | None = None,
        checkpoint: bool = False,
    ) -> Gradients:
        r"""The mean distance over some of the pairs at v, and how it changes there.

        Every pair i runs with numbers of its own, so that one backward pass gives J_i^T q for each, J_i being the
        derivative of its end by v. With d_i the distance and q_i its gradient by the end, the gradient is the mean of
        J_i^T q_i. The curvature is that of Gauss and Newton, of a distance that falls to 0 as a cone does: the mean of
        J_i^T J_i |q_i|^2 / d_i, where J_i^T J_i is estimated by J_i^T u u^T J_i with a random u of mean square 1
        (Hutchinson, 1989), at the price of a second backward pass. So that a distance may look at parts of the ends
        alone, u is larger where q is: by the root of its root mean square over the pairs.

        Args:
            parameters, v: the plan is `parameters.plan(v)`.
            rows: the pairs.
            times: see `time_slopes`.
            draw: where u comes from; None for the gradient alone.
            checkpoint: keep the activations of one call at a time.
        """
        taken, pairs = for_rows(self.model, rows), self.pairs[rows]
        with torch.enable_grad():
            plan, numbers, derivative = parameters.linear(v)
            eps = HookedModel(CheckpointedModel(taken) if checkpoint else taken, _with_gradient)
            end, own = run_each(eps, plan, plan.initial_state(pairs.x), numbers, times)
            at = end.detach().requires_grad_()
            distances = numbers_of("distance", self.distance(at, pairs.y))
            if not distances.requires_grad:
                raise ValueError("distance must have a gradient in its first argument, got values without one")
            (pull,) = torch.autograd.grad(distances.mean() * len(rows), at)
        distances = distances.detach().to(v.device)
        distances = distances.flatten() if distances.numel() == len(rows) else distances.mean().expand(len(rows))
        steep = pull.double().square().flatten(1).sum(1).to(v.device)
        weights = steep / distances.abs().clamp(min=FLOOR * float(distances.abs().mean()) + 1e-300)

        def along(direction: Tensor, again: bool) -> Tensor:
            """J_i^T times the direction of each pair, (B, P)."""
            (each,) = torch.autograd.grad(end, own, direction, retain_graph=again)
            return each.to(v) @ derivative

        gradient, curvature = along(pull, draw is not None).mean(0), None
        if draw is not None:
            felt = pull.square().mean(0)
            u = torch.randn(end.shape, generator=draw).to(end) * (felt / felt.mean().clamp(min=1e-30)) ** 0.25
            thrown = along(u, False)
            curvature = thrown.T @ (weights[:, None] * thrown) / len(rows)
        return Gradients(float(distances.mean()), gradient, curvature)


def run_each(eps: Model, plan: Plan, x: Tensor, numbers: Tensor, times: TimeGradients) -> tuple[Tensor, Tensor]:
    """The end of a run in which each sample has the numbers of `Parameters.linear` for its own, and these, (B, M), by
    which the end has a gradient."""
    calls, own = len(plan), numbers.to(x).expand(len(x), -1).clone().requires_grad_()
    wide = own.view(*own.shape, *(1,) * (x.dim() - 1)).unbind(1)
    log_tau, log_t = wide[-2 * calls : -calls], wide[-calls:]
    seen, state, first = [x], x, 0
    for k in range(calls):
        seen.append(_said(eps, plan, k, state, {"tau": log_tau[k], "t": log_t[k]}, times))
        state = sum((w * one for w, one in zip(wide[first:], seen, strict=False)), torch.zeros_like(x))
        first += len(seen)
    return state, own


def _said(eps: Model, plan: Plan, k: int, x: Tensor, logs: dict[str, Tensor], times: TimeGradients) -> Tensor:
    """What the network says of x at call k, with its gradient by the logarithms of the times, (B, 1, ...)."""
    if times.by_gradient and plan.rows[k].predicts == "eps":
        own = {name: log.flatten().double().exp() for name, log in logs.items()}
        return predict(eps, plan, k, x, **own).to(x.dtype)
    said = answer = predict(eps, plan, k, x).to(x.dtype)
    for name in times.by_asking:
        with torch.no_grad():
            now = getattr(plan, name)[k]
            by = NUDGE if now * (1 + NUDGE) <= plan.schedule.T else -NUDGE
            slope = (predict(eps, plan, k, x, **{name: now * (1 + by)}).to(x.dtype) - answer) / by
        said = said + (logs[name] - logs[name].detach()) * slope
    return said


def _with_gradient(unit: str, x: Tensor, t: Any, said: Tensor) -> None:
    """Raise a ValueError if the model was asked with a gradient and has said something without."""
    if said.is_inference() or (torch.is_grad_enabled() and x.requires_grad and not said.requires_grad):
        raise ValueError(
            "method='joint' needs a network with a gradient in its input, this one has none: call it without "
            "torch.no_grad or inference_mode, or take method='sequential', which works with forward calls only"
        )
