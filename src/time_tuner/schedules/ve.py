"""Variance-exploding noise, as in EDM (Karras et al., 2022), https://arxiv.org/abs/2206.00364."""

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from .base import NoiseSchedule, Point, as_float64, even_grid


@dataclass(frozen=True)
class NoiseScheduleVE(NoiseSchedule):
    """x = x_0 + sigma eps: alpha = 1, and the time is sigma itself, from T = `sigma_max` down to `sigma_min`.

    A run starts from noise of deviation sqrt(1 + sigma_max^2), see `Plan.initial_state`. Noise is continuous: there are
    no levels.

    Args:
        sigma_min, sigma_max: the range of noise that the network was trained with.
        sigma_data: the deviation of the data, for the preconditioning of `model_wrapper(..., model_type="edm")`.
        network_input: what the network receives: "log", log(sigma) / 4 as in EDM (its c_noise), or "sigma" itself.

    Raises:
        ValueError: numbers that are not positive, or not in order.
    """

    sigma_min: float = 0.002
    sigma_max: float = 80.0
    sigma_data: float = 0.5
    network_input: str = "log"

    def __post_init__(self) -> None:
        if not 0 < self.sigma_min < self.sigma_max < math.inf:
            raise ValueError(
                "sigma_min and sigma_max must satisfy 0 < sigma_min < sigma_max, "
                f"got {self.sigma_min} and {self.sigma_max}"
            )
        if not 0 < self.sigma_data < math.inf:
            raise ValueError(f"sigma_data must be positive, got {self.sigma_data}")
        if self.network_input not in ("log", "sigma"):
            raise ValueError(f"network_input must be 'log' or 'sigma', got {self.network_input!r}")

    @property
    def T(self) -> float:
        return self.sigma_max

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
        return torch.log(as_float64(t)) / 4 if self.network_input == "log" else as_float64(t)

    def from_network_time(self, time: Any) -> Tensor:
        return torch.exp(4 * as_float64(time)) if self.network_input == "log" else as_float64(time)

    def from_sigma_ratio(self, sigma: Any) -> Tensor:
        """sigma itself."""
        return as_float64(sigma)

    def default_spacing(self, order: int) -> str:
        """ "kl_optimal" for samplers of first order, "karras" for distilled models, "logsnr" for the others."""
        return {0: "karras", 1: "kl_optimal"}.get(order, "logsnr")

    def even_times(self, steps: int, start: float | None = None, end: float | None = None) -> Tensor:
        """The grid of many-step runs, see `even_grid`: even in log(sigma)."""
        return even_grid(self, steps, start, end, torch.log, torch.exp)

    def scheduler_config(self) -> dict[str, Any]:
        """That of EDMEulerScheduler, whose network has EDM's preconditioning."""
        if self.network_input != "log":
            raise ValueError(
                f"networks of pipelines receive log(sigma) / 4, got {self!r}: run plans on it with `sample`"
            )
        entries = {"sigma_min": self.sigma_min, "sigma_max": self.sigma_max, "sigma_data": self.sigma_data}
        return entries | {"prediction_type": "epsilon"}

    def to_dict(self) -> dict[str, Any]:
        return {"name": "ve", **asdict(self)}
