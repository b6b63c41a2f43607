"""A peer of the spacings: the grid with the least bound on what a multistep solver makes of a network's errors (DMN;
Xue et al., 2024), https://arxiv.org/abs/2402.17376. It is best in no table of `benchmarks/spacings.py`."""

from functools import lru_cache

import numpy as np
import torch
from scipy.optimize import LinearConstraint, minimize
from torch import Tensor

from time_tuner.schedules import NoiseSchedule, as_float64
from time_tuner.spacings.by_snr import noise_at

MOST = 24
"""A grid of more steps is that of this many, divided further: there is little left to gain."""


def dmn(
    schedule: NoiseSchedule, steps: int, start: float | None = None, end: float | None = None, power: float = 1.0
) -> Tensor:
    r"""From T to the least trained time, the lam_i that minimise sum_j |w_j| sigma_j^power / alpha_j.

    x_K / sigma_K = x_0 / sigma_0 + int e^lam x0(lam) dlam; a multistep solver puts a polynomial through the last three
    x0 there (two at the second step and the last but one, one at the first and the last), and w_j is the weight of the
    prediction at lam_j in the end. Its error is taken to be sigma_j^power / alpha_j, in variance-preserving
    coordinates: the paper's power is 1 for networks of pixels and 2 for those of latents.

    The w_j have both signs, so that they all but vanish on absurd grids too: every step is kept between half and twice
    the even one in lam.
    """
    start, end = (schedule.T if start is None else start), (schedule.t_min if end is None else end)
    first, last = (-float(torch.log(noise_at(schedule, t))) for t in (start, end))
    times = as_float64(schedule.inverse_lambda(as_float64(_lams(first, last, steps, float(power))))).clone()
    times[0], times[-1] = start, end
    return times


def bound(lam: Tensor, power: float) -> Tensor:
    """The sum for a grid lam (S + 1,), rising."""
    steps = len(lam) - 1
    h = lam.diff()
    grow = torch.exp(lam[:-1] - lam[-1])
    h0 = torch.expm1(h)  # int e^u u^n du from 0 to h
    h1 = torch.exp(h) * h - h0
    h2 = torch.exp(h) * h**2 - 2 * h1
    weights = [torch.zeros((), dtype=lam.dtype) for _ in range(steps)]
    for i in range(steps):
        order = min(3, i + 1, steps - i)
        u = [lam[i - m] - lam[i] for m in range(order)]
        if order == 1:
            parts = [h0[i]]
        elif order == 2:
            parts = [h0[i] - h1[i] / u[1], h1[i] / u[1]]
        else:
            parts = [
                h0[i] - h1[i] * (1 / u[1] + 1 / u[2]) + h2[i] / (u[1] * u[2]),
                (h2[i] - u[2] * h1[i]) / (u[1] * (u[1] - u[2])),
                (h2[i] - u[1] * h1[i]) / (u[2] * (u[2] - u[1])),
            ]
        for m, part in enumerate(parts):
            weights[i - m] = weights[i - m] + grow[i] * part
    log_alpha, log_sigma = (-0.5 * torch.nn.functional.softplus(-2 * sign * lam[:-1]) for sign in (1, -1))
    return (torch.stack(weights).abs() * torch.exp(power * log_sigma - log_alpha)).sum()


@lru_cache(maxsize=256)
def _lams(first: float, last: float, steps: int, power: float) -> tuple[float, ...]:
    count = min(steps, MOST)
    grid = np.linspace(first, last, count + 1)
    if count > 1:

        def objective(inner: np.ndarray) -> tuple[float, np.ndarray]:
            x = as_float64(inner).requires_grad_()
            ends = as_float64([first]), as_float64([last])
            with torch.enable_grad():
                value = torch.log(bound(torch.cat([ends[0], x, ends[1]]), power))
                value.backward()
            assert x.grad is not None
            return float(value.detach()), x.grad.numpy()

        even = (last - first) / count
        gaps = np.eye(count)[:, : count - 1] - np.eye(count, k=-1)[:, : count - 1]  # grid.diff() without its ends
        fixed = np.zeros(count)
        fixed[0], fixed[-1] = -first, last
        apart = LinearConstraint(gaps, even / 2 - fixed, even * 2 - fixed)
        found = minimize(objective, grid[1:-1], jac=True, method="SLSQP", constraints=[apart], options={"maxiter": 500})
        if np.isfinite(found.fun) and found.fun < objective(grid[1:-1])[0]:
            grid[1:-1] = found.x
    places = np.linspace(0, count, steps + 1)
    return tuple(np.interp(places, np.arange(count + 1), grid).tolist())
