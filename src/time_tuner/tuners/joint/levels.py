"""Conditioning times of a network that takes whole levels alone, by coordinate steps between levels."""

from collections.abc import Callable

from ...plans.plan import Plan
from ..network_times import level_of, level_range, level_stride, time_of_level

STRIDE = 0.04  # of a time, the first step of its level


class LevelSteps:
    """Coordinate steps of the levels that the calls of a plan receive.

    A sweep moves the level of each call up or down by its stride where that lowers the loss. A stride that gains
    nothing is halved, to 1 at last: then both neighbours of the level are tried.

    Attributes:
        strides: in levels, one for each call.
        settled: whether the last sweep tried the neighbours of every level and moved none, or was rejected.
    """

    def __init__(self, plan: Plan) -> None:
        self.strides = [level_stride(plan.schedule, float(t), STRIDE) for t in plan.t[:-1]]
        self.settled = False

    def sweep(self, plan: Plan, loss: Callable[[Plan], float], can_afford: Callable[[], bool] = lambda: True) -> Plan:
        """The plan after one sweep; the loss is evaluated 1 + 2 K times at most, and no longer than can be afforded."""
        low, high = level_range(plan.schedule)
        tried = set(self.strides)
        best, moved, self.settled = loss(plan), False, False
        for k, stride in enumerate(self.strides):
            here = level_of(plan.schedule, plan.tau[k])
            for level in (here + stride, here - stride):
                if not low <= level <= high:
                    continue
                if not can_afford():
                    return plan
                tau = plan.tau.clone()
                tau[k] = time_of_level(plan.schedule, level)
                trial = plan.with_tau(tau)
                if (value := loss(trial)) < best:
                    plan, best, moved = trial, value, True
                    break
            else:
                self.strides[k] = max(1, stride // 2)
        self.settled = not moved and tried == {1}
        return plan

    def halve(self) -> None:
        """Note that the last sweep is rejected: the next one is of shorter strides, if there are any."""
        self.settled = set(self.strides) == {1}
        self.strides = [max(1, stride // 2) for stride in self.strides]
