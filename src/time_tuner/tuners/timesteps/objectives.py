"""What one step is tuned for: the objectives, each a line in a table."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeAlias

import torch
from torch import Tensor

from ...plans.build import make_plan
from ...samplers.dpmpp import DPMSolverPP
from ...sampling import trajectory
from ...schedules import Point
from ..calibration import CalibrationBatch
from .runs import PlanRun, Run, State

SUBSTEPS = 4


@dataclass(frozen=True)
class Step:
    """One step to be tuned.

    Attributes:
        run, k: step number k of this run.
        state: what the calls before left behind, and the state x_k they lead to.
        draws: the data, the noise in them and the model.
        known: `said`, where the step before has asked for it.
    """

    run: Run
    k: int
    state: State
    draws: CalibrationBatch
    known: Tensor | None = None

    @cached_property
    def said(self) -> Tensor:
        """The noise that the network sees in x_k, told t_k."""
        t = self.p.t
        return self.draws.model(self.x, t, t) if self.known is None else self.known

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
        """The point that the step leads to."""
        return self.run.point(self.k + 1)


def squared(seen: Tensor, target: Tensor) -> Tensor:
    """|seen - target|^2 of each sample, (B, ...) and (B, ...) -> (B,), in float64."""
    return (target - seen).double().square().flatten(1).sum(1)


def numbers_of(name: str, values: Any) -> Tensor:
    """What a function of the user's gave for a batch, in float64.

    Raises:
        ValueError: it gave no tensor.
    """
    if not isinstance(values, Tensor):
        raise ValueError(f"{name} must return a tensor, a number for each sample, got {type(values).__name__}")
    return values.double()


@dataclass(frozen=True)
class Objective:
    """What a step should come to: the mean over samples of `loss(seen, target)` is to be small.

    Attributes:
        target: what it is measured by, made once for a step, before it is tuned.
        sees: "noise": seen is what the network says of the state after the step, told that state's own time; "state":
            seen is that state itself, which saves a network call at each evaluation.
        loss: `loss(seen, target)` of each sample, (B,).
        calls: how often `target` asks the network, besides `step.said`, which is asked in any case.
    """

    target: Callable[[Step], Any]
    sees: str = "noise"
    loss: Callable[[Tensor, Any], Tensor] = squared
    calls: int = 0

    def __post_init__(self) -> None:
        if self.sees not in ("noise", "state"):
            raise ValueError(f"sees must be 'noise' or 'state', got {self.sees!r}")

    def mean(self, seen: Tensor, target: Any) -> Tensor:
        """The mean loss, in float64."""
        return numbers_of("objective", self.loss(seen, target)).mean()


def noise_before(step: Step) -> Tensor:
    """The noise that the network sees in x_k, told t_k."""
    return step.said


def true_noise(step: Step) -> Tensor:
    """The noise that the data were blurred with."""
    return step.draws.noise


@torch.no_grad()
def substeps_target(step: Step) -> Tensor:
    """Where four sub-steps of DPM-Solver++(2M), untuned, lead from where this step begins.

    They are on the schedule's even times. A step from the least trained time to 0 has no sub-steps: it is made once.
    """
    run, first = step.run, step.k - step.run.stage(step.k)
    if isinstance(run, PlanRun) and run.plan.rows[step.k].uses_noise:
        raise ValueError(
            f"objective='substeps' compares with a run without noise, {run.plan.sampler!r} draws some: "
            "take objective='published' or 'noise'"
        )
    x = step.x if first == step.k else step.state[0][first - step.k].x
    begin, end = float(run.point(first).t), float(step.q.t)
    count = SUBSTEPS if end or begin > run.schedule.t_min * (1 + 1e-9) else 1
    times = run.schedule.even_times(count, begin, end)
    for x in trajectory(step.draws.model, make_plan(DPMSolverPP(2), run.schedule, times=times), x):  # noqa: B007, B020
        pass
    return x


OBJECTIVES: dict[str, Objective] = {
    "published": Objective(noise_before),
    "noise": Objective(true_noise),
    "substeps": Objective(substeps_target, sees="state", calls=SUBSTEPS),
}
"""Every objective by its name in `tune` and on the command line. "published": the noise seen after the step equals the
noise seen before it (Xia et al., 2024); "noise": it equals the true noise; "substeps": the step ends where four smaller
ones would have ended."""

Asked: TypeAlias = str | Objective | Callable[[Step, Tensor], Tensor]


def find_objective(asked: Asked) -> Objective:
    """An objective by name, one of the user's own, or a function `f(step, x) -> (B,)`: the loss of each sample when
    the step ends in the states x (B, ...).

    Raises:
        ValueError: an unknown name, or something that is no objective.
    """
    if isinstance(asked, Objective):
        return asked
    if isinstance(asked, str) and asked in OBJECTIVES:
        return OBJECTIVES[asked]
    if isinstance(asked, str) or not callable(asked):
        raise ValueError(f"objective must be one of {', '.join(OBJECTIVES)}, or a function, got {asked!r}")
    return Objective(lambda step: step, sees="state", loss=lambda x, step: asked(step, x))


def loss(
    run: Run,
    k: int,
    state: State,
    tau: Tensor,
    draws: CalibrationBatch,
    target: Any,
    objective: Objective | None = None,
) -> Tensor:
    """L_k for the network told `tau`; `target` is the objective's, by default what the network says at t_k."""
    objective = objective or OBJECTIVES["published"]
    q = run.point(k + 1)
    _, x = run.step(k, state, tau, draws)
    seen = draws.model(x, q.t, q.t) if objective.sees == "noise" else x
    return objective.mean(seen, target)


def where(run: Run, k: int) -> str:
    """How an error names a step."""
    return f"at call {k} or {k + 1} (t = {float(run.point(k).t):.4g})"
