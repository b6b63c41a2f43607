"""Seeded noise, and which seeds serve which purpose."""

from collections.abc import Sequence
from numbers import Integral

import torch
from torch import Tensor


class SeededNoise:
    """Standard normal noise in which sample i has a stream of its own, so that the batch it is in does not matter.

    Args:
        seeds: one seed for each sample of the batch, or an int s for s, s + 1, s + 2, ...

    Call it with a batch x (B, ...) for noise of that shape, dtype and device; every call draws on. It is drawn on the
    CPU in float32 (in the dtype of x where that is float64 or complex), so that a seed means the same on every device.
    """

    def __init__(self, seeds: int | Sequence[int] = 0) -> None:
        self._first: int | None = None
        self._generators: list[torch.Generator] = []
        if isinstance(seeds, int | Integral):
            self._first = int(seeds)
        else:
            self._generators = [torch.Generator().manual_seed(int(seed)) for seed in seeds]
        self._ahead = torch.empty(0, 0)  # draws not handed out yet, (B, draws, ...)
        self._next = 0

    def __call__(self, x: Tensor) -> Tensor:
        if self._first is not None:
            for i in range(len(self._generators), len(x)):
                self._generators.append(torch.Generator().manual_seed(self._first + i))
        elif len(x) != len(self._generators):
            raise ValueError(f"SeededNoise was given {len(self._generators)} seeds, but x has a batch of {len(x)}")
        dtype = x.dtype if x.is_complex() or x.dtype == torch.float64 else torch.float32
        held = self._ahead
        same = (len(held), *held.shape[2:], held.dtype) == (*x.shape, dtype)
        if not same or self._next == held.shape[1]:
            # Twice as many as the last time, for calling a generator costs more than a small draw from it.
            count = min(2 * held.shape[1], 256, 2**14 // max(1, x[:1].numel())) if same else 1
            shape = (max(1, count), *x.shape[1:])
            draws = [torch.randn(shape, generator=g, dtype=dtype) for g in self._generators[: len(x)]]
            self._ahead = torch.stack(draws) if draws else torch.zeros(0, *shape, dtype=dtype)
            self._next = 0
        self._next += 1
        return self._ahead[:, self._next - 1].to(x)


NOISE, DATA, HELD_OUT = 1, 2, 3


_BLOCK = 2**28  # torch's generator reads 32 bits of a seed; people's own seeds are in the first block


def first_seed(seed: int, purpose: int) -> int:
    """The first of a million seeds that serve one purpose alone."""
    return purpose * _BLOCK + seed % 256 * 2**20
