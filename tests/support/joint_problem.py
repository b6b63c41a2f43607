"""The problem that joint tuning is tested on: a mixture of twelve narrow Gaussians in four dimensions."""

from functools import cache
from typing import Any

import torch
from helpers import seeded
from torch import Tensor

from time_tuner import (
    NoiseScheduleVP,
    Plan,
    SeededNoise,
    model_wrapper,
    named_betas,
    rescale_zero_terminal_snr,
    sample,
)
from time_tuner.models.base import as_model
from time_tuner.models.batching import BatchedModel
from time_tuner.models.counting import CostLog
from time_tuner.models.exact import Mixture
from time_tuner.plans.build import reference_plan
from time_tuner.tuners import Calibration, TuningRun
from time_tuner.tuners.joint.loss import TeacherLoss, robust
from time_tuner.tuners.joint.teacher import Pairs

SMOOTH = NoiseScheduleVP("linear")
POINTS = seeded(12, 4, seed=3)
MIXTURE = Mixture(POINTS, 0.15)
EPS = MIXTURE.eps(SMOOTH)
ZERO_SNR = NoiseScheduleVP(alphas_cumprod=rescale_zero_terminal_snr(named_betas("scaled_linear", 1000)))
QUICK: dict[str, Any] = {"shape": (4,), "pairs": 96, "iterations": 24, "candidates": 1, "guard": False}


def distance_to_teacher(plan: Plan, n: int = 400) -> float:
    """On noise that tuning never has: its seeds are in other blocks."""
    x, end = _reference(n, float(plan.t[-1]))
    return float((sample(EPS, plan, x) - end).norm(dim=1).mean())


@cache
def _reference(n: int, last: float) -> tuple[Tensor, Tensor]:
    x = SeededNoise(123)(torch.empty(n, 4))
    return x, sample(EPS, reference_plan(SMOOTH, last, 100), x)


def loss_of(eps: Any, count: int = 64) -> TeacherLoss:
    """On pairs in float64, for derivatives by differences."""
    x = seeded(count, 4).double()
    return TeacherLoss(
        BatchedModel(as_model(eps, SMOOTH)),
        Pairs(x, sample(EPS, reference_plan(SMOOTH, SMOOTH.t_min, 60), x)),
        robust,
        CostLog(),
    )


def x0_network(x: Tensor, t: Tensor) -> Tensor:
    """A network that predicts x0: the noise that follows from it depends on the solver's time too."""
    p = SMOOTH.at(tau := SMOOTH.from_network_time(t.double()))
    shape = (-1, *(1,) * (x.dim() - 1))
    return (x - p.sigma.view(shape) * EPS(x, tau, tau)) / p.alpha.view(shape)


def one_time(x: Tensor, t: Tensor, tau: Tensor) -> Tensor:
    """A model that accepts one time for all samples, not one for each."""
    assert not tau.dim()
    return EPS(x, t, tau)


def x0_of_one_time(x: Tensor, t: Tensor, tau: Tensor) -> Tensor:
    assert not tau.dim() and not t.dim()
    return model_wrapper(x0_network, SMOOTH, model_type="x_start").bind()(x, t, tau)


def counted(calls: list[int]) -> Any:
    """The model, which notes the samples of each call."""

    def eps(x: Tensor, t: Tensor, tau: Tensor) -> Tensor:
        calls.append(len(x))
        return EPS(x, t, tau)

    return eps


def run_on(shape: tuple[int, ...] = (4,), seed: int = 0, **how: Any) -> TuningRun:
    """A run of a tuner on this calibration."""
    return TuningRun(Calibration(EPS, SMOOTH, samples=2, seed=seed, shape=shape), **how)
