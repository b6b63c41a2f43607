"""Variance-preserving noise: from betas, linear or cosine."""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from .base import NoiseSchedule, Point, Values, as_float64
from .betas import checked_levels


@dataclass(frozen=True, repr=False)
class NoiseScheduleVP(NoiseSchedule):
    r"""Variance-preserving noise, alpha_t^2 + sigma_t^2 = 1, for a discrete or continuous time t in [0, 1].

    - `"discrete"`: N noise levels given by `betas` or by `alphas_cumprod` (both of shape (N,)). Level n = 0 .. N-1 is
      at t = (n + 1) / N with log alpha = 1/2 sum_{i <= n} log(1 - beta_i); between the levels, and down to
      (t, log alpha) = (0, 0), log alpha_t is linear in t. The last level may hold no data (a zero terminal
      signal-to-noise ratio: its alphas_cumprod is 0, its beta 1); alpha_t itself is then linear down to it.
    - `"linear"`: log alpha_t = -t^2 (b1 - b0) / 4 - t b0 / 2, with b0, b1 = `continuous_beta_0`, `continuous_beta_1`
      (Song et al., 2021, https://arxiv.org/abs/2011.13456).
    - `"cosine"`: alpha_t = cos(pi/2 (t + s) / (1 + s)) / cos(pi/2 s / (1 + s)), s = 0.008 (Nichol & Dhariwal, 2021,
      https://arxiv.org/abs/2102.09672), up to T = 0.9946: beyond, lam falls without bound.

    A network in continuous time has 1000 levels by convention, so that t_min is 0.001.

    Args:
        schedule: "discrete", "linear" or "cosine".
        betas: for "discrete": (N,), in (0, 1); or `alphas_cumprod`.
        alphas_cumprod: for "discrete": (N,), in (0, 1); instead of `betas`.
        continuous_beta_0: b0 of "linear".
        continuous_beta_1: b1 of "linear".
        dtype: of the values that the `marginal_*` functions and `inverse_lambda` return.

    Raises:
        ValueError: an unknown schedule, or betas that are missing, not finite or outside (0, 1).
    """

    schedule: str = "discrete"
    betas: Values | None = None
    alphas_cumprod: Values | None = None
    continuous_beta_0: float = 0.1
    continuous_beta_1: float = 20.0
    dtype: torch.dtype = torch.float64

    def __post_init__(self) -> None:
        if self.schedule not in ("discrete", "linear", "cosine"):
            raise ValueError(f"schedule must be 'discrete', 'linear' or 'cosine', got {self.schedule!r}")
        if self.schedule == "discrete":
            if (self.betas is None) == (self.alphas_cumprod is None):
                raise ValueError("schedule='discrete' needs either betas= or alphas_cumprod= (one of them, N numbers)")
            name = "betas" if self.alphas_cumprod is None else "alphas_cumprod"
            object.__setattr__(self, name, checked_levels(name, getattr(self, name)))
        elif self.betas is not None or self.alphas_cumprod is not None:
            raise ValueError(f"betas and alphas_cumprod belong to schedule='discrete', got schedule={self.schedule!r}")
        elif not 0 < self.continuous_beta_0 <= self.continuous_beta_1 < math.inf:
            raise ValueError(
                "continuous_beta_0 and continuous_beta_1 must satisfy 0 < beta_0 <= beta_1, got "
                f"{self.continuous_beta_0} and {self.continuous_beta_1}"
            )

    def __repr__(self) -> str:
        if self.schedule == "discrete":
            return f"NoiseScheduleVP('discrete', N={self.total_N})"
        return f"NoiseScheduleVP({self.schedule!r})"

    @property
    def T(self) -> float:
        return 0.9946 if self.schedule == "cosine" else 1.0

    @property
    def total_N(self) -> int:
        """The number of noise levels, N; 1000 by convention in continuous time."""
        levels = self.betas if self.alphas_cumprod is None else self.alphas_cumprod
        return 1000 if levels is None else len(levels)

    @property
    def levels(self) -> int:
        return self.total_N

    @property
    def t_min(self) -> float:
        return 1 / self.total_N

    @cached_property
    def _nodes(self) -> tuple[Tensor, Tensor]:
        """Times 0, 1/N .. 1 and log alpha there, both (N + 1,); without the last where that holds no data."""
        if self.alphas_cumprod is not None:
            log_alpha = 0.5 * torch.log(as_float64(self.alphas_cumprod))
        else:
            log_alpha = 0.5 * torch.cumsum(torch.log1p(-as_float64(self.betas)), 0)
        times = torch.arange(self.total_N + 1, dtype=torch.float64) / self.total_N
        log_alpha = torch.cat([torch.zeros(1, dtype=torch.float64), log_alpha])
        some = log_alpha > -torch.inf
        return times[some], log_alpha[some]

    def _log_alpha(self, t: Tensor) -> Tensor:
        if self.schedule == "discrete":
            times, nodes = self._nodes
            log_alpha = _interpolate(t, times, nodes)
            if times[-1] < 1:  # from the last level with data alpha falls linearly to 0
                left = (1 - t) / (1 - times[-1])
                end = torch.where(left > 0, torch.log(torch.where(left > 0, left, 1.0)), -torch.inf)
                log_alpha = torch.where(t > times[-1], nodes[-1] + end, log_alpha)
            return log_alpha
        if self.schedule == "linear":
            b0, b1 = self.continuous_beta_0, self.continuous_beta_1
            return -(t**2) * (b1 - b0) / 4 - t * b0 / 2
        return torch.log(torch.cos(_COSINE_A * (t + _COSINE_S))) - math.log(math.cos(_COSINE_A * _COSINE_S))

    def at(self, t: Any) -> Point:
        """The point at time t: t, alpha_t, sigma_t of the shape of t. At t = 0 sigma is 0, without a gradient."""
        t = as_float64(t)
        log_alpha = self._log_alpha(t)
        noisy = log_alpha < 0
        # The inner `where` keeps the square root at 0, whose gradient is infinite, out of the graph.
        sigma = torch.where(noisy, torch.sqrt(-torch.expm1(2 * torch.where(noisy, log_alpha, -1.0))), 0.0)
        return Point(t, torch.exp(log_alpha), sigma)

    def inverse_lambda(self, lam: Any) -> Tensor:
        lam = as_float64(lam)
        log_alpha = -0.5 * torch.logaddexp(torch.zeros_like(lam), -2 * lam)
        if self.schedule == "discrete":
            times, nodes = self._nodes
            t = _interpolate(log_alpha, nodes.flip(0), times.flip(0))
            if times[-1] < 1:
                t = torch.where(log_alpha < nodes[-1], 1 - (1 - times[-1]) * torch.exp(log_alpha - nodes[-1]), t)
        elif self.schedule == "linear":
            b0, b1 = self.continuous_beta_0, self.continuous_beta_1
            # The stable root of t^2 (b1 - b0) / 2 + t b0 + 2 log alpha = 0, right also where b1 = b0.
            t = -4 * log_alpha / (b0 + torch.sqrt(b0**2 - 4 * (b1 - b0) * log_alpha))
        else:
            cosine = torch.exp(log_alpha + math.log(math.cos(_COSINE_A * _COSINE_S)))
            t = torch.arccos(cosine) / _COSINE_A - _COSINE_S
        return t.to(self.dtype)

    def network_time(self, t: Any) -> Tensor:
        """What a network receives at time t: on a discrete schedule the level n = t N - 1, fractional between two
        levels; on a continuous one t itself."""
        n: Tensor = as_float64(t) * self.total_N - 1 if self.schedule == "discrete" else as_float64(t)
        return n

    def from_network_time(self, time: Any) -> Tensor:
        n = as_float64(time)
        t: Tensor = (n + 1) / self.total_N if self.schedule == "discrete" else n
        return t

    def marginal_log_mean_coeff(self, t: Any) -> Tensor:
        """log alpha_t; same shape as `t`."""
        return self._log_alpha(as_float64(t)).to(self.dtype)

    def marginal_alpha(self, t: Any) -> Tensor:
        """alpha_t; same shape as `t`."""
        return self.at(t).alpha.to(self.dtype)

    def marginal_std(self, t: Any) -> Tensor:
        """sigma_t; same shape as `t`."""
        return self.at(t).sigma.to(self.dtype)

    def marginal_lambda(self, t: Any) -> Tensor:
        """lam_t = log(alpha_t / sigma_t); same shape as `t`."""
        return self.at(t).lam.to(self.dtype)

    def scheduler_config(self) -> dict[str, Any]:
        """That of DDPMScheduler, for discrete levels.

        Raises:
            ValueError: the schedule is continuous in time, but pipelines give their network one of N levels.
        """
        if self.schedule != "discrete":
            return super().scheduler_config()
        betas: Values | None = self.betas
        if betas is None:
            kept = torch.cat([torch.ones(1, dtype=torch.float64), as_float64(self.alphas_cumprod)])
            betas = (1 - kept[1:] / kept[:-1]).tolist()
        return {"prediction_type": "epsilon", "trained_betas": list(betas), "num_train_timesteps": self.total_N}

    def to_dict(self) -> dict[str, Any]:
        values: dict[str, Any] = {"name": "vp", "schedule": self.schedule}
        if self.schedule == "linear":
            values |= {"continuous_beta_0": self.continuous_beta_0, "continuous_beta_1": self.continuous_beta_1}
        for name in ("betas", "alphas_cumprod"):
            if getattr(self, name) is not None:
                values[name] = list(getattr(self, name))
        return values


_COSINE_S = 0.008
_COSINE_A = math.pi / 2 / (1 + _COSINE_S)


def _interpolate(x: Tensor, xs: Tensor, ys: Tensor) -> Tensor:
    """Piecewise linear through the nodes (xs, ys), xs rising; the first and last pieces extend beyond the ends."""
    i = torch.searchsorted(xs, x.detach().contiguous()).clamp(1, len(xs) - 1)
    x0, x1, y0, y1 = xs[i - 1], xs[i], ys[i - 1], ys[i]
    w = (x - x0) / (x1 - x0)
    return y0 * (1 - w) + y1 * w
