"""What a run is measured by, each with its interval."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .._distributed import gathered, share
from ..data import is_picture
from ..metrics import (
    Interval,
    Moments,
    bootstrap,
    collect_features,
    distance,
    frechet_between,
    precision_recall,
    psnr,
    sliced_wasserstein,
)
from ..metrics.sets import discrepancy, kernels, pair_distances

DRAWS = 50  # of the bootstrap
MOST = 1000  # samples, and as many of the target, that distances of all pairs take


@dataclass(frozen=True)
class Metric:
    """A metric of runs: its title, what it compares, and whether more of it is better.

    Attributes:
        title: in tables and pictures.
        text: what the metric compares, in a sentence.
        more_is_better: whether a larger value is better.
    """

    title: str
    text: str
    more_is_better: bool = False


METRICS: dict[str, Metric] = {
    "distance": Metric("distance", "of each sample to the end of the reference run from the same noise, mean"),
    "psnr": Metric("PSNR, dB", "of each picture to that of the reference run from the same noise, mean", True),
    "features": Metric("feature distance", "of each picture to that of the reference run, in features, mean"),
    "energy": Metric("energy distance", "between the samples and the target, of all pairs; about 0 is as good as new"),
    "sliced": Metric("sliced Wasserstein", "between the samples and the target, on random directions"),
    "frechet": Metric("Frechet distance", "between the samples and the target, of means and covariances of features"),
    "kernel": Metric("kernel distance", "between the samples and the target, in features; about 0 is as good as new"),
    "precision": Metric("precision", "share of samples near to some of the target, in features", True),
    "recall": Metric("recall", "share of the target near to some sample, in features", True),
}
"""Every metric of a report by its name in JSON and CSV."""


class Target:
    """The pictures that samples are compared with as a set, (m, ...), and their features.

    Args:
        pictures: data, or the ends of reference runs from other noise.
        features: of pictures.
        moments: of the features of all data, where the pictures are only a part of it.
    """

    def __init__(self, pictures: Tensor, features: Callable[[Tensor], Tensor], moments: Moments | None = None) -> None:
        few = _some(pictures)
        self.pictures, self.of_features = few.double().flatten(1), features
        self.features = features_of_all(features, few)
        self.moments = moments or Moments.of(features_of_all(features, pictures))
        self._within = pair_distances(self.pictures, self.pictures), kernels(self.features, self.features)

    def measure(self, pictures: Tensor) -> dict[str, Interval]:
        """The distances of pictures (n, ...) to the target as sets, by name. The intervals are those of these samples,
        the target being what it is; that of recall is of the target."""
        every = features_of_all(self.of_features, pictures)
        x, f = _some(pictures).double().flatten(1), _some(every)
        near, alike = (
            (pair_distances(x, x), pair_distances(x, self.pictures)),
            (kernels(f, f), kernels(f, self.features)),
        )
        metrics: dict[str, tuple[Callable[[Tensor], float], Tensor]] = {
            "energy": (lambda i: discrepancy(-near[0][i][:, i], -near[1][i], -self._within[0]), x),
            "sliced": (lambda i: sliced_wasserstein(x[i], self.pictures, 64), x),
            "frechet": (lambda i: frechet_between(every[i], self.moments), every),
            "kernel": (lambda i: discrepancy(alike[0][i][:, i], alike[1][i], self._within[1]), f),
        }
        found = {name: bootstrap(metric, torch.arange(len(drawn)), draws=DRAWS)
                 for name, (metric, drawn) in metrics.items()}  # fmt: skip
        if min(len(f), len(self.features)) > 3:
            shares = dict(zip(("precision", "recall"), precision_recall(f, self.features), strict=True))
            found |= {name: mean_of(values) for name, values in shares.items()}
        return found


def _some(samples: Tensor) -> Tensor:
    """All samples (n, ...), or `MOST` of them, evenly chosen."""
    return samples[torch.linspace(0, len(samples) - 1, min(len(samples), MOST), dtype=torch.float64).round().long()]


def measure_pairs(
    samples: Tensor, reference: Tensor, pictures: Tensor, others: Tensor, features: Callable[[Tensor], Tensor] | None
) -> dict[str, Interval]:
    """The distances of samples (n, ...) and of their pictures from those of the reference run, by name; those of
    features where there are any."""
    found = {"distance": mean_of(distance(samples, reference))}
    if is_picture(pictures.shape[1:]):
        values = psnr(pictures, others)
        if values.isfinite().all():
            found["psnr"] = mean_of(values)
    if features is not None:
        of: Any = (features_of_all(features, one) for one in (pictures, others))
        found["features"] = mean_of(distance(*of))
    return found


def mean_of(values: Tensor) -> Interval:
    """The mean of values (n,), with its interval of 95 %."""
    values = values.double()
    return Interval.around(float(values.mean()), float(values.std()) / len(values) ** 0.5)


def features_of_all(features: Callable[[Tensor], Tensor], pictures: Tensor) -> Tensor:
    """The features (n, D) of pictures (n, ...), each found by the process whose share it is."""
    return gathered(collect_features(features, pictures[share(len(pictures))]), len(pictures))
