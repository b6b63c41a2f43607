"""Tuning runs on a mixture of three narrow Gaussians in the plane, and a model that counts its own calls."""

from typing import Any

import pytest
import torch
from helpers import tune_by
from torch import Tensor

from time_tuner import NoiseScheduleVP, Plan, exact, make_plan

SCHEDULE = NoiseScheduleVP("discrete", betas=torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64))
MIXTURE = exact.Mixture(torch.tensor([[2.0, 0.0], [-1.0, 1.5], [0.5, -2.0]]), 0.2)
EPS = MIXTURE.eps(SCHEDULE)
DATA = MIXTURE.sample(64, seed=3)
METHODS = pytest.mark.parametrize("method", ["sequential", "parallel"])


class Counted:
    """A model that counts its calls, apart from the library's own count."""

    schedule, shape = SCHEDULE, (2,)

    def __init__(self) -> None:
        self.calls = self.evaluations = self.largest = 0
        self.predict = EPS

    def __call__(self, x: Tensor, t: Any, tau: Any = None) -> Tensor:
        self.calls += 1
        self.evaluations += len(x)
        self.largest = max(self.largest, len(x))
        noise = self.predict(x, t, tau)
        if noise.requires_grad:
            noise.register_hook(self._backward)
        return noise

    def _backward(self, gradient: Tensor) -> None:
        self.calls += 2
        self.evaluations += 2 * len(gradient)


def quadratic(calls: int = 5) -> Plan:
    return make_plan("ddim", SCHEDULE, calls, "quadratic")


def tuned(eps: Any = EPS, plan: Plan | None = None, method: str = "sequential", **options: Any) -> Plan:
    return tune_by(eps, plan or quadratic(), method, **{"data": DATA, "samples": 64, "guard": False, **options})


class Interrupt(BaseException):
    """Stops a run as Ctrl-C does."""
