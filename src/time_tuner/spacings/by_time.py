"""Spacings by the time t: over the noise levels of the network, or even in a function of t."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from ..schedules import NoiseSchedule, as_float64
from ..schedules.base import even_grid


def linspace(schedule: NoiseSchedule, steps: int, start: float | None = None, end: float | None = None) -> Tensor:
    """The S levels int(linspace(0, N - 1, S)), falling, then 0 (diffusers' "linspace", but truncated).

    In a range: the levels int(linspace(a, b, S)), where a is the first level above `end`, and b the last up to `start`;
    then `end`.
    """

    def levels(low: int, high: int) -> Tensor:
        n = np.linspace(low + 1, high, steps, dtype=np.int64)[::-1] if steps > 1 else np.array([high])
        return torch.from_numpy(n.copy())

    return _over_levels(schedule, steps, start, 0.0 if end is None else end, levels)


def leading(schedule: NoiseSchedule, steps: int, start: float | None = None, end: float | None = None) -> Tensor:
    """The S levels 1 + i (N // S), i = S - 1 .. 0, then the least trained time (as published by Xia et al., 2024).

    In a range: the levels a + i (M // S), where a is the first level above `end`, and M the number of levels from `end`
    to `start`; then `end`.
    """

    def levels(low: int, high: int) -> Tensor:
        return low + 1 + torch.arange(steps - 1, -1, -1) * ((high + 1 - max(low, 0)) // steps)

    return _over_levels(schedule, steps, start, schedule.t_min if end is None else end, levels)


def trailing(schedule: NoiseSchedule, steps: int, start: float | None = None, end: float | None = None) -> Tensor:
    """The S levels round(N - i N / S) - 1, i = 0 .. S - 1, then 0 (Lin et al., 2024, table 2,
    https://arxiv.org/abs/2305.08891).

    In a range: the levels round(b + 1 - i (b - a) / S) - 1, where b is the last level up to `start`, and a the last up
    to `end`; then `end`.
    """

    def levels(low: int, high: int) -> Tensor:
        i = torch.arange(steps, dtype=torch.float64)
        return torch.round(high + 1 - i * (high - low) / steps).long() - 1

    return _over_levels(schedule, steps, start, 0.0 if end is None else end, levels)


def uniform(schedule: NoiseSchedule, steps: int, start: float | None = None, end: float | None = None) -> Tensor:
    """Even steps in t, from T to the least trained time."""
    return even_grid(schedule, steps, start, end, lambda t: t, lambda value: value)


def quadratic(schedule: NoiseSchedule, steps: int, start: float | None = None, end: float | None = None) -> Tensor:
    """Even steps in sqrt(t), from T to the least trained time (Song et al., 2021, DDIM's "quadratic",
    https://arxiv.org/abs/2010.02502)."""
    return even_grid(schedule, steps, start, end, torch.sqrt, torch.square)


def _over_levels(
    schedule: NoiseSchedule, steps: int, start: float | None, end: float, choose: Callable[[int, int], Tensor]
) -> Tensor:
    """The times of the levels `choose(low, high)`, then `end`; low and high are the last levels up to `end` (-1 for 0)
    and up to `start`. The levels 0 .. N - 1 have even times from the least trained time to T."""
    if schedule.levels is None:
        raise ValueError(f"{schedule!r} has no noise levels to choose from: take karras, kl_optimal or logsnr")
    times = schedule.T * torch.arange(1, schedule.levels + 1, dtype=torch.float64) / schedule.levels
    if schedule.t_min != times[0]:
        times = torch.linspace(schedule.t_min, schedule.T, schedule.levels, dtype=torch.float64)
    start = schedule.T if start is None else start
    low, high = (int((times <= t * (1 + 1e-9)).sum()) - 1 for t in (end, start))
    n = choose(low, high)
    if n[0] > high or n[-1] <= low or (n.diff() >= 0).any():
        raise ValueError(
            f"this spacing does not divide {high - low} noise levels, from t = {start:.4g} to {end:.4g}, into {steps} "
            "steps: take fewer calls or another spacing"
        )
    return torch.cat([times[n], as_float64([end])])
