"""The model as tuners call it: counted, a batch at a time, and of several steps at once."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from .._checks import check_int
from ..sampling import Eps
from ..schedules import as_float64
from ..tuners.budget import CostLog


def select(eps: Eps, rows: Tensor) -> Eps:
    """The model for some samples of its batch: those conditions that belong to them."""
    part = getattr(eps, "select", None)
    taken: Eps = eps if part is None else part(rows)
    return taken


class BatchedModel:
    """`eps(x, t, tau)` of any number of samples, in network calls of at most `batch` samples each.

    Args:
        eps: the model.
        batch: the most samples in a call; None: all there are. Where the device runs out of memory it is halved.
        cost_log: where calls are booked.
    """

    def __init__(self, eps: Eps, batch: int | None = None, cost_log: CostLog | None = None) -> None:
        self.eps, self.batch = eps, None if batch is None else check_int("batch", batch, 1)
        self.cost_log = CostLog() if cost_log is None else cost_log

    def __getattr__(self, name: str) -> Any:
        if name == "eps":  # while it is being copied
            raise AttributeError(name)
        found = getattr(self.eps, name)  # its schedule and shape, where it has them
        return partial(self._asked, "x0") if name == "x0" else found

    def select(self, rows: Tensor) -> "BatchedModel":
        """The same for some samples of the batch."""
        return BatchedModel(select(self.eps, rows), self.batch, self.cost_log)

    def __call__(self, x: Tensor, t: Any, tau: Any = None) -> Tensor:
        return self._asked("eps", x, t, tau)

    def _asked(self, unit: str, x: Tensor, t: Any, tau: Any = None) -> Tensor:
        return self._call(x, t, t if tau is None else tau, len(x), unit)

    def each(self, xs: Sequence[Tensor], ts: Sequence[Tensor], taus: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """What the network says of several states (B, ...), each at a time of its own, in calls that hold several."""
        if not xs:
            return ()
        size = len(xs[0])
        if len(xs) == 1:
            return (self._call(xs[0], ts[0], taus[0], size),)
        t, tau = (torch.stack([as_float64(one) for one in times]).repeat_interleave(size) for times in (ts, taus))
        said: tuple[Tensor, ...] = self._call(torch.cat(list(xs)), t, tau, size).split(size)
        return said

    def takes_times(self, x: Tensor, t: Tensor) -> bool:
        """Whether the model takes a time for each sample, (B,), and means by it what it means by one for all."""
        if len(x) < 2:
            return False
        rows = torch.arange(2)
        eps, x, times = select(self.eps, rows), x[:2], torch.stack([t, 0.75 * t])
        try:
            both = self.cost_log.count(eps(x, times, times))
            each = [self.cost_log.count(eps(x, one, one)) for one in times]
            alone = torch.stack([said[i] for i, said in enumerate(each)])
            return bool(both.shape == x.shape and torch.allclose(both, alone, rtol=1e-3, atol=1e-4))
        except Exception:  # whatever a function of the user's makes of it: steps are then taken one at a time
            return False

    def _call(self, x: Tensor, t: Any, tau: Any, size: int, unit: str = "eps") -> Tensor:
        """`size` is how many samples the conditions are for; x may hold several times as many."""
        parts: list[Tensor] = []
        first = 0
        while first < len(x):
            batch = self.batch or len(x)
            last = min(first + batch, len(x))
            try:
                parts.append(self._part(x, t, tau, size, first, last, unit))
            except torch.OutOfMemoryError:
                if batch == 1:
                    raise
                self.batch = max(1, (last - first) // 2)
                continue
            first = last
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _part(self, x: Tensor, t: Any, tau: Any, size: int, first: int, last: int, unit: str) -> Tensor:
        whole = last - first == size == len(x)
        eps = self.eps if whole else select(self.eps, torch.arange(first, last) % size)
        times = [one[first:last] if isinstance(one, Tensor) and one.dim() else one for one in (t, tau)]
        ask = eps if unit == "eps" else getattr(eps, unit)
        said: Tensor = self.cost_log.count(ask(x[first:last], *times))
        return said
