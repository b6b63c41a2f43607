"""How far samples are from where they should be: distances between sample sets, and between single samples.

The Frechet distance of samples is biased: the fewer they are, the higher it comes out. Compare only values that were
computed from equally many samples.
"""

from functools import cache
from typing import Any

import torch
from torch import Tensor

from time_tuner.classifier import DigitClassifier, check_images, load_classifier, read_asset

__all__ = ["digit_accuracy", "digit_frechet", "distance", "frechet_between", "frechet_distance", "moments"]

_BATCH = 500


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


def digit_frechet(images: Tensor) -> float:
    """Frechet distance of images (B, 1, 28, 28) in [-1, 1] to the 10,000 test digits of MNIST, in classifier features.

    The features are those of `load_classifier`, the statistics of the test digits come with the library. Values outside
    [-1, 1] are taken as they are.

    Raises:
        ValueError: a wrong shape or type, fewer than two images, or values that are not finite.
    """
    if len(images) < 2:
        raise ValueError(f"images must hold at least two, better thousands, got shape {_shape(images)}")
    classifier, mean, covariance = _digits()
    return frechet_distance(*moments(_batched(classifier.features, images)), mean, covariance)


def digit_accuracy(images: Tensor, labels: Any) -> float:
    """The share of images (B, 1, 28, 28) in [-1, 1] in which `load_classifier` sees the digit `labels` (B,) says.

    Raises:
        ValueError: a wrong shape or type, no images, or images that are not finite.
    """
    labels = torch.as_tensor(labels, device="cpu")
    if labels.shape != images.shape[:1] or not len(labels):
        raise ValueError(f"labels must be (B,), one for each of the images {_shape(images)}, got {_shape(labels)}")
    return float((_batched(_digits()[0], images).argmax(1) == labels).double().mean())


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


@cache
def _digits() -> tuple[DigitClassifier, Tensor, Tensor]:
    reference = read_asset("mnist-test-features.safetensors")
    return load_classifier(), reference["mean"], reference["covariance"]


@torch.no_grad()
def _batched(network: Any, images: Tensor) -> Tensor:
    """`network` of the images, a batch at a time, on the CPU in float32."""
    check_images(images)
    return torch.cat([network(_finite("images", part, torch.float32)) for part in images.split(_BATCH)])


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
