"""UniPC, a predictor-corrector of any order (Zhao et al., 2023), https://arxiv.org/abs/2302.04867."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..schedules import Point
from .base import Evaluation, Noise, Sampler, check_option


@dataclass(frozen=True)
class UniPC(Sampler):
    r"""UniP with UniC, data prediction, h = lam_q - lam_p:

    x_q = sigma_q / sigma_p x_p - alpha_q (e^{-h} - 1) D0 - alpha_q B(h) sum_m a_m D_m / r_m,

    with D0 the newest x0, D_m the differences of older ones to it, r_m their distances in lam over h, and the a_m from
    the order conditions (eq. 7 and 9). The corrector repeats the step with the x0 predicted at its end as one more
    difference (r = 1), without another call. The order is lower in the first steps and in the last ones.

    - `solver_type`: B(h), -h ("bh1") or e^{-h} - 1 ("bh2"). It changes steps with one difference alone, whose weight is
      1/2 (app. F).
    - `corrector`: whether UniC follows UniP.
    """

    paper: ClassVar[str] = "Zhao et al., 2023, https://arxiv.org/abs/2302.04867"
    order: int = 2
    solver_type: str = "bh2"
    corrector: bool = True

    def __post_init__(self) -> None:
        check_option(self, "order", (1, 2, 3))
        check_option(self, "solver_type", ("bh1", "bh2"))
        check_option(self, "corrector", (True, False))

    @property
    def convergence(self) -> int:
        return self.order + self.corrector  # the corrector raises it by one

    def look_back(self, step: int, stage: int, steps: int) -> int:
        return min(self.order, step + 1, steps - step)

    def step(self, past: tuple[Evaluation, ...], q: Point, noise: Noise) -> Tensor:
        return self._update(past, q)

    def correct(self, past: tuple[Evaluation, ...]) -> Tensor | None:
        return self._update(past[:-1], past[-1].p, end=past[-1]) if self.corrector else None

    def _update(self, past: tuple[Evaluation, ...], q: Point, end: Evaluation | None = None) -> Tensor:
        e, p = past[-1], past[-1].p
        h = q.lam - p.lam
        nodes = [*past[:-1], *([end] if end else [])]
        x = q.sigma / p.sigma * e.x - q.alpha * torch.expm1(-h) * e.x0
        if not nodes:
            return x
        r = torch.stack([(node.p.lam - p.lam) / h for node in nodes])
        b = -h if self.solver_type == "bh1" else torch.expm1(-h)
        for w, rm, node in zip(_weights(r, -h, b), r, nodes, strict=True):
            x = x - q.alpha * b * w / rm * (node.x0 - e.x0)
        return x


def _weights(r: Tensor, hh: Tensor, b: Tensor) -> Tensor:
    """The a_m of the order conditions sum_m a_m r_m^{i-1} = i! phi_{i+1}(hh) hh / b, i = 1 .. len(r), for r (M,)."""
    if len(r) == 1:  # the paper's choice: the condition then holds to its order for every h
        return torch.full((1,), 0.5, dtype=r.dtype)
    phi, factorial, conditions = torch.expm1(hh) / hh - 1, 1, []
    for i in range(1, len(r) + 1):
        conditions.append(phi * factorial / b)
        factorial *= i + 1
        phi = phi / hh - 1 / factorial
    powers = torch.stack([r**i for i in range(len(r))])
    solution: Tensor = torch.linalg.solve(powers, torch.stack(conditions))
    return solution
