"""The distance between the ends of a plan's runs and of the teacher's, and its derivatives by the plan's parameters."""

import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor

from ..._distributed import decided, gathered, num_processes, own_rows, rank, share, summed
from ..._dtypes import like, squared_norms, wide
from ...models.base import HookedModel, Model, check_prediction, for_rows
from ...models.batching import BatchedModel, accepts_times
from ...models.checkpointing import CheckpointedModel, needs_checkpointing
from ...models.counting import CostLog
from ...plans.plan import Plan
from ...sampling import predict, sample, trajectory
from ..calibration import losses_of
from ..network_times import other_level
from .parameters import Parameters
from .teacher import Pairs

Distance: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""`distance(x, y)` of two batches (B, ...): of each pair, (B,), or their mean."""

DELTA = 1e-3  # in `robust`
FLOOR = 1e-3  # of the mean distance, as which a smaller one counts in the curvature
DIFFERENCE = 0.05  # of a time, between the two predictions of a difference quotient


def robust(x: Tensor, y: Tensor) -> Tensor:
    """sqrt(|x - y|^2 + delta) of every pair, (B, ...) and (B, ...) -> (B,)."""
    return (squared_norms(wide(x) - wide(y)) + DELTA).sqrt()


@dataclass(frozen=True)
class Gradients:
    """The mean distance over some pairs, its gradient (P,) by the parameters, and its curvature (P, P) or None."""

    loss: float
    gradient: Tensor
    curvature: Tensor | None

    def finite(self) -> bool:
        known = [torch.tensor(self.loss), self.gradient, *([] if self.curvature is None else [self.curvature])]
        return all(bool(one.isfinite().all()) for one in known)


@dataclass(frozen=True)
class TimeGradients:
    """How the derivative of a model's prediction by its times is found.

    Attributes:
        exact: by its gradient, where it predicts the noise; the model accepts a time for each sample.
        differences: elsewhere by difference quotients in these times, "tau" and "t": a prediction more for each.
    """

    exact: bool = False
    differences: Sequence[str] = ()

    @property
    def calls(self) -> int:
        """Predictions more for each call of a run."""
        return 0 if self.exact else len(self.differences)


@dataclass(frozen=True)
class TeacherLoss:
    """The mean distance between the ends of a plan's runs and of the teacher's."""

    model: BatchedModel
    pairs: Pairs
    distance: Distance
    cost_log: CostLog

    def time_gradients(self, plan: Plan, parts: Sequence[str]) -> TimeGradients:
        """How the derivative by the times is found, where any of them are tuned; by a few predictions."""
        if not {"times", "tau"} & set(parts):
            return TimeGradients()
        return TimeGradients(*decided(self._time_gradients(plan, parts)))

    def _time_gradients(self, plan: Plan, parts: Sequence[str]) -> tuple[bool, Sequence[str]]:
        two = torch.arange(min(2, len(self.pairs.x)))
        model, x, last_tau = for_rows(self.model, two), self.pairs.x[two], plan.taus[-1].detach()
        with self.cost_log.purpose("sizing"):
            if accepts_times(model, x, last_tau):
                with torch.enable_grad():
                    tau = last_tau.expand(len(x)).clone().requires_grad_()
                    noise = model(x, tau.detach(), tau)
                    if noise.requires_grad and torch.autograd.grad(noise.sum(), tau, allow_unused=True)[0] is not None:
                        return True, ("tau",)
            with torch.no_grad():
                first, last = (model(x, plan.t[k], last_tau) for k in (0, -2))
        # Where step times move, tau moves with them; t matters to the noise of a network that predicts x0 or v.
        alike = torch.equal(first, last) or "times" not in parts
        return False, ("tau",) if alike else ("tau", "t")

    def mean(self, plan: Plan, rows: Tensor) -> float:
        """The mean distance over some of the pairs; infinite where the runs of the plan are."""
        return float(self.per_pair(plan, rows).mean())

    @torch.no_grad()
    def per_pair(self, plan: Plan, rows: Tensor) -> Tensor:
        """The distance of some of the pairs, (n,), or their mean (); infinite where the runs of the plan are."""
        own = own_rows(rows)
        model, pairs = for_rows(self.model, own), self.pairs[own]
        end = deque(trajectory(model, plan, plan.initial_state(pairs.x)), maxlen=1).pop()
        values = self.distances(end, pairs.y) if end.isfinite().all() else torch.full((len(own),), math.inf)
        return self.of_all(values, len(own), len(rows))

    @staticmethod
    def of_all(values: Tensor, own: int, count: int) -> Tensor:
        """The distances of `count` pairs, (count,) or their mean (), of those of the share of each process."""
        if num_processes() == 1:
            return values
        found = gathered(values.double().expand(own), count)
        return found if values.dim() else found.mean()

    def distances(self, x: Tensor, y: Tensor) -> Tensor:
        """The distance of every pair of ends, (B,) or (), in float64."""
        return losses_of("distance", self.distance(x, y), len(x), mean=True)

    def check_finite(self, plan: Plan, loss: float, rows: Tensor) -> None:
        """Raise a ValueError that names the call at which the runs become infinite, if this is their loss."""
        if math.isinf(loss):
            sample(for_rows(self.model, rows), plan, plan.initial_state(self.pairs[rows].x))

    def needs_checkpointing(self, plan: Plan, rows: Tensor) -> bool:
        """Whether the activations of a run from these pairs would fill too much of the memory."""
        own = own_rows(rows)
        with self.cost_log.purpose("sizing"):
            return decided(needs_checkpointing(for_rows(self.model, own), self.pairs.x[own], plan.t[-2], len(plan)))

    def gradients(
        self,
        parameters: Parameters,
        v: Tensor,
        rows: Tensor,
        times: TimeGradients,
        generator: torch.Generator | None = None,
        checkpoint: bool = False,
    ) -> Gradients:
        r"""The mean distance over some of the pairs at v, its gradient and its curvature.

        Every pair i runs with numbers of its own, so that one backward pass gives J_i^T q for each, where J_i is the
        derivative of its end by v. With the distance d_i and its gradient q_i by the end, the gradient is the mean of
        J_i^T q_i. The curvature is that of Gauss-Newton for a distance that falls to 0 as a cone does: the mean of
        J_i^T J_i |q_i|^2 / d_i, where J_i^T J_i is estimated by J_i^T u u^T J_i with a random u of mean square 1
        (Hutchinson, 1989), in a second backward pass; without a generator for u there is none. A distance may depend on
        parts of the ends alone: u is larger where q is, by the root of its root mean square over the pairs. With
        `checkpoint` the activations of one call at a time are kept.
        """
        count, own_pairs = len(rows), share(len(rows))
        rows = rows[own_pairs]
        model, pairs = for_rows(self.model, rows), self.pairs[rows]
        with torch.enable_grad():
            # 1. The ends of the runs, x_i, each with numbers of its own; then d_i and q_i.
            plan, numbers, derivative = parameters.linear(v)
            if checkpoint and isinstance(model, BatchedModel):  # batch by batch, in the memory of one
                model = BatchedModel(CheckpointedModel(model.inner), model.batch)
            model = HookedModel(model, _check_gradient)
            end, own = run_each(model, plan, plan.initial_state(pairs.x), numbers, parameters.pairs, times)
            at = end.detach().requires_grad_()
            distances = self.distances(at, pairs.y)
            if not distances.requires_grad:
                raise ValueError(
                    "distance must have a gradient in its first argument, got values without one: give such a one, or "
                    "take gradients=False, which works with forward calls only"
                )
            (q,) = torch.autograd.grad(distances.mean() * len(rows), at)
        # 2. From here on of the pairs of all processes, where several share the work.
        distances = self.of_all(distances.detach(), len(rows), count).expand(count)
        steepness = gathered(squared_norms(q), count)
        weights = steepness / distances.abs().clamp(min=FLOOR * float(distances.abs().mean()) + 1e-300)

        def pulled_back(direction: Tensor, again: bool) -> Tensor:
            """J_i^T times the direction of each pair, (B, P)."""
            (each,) = torch.autograd.grad(end, own, direction, retain_graph=again)
            return gathered(each.cpu(), count).to(v) @ derivative

        # 3. The gradient, the mean of J_i^T q_i.
        gradient, curvature = pulled_back(q, generator is not None).mean(0), None
        if generator is not None:
            # 4. The curvature, the mean of J_i^T u u^T J_i |q_i|^2 / d_i.
            squares = summed(q.flatten(1).square().cpu().double().sum(0) * (rank() < count)) / count
            size = like(squares.reshape(q.shape[1:]), q)
            u = torch.randn(count, *end.shape[1:], generator=generator)[own_pairs].to(end)
            projected = pulled_back(u * (size / size.mean().clamp(min=1e-30)) ** 0.25, False)
            curvature = projected.T @ (weights[:, None] * projected) / count
        return Gradients(float(distances.mean()), gradient, curvature)


def run_each(
    model: Model, plan: Plan, x: Tensor, numbers: Tensor, pairs: Tensor, times: TimeGradients
) -> tuple[Tensor, Tensor]:
    """The end of a run from x (B, ...) in which each sample has numbers of its own, those of `Parameters.linear` with
    its `pairs`; and these, (B, M), by which the end has a gradient."""
    calls, own = len(plan), numbers.to(x).expand(len(x), -1).clone().requires_grad_()
    wide = own.view(*own.shape, *(1,) * (x.dim() - 1)).unbind(1)
    log_tau, log_t = wide[-2 * calls : -calls], wide[-calls:]
    reused = list(zip(pairs.T.tolist(), wide[calls * (calls + 3) // 2 :], strict=False))
    terms, added, state, first = [x], dict[int, Tensor](), x, 0
    for k in range(calls):
        found = _predict(model, plan, k, state, {"tau": log_tau[k], "t": log_t[k]}, times)
        if not plan.guided[k]:
            found[0] = sum((weight * added[j] for (at, j), weight in reused if at == k), found[0])
        elif len(found) > 1:
            found[0], added[k] = found[0] + found[1], found[1]
        terms.append(found[0])
        state = sum((weight * one for weight, one in zip(wide[first:], terms, strict=False)), torch.zeros_like(x))
        first += len(terms)
    return state, own


def _predict(
    model: Model, plan: Plan, k: int, x: Tensor, logs: dict[str, Tensor], times: TimeGradients
) -> list[Tensor]:
    """The prediction in x at call k, with its gradient by the logarithms of the times, (B, 1, ...); of a plan that
    leaves guidance out of some calls without what is reused, and at guided calls with what guidance adds to it."""

    def predicted(**own: Tensor) -> list[Tensor]:
        if all(plan.guided):
            return [predict(model, plan, k, x, **own).to(x.dtype)]
        now = {"t": plan.point(k).t, "tau": plan.taus[k]} | own
        return [
            check_prediction(one, x, f" at call {k}").to(x.dtype)
            for one in model.parts(plan.rows[k].predicts, x, now["t"], now["tau"], plan.guided[k])
            if one is not None
        ]

    if times.exact and plan.rows[k].predicts == "eps":
        return predicted(**{name: log.flatten().cpu().double().exp() for name, log in logs.items()})
    here = predicted()
    found = list(here)
    for name in times.differences:
        with torch.no_grad():
            time = getattr(plan, name)[k]
            step = DIFFERENCE if time * (1 + DIFFERENCE) <= plan.schedule.T else -DIFFERENCE
            other = time * (1 + step)
            if name == "tau" and model.whole_levels:
                other = other_level(plan.schedule, time, other)
                step = float(other / time) - 1
            slopes = [(there - one) / step for there, one in zip(predicted(**{name: other}), here, strict=True)]
        moved = logs[name] - logs[name].detach()
        found = [one + moved * slope for one, slope in zip(found, slopes, strict=True)]
    return found


def _check_gradient(quantity: str, x: Tensor, t: Any, prediction: Tensor) -> None:
    """Raise a ValueError if a prediction that needs a gradient has none."""
    if prediction.is_inference() or (torch.is_grad_enabled() and x.requires_grad and not prediction.requires_grad):
        raise ValueError(
            "gradients=True needs a network with a gradient in its input, this one has none: call it without "
            "torch.no_grad or inference_mode, or take gradients=False, which works with forward calls only"
        )
