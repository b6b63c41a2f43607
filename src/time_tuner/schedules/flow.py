"""Rectified flow (Liu et al., 2023, https://arxiv.org/abs/2209.03003), with the shift of SD3 and Flux."""

import math
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor

from .base import Point, as_float64


@dataclass(frozen=True)
class NoiseScheduleFlow:
    """x = (1 - sigma) x_0 + sigma eps, with sigma_t = shift t / (1 + (shift - 1) t) for t in (0, 1].

    Time is even where the shift is 1; a larger one spends more of it at high noise (Esser et al., 2024, eq. 23,
    https://arxiv.org/abs/2403.03206). At t = 1 there is no data: see `model_wrapper` on what then is asked for.

    Args:
        shift: static, or of the resolution: `resolution_shift`.
        scale: the network is told scale * sigma: 1000 as in diffusers pipelines, 1 for one that is told sigma itself.

    Raises:
        ValueError: a shift or scale that is not positive.
    """

    shift: float = 1.0
    scale: float = 1000.0

    def __post_init__(self) -> None:
        for name in ("shift", "scale"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")

    @property
    def T(self) -> float:
        return 1.0

    @property
    def total_N(self) -> int:
        return 1000

    @property
    def t_min(self) -> float:
        return 1 / self.total_N

    def at(self, t: Any) -> Point:
        """The point at time t; alpha is exactly 0 at t = 1."""
        t = as_float64(t)
        below = 1 + (self.shift - 1) * t
        return Point(t, (1 - t) / below, self.shift * t / below)

    def _time(self, sigma: Tensor) -> Tensor:
        return sigma / (self.shift - (self.shift - 1) * sigma)

    def inverse_lambda(self, lam: Any) -> Tensor:
        """The time at which sigma = 1 / (1 + e^lam)."""
        return self._time((-as_float64(lam)).sigmoid())

    def network_time(self, t: Any) -> Tensor:
        """scale * sigma_t."""
        return self.scale * self.at(t).sigma

    def from_network_time(self, label: Any) -> Tensor:
        """The inverse of `label`."""
        return self._time(as_float64(label) / self.scale)

    def to_dict(self) -> dict[str, Any]:
        return {"name": "flow", **asdict(self)}


def resolution_shift(
    tokens: float,
    base_shift: float = 0.5,
    max_shift: float = 1.15,
    base_tokens: int = 256,
    max_tokens: int = 4096,
) -> float:
    """The shift e^mu of an image of so many tokens, mu being linear in them: base_shift at base_tokens, max_shift at
    max_tokens; as Flux has it (for a 1024 x 1024 image, whose latents are 64 x 64 patches, 4096 tokens)."""
    return math.exp(mu_of(tokens, base_shift, max_shift, base_tokens, max_tokens))


def mu_of(tokens: float, base_shift: float, max_shift: float, base_tokens: int, max_tokens: int) -> float:
    """mu, see `resolution_shift`."""
    if not tokens > 0:
        raise ValueError(f"tokens must be the positive number of patches of the image, got {tokens}")
    return base_shift + (max_shift - base_shift) * (tokens - base_tokens) / (max_tokens - base_tokens)
