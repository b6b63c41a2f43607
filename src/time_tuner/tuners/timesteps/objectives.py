"""The objectives that a step is tuned for, each a line in a table."""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeAlias

import torch
from torch import Tensor

from ..._checks import accepts
from ..._dtypes import squared_norms, wide
from ...plans.build import make_plan
from ...samplers.dpmpp import DPMSolverPP
from ...sampling import trajectory
from ...schedules import Point
from ..calibration import CalibrationBatch, losses_of
from .runs import PlanRun, Run, State

SUBSTEPS = 4


@dataclass(frozen=True)
class Step:
    """A step that is tuned.

    Attributes:
        run: the run that the step belongs to.
        k: the number of the call: the step leads from point k of the run to point k + 1.
        state: the calls that call k looks back on, and the state x_k.
        batch: the data, the noise in them and the model.
        known: `untuned_noise`, where it is known already.
    """

    run: Run
    k: int
    state: State
    batch: CalibrationBatch
    known: Tensor | None = None

    @cached_property
    def untuned_noise(self) -> Tensor:
        """The noise predicted in x_k at tau = t_k, (B, ...)."""
        t = self.p.t
        return self.batch.model(self.x, t, t) if self.known is None else self.known

    @property
    def x(self) -> Tensor:
        """The state x_k, (B, ...)."""
        return self.state[1]

    @property
    def p(self) -> Point:
        """The point of x_k."""
        return self.run.point(self.k)

    @property
    def q(self) -> Point:
        """The point of the state after the step."""
        return self.run.point(self.k + 1)

    def broken(self) -> ValueError:
        """The error of a loss that is not finite."""
        return ValueError(
            f"eps, or the objective, returned NaN or infinity at call {self.k} or {self.k + 1} "
            f"(t = {float(self.p.t):.4g}) while tuning"
        )


def squared(result: Tensor, target: Tensor) -> Tensor:
    """|result - target|^2 of each sample, (B, ...) and (B, ...) -> (B,), in float64."""
    return squared_norms(wide(target) - wide(result))


@dataclass(frozen=True)
class Objective:
    """The loss of a step: the mean over samples of `loss(result, target)`.

    Attributes:
        target: computed once for a step, before it is tuned.
        result: "noise": the noise predicted in the state after the step at that state's own time; "state": that state
            itself, which saves a network call at each evaluation.
        loss: `loss(result, target)` of each sample, (B,).
        calls: network calls of `target`, besides that for `step.untuned_noise`, which is made in any case.
    """

    target: Callable[[Step], Any]
    result: str = "noise"
    loss: Callable[[Tensor, Any], Tensor] = squared
    calls: int = 0

    def __post_init__(self) -> None:
        if self.result not in ("noise", "state"):
            raise ValueError(f"result must be 'noise' or 'state', got {self.result!r}")

    def mean(self, result: Tensor, target: Any, batch: CalibrationBatch) -> Tensor:
        """The mean loss over the samples of a batch, in float64."""
        return batch.mean(losses_of("objective", self.loss(result, target), len(result)))


@torch.no_grad()
def substeps_target(step: Step) -> Tensor:
    """The state after four untuned sub-steps of DPM-Solver++(2M), on the schedule's even times, from the beginning of
    the step. A step from the least trained time to 0 has no sub-steps: it is made once."""
    run, first = step.run, step.k
    if isinstance(run, PlanRun):
        first -= [stage for calls in run.plan.steps for stage in range(calls)][step.k]
    x = step.x if first == step.k else step.state[0][first - step.k].x
    begin, end = float(run.point(first).t), float(step.q.t)
    count = SUBSTEPS if end or begin > run.schedule.t_min * (1 + 1e-9) else 1
    plan = make_plan(DPMSolverPP(2), run.schedule, times=run.schedule.even_times(count, begin, end))
    return deque(trajectory(step.batch.model, plan, x), maxlen=1).pop()


OBJECTIVES: dict[str, Objective] = {
    "published": Objective(lambda step: step.untuned_noise),
    "noise": Objective(lambda step: step.batch.noise),
    "substeps": Objective(substeps_target, result="state", calls=SUBSTEPS),
}
"""Every objective by its name. "published": the noise predicted after the step equals that before it (Xia et al.,
2024); "noise": it equals the true noise; "substeps": the step ends where four smaller ones end."""

ObjectiveLike: TypeAlias = str | Objective | Callable[[Step, Tensor], Tensor]
"""A name in `OBJECTIVES`, an `Objective`, or a function `f(step, x) -> (B,)`: the loss of each sample when the step
leads to the states x (B, ...)."""


def find_objective(objective: ObjectiveLike) -> Objective:
    """The objective that this stands for."""
    if isinstance(objective, Objective):
        return objective
    if isinstance(objective, str) and objective in OBJECTIVES:
        return OBJECTIVES[objective]
    if isinstance(objective, str) or not accepts(objective, 2):
        raise ValueError(
            f"objective must be one of {', '.join(OBJECTIVES)}, or a function (step, x), got {objective!r}"
        )
    return Objective(lambda step: step, result="state", loss=lambda x, step: objective(step, x))


def step_loss(
    run: Run,
    k: int,
    state: State,
    tau: Tensor,
    batch: CalibrationBatch,
    target: Any,
    objective: Objective = OBJECTIVES["published"],
) -> Tensor:
    """L_k: the mean loss of step k with the conditioning time tau; `target` is that of the objective."""
    q = run.point(k + 1)
    _, x = run.step(k, state, tau, batch)
    return objective.mean(batch.model(x, q.t, q.t) if objective.result == "noise" else x, target, batch)
