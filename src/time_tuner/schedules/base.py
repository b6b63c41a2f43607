"""What a noise schedule is, and a place on one."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import torch
from torch import Tensor

Values: TypeAlias = Sequence[float] | Tensor | Any
"""Numbers in any container torch understands: a list, a tensor, a numpy array."""


def as_float64(t: Any) -> Tensor:
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
        """log(alpha / sigma); infinite where sigma = 0, minus infinity (without a gradient) where alpha = 0."""
        some = self.alpha > 0
        return torch.where(some, torch.log(torch.where(some, self.alpha, 1.0)), -torch.inf) - torch.log(self.sigma)

    @property
    def angle(self) -> Tensor:
        """arctan(sigma / alpha), from 0 without noise to pi / 2 without data."""
        return torch.atan2(self.sigma, self.alpha)

    @property
    def scale(self) -> Tensor:
        """sqrt(alpha^2 + sigma^2): the deviation of a state in which the data has variance 1; 1 on a VP schedule."""
        return torch.hypot(self.alpha, self.sigma)


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

    def network_time(self, t: Any) -> Tensor:
        """What a network of this schedule is told at time t, float64: its level, its time or its noise."""

    def from_network_time(self, label: Any) -> Tensor:
        """The time at which a network of this schedule is told `label`."""

    def to_dict(self) -> dict[str, Any]:
        """The constructor values, as JSON holds them."""


def time_at_angle(schedule: NoiseSchedule, angle: Tensor) -> Tensor:
    """The time at which arctan(sigma / alpha) is `angle`, float64."""
    return schedule.inverse_lambda(-torch.log(torch.tan(angle))).double()
