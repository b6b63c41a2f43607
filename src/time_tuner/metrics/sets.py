"""Distances between two sample sets (n, ...) and (m, ...): of samples, or of their features.

Those of all pairs hold matrices (n, n), (n, m) and (m, m) in memory.
"""

from typing import Any

import torch
from torch import Tensor

from .._checks import check_int
from ._tensors import two_sets

AT_ONCE = 1024  # rows of a matrix of all pairs


def energy_distance(x: Any, y: Any) -> float:
    """The energy distance 2 E|x - y| - E|x - x'| - E|y - y'| of two sample sets (n, ...) and (m, ...), without bias.

    The pairs x, x' are of two different samples, so that the mean is 0 for samples of one distribution, and a value may
    be below it (Szekely and Rizzo, 2013, https://doi.org/10.1016/j.jspi.2013.03.018).

    Args:
        x: a set, (n, ...).
        y: a set, (m, ...).

    Returns:
        The distance, not squared.

    Raises:
        ValueError: samples of two shapes, fewer than two of them, or values that are not finite.
    """
    x, y = two_sets(x, y)
    return discrepancy(-pair_distances(x, x), -pair_distances(x, y), -pair_distances(y, y))


def sliced_wasserstein(x: Any, y: Any, directions: int = 256, seed: int = 0) -> float:
    """The sliced 2-Wasserstein distance of two sample sets (n, ...) and (m, ...) (Bonneel et al., 2015,
    https://doi.org/10.1007/s10851-014-0506-3).

    It is the root of the mean over random directions of the squared 2-Wasserstein distance of the projections, each of
    which is exact. Sets that are d apart, but otherwise the same, have |d| / sqrt(D) on average.

    Args:
        x: a set, (n, ...).
        y: a set of any size, (m, ...).
        directions: of projection; the same ones for the same number, seed and size of a sample.
        seed: of the directions.

    Returns:
        The distance.

    Raises:
        ValueError: as for `energy_distance`.
    """
    x, y = two_sets(x, y)
    draw = torch.Generator().manual_seed(seed)
    axes = torch.randn(x.shape[1], check_int("directions", directions, 1), generator=draw, dtype=torch.float64)
    axes /= axes.norm(dim=0)
    n, m = len(x), len(y)
    # Both quantile functions are steps, x's at multiples of m and y's at multiples of n, of n m.
    ends = torch.cat([torch.arange(n + 1) * m, torch.arange(m + 1) * n]).unique()
    begins = ends[:-1]
    apart = (x @ axes).sort(0).values[begins // m] - (y @ axes).sort(0).values[begins // n]
    widths = ends.diff().double() / (n * m)
    return float((widths @ apart.square()).mean().sqrt())


def kernel_distance(x: Any, y: Any) -> float:
    """The squared maximum mean discrepancy with the kernel (x . y / D + 1)^3, without bias, of two sets of features
    (n, D) and (m, D): the kernel inception distance where these are Inception's (Binkowski et al., 2018,
    https://arxiv.org/abs/1801.01401).

    Over all samples at once, of any two numbers, where others average over random subsets. The mean is 0 for samples of
    one distribution, and a value may be below it.

    Args:
        x: features of samples, (n, D).
        y: features of data, (m, D).

    Returns:
        The squared discrepancy.

    Raises:
        ValueError: as for `energy_distance`.
    """
    x, y = two_sets(x, y)
    return discrepancy(kernels(x, x), kernels(x, y), kernels(y, y))


def precision_recall(x: Any, y: Any, neighbours: int = 3) -> tuple[Tensor, Tensor]:
    """Precision of each of the samples, (n,), and recall of each of the data, (m,), 0 or 1: their means are precision
    and recall (Kynkaanniemi et al., 2019, https://arxiv.org/abs/1904.06991).

    A sample is precise where it lies in a ball around some data point, through that point's k-th nearest neighbour
    among the data; a data point is recalled where it lies in such a ball around a sample.

    Args:
        x: features of samples, (n, ...).
        y: features of data, (m, ...).
        neighbours: k.

    Returns:
        Precision of each sample, (n,), and recall of each of the data, (m,).

    Raises:
        ValueError: samples of two shapes, no more of them than `neighbours`, or values that are not finite.
    """
    k = check_int("neighbours", neighbours, 1)
    x, y = two_sets(x, y, k + 1)
    return _within_balls(x, y, k), _within_balls(y, x, k)


def _within_balls(x: Tensor, y: Tensor, k: int) -> Tensor:
    """1 for each x in a ball around some y through the k-th neighbour of y, else 0; float64 (n,)."""
    # The nearest neighbour of a point among all is the point itself.
    radii = torch.cat([pair_distances(part, y).kthvalue(k + 1, dim=1).values for part in y.split(AT_ONCE)])
    return torch.cat([(pair_distances(part, y) <= radii).any(1) for part in x.split(AT_ONCE)]).double()


def pair_distances(x: Tensor, y: Tensor) -> Tensor:
    """|x_i - y_j| of samples (n, D) and (m, D), (n, m), without the products that lose precision between near ones."""
    return torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist")


def kernels(x: Tensor, y: Tensor) -> Tensor:
    """(x_i . y_j / D + 1)^3 of samples (n, D) and (m, D), (n, m)."""
    return (x @ y.T / x.shape[1] + 1).pow(3)


def discrepancy(within_x: Tensor, across: Tensor, within_y: Tensor) -> float:
    """E h(x, x') + E h(y, y') - 2 E h(x, y) over pairs of two different samples, from the matrices of h, (n, n), (n, m)
    and (m, m): with a kernel h the squared maximum mean discrepancy, with h = -|x - y| the energy distance."""
    own = sum((float(h.sum()) - float(h.trace())) / (len(h) * (len(h) - 1)) for h in (within_x, within_y))
    return own - 2 * float(across.mean())
