"""Runs whose conditioning is tuned, and the states from which the two strategies tune their steps."""

from typing import TypeAlias

from torch import Tensor

from ...plans.plan import Plan
from ...plans.rows import Call
from ...sampling import advance, predict
from ...schedules import NoiseSchedule, Point
from ..calibration import CalibrationBatch

State: TypeAlias = tuple[tuple[Call, ...], Tensor]
"""What the calls before left behind, and the state they lead to."""


class Run:
    """A run whose conditioning is tuned, of K calls (or steps of a user's own) over K + 1 points of a schedule."""

    def __init__(self, schedule: NoiseSchedule, points: Point) -> None:
        self.schedule, self.points = schedule, points

    def __len__(self) -> int:
        return len(self.points.t) - 1

    def point(self, k: int) -> Point:
        """Point k = 0 .. K."""
        return Point(self.points.t[k], self.points.alpha[k], self.points.sigma[k])

    def reach(self, k: int) -> int:
        """How many calls call k looks back on, itself included."""
        return 1

    def stage(self, k: int) -> int:
        """How many calls of its step were made before call k."""
        return 0

    def step(self, k: int, state: State, tau: Tensor, draws: CalibrationBatch) -> State:
        """The state after call k, at which the network is told tau."""
        raise NotImplementedError

    def recalled(self, k: int, draws: CalibrationBatch) -> Call:
        """Call k as a later one looks back on it, in the state alpha x_0 + sigma eps and untuned."""
        raise NotImplementedError

    def says_noise(self, k: int) -> bool:
        """Whether the network is asked for the noise at call k, as it is but where the noise does not tell the data."""
        return True


class PlanRun(Run):
    """The run of a plan."""

    def __init__(self, plan: Plan) -> None:
        super().__init__(plan.schedule, Point(plan.t, plan.alpha, plan.sigma))
        self.plan = plan
        self._stages = [stage for calls in plan.steps for stage in range(calls)]

    def reach(self, k: int) -> int:
        row = self.plan.rows[k]
        parts = [part for part in (row.corrected, row.next_state) if part is not None]
        return 1 + max(ago for part in parts for _, ago in part.terms)

    def stage(self, k: int) -> int:
        return self._stages[k]

    def step(self, k: int, state: State, tau: Tensor, draws: CalibrationBatch) -> State:
        return self.follow(k, state, predict(draws.model, self.plan, k, state[1], tau), draws)

    def recalled(self, k: int, draws: CalibrationBatch) -> Call:
        p = self.point(k)
        x = draws.at(p)
        return Call(x, predict(draws.model, self.plan, k, x, p.t), x)

    def says_noise(self, k: int) -> bool:
        return self.plan.rows[k].predicts == "eps"

    def follow(self, k: int, state: State, said: Tensor, draws: CalibrationBatch) -> State:
        """The state after call k, in which the network said `said`."""
        past, x = state
        x, past = advance(self.plan, k, past, x, said, lambda _: draws.step_noise(k))
        return past, x


def start(run: Run, draws: CalibrationBatch) -> State:
    """The sequential strategy's first state; it is that of T also where the run starts later, as published."""
    p = run.schedule.at(run.schedule.T)
    return (), float(run.point(0).scale / p.scale) * draws.at(p)


def direct(run: Run, k: int, draws: CalibrationBatch) -> State:
    """The parallel strategy's state at call k; what it looks back on are such states too, and untuned."""
    past = tuple(run.recalled(j, draws) for j in range(max(0, k + 1 - run.reach(k)), k))
    return past, draws.at(run.point(k))
