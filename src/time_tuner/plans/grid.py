"""The grid of a run: where its calls are made, from the times where its steps end; and the checks of these times."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .._checks import check_int
from ..samplers import Sampler
from ..schedules import NoiseSchedule, Point, as_float64
from ..schedules.base import time_at_lam

MOST_DATA = 0.5
"""The largest share of data, alpha^2 / (alpha^2 + sigma^2), in a state that a run may replace by noise."""

UNITS = ("t", "network_time", "sigma", "lam")


def place_calls(sampler: Sampler, schedule: NoiseSchedule, ends: Tensor, steps: Sequence[int]) -> Point:
    """The K + 1 points of a run: where each call of each step is made, and the end.

    Args:
        sampler: gives the stages of a step.
        schedule: the noise schedule.
        ends: the times where steps begin and end, (S + 1,), falling.
        steps: the number of calls of each of the S steps.

    Raises:
        ValueError: the numbers of step ends and steps do not fit.
    """
    if len(ends) != len(steps) + 1:
        raise ValueError(f"times must hold {len(steps) + 1} step ends, got {len(ends)}")
    times: list[Tensor] = []
    for p, q, calls in zip(ends[:-1], ends[1:], steps, strict=True):
        for r in sampler.stages(calls):
            if r in (0, 1):
                times.append(q if r else p)
            elif schedule.at(p).alpha == 0:  # where lam is infinite
                times.append(p + r * (q - p))
            else:
                lam_p, lam_q = schedule.at(p).lam, schedule.at(q).lam
                times.append(schedule.inverse_lambda(lam_p + r * (lam_q - lam_p)).to(torch.float64))
    return schedule.at(torch.stack([*times, ends[-1]]))


def calls_for(sampler: Sampler, ends: Tensor) -> int:
    """The largest number of calls that the sampler makes in these steps, which are then all of full order.

    Raises:
        ValueError: the sampler makes this number of steps with no number of calls.
    """
    steps = len(ends) - 1
    for calls in range(10 * steps, steps - 1, -1):
        try:
            if len(sampler.steps(calls, bool(ends[-1] == 0))) == steps:
                return calls
        except ValueError:
            continue
    raise ValueError(f"times has {steps} steps, which {type(sampler).__name__} cannot make: give calls= too")


def check_calls(calls: int, schedule: NoiseSchedule) -> int:
    """The number of network calls, at most one for each trained noise level.

    Raises:
        ValueError: not a positive integer, or more than there are levels.
    """
    calls = check_int("calls", calls, 1)
    if schedule.levels is not None and calls > schedule.levels:
        raise ValueError(f"calls must be at most the schedule's {schedule.levels} trained noise levels, got {calls}")
    return calls


def checked_ends(times: Any, schedule: NoiseSchedule) -> Tensor:
    """Step ends as float64 (S + 1,), which fall strictly within the trained range; the last may be 0.

    Raises:
        ValueError: names what is wrong, and where.
    """
    ends = _numbers(times)
    if ends.dim() != 1 or len(ends) < 2:
        raise ValueError(f"times must be a list of at least two step ends, got shape {tuple(ends.shape)}")
    if not torch.isfinite(ends).all():
        raise ValueError("times must be finite, got NaN or infinity in them")
    if (ends.diff() >= 0).any():
        k = int((ends.diff() >= 0).nonzero()[0])
        raise ValueError(
            f"times must fall strictly, got {float(ends[k]):.6g} then {float(ends[k + 1]):.6g} at index {k}"
        )
    low, high, slack = schedule.t_min, schedule.T, 1e-9
    inside = (ends >= low - slack) & (ends <= high + slack)
    inside[-1] |= ends[-1] == 0
    if not inside.all():
        k = int((~inside).nonzero()[0])
        raise ValueError(
            f"times must lie in the trained range [{low:.6g}, {high:.6g}] (the last may be 0), got {float(ends[k]):.6g}"
        )
    return ends


def check_noise(ends: Tensor, schedule: NoiseSchedule) -> None:
    """Raise a ValueError if a run over these step ends begins in a state that is data rather than noise.

    A run begins with noise alone in place of the state alpha x_0 + sigma eps. At T that is what the network was trained
    for; at a later beginning the data in the state is lost, and above `MOST_DATA` the run has nothing left to do.
    """
    p = schedule.at(ends[0])
    share = float(p.alpha**2 / p.scale**2)
    if share > MOST_DATA and p.t < schedule.T * (1 - 1e-9):
        raise ValueError(
            f"the run would begin at t = {float(p.t):.4g}, where the state is data rather than noise (alpha^2 / "
            f"(alpha^2 + sigma^2) is {share:.4g}, above {MOST_DATA}): take more calls or another spacing"
        )


def times_in(values: Any, unit: str, schedule: NoiseSchedule) -> Tensor:
    """Step ends in another unit, as times t, float64 of the same shape.

    Args:
        values: the step ends. A sigma of 0 and an infinite lam are the time 0. What exceeds the trained range by
            rounding alone (1e-4) is moved to its end.
        unit: "t"; "network_time", what the network receives; "sigma", noise as `NoiseSchedule.sigma_ratio` counts it;
            "lam", log(alpha / sigma).
        schedule: the noise schedule.

    Raises:
        ValueError: an unknown unit, or values that are not numbers.
    """
    if unit not in UNITS:
        raise ValueError(f"unit must be one of {', '.join(UNITS)}, got {unit!r}")
    given = _numbers(values)
    if unit == "t":
        return given
    if unit == "network_time":
        times = as_float64(schedule.from_network_time(given))
    elif unit == "sigma":
        if (given < 0).any():
            raise ValueError(f"times in sigma must not be negative, got {float(given.min())}")
        times = as_float64(schedule.from_sigma_ratio(given))
    else:
        times = time_at_lam(schedule, given)
    high, low = schedule.T, schedule.t_min
    times = torch.where((times > high) & (times < high * (1 + 1e-4)), high, times)
    return torch.where((times < low) & (times > low * (1 - 1e-4)), low, times)


def _numbers(times: Any) -> Tensor:
    try:
        return as_float64(times)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise ValueError(f"times must be numbers: {error}") from None
