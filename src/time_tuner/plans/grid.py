"""The grid of a run: the points of its calls, computed from its step ends; and checks of the step ends."""

from collections.abc import Callable, Sequence
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from ..samplers import Sampler
from ..schedules import NoiseSchedule, Point, as_float64
from ..schedules.base import BELOW, time_at_lam

MOST_DATA = 0.5
"""The largest share of data, alpha^2 / (alpha^2 + sigma^2), in a state that a run may replace by noise."""


def _units(schedule: NoiseSchedule) -> dict[str, tuple[Callable[[Any], Tensor], Callable[[Any], Tensor]]]:
    """Every unit of times, as the functions to a time t and back."""
    return {
        "t": (as_float64, as_float64),
        "network_time": (schedule.from_network_time, schedule.network_time),
        "sigma": (schedule.from_sigma_ratio, schedule.sigma_ratio),
        "lam": (lambda lam: time_at_lam(schedule, lam), lambda t: schedule.at(t).lam),
    }


def place_calls(sampler: Sampler, schedule: NoiseSchedule, ends: Tensor, steps: Sequence[int]) -> Point:
    """The K + 1 points of a run: where each call of each step is made, and the end.

    `ends` are the times where steps begin and end, (S + 1,), falling; `steps` the number of calls of each of the S.
    """
    if len(ends) != len(steps) + 1:
        raise ValueError(f"times must hold {len(steps) + 1} step ends, got {len(ends)}")
    times: list[Tensor] = []
    stages = [sampler.stages(calls) for calls in steps]
    inside = any(r not in (0, 1) for one in stages for r in one)
    lam = schedule.at(ends).lam if inside else ends
    for p, q, lam_p, lam_q, fractions in zip(ends[:-1], ends[1:], lam[:-1], lam[1:], stages, strict=True):
        for r in fractions:
            if r in (0, 1):
                times.append(q if r else p)
            elif lam_p == -torch.inf:
                times.append(p + r * (q - p))
            else:
                times.append(schedule.inverse_lambda(lam_p + r * (lam_q - lam_p)).to(torch.float64))
    return schedule.at(torch.stack([*times, ends[-1]]))


def calls_for(sampler: Sampler, ends: Tensor) -> int:
    """The largest number of calls that the sampler makes in these steps, which are then all of full order."""
    steps = len(ends) - 1
    for calls in range(10 * steps, steps - 1, -1):
        try:
            if len(sampler.steps(calls, bool(ends[-1] == 0))) == steps:
                return calls
        except ValueError:
            continue
    raise ValueError(f"times has {steps} steps, which {type(sampler).__name__} cannot make: give calls= too")


def checked_ends(times: Any, schedule: NoiseSchedule, unit: str = "t") -> Tensor:
    """Step ends as times t, float64 (S + 1,): they fall strictly within the trained range, and the last may be 0.

    In another unit than t, times that exceed the range by rounding (1e-4) are moved to the end of the range. The last
    sigma above 0 is moved, too, if it lies up to 3 per cent below the least trained sigma, since published lists have
    three digits.

    Args:
        times: the step ends, in `unit`.
        schedule: the noise schedule.
        unit: "t"; "network_time", what the network receives; "sigma", noise as `NoiseSchedule.sigma_ratio` counts it;
            "lam", log(alpha / sigma), which rises. A sigma of 0 and an infinite lam stand for the time 0.

    Raises:
        ValueError: the times are not of this kind; the message names the first wrong one, in the unit.
    """
    units = _units(schedule)
    if unit not in units:
        raise ValueError(f"unit must be one of {', '.join(units)}, got {unit!r}")
    to_time, from_time = units[unit]
    name = "times" if unit == "t" else f"times in {unit}"
    try:
        given = as_float64(times)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise ValueError(f"times must be numbers: {error}") from None
    if given.dim() != 1 or len(given) < 2:
        raise ValueError(f"{name} must be a list of at least two step ends, got shape {tuple(given.shape)}")
    if given.isnan().any() or (unit == "t" and not given.isfinite().all()):
        raise ValueError(f"{name} must be finite, got NaN or infinity in them")
    ends = to_time(given)
    if unit != "t":
        ends = _moved_inside(ends, schedule)
    if unit == "sigma" and schedule.least_time:
        last, least = len(given) - 1 - int(given[-1] == 0), float(schedule.sigma_ratio(schedule.least_time))
        if least * (1 - BELOW) <= given[last] < least:
            ends[last] = schedule.least_time
    slack = 1e-9
    inside = (ends > 0) & (ends >= schedule.least_time - slack) & (ends <= schedule.T + slack)
    inside[-1] |= ends[-1] == 0
    if not inside.all():
        k = int((~inside).nonzero()[0])
        low, high = sorted(float(from_time(t)) for t in (schedule.least_time, schedule.T))
        zero = float(from_time(0.0))
        raise ValueError(
            f"{name} must lie in the trained range [{low:.6g}, {high:.6g}] (the last may be {zero:g}), got "
            f"{float(given[k]):.6g} at index {k}"
        )
    if (ends.diff() >= 0).any():
        k = int((ends.diff() >= 0).nonzero()[0])
        direction = "rise" if unit == "lam" else "fall"
        raise ValueError(
            f"{name} must {direction} strictly, got {float(given[k]):.6g} then {float(given[k + 1]):.6g} at index {k}"
        )
    return ends


def check_end(end: Any, schedule: NoiseSchedule) -> float:
    """The time where a run ends: 0, or one of the trained range below T; a ValueError for anything else."""
    number = isinstance(end, Real) and not isinstance(end, bool)
    if not number or not (end == 0 or schedule.least_time <= end < schedule.T):
        raise ValueError(
            f"end must be a time t of the schedule, 0 or in [{schedule.least_time:.6g}, {schedule.T:.6g}), got {end!r}"
        )
    return float(end)


def check_noise(ends: Tensor, schedule: NoiseSchedule) -> None:
    """Raise a ValueError if a run over these step ends begins in a state that is data rather than noise.

    A run has noise in place of its first state alpha x_0 + sigma eps. At T the two are nearly equal. At a smaller t the
    data in the state is missing; a state whose share of data exceeds `MOST_DATA` is refused.
    """
    p = schedule.at(ends[0])
    share = float(p.alpha**2 / p.scale**2)
    if share > MOST_DATA and p.t < schedule.T * (1 - 1e-9):
        raise ValueError(
            f"the run would begin at t = {float(p.t):.4g}, where the state is data rather than noise (alpha^2 / "
            f"(alpha^2 + sigma^2) is {share:.4g}, above {MOST_DATA}): take more calls or another spacing"
        )


def _moved_inside(times: Tensor, schedule: NoiseSchedule) -> Tensor:
    """The times; those that exceed the trained range by rounding are moved to its ends."""
    low, high = schedule.least_time, schedule.T
    times = torch.where((times > high) & (times < high * (1 + 1e-4)), high, times)
    return torch.where((times < low) & (times > low * (1 - 1e-4)), low, times)
