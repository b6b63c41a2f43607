"""Where the steps of a run end, a grid of S + 1 times from a schedule for S steps, and where its calls are made."""

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from .samplers import Sampler
from .schedules import NoiseSchedule, Point, as_times

Spacing: TypeAlias = Callable[[NoiseSchedule, int], Tensor]
"""`spacing(schedule, steps)`: steps + 1 falling times, float64."""


def seed(schedule: NoiseSchedule, steps: int) -> Tensor:
    """Levels n = int(linspace(0, N - 1, S)) at t = (n + 1) / N, then 0."""
    last = schedule.total_N - 1
    n = np.linspace(0, last, steps, dtype=np.int64)[::-1] if steps > 1 else np.array([last])
    return _nodes(schedule, torch.from_numpy(n.copy()), 0.0)


def leading(schedule: NoiseSchedule, steps: int) -> Tensor:
    """Levels n = 1 + i (N // S), i = S - 1 .. 0, at t = (n + 1) / N, then 1 / N: as published."""
    n = 1 + torch.arange(steps - 1, -1, -1) * (schedule.total_N // steps)
    return _nodes(schedule, n, schedule.t_min)


def trailing(schedule: NoiseSchedule, steps: int) -> Tensor:
    """Levels n = round(N - i N / S) - 1, i = 0 .. S - 1, at t = (n + 1) / N, then 0."""
    i = torch.arange(steps, dtype=torch.float64)
    return _nodes(schedule, torch.round(schedule.total_N - i * schedule.total_N / steps).long() - 1, 0.0)


def uniform(schedule: NoiseSchedule, steps: int) -> Tensor:
    """Even steps in t, from T to the least trained time."""
    return torch.linspace(schedule.T, schedule.t_min, steps + 1, dtype=torch.float64)


def quadratic(schedule: NoiseSchedule, steps: int) -> Tensor:
    """Even steps in sqrt(t), from T to the least trained time."""
    return torch.linspace(schedule.T**0.5, schedule.t_min**0.5, steps + 1, dtype=torch.float64) ** 2


def lam(schedule: NoiseSchedule, steps: int) -> Tensor:
    """Even steps in lam = log(alpha / sigma), from T to the least trained time."""
    first, last = schedule.at([schedule.T, schedule.t_min]).lam.tolist()
    times = schedule.inverse_lambda(torch.linspace(first, last, steps + 1, dtype=torch.float64)).double()
    times[0], times[-1] = schedule.T, schedule.t_min  # exactly, whatever the inverse rounds to
    return times


def _nodes(schedule: NoiseSchedule, n: Tensor, end: float) -> Tensor:
    times = (n.double() + 1) / schedule.total_N
    if schedule.T < 1:  # a schedule that ends early has its levels spread over what there is
        times = schedule.t_min + (times - schedule.t_min) * (schedule.T - schedule.t_min) / (1 - schedule.t_min)
    return torch.cat([times, torch.tensor([end], dtype=torch.float64)])


SPACINGS: dict[str, Spacing] = {
    "seed": seed,
    "leading": leading,
    "trailing": trailing,
    "uniform": uniform,
    "quadratic": quadratic,
    "lam": lam,
}
"""Every spacing by its name in `make_plan` and on the command line."""


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


def check_calls(calls: int, schedule: NoiseSchedule) -> None:
    if not isinstance(calls, int) or isinstance(calls, bool) or calls < 1:
        raise ValueError(f"calls must be a whole number of network calls, at least 1, got {calls!r}")
    if calls > schedule.total_N:
        raise ValueError(f"calls must be at most the schedule's {schedule.total_N} trained noise levels, got {calls}")


def checked_ends(times: Any, schedule: NoiseSchedule) -> Tensor:
    try:
        ends = as_times(times)
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
