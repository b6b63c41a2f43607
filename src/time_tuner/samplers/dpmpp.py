"""DPM-Solver++, multistep (Lu et al., 2022), https://arxiv.org/abs/2211.01095."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..schedules import Point
from .base import Evaluation, Noise, Sampler, check_option


@dataclass(frozen=True)
class DPMSolverPP(Sampler):
    r"""Data-prediction multistep solver of order 1, 2 (alg. 2) or 3, with h = lam_q - lam_p and phi_1 = e^{-h} - 1:

    x_q = sigma_q / sigma_p x_p - alpha_q phi_1 D0 - alpha_q phi_1 / 2 D1 (order 2), or
    ... + alpha_q (phi_1 / h + 1) D1 - alpha_q ((phi_1 + h) / h^2 - 1/2) D2 (order 3), where D0 is the newest x0 and
    D1, D2 are divided differences of the last two or three x0 in lam, scaled by h and h^2.

    `lower_order_final` lowers the order towards the end (1 at the last step, 2 at the one before): True, False, or
    None for "in runs of fewer than 15 steps", as diffusers has it.

    The published curvature term (D2) carries half the weight of the Taylor expansion, so that the order measured for
    `order=3` is 2.
    """

    order: int = 2
    lower_order_final: bool | None = None

    def __post_init__(self) -> None:
        check_option(self, "order", (1, 2, 3))
        check_option(self, "lower_order_final", (None, True, False))

    @property
    def convergence(self) -> int:
        return min(self.order, 2)

    def look_back(self, step: int, stage: int, steps: int) -> int:
        lower = steps < 15 if self.lower_order_final is None else self.lower_order_final
        return min(self.order, step + 1, steps - step if lower else self.order)

    def step(self, past: tuple[Evaluation, ...], q: Point, noise: Noise) -> Tensor:
        e, p = past[-1], past[-1].p
        h = q.lam - p.lam
        phi_1 = torch.expm1(-h)
        x = q.sigma / p.sigma * e.x - q.alpha * phi_1 * e.x0
        if len(past) == 1:
            return x
        r0 = (p.lam - past[-2].p.lam) / h
        slope = (e.x0 - past[-2].x0) / r0
        if len(past) == 2:
            return x - q.alpha * phi_1 / 2 * slope
        r1 = (past[-2].p.lam - past[-3].p.lam) / h
        older = (past[-2].x0 - past[-3].x0) / r1
        curvature = (slope - older) / (r0 + r1)
        slope = slope + r0 * curvature
        return x + q.alpha * (phi_1 / h + 1) * slope - q.alpha * ((phi_1 + h) / h**2 - 0.5) * curvature
