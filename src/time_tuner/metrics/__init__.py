"""How far samples are from where they should be: distances of single samples, and between sample sets.

Without a data set, a plan is measured against a reference run from the same noise: each sample against its partner
(`distance`, `rmse`, `psnr`), or one set against the other (`energy_distance`, `sliced_wasserstein`). With data, the set
is measured against the data in features of a network: `frechet_between`, `kernel_distance`, `precision_recall`.

Means and covariances are `Moments`: in float64, over batches, and mergeable across processes by `+`. The other
distances between sets need the features themselves, (n, D), which are merged by `torch.cat`. `bootstrap` gives every
one of them an interval.

All distances between sets but the kernel and the energy distance are biased: the fewer the samples, the larger they
are. Compare only values from equally many samples.
"""

from .bootstrap import Interval, bootstrap
from .exact import exact_moments
from .features import collect_features, efficientnet_features, inception_features
from .frechet import Moments, frechet_between, frechet_distance, moments
from .pairs import distance, psnr, rmse
from .sets import energy_distance, kernel_distance, precision_recall, sliced_wasserstein

__all__ = [
    "Interval",
    "Moments",
    "bootstrap",
    "collect_features",
    "distance",
    "efficientnet_features",
    "energy_distance",
    "exact_moments",
    "frechet_between",
    "frechet_distance",
    "inception_features",
    "kernel_distance",
    "moments",
    "precision_recall",
    "psnr",
    "rmse",
    "sliced_wasserstein",
]
