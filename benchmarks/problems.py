"""The problems that benchmarks run on, each with a way to count what a method costs."""

from dataclasses import dataclass
from typing import Any

import torch
from sklearn.datasets import load_digits
from torch import Tensor

from time_tuner import NoiseScheduleVP, exact
from time_tuner.schedules import NoiseSchedule


def linear_schedule() -> NoiseScheduleVP:
    return NoiseScheduleVP("discrete", betas=torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64))


def exact_digits() -> exact.Mixture:
    """scikit-learn's 1797 digits, x / 8 - 1 in 64 dimensions, blurred by 0.1: the data set's own denoiser."""
    return exact.Mixture(torch.tensor(load_digits().data) / 8 - 1, 0.1)


@dataclass
class Counted:
    """A model that counts sample evaluations: batch x forward, and a backward as two forwards."""

    eps: Any
    schedule: NoiseSchedule
    shape: tuple[int, ...]
    evaluations: int = 0

    def __call__(self, x: Tensor, t: Any, tau: Any = None) -> Tensor:
        self.evaluations += len(x)
        said: Tensor = self.eps(x, t, tau)
        if said.requires_grad:
            said.register_hook(self._backward)
        return said

    def _backward(self, gradient: Tensor) -> None:
        self.evaluations += 2 * len(gradient)


@dataclass
class InBfloat16:
    """A model whose network runs in bfloat16 autocast; it answers in the dtype of the state."""

    eps: Any

    def __getattr__(self, name: str) -> Any:
        if name == "eps":  # while it is being made
            raise AttributeError(name)
        return getattr(self.eps, name)

    def take(self, rows: Tensor) -> "InBfloat16":
        """The same for some samples of the batch."""
        return InBfloat16(self.eps.take(rows))

    def __call__(self, x: Tensor, t: Any, tau: Any = None) -> Tensor:
        with torch.autocast(x.device.type, dtype=torch.bfloat16):
            return self.eps(x, t, tau).to(x)
