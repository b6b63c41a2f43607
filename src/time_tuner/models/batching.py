"""A model that is called with any number of samples, a batch at a time."""

import logging
import re
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from .._checks import check_int
from .._distributed import num_processes
from ..schedules import as_float64
from .base import Model, ModelAround, for_rows

Part = TypeVar("Part")

FULL = re.compile("out of memory|can't allocate memory|not enough memory", re.IGNORECASE)
"""In the messages of RuntimeErrors: of the CPU, and of devices whose allocator has no error of its own."""

logger = logging.getLogger("time_tuner")


class BatchedModel(ModelAround):
    """A model of any number of samples, in network calls of at most `batch` samples each (None: all there are).

    Row i is under condition i modulo the number of conditions. Where the device runs out of memory `batch` is halved,
    also that of the models which `select` has returned; a log message says so, once for each size. Of several processes
    that share work each makes network calls of its part of `batch`, so that as many calls are made as by one.
    """

    def __init__(self, inner: Model, batch: int | None = None) -> None:
        super().__init__(inner)
        self._batch = [None if batch is None else check_int("batch", batch, 1)]  # shared by copies
        self._fits: list[int | None] = [None]  # samples in a call of this process, where the memory was short

    @property
    def batch(self) -> int | None:
        """The most samples in a network call."""
        return self._batch[0]

    def halve(self, samples: int) -> None:
        """Make no more calls of so many samples, for which the memory is not enough."""
        self._fits[0] = samples // 2
        if num_processes() == 1:  # of several all count with the same number
            self._batch[0] = samples // 2
        logger.warning("the memory is not enough for %d samples in a call: continuing with %d", samples, samples // 2)

    def predict(self, quantity: str, x: Tensor, t: Any, tau: Any = None) -> Tensor:
        parts = self._each(x, t, tau, lambda model, x, t, tau: model.predict(quantity, x, t, tau))
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def parts(
        self, quantity: str, x: Tensor, t: Any, tau: Any = None, guided: bool = True
    ) -> tuple[Tensor, Tensor | None]:
        parts = self._each(x, t, tau, lambda model, x, t, tau: model.parts(quantity, x, t, tau, guided))
        if len(parts) == 1:
            return parts[0]
        added = [one for _, one in parts if one is not None]
        return torch.cat([one for one, _ in parts]), torch.cat(added) if added else None

    def _each(self, x: Tensor, t: Any, tau: Any, predict: Callable[[Model, Tensor, Any, Any], Part]) -> list[Part]:
        """What the model predicts for batch after batch."""
        parts: list[Part] = []
        first, own = 0, -(-(self.batch or len(x)) // (num_processes() if self.batch else 1))
        while first < len(x):
            last = min(first + (self._fits[0] or own), len(x))
            try:
                whole = last - first == len(x) == self.num_conditions
                model = self.inner if whole else for_rows(self.inner, torch.arange(first, last))
                times = [one[first:last] if isinstance(one, Tensor) and one.dim() else one for one in (t, tau)]
                parts.append(predict(model, x[first:last], *times))
            except (RuntimeError, MemoryError) as error:
                if last - first == 1 or not is_memory_full(error):
                    raise
                too_many = last - first
            else:
                first, too_many = last, 0
            if too_many:  # outside of `except`, where the error would keep the memory of the call
                self.halve(too_many)
        return parts


def is_memory_full(error: BaseException) -> bool:
    """Whether a device, or the machine itself, has too little memory for what was tried."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or bool(FULL.search(str(error)))


def predict_each(
    model: Model, xs: Sequence[Tensor], ts: Sequence[Tensor], taus: Sequence[Tensor]
) -> tuple[Tensor, ...]:
    """The noise in several states (B, ...), each at a time of its own, in calls that hold several of them."""
    if not xs:
        return ()
    if len(xs) == 1:
        return (model(xs[0], ts[0], taus[0]),)
    size = len(xs[0])
    t, tau = (torch.stack([as_float64(one) for one in times]).repeat_interleave(size) for times in (ts, taus))
    predictions: tuple[Tensor, ...] = model(torch.cat(list(xs)), t, tau).split(size)
    return predictions


def accepts_times(model: Model, x: Tensor, t: Tensor) -> bool:
    """Whether a model accepts a time for each sample, (B,), and predicts with it what it predicts with one for all."""
    if len(x) < 2:
        return False
    model, x, times = for_rows(model, torch.arange(2)), x[:2], torch.stack([t, 0.75 * t])
    try:
        both = model(x, times, times)
        each = torch.stack([model(x, one, one)[i] for i, one in enumerate(times)])
        return bool(both.shape == x.shape and torch.allclose(both, each, rtol=1e-3, atol=1e-4))
    except Exception:  # whatever a function of the user's raises: steps are then tuned one at a time
        return False
