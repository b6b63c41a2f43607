"""Rectified flow (Liu et al., 2023, https://arxiv.org/abs/2209.03003), with the shift of SD3 and Flux."""

import math
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor

from .._checks import choose
from .base import NoiseSchedule, Point, as_float64

NETWORK_INPUTS = ("sigma", "t", "1 - sigma")
"""What the network of a flow may receive."""


@dataclass(frozen=True)
class NoiseScheduleFlow(NoiseSchedule):
    """x = (1 - sigma) x_0 + sigma eps, with sigma_t = shift t / (1 + (shift - 1) t) for t in (0, 1].

    A run that is even in t is even in sigma where the shift is 1; with a larger shift it spends more steps at high
    noise (Esser et al., 2024, eq. 23, https://arxiv.org/abs/2403.03206). At t = 1 the state holds no data:
    `model_wrapper` explains which predictions serve there. The network is trained at all t in (0, 1]; by convention it
    has 1000 levels, and grids that end above 0 end at t_min = 0.001.

    Args:
        shift: static, or of the resolution: `resolution_shift`.
        scale: 1000 as in diffusers pipelines, 1 for the network input itself.
        network_input: what the network receives, in multiples of 1 / scale: "sigma"; "t", the time before the shift, as
            in CogView4; or "1 - sigma", as in Mochi.

    Raises:
        ValueError: a shift or scale that is not positive, or another network input.
    """

    shift: float = 1.0
    scale: float = 1000.0
    network_input: str = "sigma"
    T = 1.0
    levels = 1000
    t_min = 1 / 1000
    least_time = 0.0

    def __post_init__(self) -> None:
        for name in ("shift", "scale"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        choose("network_input", self.network_input, NETWORK_INPUTS)

    def at(self, t: Any) -> Point:
        """The point at time t; alpha is exactly 0 at t = 1."""
        t = as_float64(t)
        below = 1 + (self.shift - 1) * t
        return Point(t, (1 - t) / below, self.shift * t / below)

    def inverse_lambda(self, lam: Any) -> Tensor:
        """The time at which sigma = 1 / (1 + e^lam)."""
        return self.from_sigma_ratio((-as_float64(lam)).sigmoid())

    def sigma_ratio(self, t: Any) -> Tensor:
        """sigma itself: in a flow that is what diffusers and others count."""
        return self.at(t).sigma

    def from_sigma_ratio(self, sigma: Any) -> Tensor:
        """The time sigma / (shift - (shift - 1) sigma)."""
        s = as_float64(sigma)
        t: Tensor = s / (self.shift - (self.shift - 1) * s)
        return t

    def network_time(self, t: Any) -> Tensor:
        """scale * sigma_t, scale * t or scale * (1 - sigma_t)."""
        p = self.at(t)
        return self.scale * {"sigma": p.sigma, "t": p.t, "1 - sigma": p.alpha}[self.network_input]

    def from_network_time(self, time: Any) -> Tensor:
        """The inverse of `network_time`."""
        received = as_float64(time) / self.scale
        if self.network_input == "t":
            return received
        return self.from_sigma_ratio(received if self.network_input == "sigma" else 1 - received)

    def default_spacing(self, order: int, steps: int, one_step: bool = False) -> str:
        """ "trailing" for distilled models, "quadratic" for the others."""
        # Chosen by the worst ratio to the best spacing on trained networks: docs/results.md, "Trained networks".
        return "trailing" if order == 0 else "quadratic"

    def scheduler_config(self) -> dict[str, Any]:
        """That of FlowMatchEulerDiscreteScheduler."""
        entries = {"prediction_type": "flow_prediction", "shift": self.shift, "num_train_timesteps": int(self.scale)}
        return entries | ({"invert_sigmas": True} if self.network_input == "1 - sigma" else {})

    def to_dict(self) -> dict[str, Any]:
        return {"name": "flow", **asdict(self)}


def resolution_shift(
    tokens: float,
    base_shift: float = 0.5,
    max_shift: float = 1.15,
    base_tokens: int = 256,
    max_tokens: int = 4096,
) -> float:
    """The shift e^mu of an image of this many tokens, as in Flux.

    mu is linear in the tokens: base_shift at base_tokens, max_shift at max_tokens. A 1024 x 1024 image, whose latents
    are 64 x 64 patches, has 4096 tokens.

    Args:
        tokens: the number of patches of the image.
        base_shift: mu at `base_tokens`.
        max_shift: mu at `max_tokens`.
        base_tokens: a number of tokens.
        max_tokens: another number of tokens.

    Returns:
        The shift, for `NoiseScheduleFlow(shift=...)`.
    """
    return math.exp(mu_of(tokens, base_shift, max_shift, base_tokens, max_tokens))


def mu_of(tokens: float, base_shift: float, max_shift: float, base_tokens: int, max_tokens: int) -> float:
    """mu, see `resolution_shift`."""
    if not tokens > 0:
        raise ValueError(f"tokens must be the positive number of patches of the image, got {tokens}")
    return base_shift + (max_shift - base_shift) * (tokens - base_tokens) / (max_tokens - base_tokens)
