"""Distances of single samples from their partners: ends of runs from the same noise."""

import math

import torch
from torch import Tensor

from ._tensors import shape


def distance(x: Tensor, y: Tensor) -> Tensor:
    """The distance ||x - y|| of each sample from its partner, not squared: (B, ...) and (B, ...) -> (B,).

    Computed in float32, or in the inputs' own type where that is finer. It carries gradients, and what is not finite
    stays so.

    Args:
        x: samples, (B, ...).
        y: their partners, (B, ...).

    Returns:
        The distances, (B,).

    Raises:
        ValueError: two shapes, or no batch dimension.
    """
    if x.shape != y.shape or x.dim() < 2:
        raise ValueError(f"x and y must share one shape (B, ...), got {shape(x)} and {shape(y)}")
    dtype = torch.promote_types(torch.promote_types(x.dtype, y.dtype), torch.float32)
    apart: Tensor = torch.linalg.vector_norm((x.to(dtype) - y.to(dtype)).flatten(1), dim=1)
    return apart


def rmse(x: Tensor, y: Tensor) -> Tensor:
    """The root of the mean squared difference of each sample from its partner, (B,): ||x - y|| / sqrt(D).

    Args:
        x: samples, (B, ...).
        y: their partners, (B, ...).

    Returns:
        The root of the mean squared differences, (B,).

    Raises:
        ValueError: as for `distance`.
    """
    return distance(x, y) / math.sqrt(math.prod(x.shape[1:]))


def psnr(x: Tensor, y: Tensor, data_range: float = 2.0) -> Tensor:
    """The peak signal-to-noise ratio of each sample in dB, (B,): 20 log10(data_range / RMSE), infinite where x = y.

    Args:
        x: samples, (B, ...).
        y: their partners, (B, ...).
        data_range: between the least and the largest value; 2 for pictures in [-1, 1].

    Returns:
        The ratios in dB, (B,).

    Raises:
        ValueError: as for `distance`, or a range that is not positive.
    """
    if not 0 < data_range < math.inf:
        raise ValueError(f"data_range must be positive, got {data_range!r}")
    return 20 * torch.log10(data_range / rmse(x, y))
