"""Noise schedules: how much data (alpha) and how much noise (sigma) a state holds at time t.

A state is `x_t = alpha_t x_0 + sigma_t eps`; `lam_t = log(alpha_t / sigma_t)` is half its log signal-to-noise ratio.
Times and coefficients are float64 tensors on the CPU; as 0-dim tensors they broadcast against any state, keep its dtype
and carry gradients.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol, TypeAlias

import torch
from torch import Tensor

Values: TypeAlias = Sequence[float] | Tensor | Any
"""Numbers in any container torch understands: a list, a tensor, a numpy array."""


def as_times(t: Any) -> Tensor:
    """`t` as a float64 CPU tensor of its own shape; gradients are kept."""
    return torch.as_tensor(t, dtype=torch.float64, device="cpu")


@dataclass(frozen=True)
class Point:
    """A place on a schedule: the time t and the alpha, sigma there, 0-dim each (or all of one shape)."""

    t: Tensor
    alpha: Tensor
    sigma: Tensor

    @property
    def lam(self) -> Tensor:
        """log(alpha / sigma); infinite where sigma = 0."""
        return torch.log(self.alpha) - torch.log(self.sigma)


class NoiseSchedule(Protocol):
    """What every part of the library asks of a noise schedule."""

    @property
    def T(self) -> float:
        """The time of (almost) pure noise, where sampling starts."""

    @property
    def total_N(self) -> int:
        """Number of noise levels the network was trained at; 1000 by convention for continuous time."""

    @property
    def t_min(self) -> float:
        """The least noisy time the network was trained at."""

    def at(self, t: Any) -> Point:
        """The point at time t."""

    def inverse_lambda(self, lam: Any) -> Tensor:
        """The time at which log(alpha / sigma) is `lam`."""

    def to_dict(self) -> dict[str, Any]:
        """The constructor values, as JSON holds them."""


@dataclass(frozen=True, repr=False)
class NoiseScheduleVP:
    r"""Variance-preserving noise, alpha_t^2 + sigma_t^2 = 1, for a discrete or continuous time t in [0, 1].

    - `"discrete"`: N noise levels given by `betas` or by `alphas_cumprod` (both of shape (N,)). Level n = 0 .. N-1 sits
      at t = (n + 1) / N with log alpha = 1/2 sum_{i <= n} log(1 - beta_i); between the levels, and down to
      (t, log alpha) = (0, 0), log alpha_t is linear in t.
    - `"linear"`: log alpha_t = -t^2 (b1 - b0) / 4 - t b0 / 2, with b0, b1 = `continuous_beta_0`, `continuous_beta_1`
      (Song et al., 2021, https://arxiv.org/abs/2011.13456).
    - `"cosine"`: alpha_t = cos(pi/2 (t + s) / (1 + s)) / cos(pi/2 s / (1 + s)), s = 0.008 (Nichol & Dhariwal, 2021,
      https://arxiv.org/abs/2102.09672), up to T = 0.9946: beyond, lam falls without bound.

    `dtype` is that of the values which the `marginal_*` functions and `inverse_lambda` return.

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
            object.__setattr__(self, name, _checked_levels(name, getattr(self, name)))
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
        return len(self._nodes[0]) - 1 if self.schedule == "discrete" else 1000

    @property
    def t_min(self) -> float:
        return 1 / self.total_N

    @cached_property
    def _nodes(self) -> tuple[Tensor, Tensor]:
        """Times 0, 1/N .. 1 and log alpha there, both (N + 1,)."""
        if self.alphas_cumprod is not None:
            log_alpha = 0.5 * torch.log(as_times(self.alphas_cumprod))
        else:
            log_alpha = 0.5 * torch.cumsum(torch.log1p(-as_times(self.betas)), 0)
        n = len(log_alpha)
        return torch.arange(n + 1, dtype=torch.float64) / n, torch.cat([torch.zeros(1, dtype=torch.float64), log_alpha])

    def _log_alpha(self, t: Tensor) -> Tensor:
        if self.schedule == "discrete":
            return _interpolate(t, *self._nodes)
        if self.schedule == "linear":
            b0, b1 = self.continuous_beta_0, self.continuous_beta_1
            return -(t**2) * (b1 - b0) / 4 - t * b0 / 2
        return torch.log(torch.cos(_COSINE_A * (t + _COSINE_S))) - math.log(math.cos(_COSINE_A * _COSINE_S))

    def at(self, t: Any) -> Point:
        """The point at time t: t, alpha_t, sigma_t of the shape of t. At t = 0 sigma is 0, without a gradient."""
        t = as_times(t)
        log_alpha = self._log_alpha(t)
        noisy = log_alpha < 0
        # The inner `where` keeps the square root at 0, whose gradient is infinite, out of the graph.
        sigma = torch.where(noisy, torch.sqrt(-torch.expm1(2 * torch.where(noisy, log_alpha, -1.0))), 0.0)
        return Point(t, torch.exp(log_alpha), sigma)

    def inverse_lambda(self, lam: Any) -> Tensor:
        """The time t with log(alpha_t / sigma_t) = lam; same shape as `lam`."""
        lam = as_times(lam)
        log_alpha = -0.5 * torch.logaddexp(torch.zeros_like(lam), -2 * lam)
        if self.schedule == "discrete":
            times, nodes = self._nodes
            t = _interpolate(log_alpha, nodes.flip(0), times.flip(0))
        elif self.schedule == "linear":
            b0, b1 = self.continuous_beta_0, self.continuous_beta_1
            # The stable root of t^2 (b1 - b0) / 2 + t b0 + 2 log alpha = 0, right also where b1 = b0.
            t = -4 * log_alpha / (b0 + torch.sqrt(b0**2 - 4 * (b1 - b0) * log_alpha))
        else:
            cosine = torch.exp(log_alpha + math.log(math.cos(_COSINE_A * _COSINE_S)))
            t = torch.arccos(cosine) / _COSINE_A - _COSINE_S
        return t.to(self.dtype)

    def marginal_log_mean_coeff(self, t: Any) -> Tensor:
        """log alpha_t; same shape as `t`."""
        return self._log_alpha(as_times(t)).to(self.dtype)

    def marginal_alpha(self, t: Any) -> Tensor:
        """alpha_t; same shape as `t`."""
        return self.at(t).alpha.to(self.dtype)

    def marginal_std(self, t: Any) -> Tensor:
        """sigma_t; same shape as `t`."""
        return self.at(t).sigma.to(self.dtype)

    def marginal_lambda(self, t: Any) -> Tensor:
        """lam_t = log(alpha_t / sigma_t); same shape as `t`."""
        return self.at(t).lam.to(self.dtype)

    def to_dict(self) -> dict[str, Any]:
        values: dict[str, Any] = {"name": "vp", "schedule": self.schedule}
        if self.schedule == "linear":
            values |= {"continuous_beta_0": self.continuous_beta_0, "continuous_beta_1": self.continuous_beta_1}
        for name in ("betas", "alphas_cumprod"):
            if getattr(self, name) is not None:
                values[name] = list(getattr(self, name))
        return values


def respaced_betas(betas: Values, indices: Any) -> Tensor:
    r"""The betas of a DDPM on some of its noise levels, float64 (K,), as in a run of K steps.

    beta~_i = 1 - alpha_bar_i / alpha_bar_{i-1} over the kept levels, with alpha_bar = prod (1 - beta) and
    alpha_bar_0 = 1: the cumulative product of 1 - beta~ gives the kept alpha_bar back.

    Args:
        betas: of all N levels.
        indices: the K levels to keep, whole numbers in 0 .. N-1, strictly rising.

    Raises:
        ValueError: names the argument, what was got and the way out.
    """
    log_alpha_bar = torch.log1p(-as_times(_checked_levels("betas", betas))).cumsum(0)
    try:
        kept = torch.as_tensor(indices)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"indices must be K whole numbers, got {type(indices).__name__}: {error}") from None
    if kept.dim() != 1 or not len(kept) or kept.is_floating_point() or kept.is_complex() or kept.dtype == torch.bool:
        raise ValueError(f"indices must be K whole numbers, K >= 1, got {kept.dtype} of shape {tuple(kept.shape)}")
    kept = kept.long().cpu()
    last = len(log_alpha_bar) - 1
    if (kept.diff() <= 0).any() or kept[0] < 0 or kept[-1] > last:
        raise ValueError(f"indices must rise strictly and lie in 0 .. {last}, the levels of betas, got {kept.tolist()}")
    return -torch.expm1(log_alpha_bar[kept].diff(prepend=torch.zeros(1, dtype=torch.float64)))


SCHEDULES: dict[str, type[NoiseScheduleVP]] = {"vp": NoiseScheduleVP}
"""Every noise schedule by the name it has in a plan file."""


def schedule_from_dict(values: Mapping[str, Any]) -> NoiseSchedule:
    """The inverse of `to_dict`.

    Raises:
        ValueError: an unknown name, or values the schedule does not take.
    """
    options = dict(values)
    name = options.pop("name", None)
    if not isinstance(name, str) or name not in SCHEDULES:
        raise ValueError(f"schedule name must be one of {sorted(SCHEDULES)}, got {name!r}")
    try:
        return SCHEDULES[name](**options)
    except TypeError as error:
        raise ValueError(f"schedule {name!r} does not take these values: {error}") from None


_COSINE_S = 0.008
_COSINE_A = math.pi / 2 / (1 + _COSINE_S)


def _checked_levels(name: str, values: Values) -> tuple[float, ...]:
    try:
        levels = as_times(values)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise ValueError(f"{name} must be N numbers, got {type(values).__name__}: {error}") from None
    if levels.dim() != 1 or not len(levels):
        raise ValueError(f"{name} must have shape (N,) with N >= 1, got {tuple(levels.shape)}")
    if not torch.isfinite(levels).all():
        raise ValueError(f"{name} must be finite, got {float(levels[~torch.isfinite(levels)][0])} in it")
    bad = (levels <= 0) | (levels >= 1)
    if name == "alphas_cumprod":
        bad[1:] |= levels.diff() >= 0
    if bad.any():
        n = int(bad.nonzero()[0])
        falling = " and fall from each level to the next" if name == "alphas_cumprod" else ""
        raise ValueError(f"{name} must lie in (0, 1){falling}, got {float(levels[n])} at level {n}")
    return tuple(levels.tolist())


def _interpolate(x: Tensor, xs: Tensor, ys: Tensor) -> Tensor:
    """Piecewise linear through the nodes (xs, ys), xs increasing; beyond the ends the end pieces go on."""
    i = torch.searchsorted(xs, x.detach().contiguous()).clamp(1, len(xs) - 1)
    x0, x1, y0, y1 = xs[i - 1], xs[i], ys[i - 1], ys[i]
    w = (x - x0) / (x1 - x0)
    return y0 * (1 - w) + y1 * w
