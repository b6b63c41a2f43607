"""What a network makes of its time: whole levels, rounded times, or nothing."""

import math

import torch
from torch import Tensor

from ..models.base import Model
from ..plans.plan import Plan
from ..schedules import NoiseSchedule, as_float64

FAR = 8  # units of the precision of a prediction, by which two of them differ where they are the same


def received(model: Model, plan: Plan) -> Plan:
    """The plan with the conditioning times that the network receives: those of the plan, rounded if the network rounds.

    Raises:
        ValueError: the network takes whole levels, and a time is rounded to a level out of the trained range.
    """
    times = model.rounded_times(plan.tau)
    if torch.equal(times, plan.tau):
        return plan
    if model.whole_levels:
        low, high = level_range(plan.schedule)
        levels = plan.schedule.network_time(times).round()
        if ((levels < low) | (levels > high)).any():
            k = int(((levels < low) | (levels > high)).nonzero()[0])
            raise ValueError(
                f"the network takes whole levels alone, {low} to {high} in the trained range of {plan.schedule!r}, got "
                f"level {int(levels[k])} at call {k}, t = {float(plan.t[k]):.4g}: leave out time_dtype='int', or take "
                "the schedule whose network time is the level"
            )
    return plan.with_tau(times)


def level_range(schedule: NoiseSchedule) -> tuple[int, int]:
    """The least and the greatest whole network time in the trained range."""
    first, last = sorted(float(schedule.network_time(t)) for t in (schedule.t_min, schedule.T))
    return math.ceil(first - 1e-9), math.floor(last + 1e-9)


def level_of(schedule: NoiseSchedule, tau: float | Tensor) -> int:
    """The whole level that a network receives for tau."""
    return int(as_float64(schedule.network_time(tau)).round())


def time_of_level(schedule: NoiseSchedule, level: float) -> float:
    """The conditioning time of a whole level."""
    return float(schedule.from_network_time(level))


def level_stride(schedule: NoiseSchedule, t: float, stride: float) -> int:
    """How many levels a relative step from the time t is, at least 1."""
    return max(1, abs(level_of(schedule, t * (1 - stride)) - level_of(schedule, t)))


def other_level(schedule: NoiseSchedule, tau: Tensor, near: Tensor) -> Tensor:
    """The conditioning time of the whole level of `near`; of a neighbour, where that is the level of tau itself."""
    here, there = level_of(schedule, tau), level_of(schedule, near)
    if there == here:
        low, high = level_range(schedule)
        up = bool(schedule.network_time(near) > schedule.network_time(tau))
        there = here + 1 if (up and here < high) or here <= low else here - 1
    return as_float64(time_of_level(schedule, there))
