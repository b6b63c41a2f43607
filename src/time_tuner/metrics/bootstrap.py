"""Intervals of metrics, by drawing the samples again."""

from collections.abc import Callable
from dataclasses import dataclass
from statistics import NormalDist

import torch
from torch import Tensor

from .._checks import check_int


@dataclass(frozen=True)
class Interval:
    """A value, and the interval from `low` to `high` that holds the true one with some probability.

    Attributes:
        value: the value.
        low: the lower end.
        high: the upper end.
    """

    value: float
    low: float
    high: float

    @property
    def error(self) -> float:
        """Half of the interval."""
        return (self.high - self.low) / 2

    @classmethod
    def around(cls, value: float, std: float, level: float = 0.95) -> "Interval":
        """The interval of a value with this standard deviation, taken as normal."""
        if not 0 < level < 1:
            raise ValueError(f"level must be a probability between 0 and 1, got {level!r}")
        error = NormalDist().inv_cdf((1 + level) / 2) * std
        return cls(value, value - error, value + error)


def bootstrap(
    metric: Callable[..., float], *sets: Tensor, draws: int = 100, seed: int = 0, level: float = 0.95
) -> Interval:
    """The value of a metric of sample sets, with its interval by the bootstrap (Efron, 1979,
    https://doi.org/10.1214/aos/1176344552).

    Each set is drawn again from itself, with replacement; the interval has the standard deviation of the metric over
    these draws, around its value. Their quantiles are not taken: sets that are drawn again are less diverse, which
    moves the distances between sets, all of them upwards.

    Args:
        metric: a number of these sets, such as `energy_distance`.
        sets: (n, ...), each drawn on its own; what is not to be drawn again belongs into the metric.
        draws: how many times.
        seed: of the draws.
        level: the probability of the interval.

    Returns:
        The value and its interval.

    Raises:
        ValueError: fewer than two draws, or a level that is no probability.
    """
    draws = check_int("draws", draws, 2)
    generator = torch.Generator().manual_seed(seed)

    def again(samples: Tensor) -> Tensor:
        return samples[torch.randint(len(samples), (len(samples),), generator=generator)]

    drawn = torch.tensor([metric(*map(again, sets)) for _ in range(draws)], dtype=torch.float64)
    return Interval.around(metric(*sets), float(drawn.std()), level)
