"""Exponential integrators in lam, on which DPM-Solver, DPM-Solver++ and DEIS build."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..schedules import Point
from .base import Evaluation, Sampler, check_option


def frame(e: Evaluation, q: Point, data: bool) -> tuple[Tensor, Tensor, Tensor]:
    r"""x, b and hh of x_q = x - b int_0^hh e^{hh - r} m dr, the exact solution from p to q for predictions m.

    With h = lam_q - lam_p and m = eps, x = alpha_q / alpha_p x_p, b = sigma_q, hh = h (DPM-Solver, eq. 3.4); with the
    data as m, x = sigma_q / sigma_p x_p, b = alpha_q, hh = -h (DPM-Solver++, eq. 8).
    """
    h = q.lam - e.p.lam
    if data:
        return q.sigma / e.p.sigma * e.x, q.alpha, -h
    return q.alpha / e.p.alpha * e.x, q.sigma, h


def differences(past: tuple[Evaluation, ...], q: Point, data: bool) -> list[Tensor]:
    """D_n = h^n / n! times the n-th derivative of the prediction in lam, n = 0 .. len(past) - 1 <= 2, by divided
    differences."""
    m = [e.x0 if data else e.eps for e in reversed(past)]
    if len(past) == 1:
        return m
    lam, h = [e.p.lam for e in reversed(past)], q.lam - past[-1].p.lam
    r0 = (lam[0] - lam[1]) / h
    slope = (m[0] - m[1]) / r0
    if len(past) == 2:
        return [m[0], slope]
    r1 = (lam[1] - lam[2]) / h
    second = (slope - (m[1] - m[2]) / r1) / (r0 + r1)
    return [m[0], slope + r0 * second, second]


@dataclass(frozen=True)
class Multistep(Sampler):
    """A solver of order 1, 2 or 3 that looks back on as many calls.

    `lower_order_final`: whether the order is lowered towards the end, to 1 in the last step and at most 2 in the step
    before; None, as in diffusers, for "in runs of fewer than 15 steps".
    """

    order: int = 2
    lower_order_final: bool | None = None

    def __post_init__(self) -> None:
        check_option(self, "order", (1, 2, 3))
        check_option(self, "lower_order_final", (None, True, False))

    @property
    def convergence(self) -> int:
        return self.order

    def look_back(self, step: int, stage: int, steps: int) -> int:
        lower = steps < 15 if self.lower_order_final is None else self.lower_order_final
        return min(self.order, step + 1, steps - step if lower else self.order)


def phi(hh: Tensor) -> list[Tensor]:
    """int_0^hh e^{hh - r} (r / hh)^n / n! dr for n = 0, 1, 2: the weights of a Taylor expansion of the prediction."""
    zeroth = torch.expm1(hh)
    first = zeroth / hh - 1
    return [zeroth, first, first / hh - 0.5]
