"""Predicted data kept in its range, as a model around a model: any model becomes another one."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .._dtypes import wide
from ..schedules import NoiseSchedule
from .base import Model, ModelAround, as_model, for_samples


def clipped(eps: Any, limit: float = 1.0, schedule: NoiseSchedule | None = None) -> "ThresholdedModel":
    """The model with its x0 clipped to [-limit, limit] (static thresholding).

    Args:
        eps: a model, or any callable `eps(x, t, tau)` that has a `schedule`; other attributes are passed on.
        limit: the range of the data.
        schedule: needed where `eps` has none.

    Returns:
        The model, whose predicted noise follows from the clipped data.

    Raises:
        ValueError: a limit that is not positive, or no schedule.
    """
    _check("limit", limit, limit > 0, "positive")
    return ThresholdedModel(as_model(eps, schedule), lambda x0: x0.clamp(-limit, limit))


def dynamically_thresholded(
    eps: Any,
    ratio: float = 0.995,
    limit: float = 1.0,
    maximum: float = math.inf,
    schedule: NoiseSchedule | None = None,
) -> "ThresholdedModel":
    """The model with dynamic thresholding (Saharia et al., 2022, https://arxiv.org/abs/2205.11487, sec. 2.3): each
    sample's x0 is clipped to [-s, s], where s is the quantile `ratio` of its |x0| but at least `limit`, and then scaled
    by limit / s.

    Args:
        eps: a model, or any callable `eps(x, t, tau)` that has a `schedule`.
        ratio: which quantile.
        limit: the range of the data.
        maximum: s is at most this (diffusers' `sample_max_value`).
        schedule: needed where `eps` has none.

    Returns:
        The model, whose predicted noise follows from the thresholded data.

    Raises:
        ValueError: names the argument, what was got and the way out.
    """
    _check("limit", limit, limit > 0, "positive")
    _check("maximum", maximum, limit <= maximum, "at least limit")
    _check("ratio", ratio, 0 < ratio <= 1, "in (0, 1]")
    return ThresholdedModel(as_model(eps, schedule), lambda x0: dynamic_threshold(x0, ratio, limit, maximum))


def dynamic_threshold(x0: Tensor, ratio: float, limit: float = 1.0, maximum: float = math.inf) -> Tensor:
    """The data x0 (B, ...) in [-limit, limit], see `dynamically_thresholded`."""
    s = torch.quantile(x0.flatten(1).abs(), ratio, dim=1).clamp(limit, maximum)
    s = s.view(-1, *[1] * (x0.dim() - 1))
    return x0.clamp(-s, s) * (limit / s)


class ThresholdedModel(ModelAround):
    """A model with a function of the predicted data in between. The data and the noise are computed from each other at
    the solver's t, whatever time the network receives, and for half precision in float32."""

    def __init__(self, inner: Model, bound: Callable[[Tensor], Tensor]) -> None:
        super().__init__(inner)
        self.bound = bound

    def predict(self, quantity: str, x: Tensor, t: Any, tau: Any = None) -> Tensor:
        if x.is_complex():
            raise ValueError(f"data are kept in a range of real numbers, got states of {x.dtype}: leave the range out")
        if quantity == "x0":
            return self.bound(wide(self.inner.x0(x, t, tau))).to(x.dtype)
        p = for_samples(self.schedule.at(t), x)
        if (p.alpha == 0).any():
            raise ValueError("eps does not determine the data where alpha is 0: give a model from model_wrapper")
        data = self.bound((wide(x) - p.sigma * self.inner(x, t, tau)) / p.alpha)
        return ((wide(x) - p.alpha * data) / p.sigma).to(x.dtype)

    def parts(
        self, quantity: str, x: Tensor, t: Any, tau: Any = None, guided: bool = True
    ) -> tuple[Tensor, Tensor | None]:
        if guided:
            raise ValueError(
                "reuse of a plan needs a model whose data are not kept in a range: what guidance adds is lost there; "
                "give the model inside of it, or a plan with reuse=None"
            )
        return ThresholdedModel(_WithoutGuidance(self.inner), self.bound).predict(quantity, x, t, tau), None


class _WithoutGuidance(ModelAround):
    """A model under its condition alone."""

    def predict(self, quantity: str, x: Tensor, t: Any, tau: Any = None) -> Tensor:
        return self.inner.parts(quantity, x, t, tau, guided=False)[0]


def _check(name: str, value: float, holds: bool, needs: str) -> None:
    if not holds:
        raise ValueError(f"{name} must be {needs}, got {value}")
