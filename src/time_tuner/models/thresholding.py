"""Predicted data kept in its range, as a model around a model: any eps(x, t, tau) becomes another one."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..plans.rows import HALF
from ..sampling import Eps
from ..schedules import NoiseSchedule
from .wrapper import for_samples


def clipped(eps: Eps, limit: float = 1.0, schedule: NoiseSchedule | None = None) -> "ThresholdedModel":
    """The model with its x0 clipped to [-limit, limit] (static thresholding).

    Args:
        eps: a model, or any callable `eps(x, t, tau)` that has a `schedule`; other attributes are passed on.
        limit: the range of the data.
        schedule: needed where `eps` has none.

    Raises:
        ValueError: a limit that is not positive, or no schedule.
    """
    _check("limit", limit, limit > 0)
    return ThresholdedModel(eps, lambda x0: x0.clamp(-limit, limit), schedule)


def dynamically_thresholded(
    eps: Eps,
    ratio: float = 0.995,
    limit: float = 1.0,
    maximum: float = math.inf,
    schedule: NoiseSchedule | None = None,
) -> "ThresholdedModel":
    """The model with dynamic thresholding (Saharia et al., 2022, https://arxiv.org/abs/2205.11487, sec. 2.3): each
    sample's x0 is clipped to [-s, s], where s is the quantile `ratio` of its |x0| but at least `limit`, and then scaled
    by limit / s.

    Args:
        eps, limit, schedule: as for `clipped`.
        ratio: which quantile.
        maximum: s is at most this (diffusers' `sample_max_value`).

    Raises:
        ValueError: names the argument, what was got and the way out.
    """
    _check("limit", limit, limit > 0)
    _check("maximum", maximum, limit <= maximum)
    _check("ratio", ratio, 0 < ratio <= 1)

    def bound(x0: Tensor) -> Tensor:
        s = torch.quantile(x0.flatten(1).abs(), ratio, dim=1).clamp(limit, maximum)
        s = s.view(-1, *[1] * (x0.dim() - 1))
        return x0.clamp(-s, s) * (limit / s)

    return ThresholdedModel(eps, bound, schedule)


class ThresholdedModel:
    """`eps(x, t, tau)` with a function of the predicted x0 in between; made by the functions of this module.

    x0 and back is computed at the solver's t, whatever the network is told, and for half precision in float32.
    """

    def __init__(self, eps: Eps, bound: Callable[[Tensor], Tensor], schedule: NoiseSchedule | None = None) -> None:
        found = getattr(eps, "schedule", None) if schedule is None else schedule
        if found is None:
            raise ValueError("eps has no schedule to tell its x0 by: give schedule=")
        self.eps, self.bound, self.schedule = eps, bound, found

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["eps"], name)  # shape and the like

    def __call__(self, x: Tensor, t: Any, tau: Any = None) -> Tensor:
        """The noise in x (B, ...)."""
        p, x0 = for_samples(self.schedule.at(t), x), self._by_noise(x, t, tau)
        return ((_wide(x) - p.alpha * x0) / p.sigma).to(x.dtype)

    def x0(self, x: Tensor, t: Any, tau: Any = None) -> Tensor:
        """The data in x (B, ...), by the model's own .x0 if it has one: asked for where the noise does not tell it."""
        ask = getattr(self.eps, "x0", None)
        said = self._by_noise(x, t, tau) if ask is None else self.bound(_wide(ask(x, t, tau)))
        return said.to(x.dtype)

    def _by_noise(self, x: Tensor, t: Any, tau: Any) -> Tensor:
        p = for_samples(self.schedule.at(t), x)
        if (p.alpha == 0).any():
            raise ValueError("eps does not tell the data where alpha is 0: give a model from model_wrapper")
        return self.bound((_wide(x) - p.sigma * self.eps(x, t, tau)) / p.alpha)


def _wide(x: Tensor) -> Tensor:
    return x.float() if x.dtype in HALF else x


def _check(name: str, value: Any, holds: bool) -> None:
    if not holds:
        needs = {"limit": "positive", "maximum": "at least limit", "ratio": "in (0, 1]"}
        raise ValueError(f"{name} must be {needs[name]}, got {value}")
