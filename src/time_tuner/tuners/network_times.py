"""What a network makes of its time: whole levels, rounded times, or nothing."""

import math

import torch
from torch import Tensor

from .._distributed import decided
from ..models.base import Model
from ..plans.plan import Plan
from ..sampling import predict
from ..schedules import NoiseSchedule, as_float64
from .calibration import Calibration

SAME = 8  # units of precision by which two predictions may differ that are the same


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


@torch.no_grad()
def ignores_time(model: Model, plan: Plan, calibration: Calibration) -> bool:
    """Whether the network ignores its time: in the same states, at the same t, it predicts the same at T and at the
    least trained time, and halfway. It is found by two network calls with two samples, or three.

    The call is that in the middle of the plan, where a prediction of the data or of v matters to the noise.
    """
    batch, k = calibration.trial(model), len(plan) // 2
    low, high = plan.schedule.t_min, plan.schedule.T
    x = batch.at(plan.point(k))
    first = predict(batch.model, plan, k, x, as_float64(high))
    if not first.is_floating_point():
        return False
    close = SAME * torch.finfo(first.dtype).eps * float(first.abs().max())
    others = (predict(batch.model, plan, k, x, as_float64(tau)) for tau in (low, (low + high) / 2))
    return decided(all(float((other - first).abs().max()) <= close for other in others))
