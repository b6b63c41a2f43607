"""How far samples are from where they should be: distances between sample sets, and between single samples.

The Frechet distance of samples is biased: the fewer they are, the higher it comes out. Compare only values that were
computed from equally many samples.
"""

from collections import deque
from typing import Any

import torch
from torch import Tensor

from .models.exact import Gaussian
from .plans.plan import Plan
from .sampling import trajectory

__all__ = ["distance", "exact_moments", "frechet_between", "frechet_distance", "moments"]


def frechet_distance(mean_a: Any, cov_a: Any, mean_b: Any, cov_b: Any) -> float:
    r"""The squared 2-Wasserstein distance of two Gaussians, N(mu_a, A) and N(mu_b, B), in D dimensions:

        ||mu_a - mu_b||^2 + Tr(A + B - 2 (A^{1/2} B A^{1/2})^{1/2}),

    as in the Frechet inception distance (Heusel et al., 2017, https://arxiv.org/abs/1706.08500). The last trace is the
    sum of the singular values of B^{1/2} A^{1/2}, which keeps full precision where a covariance is singular.

    Args:
        mean_a, mean_b: (D,), tensors or arrays.
        cov_a, cov_b: (D, D), symmetric, no eigenvalue below zero.

    Raises:
        ValueError: shapes that do not fit together, values that are not finite, no covariance.
    """
    mean_a, mean_b = _finite("mean_a", mean_a), _finite("mean_b", mean_b)
    if mean_a.dim() != 1 or mean_a.shape != mean_b.shape or not len(mean_a):
        raise ValueError(f"mean_a and mean_b must share one shape (D,), got {_shape(mean_a)} and {_shape(mean_b)}")
    root_a, root_b = _root("cov_a", cov_a, len(mean_a)), _root("cov_b", cov_b, len(mean_b))
    traces = root_a.square().sum() + root_b.square().sum()
    squared = (mean_a - mean_b).square().sum() + traces - 2 * torch.linalg.svdvals(root_b @ root_a).sum()
    return max(float(squared), 0.0)  # rounding may leave -1e-16 of an exact zero


def moments(features: Any) -> tuple[Tensor, Tensor]:
    """Mean (D,) and unbiased covariance (D, D) of samples (B, ...), each flattened to D numbers, in float64.

    Raises:
        ValueError: fewer than two samples, or values that are not finite.
    """
    x = _finite("features", features)
    if x.dim() < 2 or len(x) < 2:
        raise ValueError(f"features must be (B, ...) with at least B = 2 samples, got shape {_shape(x)}")
    x = x.flatten(1)
    mean = x.mean(0)
    centred = x - mean
    return mean, centred.T @ centred / (len(x) - 1)


def frechet_between(x: Any, y: Any) -> float:
    """`frechet_distance` between the moments of two sample sets (B, ...) and (C, ...), compared number by number.

    Raises:
        ValueError: samples of two shapes, fewer than two of them, or values that are not finite.
    """
    x, y = _finite("x", x), _finite("y", y)
    if x.shape[1:] != y.shape[1:]:
        raise ValueError(f"x and y must hold samples of one shape, got {_shape(x[:1])[1:]} and {_shape(y[:1])[1:]}")
    return frechet_distance(*moments(x), *moments(y))


def distance(x: Tensor, y: Tensor) -> Tensor:
    """The distance ||x - y|| of each sample from its partner, not squared: (B, ...) and (B, ...) -> (B,).

    Computed in float32, or in the inputs' own type where that is finer. It carries gradients, and what is not finite
    stays so.

    Raises:
        ValueError: two shapes, or no batch dimension.
    """
    if x.shape != y.shape or x.dim() < 2:
        raise ValueError(f"x and y must share one shape (B, ...), got {_shape(x)} and {_shape(y)}")
    dtype = torch.promote_types(torch.promote_types(x.dtype, y.dtype), torch.float32)
    apart: Tensor = torch.linalg.vector_norm((x.to(dtype) - y.to(dtype)).flatten(1), dim=1)
    return apart


def exact_moments(data: Gaussian, plan: Plan) -> tuple[Tensor, Tensor]:
    """Exact mean and standard deviation of the end of a plan with the noise prediction of this data, run from
    `plan.start` of standard normal noise; each of a sample's shape.

    Every call is affine in the noise, so that the loop itself carries both: a state is held by its weights on 1, x_T
    and each of the draws.
    """
    calls = len(plan)
    unit = torch.eye(calls + 2, dtype=torch.float64)
    draws = iter(unit[2:])
    # A mean on the first axis alone: the model of every coordinate, in weights.
    weights = Gaussian(data.mean.reshape(-1, 1) * unit[0], data.std.reshape(-1, 1).expand(-1, calls + 2))
    end = plan.initial_state(unit[1].expand(data.mean.numel(), -1))
    eps = weights.eps(plan.schedule)
    end = deque(trajectory(eps, plan, end, lambda x: next(draws).expand_as(x)), maxlen=1).pop()
    return end[:, 0].reshape(data.mean.shape), end[:, 1:].norm(dim=1).reshape(data.mean.shape)


def _finite(name: str, values: Any, dtype: torch.dtype = torch.float64) -> Tensor:
    x = torch.as_tensor(values).detach().to("cpu", dtype)
    if not x.isfinite().all():
        raise ValueError(f"{name} must be finite, got {int((~x.isfinite()).sum())} NaN or infinite of {x.numel()}")
    return x


def _root(name: str, covariance: Any, size: int) -> Tensor:
    """The symmetric square root of a covariance; eigenvalues within rounding of zero count as zero."""
    covariance = _finite(name, covariance)
    if covariance.shape != (size, size):
        raise ValueError(f"{name} must have shape ({size}, {size}) like its mean, got {_shape(covariance)}")
    largest = float(covariance.abs().max())
    if not torch.allclose(covariance, covariance.T, atol=1e-8 * largest):
        raise ValueError(f"{name} must be symmetric, as `moments` returns it")
    values, vectors = torch.linalg.eigh((covariance + covariance.T) / 2)
    if float(values[0]) < -1e-6 * float(values[-1]):
        raise ValueError(f"{name} must have no eigenvalue below zero, got {float(values[0]):.3g}; pass a covariance")
    floor = size * torch.finfo(torch.float64).eps * values[-1]
    root: Tensor = vectors * torch.where(values > floor, values, 0.0).sqrt() @ vectors.T
    return root


def _shape(x: Tensor) -> tuple[int, ...]:
    return tuple(x.shape)
