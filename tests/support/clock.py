"""Clocks for budgets of seconds: one that only a network moves, so that runs are repeatable; and a fast one."""

import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from torch import Tensor

from time_tuner.tuners import base, budget


def run_fast(monkeypatch: pytest.MonkeyPatch, factor: float) -> None:
    """Let the clock of budgets run faster by this factor, as on a machine that is slower by it."""
    fast = SimpleNamespace(
        monotonic=lambda: factor * time.monotonic(), perf_counter=lambda: factor * time.perf_counter()
    )
    for module in (base, budget):
        monkeypatch.setattr(module, "time", fast)


class Clock:
    """Stands still but for the calls of its model, which take these seconds for each sample.

    Args:
        pace: of sample evaluation number n; a number for all of them.
        call: seconds of a call in any case.
    """

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, pace: float | Callable[[int], float], call: float = 0.0
    ) -> None:
        self.now, self.evaluations, self.call = 1000.0, 0, call
        self.pace = pace if callable(pace) else lambda n: pace
        fake = SimpleNamespace(monotonic=lambda: self.now, perf_counter=lambda: self.now)
        for module in (base, budget):
            monkeypatch.setattr(module, "time", fake)

    def __call__(self, model: Any) -> Callable[..., Tensor]:
        """A model whose calls take time, and their backward passes twice as much."""

        def pass_(samples: int) -> None:
            self.now += self.call + samples * self.pace(self.evaluations)
            self.evaluations += samples

        def slow(x: Tensor, t: Any, tau: Any = None) -> Tensor:
            pass_(len(x))
            noise: Tensor = model(x, t, tau)
            if noise.requires_grad:
                noise.register_hook(lambda gradient: pass_(2 * len(x)))
            return noise

        return slow
