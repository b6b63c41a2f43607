"""Seeded noise, and the seeds of each purpose.

torch's generator on the CPU uses 32 bits of a seed. They are divided into 16 blocks of 2^28 seeds, and each purpose has
a block of its own:

| block | constant | what its seeds draw |
|---|---|---|
| 0 | | what the caller's own seeds draw; the step noise of plans that the guard compares |
| 1 | `NOISE` | the noise in the data that a plan is tuned on |
| 2 | `DATA` | the states that a model's own samples start from, or the choice among the given data |
| 3 | `HELD_OUT` | the noise that plans are compared on |
| 5, 7 | `STEPS` + 1, + 3 | the step noise of stochastic samplers while they are tuned, and while they are compared |
| 8 | `TEACHER` | the states that the teacher's runs start from, and the order of its pairs |
| 8 .. 15 | `STEP_NOISE` | the step noise of samples on the command line: the sample's own seed + 2^31 |

Block 8 has two purposes that never meet: joint tuning, of deterministic plans, and drawing samples.
"""

from collections.abc import Callable, Sequence
from numbers import Integral
from typing import TypeAlias

import torch
from torch import Tensor

BLOCK = 2**28
"""The number of seeds of a purpose."""

NOISE, DATA, HELD_OUT, STEPS, TEACHER = 1, 2, 3, 4, 8
"""The purposes, which are numbers of blocks."""

STEP_NOISE = 2**31
"""What is added to the seed of a sample, below 2^31, for the noise of its steps."""


Constraint: TypeAlias = Callable[[Tensor], Tensor]
"""A function of noise (B, ...) that returns the noise which a model allows, (B, ...)."""


def first_seed(seed: int, purpose: int) -> int:
    """The first of a million seeds for one purpose; `seed` distinguishes 256 runs."""
    return purpose * BLOCK + seed % 256 * 2**20


class SeededNoise:
    """Standard normal noise in which each sample has a stream of its own, independent of its batch.

    Called with a batch x (B, ...), it returns noise of that shape, dtype and device, other noise at every call. It is
    drawn on the CPU in float32 (float64 for a float64 batch), so that a seed has the same noise on every device.

    Args:
        seeds: one seed for each sample of the batch, or an int s for s, s + 1, s + 2, ...
        constraint: maps noise that was drawn (B, ...) to the noise of the model (B, ...), such as
            `lambda z: z - z.mean(1, keepdim=True)` for particles whose centre stays at 0.

    Raises:
        ValueError: seeds of another kind, or a batch of another size than the list of seeds.
    """

    def __init__(self, seeds: int | Sequence[int] = 0, constraint: Constraint | None = None) -> None:
        self._constraint = constraint
        self._first: int | None = None
        self._generators: list[torch.Generator] = []
        if isinstance(seeds, int | Integral):
            self._first = int(seeds)
        elif not hasattr(seeds, "__iter__"):
            raise ValueError(f"seeds must be a whole number, or one for each sample, got {seeds!r}")
        else:
            self._generators = [torch.Generator().manual_seed(int(seed)) for seed in seeds]
        self._drawn = torch.empty(0, 0)  # noise of this and later calls, (B, calls, ...)
        self._next = 0

    def __call__(self, x: Tensor) -> Tensor:
        if self._first is not None:
            for i in range(len(self._generators), len(x)):
                self._generators.append(torch.Generator().manual_seed(self._first + i))
        elif len(x) != len(self._generators):
            raise ValueError(f"SeededNoise has {len(self._generators)} seeds, but x has a batch of {len(x)}")
        dtype = x.dtype if x.is_complex() or x.dtype == torch.float64 else torch.float32
        drawn = self._drawn
        same = (len(drawn), *drawn.shape[2:], drawn.dtype) == (*x.shape, dtype)
        if not same or self._next == drawn.shape[1]:
            # Twice as many as the last time: calling a generator costs more than a small draw from it.
            count = min(2 * drawn.shape[1], 256, 2**14 // max(1, x[:1].numel())) if same else 1
            shape = (max(1, count), *x.shape[1:])
            draws = [torch.randn(shape, generator=g, dtype=dtype) for g in self._generators[: len(x)]]
            self._drawn = torch.stack(draws) if draws else torch.zeros(0, *shape, dtype=dtype)
            self._next = 0
        self._next += 1
        drawn = self._drawn[:, self._next - 1].to(x)
        return drawn if self._constraint is None else self._constraint(drawn)
