"""Spacings by the noise alone, s = sigma / alpha: they are the same on every schedule.

Where alpha = 0 at the start, s is infinite: the grid is then that of the level before, and still begins at the start.
"""

import math

import numpy as np
import torch
from torch import Tensor

from ..schedules import NoiseSchedule, as_float64
from ..schedules.base import Map, even_grid


def logsnr(schedule: NoiseSchedule, steps: int, start: float | None = None, end: float | None = None) -> Tensor:
    """Even steps in lam = log(alpha / sigma) = -log s, from T to the least trained time (Lu et al., 2022, DPM-Solver,
    https://arxiv.org/abs/2206.00927)."""
    maps = _of_noise(schedule, lambda s: -torch.log(s), lambda lam: torch.exp(-lam))
    return even_grid(schedule, steps, start, end, *maps)


def exponential(schedule: NoiseSchedule, steps: int, start: float | None = None, end: float | None = None) -> Tensor:
    """Even steps in log s, from T to the least trained time, then 0 (k-diffusion's and diffusers' "exponential").

    In a range that ends above 0 it is `logsnr`.
    """
    return logsnr(schedule, steps, start, 0.0 if end is None else end)


def karras(
    schedule: NoiseSchedule, steps: int, start: float | None = None, end: float | None = None, rho: float = 7.0
) -> Tensor:
    """Even steps in s^(1 / rho), from T to the least trained time, then 0 (Karras et al., 2022, eq. 5,
    https://arxiv.org/abs/2206.00364)."""
    if not 0 < rho < math.inf:
        raise ValueError(f"rho of karras must be positive, got {rho!r}")
    maps = _of_noise(schedule, lambda s: s ** (1 / rho), lambda root: root**rho)
    return even_grid(schedule, steps, start, 0.0 if end is None else end, *maps)


def kl_optimal(
    schedule: NoiseSchedule, steps: int, start: float | None = None, end: float | None = None, std: float = 1.0
) -> Tensor:
    """Even steps in arctan(s / std), from T to the least trained time, then 0: optimal in KL for data N(0, std^2)
    (Sabour et al., 2024, https://arxiv.org/abs/2404.14507)."""
    if not 0 < std < math.inf:
        raise ValueError(f"std of kl_optimal must be positive, got {std!r}")
    maps = _of_noise(schedule, lambda s: torch.atan(s / std), lambda angle: std * torch.tan(angle))
    return even_grid(schedule, steps, start, 0.0 if end is None else end, *maps)


AYS = {
    "sd15": (14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152, 0.029),
    "sdxl": (14.615, 6.315, 3.771, 2.181, 1.342, 0.862, 0.555, 0.380, 0.234, 0.113, 0.029),
    "svd": (700.0, 54.5, 15.886, 7.977, 4.248, 1.789, 0.981, 0.403, 0.173, 0.034, 0.002),
}
"""The s that Align Your Steps found for ten steps of Stable Diffusion 1.5, XL and Video."""


def ays(
    schedule: NoiseSchedule, steps: int, start: float | None = None, end: float | None = None, model: str = "sd15"
) -> Tensor:
    """The list of Align Your Steps for a model, log-linear in s between its entries; the last entry is replaced by 0
    (Sabour et al., 2024, https://arxiv.org/abs/2404.14507).

    In a range: even steps between the places of `start` and `end` on the list.

    Raises:
        ValueError: a model without a list, or a schedule that does not start where the model's does.
    """
    if model not in AYS:
        raise ValueError(f"model of ays must be one of {', '.join(AYS)}, got {model!r}")
    entries, log_s = np.arange(len(AYS[model])), np.log(AYS[model])
    first = float(noise_at(schedule, schedule.T))
    if abs(math.log(first) - log_s[0]) > 0.01:
        raise ValueError(
            f"spacing ays has the list of {model}, which starts at sigma / alpha = {AYS[model][0]}, "
            f"but the schedule at {first:.4g}: take kl_optimal or karras"
        )

    def place(t: float) -> float:
        return float(np.interp(-math.log(noise_at(schedule, t)), -log_s, entries))

    places = np.linspace(place(start) if start else 0, place(end) if end else entries[-1], steps + 1)
    times = as_float64(schedule.inverse_lambda(-as_float64(np.interp(places, entries, log_s)))).clone()
    times[0], times[-1] = start or schedule.T, end or 0.0
    return times


def noise_at(schedule: NoiseSchedule, t: float | Tensor) -> Tensor:
    """s = sigma / alpha at time t; where alpha = 0, at the level before."""
    p = schedule.at(t)
    if p.alpha == 0:
        p = schedule.at(p.t * (1 - 1 / (schedule.levels or 1000)))
    return p.sigma / p.alpha


def _of_noise(schedule: NoiseSchedule, transform: Map, inverse: Map) -> tuple[Map, Map]:
    """A function of s and its inverse, as functions of time."""
    return (
        lambda t: transform(noise_at(schedule, t)),
        lambda value: schedule.inverse_lambda(-torch.log(inverse(value))),
    )
