"""Denoising diffusion implicit models (Song et al., 2021), https://arxiv.org/abs/2010.02502."""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..schedules import Point
from .base import Evaluation, Noise, Sampler


@dataclass(frozen=True)
class DDIM(Sampler):
    r"""DDIM, eq. (12): x_q = alpha_q x_0 + sqrt(sigma_q^2 - s^2) eps + s z, with
    s = eta sigma_q sqrt(1 - e^{2 (lam_p - lam_q)}) and z ~ N(0, I).

    - `eta`: 0 is deterministic; the same rule is Euler's method in sigma / alpha and DPM-Solver++ of order 1. 1 is DDPM
      with the smaller variance, also known as Euler ancestral.
    """

    paper: ClassVar[str] = "Song et al., 2021, https://arxiv.org/abs/2010.02502"
    eta: float = 0.0

    def __post_init__(self) -> None:
        if not (isinstance(self.eta, int | float) and 0 <= self.eta <= 1 and math.isfinite(self.eta)):
            raise ValueError(f"eta of DDIM must be a number from 0 (deterministic) to 1 (DDPM), got {self.eta!r}")

    def step(self, past: tuple[Evaluation, ...], q: Point, noise: Noise) -> Tensor:
        e = past[-1]
        if not self.eta:  # without the square roots below, whose gradient is infinite at 0
            return q.alpha * e.x0 + q.sigma * e.eps
        s = self.eta * q.sigma * torch.sqrt(-torch.expm1(2 * (e.p.lam - q.lam)))
        return q.alpha * e.x0 + torch.sqrt(q.sigma**2 - s**2) * e.eps + s * noise(e.x)
