"""Diffusion exponential integrator sampler (Zhang & Chen, 2023), https://arxiv.org/abs/2204.13902."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ..schedules import Point
from .base import Evaluation, Noise
from .exponential import Multistep, differences, frame, phi


@dataclass(frozen=True)
class DEIS(Multistep):
    r"""Multistep solver of order 1, 2 or 3 (eq. 13-15): with rho = sigma / alpha,

    x_q / alpha_q = x_p / alpha_p + int_{rho_p}^{rho_q} P(rho) drho,

    where P goes through the last `order` predictions of the noise. As in diffusers P is a polynomial in log rho = -lam
    (the paper's tAB takes one in t), for which the integral is a closed form. `lower_order_final`: see `Multistep`.
    """

    paper: ClassVar[str] = "Zhang & Chen, 2023, https://arxiv.org/abs/2204.13902"

    def step(self, past: tuple[Evaluation, ...], q: Point, noise: Noise) -> Tensor:
        x, b, hh = frame(past[-1], q, data=False)
        for d, w, factorial in zip(differences(past, q, data=False), phi(hh), (1, 1, 2), strict=False):
            x = x - factorial * b * w * d
        return x
