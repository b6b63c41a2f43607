"""Heun's method on the probability-flow ODE (Karras et al., 2022), https://arxiv.org/abs/2206.00364, alg. 1."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ..schedules import Point
from .base import Evaluation, Noise, Sampler


def euler_step(e: Evaluation, q: Point, eps: Tensor) -> Tensor:
    """The state at q by Euler's rule u_q = u_p + (s_q - s_p) eps; with eps the prediction at p this is DDIM."""
    a = q.alpha / e.p.alpha
    return a * e.x + (q.sigma - a * e.p.sigma) * eps


@dataclass(frozen=True)
class Heun(Sampler):
    r"""In u = x / alpha and s = sigma / alpha the ODE is du/ds = eps. A step from p to q takes two calls: an Euler
    step, then the mean of eps at both ends, u_q = u_p + (s_q - s_p) (eps_p + eps_q) / 2. A step to sigma = 0 has one
    call.
    """

    paper: ClassVar[str] = "Karras et al., 2022, https://arxiv.org/abs/2206.00364"
    convergence = 2

    def steps(self, calls: int, to_zero: bool = True) -> tuple[int, ...]:
        if calls % 2 != to_zero:
            kind = "odd" if to_zero else "even"
            near = " or ".join(str(n) for n in (calls - 1, calls + 1) if n > 0)
            end = "0" if to_zero else "t > 0"
            raise ValueError(f"calls of Heun must be {kind} in a run down to {end}, got {calls}: take {near}")
        return (2,) * (calls // 2) + (1,) * (calls % 2)

    def stages(self, calls: int) -> tuple[float, ...]:
        return (0.0, 1.0)[:calls]

    def step(self, past: tuple[Evaluation, ...], q: Point, noise: Noise) -> Tensor:
        eps = past[0].eps if len(past) == 1 else (past[0].eps + past[1].eps) / 2
        return euler_step(past[0], q, eps)
