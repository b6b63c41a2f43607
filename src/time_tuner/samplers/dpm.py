"""Singlestep DPM-Solver (Lu et al., 2022), https://arxiv.org/abs/2206.00927, and DPM-Solver++: several calls a step."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ..schedules import Point
from .base import Evaluation, Noise, Sampler, check_option
from .exponential import frame, phi


@dataclass(frozen=True)
class DPMSolver(Sampler):
    r"""Singlestep solver on the noise prediction: a step of order n takes n calls (alg. 1 and 2), at p and at the
    fractions r of h = lam_q - lam_p, r = 1/2 for order 2, 1/3 and 2/3 for order 3. With phi_1 = e^h - 1:

    x_q = alpha_q / alpha_p x_p - sigma_q phi_1 eps_p - sigma_q phi_1 / (2 r) (eps_r - eps_p) (order 2), or
    ... - sigma_q (phi_1 / h - 1) / r (eps_r - eps_p) with the call at r = 2/3 (order 3). The state at 1/2 or 1/3 is
    that of order 1, the state at 2/3 a step from p with the call at 1/3, whose weight `stage_weight` names.

    Calls that remain after whole steps make a step of lower order (8 calls of order 3: 3, 3, 2), and the last step to
    sigma = 0 has one call.

    - `stage_weight`: of the state at 2/3, and of a last step of two calls in runs of order 3. "taylor" is
      (phi_1 / h - 1) / r, as in alg. 2; "midpoint" is phi_1 / (2 r), as in diffusers. The former is nearer to the
      solution in most runs, see `benchmarks/singlestep.py`.
    """

    paper: ClassVar[str] = "Lu et al., 2022, https://arxiv.org/abs/2206.00927"
    order: int = 2
    stage_weight: str = "taylor"
    data: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_option(self, "order", (1, 2, 3))
        check_option(self, "stage_weight", ("taylor", "midpoint"))

    @property
    def convergence(self) -> int:
        return self.order

    def steps(self, calls: int, to_zero: bool = True) -> tuple[int, ...]:
        whole, rest = divmod(calls - to_zero, self.order)
        return (self.order,) * whole + (rest,) * (rest > 0) + (1,) * to_zero

    def stages(self, calls: int) -> tuple[float, ...]:
        return tuple(i / calls for i in range(calls))

    def step(self, past: tuple[Evaluation, ...], q: Point, noise: Noise) -> Tensor:
        p, last = past[0], past[-1]
        x, b, hh = frame(p, q, self.data)
        m, newest = (e.x0 if self.data else e.eps for e in (p, last))
        w = phi(hh)
        x = x - b * w[0] * m
        if len(past) == 1:
            return x
        r = (last.p.lam - p.p.lam) / (q.lam - p.p.lam)
        midpoint = len(past) == 2 and (self.order == 2 or self.stage_weight == "midpoint")
        return x - b * (w[0] / 2 if midpoint else w[1]) / r * (newest - m)


@dataclass(frozen=True)
class DPMSolverPPSingle(DPMSolver):
    """The same rule for the data prediction (Lu et al., 2022, https://arxiv.org/abs/2211.01095, alg. 1 for order 2):
    x0 for eps, alpha and sigma exchanged, -h for h."""

    paper: ClassVar[str] = "Lu et al., 2022, https://arxiv.org/abs/2211.01095"
    data: ClassVar[bool] = True
