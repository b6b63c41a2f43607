"""Where the calls of a run are made, from the times where its steps end; and what these times may be."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .._checks import check_int
from ..samplers import Sampler
from ..schedules import NoiseSchedule, NoiseScheduleFlow, Point, as_float64


def place_calls(sampler: Sampler, schedule: NoiseSchedule, ends: Tensor, steps: Sequence[int]) -> Point:
    """The K + 1 points of a run: where each call of each step is made, and the end."""
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
    """The number of calls that makes as many steps as the ends say; the greatest, all steps being of full order."""
    steps = len(ends) - 1
    for calls in range(10 * steps, steps - 1, -1):
        try:
            if len(sampler.steps(calls, bool(ends[-1] == 0))) == steps:
                return calls
        except ValueError:
            continue
    raise ValueError(f"times has {steps} steps, which {type(sampler).__name__} cannot make: give calls= too")


def check_calls(calls: int, schedule: NoiseSchedule) -> int:
    """The number of network calls, which the schedule has levels for."""
    calls = check_int("calls", calls, 1)
    if calls > schedule.total_N:
        raise ValueError(f"calls must be at most the schedule's {schedule.total_N} trained noise levels, got {calls}")
    return calls


def checked_ends(times: Any, schedule: NoiseSchedule) -> Tensor:
    try:
        ends = as_float64(times)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise ValueError(f"times must be numbers: {error}") from None
    if ends.dim() != 1 or len(ends) < 2:
        raise ValueError(f"times must be a list of at least two step ends, got shape {tuple(ends.shape)}")
    if not torch.isfinite(ends).all():
        raise ValueError("times must be finite, got NaN or infinity in them")
    if (ends.diff() >= 0).any():
        k = int((ends.diff() >= 0).nonzero()[0])
        raise ValueError(
            f"times must fall strictly, got {float(ends[k]):.6g} then {float(ends[k + 1]):.6g} at index {k} "
            "(fewer calls, or another spacing)"
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


UNITS = ("t", "label", "sigma", "lam")


def times_in(values: Any, unit: str, schedule: NoiseSchedule) -> Tensor:
    """Step ends given in another unit, as times: "label", what the network is told; "sigma", sigma / alpha as EDM,
    k-diffusion and diffusers count noise (on a flow schedule sigma itself); "lam", log(alpha / sigma).

    A sigma of 0 and an infinite lam are the time 0. What lies beyond the trained range by rounding alone (1e-4) is its
    end.

    Raises:
        ValueError: an unknown unit, or no numbers.
    """
    if unit not in UNITS:
        raise ValueError(f"unit must be one of {', '.join(UNITS)}, got {unit!r}")
    try:
        given = as_float64(values)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise ValueError(f"times must be numbers: {error}") from None
    if unit == "t":
        return given
    if unit == "label":
        times = as_float64(schedule.from_network_time(given))
    else:
        if unit == "sigma" and (given < 0).any():
            raise ValueError(f"times in sigma must not be negative, got {float(given.min())}")
        if unit == "sigma" and isinstance(schedule, NoiseScheduleFlow):
            given = given / (1 - given)
        lam = -torch.log(given) if unit == "sigma" else given
        end = lam == torch.inf
        times = torch.where(end, 0.0, as_float64(schedule.inverse_lambda(torch.where(end, 0.0, lam))))
    high, low = schedule.T, schedule.t_min
    times = torch.where((times > high) & (times < high * (1 + 1e-4)), high, times)
    return torch.where((times < low) & (times > low * (1 - 1e-4)), low, times)
