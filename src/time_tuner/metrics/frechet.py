"""The Frechet distance of Gaussians and of sample sets, and their means and covariances over batches."""

from dataclasses import dataclass
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .._files import one_line, read_tensors, write_tensors
from ._tensors import finite, shape, two_sets

MOST_NUMBERS = 2**15
"""Of one sample, in a file of moments: their covariance has 8 GiB."""


@dataclass(frozen=True)
class Moments:
    """The number of samples, their mean (D,), and the sum of their centred squares (D, D), in float64.

    `a + b` are the moments of both sets together: of batches, or of parts that processes have measured (Chan et al.,
    1983, https://doi.org/10.1080/00031305.1983.10483115).

    Attributes:
        count: the number of samples.
        mean: of the samples, (D,).
        scatter: the sum of their centred squares, (D, D).
    """

    count: int
    mean: Tensor
    scatter: Tensor

    @classmethod
    def of(cls, samples: Any) -> "Moments":
        """The moments of samples (B, ...), each flattened to D numbers.

        Raises:
            ValueError: no samples, or values that are not finite.
        """
        x = finite("samples", samples)
        if x.dim() < 2 or not len(x):
            raise ValueError(f"samples must be (B, ...) with at least one sample, got shape {shape(x)}")
        x = x.flatten(1)
        mean = x.mean(0)
        centred = x - mean
        return cls(len(x), mean, centred.T @ centred)

    def __add__(self, other: "Moments") -> "Moments":
        if self.mean.shape != other.mean.shape:
            raise ValueError(f"moments must have one size, got {shape(self.mean)} and {shape(other.mean)}")
        count, apart = self.count + other.count, other.mean - self.mean
        scatter = self.scatter + other.scatter + torch.outer(apart, apart) * (self.count * other.count / count)
        return Moments(count, self.mean + apart * (other.count / count), scatter)

    @property
    def covariance(self) -> Tensor:
        """The unbiased covariance, (D, D).

        Raises:
            ValueError: a single sample.
        """
        if self.count < 2:
            raise ValueError("the covariance needs at least two samples, got 1")
        return self.scatter / (self.count - 1)

    @cached_property
    def root(self) -> Tensor:
        """The symmetric square root of the covariance, (D, D)."""
        return _root("covariance", self.covariance, len(self.mean))

    def save(self, path: str | PathLike[str], **notes: str) -> None:
        """Write the moments and notes as a .safetensors file, which appears whole or not at all."""
        values = {"count": torch.tensor(self.count), "mean": self.mean, "scatter": self.scatter}
        write_tensors(Path(path), values, notes)

    @classmethod
    def load(cls, path: str | PathLike[str], **notes: str) -> "Moments":
        """The moments of a file of `save`.

        Args:
            path: the file.
            **notes: that it must have.

        Raises:
            ValueError: it holds no moments, or has other notes.
        """

        def check(shapes: dict[str, tuple[int, ...]], kept: dict[str, str]) -> None:
            if shapes.keys() != {"count", "mean", "scatter"}:
                raise ValueError(f"it holds no moments, but {', '.join(shapes) or 'nothing'}")
            size = (shapes["mean"] or (0,))[0]
            if not 0 < size <= MOST_NUMBERS or shapes != {"count": (), "mean": (size,), "scatter": (size, size)}:
                raise ValueError(f"moments of at most {MOST_NUMBERS} numbers have other shapes than {shapes}")
            for name, value in notes.items():
                if kept.get(name) != value:
                    raise ValueError(f"it has {name} {kept.get(name)!r}, not {value!r}")

        try:
            found, _ = read_tensors(Path(path), check)
            count = int(found["count"])
            if count < 1:
                raise ValueError(f"count must be at least 1, got {count}")
            return cls(count, finite("mean", found["mean"]), finite("scatter", found["scatter"]))
        except (ValueError, OverflowError) as error:
            raise ValueError(f"{str(path)!r} cannot be read as moments, {one_line(error)}: remove it") from None


