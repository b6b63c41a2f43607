"""Grids by the noise itself: they are the same on every schedule, for they go by s = sigma / alpha alone.

Where alpha = 0 at T, s is infinite: the grid then is that from one level below, and starts at T all the same.
"""

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from ..schedules import NoiseSchedule, as_float64


def lam_range(schedule: NoiseSchedule) -> tuple[float, float]:
    """lam at T, or one level of the network below where it is infinite, and at the least trained time."""
    first = schedule.at(schedule.T)
    if first.alpha == 0:
        first = schedule.at(schedule.T * (1 - 1 / schedule.total_N))
    return float(first.lam), float(schedule.at(schedule.t_min).lam)


def logsnr(schedule: NoiseSchedule, steps: int) -> Tensor:
    """Even steps in lam = log(alpha / sigma), from T to the least trained time."""
    first, last = lam_range(schedule)
    return times_of_lam(schedule, torch.linspace(first, last, steps + 1, dtype=torch.float64))


def exponential(schedule: NoiseSchedule, steps: int) -> Tensor:
    """Even steps in log s from T to the least trained time, then 0."""
    return _then_zero(schedule, lambda u, high, low: high * (low / high) ** u, steps)


def karras(schedule: NoiseSchedule, steps: int, rho: float = 7.0) -> Tensor:
    """Even steps in s^(1 / rho) from T to the least trained time, then 0 (Karras et al., 2022, eq. 5)."""
    if not 0 < rho < math.inf:
        raise ValueError(f"rho of karras must be positive, got {rho!r}")

    def noise(u: Tensor, high: float, low: float) -> Tensor:
        root: Tensor = high ** (1 / rho) * (1 - u) + low ** (1 / rho) * u
        return root**rho

    return _then_zero(schedule, noise, steps)


def kl_optimal(schedule: NoiseSchedule, steps: int, std: float = 1.0) -> Tensor:
    """Even steps in arctan(s / std) from T to the least trained time, then 0: optimal in KL for data N(0, std^2)
    (Sabour et al., 2024, https://arxiv.org/abs/2404.14507)."""
    if not 0 < std < math.inf:
        raise ValueError(f"std of kl_optimal must be positive, got {std!r}")

    def noise(u: Tensor, high: float, low: float) -> Tensor:
        return std * torch.tan(math.atan(high / std) * (1 - u) + math.atan(low / std) * u)

    return _then_zero(schedule, noise, steps)


AYS = {
    "sd15": (14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152, 0.029),
    "sdxl": (14.615, 6.315, 3.771, 2.181, 1.342, 0.862, 0.555, 0.380, 0.234, 0.113, 0.029),
    "svd": (700.0, 54.5, 15.886, 7.977, 4.248, 1.789, 0.981, 0.403, 0.173, 0.034, 0.002),
}
"""The s that Align Your Steps found for ten steps of Stable Diffusion 1.5, XL and Video."""


def ays(schedule: NoiseSchedule, steps: int, model: str = "sd15") -> Tensor:
    """Align Your Steps' published list for a model, and between its entries log-linear in s; the last is 0
    (Sabour et al., 2024, https://arxiv.org/abs/2404.14507).

    Raises:
        ValueError: a model with no list, or a schedule that does not start where the model's does.
    """
    if model not in AYS:
        raise ValueError(f"model of ays must be one of {', '.join(AYS)}, got {model!r}")
    published = np.log(AYS[model])
    first, _ = lam_range(schedule)
    if abs(first + published[0]) > 0.01:
        raise ValueError(
            f"spacing ays has the list of {model}, which starts at sigma / alpha = {AYS[model][0]}, "
            f"but the schedule at {math.exp(-first):.4g}: take kl_optimal or karras"
        )
    u = np.linspace(0, len(published) - 1, steps + 1)[:-1]
    times = times_of_lam(schedule, as_float64(-np.interp(u, np.arange(len(published)), published)), last=False)
    return torch.cat([times, torch.zeros(1, dtype=torch.float64)])


def times_of_lam(schedule: NoiseSchedule, lam: Tensor, last: bool = True) -> Tensor:
    """Their times; the first is T and the last the least trained time exactly, whatever the inverse rounds to."""
    times = as_float64(schedule.inverse_lambda(lam)).clone()
    if last:
        times[-1] = schedule.t_min
    times[0] = schedule.T
    return times


def _then_zero(schedule: NoiseSchedule, noise: Callable[[Tensor, float, float], Tensor], steps: int) -> Tensor:
    """The times at which s is `noise(u, from, to)` for even u from 0 to 1, one for each step; then 0."""
    high, low = (math.exp(-lam) for lam in lam_range(schedule))
    s = noise(torch.linspace(0, 1, steps, dtype=torch.float64), high, low)
    return torch.cat([times_of_lam(schedule, -torch.log(s)), torch.zeros(1, dtype=torch.float64)])
