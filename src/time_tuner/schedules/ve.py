"""Variance-exploding noise, as EDM has it (Karras et al., 2022), https://arxiv.org/abs/2206.00364."""

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from .base import Point, as_float64


@dataclass(frozen=True)
class NoiseScheduleVE:
    """x = x_0 + sigma eps: alpha = 1, and the time is sigma itself, from T = `sigma_max` down to `sigma_min`.

    A run starts from noise of deviation sqrt(1 + sigma_max^2), see `Plan.start`.

    Args:
        sigma_min, sigma_max: the noise the network was trained with.
        sigma_data: deviation of the data, which the preconditioning of `model_wrapper(..., model_type="edm")` uses.
        told: what the network is told: "log", log(sigma) / 4 as in EDM (its c_noise), or "sigma" itself.

    Raises:
        ValueError: numbers that are not positive, or not in order.
    """

    sigma_min: float = 0.002
    sigma_max: float = 80.0
    sigma_data: float = 0.5
    told: str = "log"

    def __post_init__(self) -> None:
        if not 0 < self.sigma_min < self.sigma_max < math.inf:
            raise ValueError(
                "sigma_min and sigma_max must satisfy 0 < sigma_min < sigma_max, "
                f"got {self.sigma_min} and {self.sigma_max}"
            )
        if not 0 < self.sigma_data < math.inf:
            raise ValueError(f"sigma_data must be positive, got {self.sigma_data}")
        if self.told not in ("log", "sigma"):
            raise ValueError(f"told must be 'log' or 'sigma', got {self.told!r}")

    @property
    def T(self) -> float:
        return self.sigma_max

    @property
    def total_N(self) -> int:
        return 1000

    @property
    def t_min(self) -> float:
        return self.sigma_min

    def at(self, t: Any) -> Point:
        """The point at time t = sigma."""
        t = as_float64(t)
        return Point(t, torch.ones_like(t), t)

    def inverse_lambda(self, lam: Any) -> Tensor:
        """The time t = e^{-lam}."""
        return torch.exp(-as_float64(lam))

    def network_time(self, t: Any) -> Tensor:
        """log(t) / 4, or t."""
        return torch.log(as_float64(t)) / 4 if self.told == "log" else as_float64(t)

    def from_network_time(self, label: Any) -> Tensor:
        """The inverse of `label`."""
        return torch.exp(4 * as_float64(label)) if self.told == "log" else as_float64(label)

    def to_dict(self) -> dict[str, Any]:
        return {"name": "ve", **asdict(self)}
