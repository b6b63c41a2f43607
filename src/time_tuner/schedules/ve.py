"""Variance-exploding noise, as in EDM (Karras et al., 2022), https://arxiv.org/abs/2206.00364."""

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from .._checks import choose
from .base import Map, NoiseSchedule, Point, as_float64, even_grid

NETWORK_INPUTS: dict[str, tuple[Map, Map]] = {
    "log": (lambda sigma: torch.log(sigma) / 4, lambda time: torch.exp(4 * time)),
    "sigma": (lambda sigma: sigma, lambda time: time),
    "arctan": (lambda sigma: 2 / math.pi * torch.atan(sigma), lambda time: torch.tan(math.pi / 2 * time)),
    "flow": (lambda sigma: sigma / (1 + sigma), lambda time: time / (1 - time)),
}
"""What the network may receive, as functions of sigma, and their inverses."""


@dataclass(frozen=True)
class NoiseScheduleVE(NoiseSchedule):
    """x = x_0 + sigma eps: alpha = 1, and the time is sigma itself, from T = `sigma_max` down to `sigma_min`.

    A run starts from noise of deviation sqrt(1 + sigma_max^2), see `Plan.initial_state`. Noise is continuous: there are
    no levels.

    Args:
        sigma_min: the least noise that the network was trained with.
        sigma_max: the most noise that the network was trained with.
        sigma_data: the deviation of the data, for the preconditioning of `model_wrapper(..., model_type="edm")`; None
            for a network without it.
        network_input: what the network receives: "log", log(sigma) / 4 as in EDM (its c_noise); "sigma" itself;
            "arctan", 2 / pi arctan(sigma) as in Stable Audio; or "flow", sigma / (1 + sigma) as in Cosmos 2, whose
            network is that of a rectified flow with states x / (1 + sigma).

    Raises:
        ValueError: numbers that are not positive, or not in order.
    """

    sigma_min: float = 0.002
    sigma_max: float = 80.0
    sigma_data: float | None = 0.5
    network_input: str = "log"

    def __post_init__(self) -> None:
        if not 0 < self.sigma_min < self.sigma_max < math.inf:
            raise ValueError(
                "sigma_min and sigma_max must satisfy 0 < sigma_min < sigma_max, "
                f"got {self.sigma_min} and {self.sigma_max}"
            )
        if self.sigma_data is not None and not 0 < self.sigma_data < math.inf:
            raise ValueError(f"sigma_data must be positive, got {self.sigma_data}")
        choose("network_input", self.network_input, NETWORK_INPUTS)

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
        """log(t) / 4, t, 2 / pi arctan(t) or t / (1 + t)."""
        return NETWORK_INPUTS[self.network_input][0](as_float64(t))

    def from_network_time(self, time: Any) -> Tensor:
        return NETWORK_INPUTS[self.network_input][1](as_float64(time))

    def from_sigma_ratio(self, sigma: Any) -> Tensor:
        """sigma itself."""
        return as_float64(sigma)

    def default_spacing(self, order: int, steps: int, one_step: bool = False) -> str:
        """ "kl_optimal" for samplers of first order, "karras" for distilled models, "logsnr" for the others."""
        return {0: "karras", 1: "kl_optimal"}.get(order, "logsnr")

    def even_times(self, steps: int, start: float | None = None, end: float | None = None) -> Tensor:
        """The grid of many-step runs, see `even_grid`: even in log(sigma)."""
        return even_grid(self, steps, start, end, torch.log, torch.exp)

    def scheduler_config(self) -> dict[str, Any]:
        """That of EDMEulerScheduler, whose network has EDM's preconditioning; of CosineDPMSolverMultistepScheduler; or
        of the scheduler of Cosmos 2, whose pipelines compute the noise from the network's output themselves."""
        kinds = {"log": "epsilon", "arctan": "v_prediction", "flow": "epsilon"}
        if self.network_input not in kinds or (self.sigma_data is None) != (self.network_input == "flow"):
            raise ValueError(
                "networks of pipelines receive log(sigma) / 4 or 2 / pi arctan(sigma), with EDM's preconditioning, or "
                f"sigma / (1 + sigma) without it, got {self!r}: run plans on it with `sample`"
            )
        entries = {"sigma_min": self.sigma_min, "sigma_max": self.sigma_max, "sigma_data": self.sigma_data or 1.0}
        return entries | {"prediction_type": kinds[self.network_input]}

    def to_dict(self) -> dict[str, Any]:
        return {"name": "ve", **asdict(self)}
