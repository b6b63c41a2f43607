"""Euler's method (Karras et al., 2022), https://arxiv.org/abs/2206.00364, and ancestral sampling in its coordinates."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..schedules import Point
from .base import Evaluation, Noise, Sampler


def euler_step(e: Evaluation, q: Point, eps: Tensor) -> Tensor:
    """From e to q by du/ds = eps, in u = x / alpha and s = sigma / alpha: u_q = u_p + (s_q - s_p) eps."""
    a = q.alpha / e.p.alpha
    return a * e.x + (q.sigma - a * e.p.sigma) * eps


@dataclass(frozen=True)
class Euler(Sampler):
    """Euler steps of the probability-flow ODE, which is du/ds = eps in u = x / alpha and s = sigma / alpha.

    Written out it is DDIM (Song et al., 2021, eq. 13): with eta = 0 the two are one sampler.
    """

    def step(self, past: tuple[Evaluation, ...], q: Point, noise: Noise) -> Tensor:
        return euler_step(past[-1], q, past[-1].eps)


@dataclass(frozen=True)
class EulerAncestral(Sampler):
    """An Euler step to s_down = s_q^2 / s_p, then noise of deviation s_up, s_up^2 = s_q^2 - s_down^2, so that the whole
    has deviation s_q; u = x / alpha and s = sigma / alpha. Written out it is DDIM with eta = 1.
    """

    def step(self, past: tuple[Evaluation, ...], q: Point, noise: Noise) -> Tensor:
        e, p = past[-1], past[-1].p
        s_p, s_q = p.sigma / p.alpha, q.sigma / q.alpha
        s_down, s_up = s_q**2 / s_p, s_q * torch.sqrt(-torch.expm1(2 * (p.lam - q.lam)))
        return q.alpha * (e.x / p.alpha + (s_down - s_p) * e.eps + s_up * noise(e.x))