def frechet_distance(mean_a: Any, cov_a: Any, mean_b: Any, cov_b: Any) -> float:
    r"""The squared 2-Wasserstein distance of two Gaussians, N(mu_a, A) and N(mu_b, B), in D dimensions:

        ||mu_a - mu_b||^2 + Tr(A + B - 2 (A^{1/2} B A^{1/2})^{1/2}),

    as in the Frechet inception distance (Heusel et al., 2017, https://arxiv.org/abs/1706.08500). The last trace is the
    sum of the singular values of B^{1/2} A^{1/2}, which keeps full precision where a covariance is singular.

    Args:
        mean_a: (D,), a tensor or an array.
        cov_a: (D, D), symmetric, no eigenvalue below zero.
        mean_b: (D,).
        cov_b: (D, D), as `cov_a`.

    Returns:
        The squared distance.

    Raises:
        ValueError: shapes that do not fit together, values that are not finite, no covariance.
    """
    mean_a, mean_b = finite("mean_a", mean_a), finite("mean_b", mean_b)
    if mean_a.dim() != 1 or mean_a.shape != mean_b.shape or not len(mean_a):
        raise ValueError(f"mean_a and mean_b must share one shape (D,), got {shape(mean_a)} and {shape(mean_b)}")
    root_a, root_b = _root("cov_a", cov_a, len(mean_a)), _root("cov_b", cov_b, len(mean_b))
    traces = root_a.square().sum() + root_b.square().sum()
    squared = (mean_a - mean_b).square().sum() + traces - 2 * torch.linalg.svdvals(root_b @ root_a).sum()
    return max(float(squared), 0.0)  # rounding may leave -1e-16 of an exact zero


def moments(features: Any) -> tuple[Tensor, Tensor]:
    """Mean (D,) and unbiased covariance (D, D) of samples (B, ...), each flattened to D numbers, in float64.

    Args:
        features: samples, (B, ...).

    Returns:
        The mean, (D,), and the covariance, (D, D).

    Raises:
        ValueError: fewer than two samples, or values that are not finite.
    """
    x = finite("features", features)
    if x.dim() < 2 or len(x) < 2:
        raise ValueError(f"features must be (B, ...) with at least B = 2 samples, got shape {shape(x)}")
    found = Moments.of(x)
    return found.mean, found.covariance


def frechet_between(x: Any, y: Any) -> float:
    """`frechet_distance` between the moments of two sample sets (B, ...) and (C, ...), compared number by number.

    Args:
        x: (B, ...).
        y: (C, ...), or the `Moments` of such samples.

    Returns:
        The squared distance.

    Raises:
        ValueError: samples of two shapes, fewer than two of them, or values that are not finite.
    """
    if isinstance(y, Moments):
        x = finite("x", x)
        if x.dim() < 2 or x[:1].numel() != len(y.mean) or len(x) < 2:
            raise ValueError(f"x must hold at least two samples of {len(y.mean)} numbers, got shape {shape(x)}")
        x, y_mean, y_root, y_trace = x.flatten(1), y.mean, y.root, y.covariance.trace()
    else:
        x, y = two_sets(x, y)
        y_mean, y_root = _mean_and_root(y)
        y_trace = y_root.square().sum()
    x_mean, x_root = _mean_and_root(x)
    crossed = torch.linalg.svdvals(y_root @ x_root.T).sum()
    squared = (x_mean - y_mean).square().sum() + x_root.square().sum() + y_trace - 2 * crossed
    return max(float(squared), 0.0)


def _mean_and_root(x: Tensor) -> tuple[Tensor, Tensor]:
    """The mean (D,) of samples (n, D), and a matrix R with their covariance R^T R: the smaller of (n, D) and (D, D)."""
    mean = x.mean(0)
    root = (x - mean) / (len(x) - 1) ** 0.5
    return mean, root if len(x) <= x.shape[1] else torch.linalg.qr(root).R


def _root(name: str, covariance: Any, size: int) -> Tensor:
    """The symmetric square root of a covariance; eigenvalues within rounding of zero count as zero."""
    covariance = finite(name, covariance)
    if covariance.shape != (size, size):
        raise ValueError(f"{name} must have shape ({size}, {size}) like its mean, got {shape(covariance)}")
    largest = float(covariance.abs().max())
    if not torch.allclose(covariance, covariance.T, atol=1e-8 * largest):
        raise ValueError(f"{name} must be symmetric, as `moments` returns it")
    values, vectors = torch.linalg.eigh((covariance + covariance.T) / 2)
    if float(values[0]) < -1e-6 * float(values[-1]):
        raise ValueError(f"{name} must have no eigenvalue below zero, got {float(values[0]):.3g}; pass a covariance")
    floor = size * torch.finfo(torch.float64).eps * values[-1]
    root: Tensor = vectors * torch.where(values > floor, values, 0.0).sqrt() @ vectors.T
    return root
