"""Runs whose conditioning times are tuned, and the states from which the two strategies tune their steps."""

from abc import ABC, abstractmethod
from typing import TypeAlias

from torch import Tensor

from ...plans.plan import Plan
from ...plans.rows import Call
from ...sampling import advance, evaluate
from ...schedules import NoiseSchedule, Point
from ..calibration import CalibrationBatch

State: TypeAlias = tuple[tuple[Call, ...], Tensor]
"""The calls that the next one looks back on, and the state that they lead to."""


class Run(ABC):
    """A run whose conditioning times are tuned: K calls, or steps of the user's own, over K + 1 points."""

    stochastic = False

    def __init__(self, schedule: NoiseSchedule, points: Point) -> None:
        self.schedule, self.points = schedule, points

    def __len__(self) -> int:
        return len(self.points.t) - 1

    def point(self, k: int) -> Point:
        """Point k = 0 .. K."""
        return Point(self.points.t[k], self.points.alpha[k], self.points.sigma[k])

    def history(self, k: int) -> int:
        """The number of calls that call k looks back on, itself included."""
        return 1

    @abstractmethod
    def step(self, k: int, state: State, tau: Tensor, batch: CalibrationBatch) -> State:
        """The state after call k with the conditioning time tau."""


class PlanRun(Run):
    """The run of a plan."""

    def __init__(self, plan: Plan) -> None:
        super().__init__(plan.schedule, Point(plan.t, plan.alpha, plan.sigma))
        self.plan, self.stochastic = plan, plan.stochastic

    def history(self, k: int) -> int:
        if self.plan.reuse is not None:  # of which any call may need those before
            return k + 1
        row = self.plan.rows[k]
        parts = (row.guidance, row.corrected, row.next_state)
        return 1 + max((ago for part in parts if part is not None for _, ago in part.terms), default=0)

    def step(self, k: int, state: State, tau: Tensor, batch: CalibrationBatch) -> State:
        past, x = state
        prediction, added = evaluate(batch.model, self.plan, k, x, past, tau)
        return self.follow(k, state, prediction, batch, added)

    def follow(
        self, k: int, state: State, prediction: Tensor, batch: CalibrationBatch, added: Tensor | None = None
    ) -> State:
        """The state after call k with this prediction, to which guidance has added this."""
        past, x = state
        x, past = advance(self.plan, k, past, x, prediction, lambda _: batch.step_noise(k), added)
        return past, x


def first_state(run: Run, batch: CalibrationBatch) -> State:
    """The first state of the sequential strategy, as published that of T also where the run begins later."""
    p = run.schedule.at(run.schedule.T)
    return (), float(run.point(0).scale / p.scale) * batch.at(p)


def direct_state(run: Run, k: int, batch: CalibrationBatch) -> State:
    """The state of the parallel strategy at call k; the calls that it looks back on are in such states too, untuned."""
    past: list[Call] = []
    if isinstance(run, PlanRun):
        for j in range(max(0, k + 1 - run.history(k)), k):
            p = run.point(j)
            x = batch.at(p)
            prediction, added = evaluate(batch.model, run.plan, j, x, tuple(past), p.t)
            past.append(Call(x, prediction, x, added))
    return tuple(past), batch.at(run.point(k))
