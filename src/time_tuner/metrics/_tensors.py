"""Checks of the tensors that metrics take."""

from typing import Any

import torch
from torch import Tensor


def finite(name: str, values: Any, dtype: torch.dtype = torch.float64) -> Tensor:
    """Values as a tensor on the CPU in this dtype; a ValueError for NaN and infinity."""
    x = torch.as_tensor(values).detach().to("cpu", dtype)
    if not x.isfinite().all():
        raise ValueError(f"{name} must be finite, got {int((~x.isfinite()).sum())} NaN or infinite of {x.numel()}")
    return x


def two_sets(x: Any, y: Any, least: int = 2) -> tuple[Tensor, Tensor]:
    """Two sample sets (n, ...) and (m, ...) as (n, D) and (m, D) in float64.

    Raises:
        ValueError: samples of two shapes, too few of them, or values that are not finite.
    """
    x, y = finite("x", x), finite("y", y)
    if x.dim() < 2 or x.shape[1:] != y.shape[1:]:
        raise ValueError(f"x and y must hold samples of one shape, got {shape(x[:1])[1:]} and {shape(y[:1])[1:]}")
    if min(len(x), len(y)) < least:
        raise ValueError(f"x and y must hold at least {least} samples each, got {len(x)} and {len(y)}")
    return x.flatten(1), y.flatten(1)


def shape(x: Tensor) -> tuple[int, ...]:
    return tuple(x.shape)
