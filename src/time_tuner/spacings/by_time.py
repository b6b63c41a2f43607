"""Grids by the noise levels of a network, or even in time."""

import numpy as np
import torch
from torch import Tensor

from ..schedules import NoiseSchedule, NoiseScheduleVE


def linspace(schedule: NoiseSchedule, steps: int) -> Tensor:
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
    times = torch.linspace(schedule.T**0.5, schedule.t_min**0.5, steps + 1, dtype=torch.float64) ** 2
    times[0], times[-1] = schedule.T, schedule.t_min  # exactly, whatever the square rounds to
    return times


def _nodes(schedule: NoiseSchedule, n: Tensor, end: float) -> Tensor:
    if isinstance(schedule, NoiseScheduleVE):
        raise ValueError(
            f"this spacing goes by the levels of a network, and {schedule!r} has none: take karras, kl_optimal or logsnr"
        )
    times = (n.double() + 1) / schedule.total_N
    if schedule.T < 1:  # a schedule that ends early has its levels spread over what there is
        times = schedule.t_min + (times - schedule.t_min) * (schedule.T - schedule.t_min) / (1 - schedule.t_min)
    return torch.cat([times, torch.tensor([end], dtype=torch.float64)])
