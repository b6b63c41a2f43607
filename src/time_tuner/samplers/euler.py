"""Euler's method (Karras et al., 2022), https://arxiv.org/abs/2206.00364, the step that Heun and PNDM build on."""

from torch import Tensor

from ..schedules import Point
from .base import Evaluation


def euler_step(e: Evaluation, q: Point, eps: Tensor) -> Tensor:
    """The state at q by du/ds = eps, with u = x / alpha and s = sigma / alpha: u_q = u_p + (s_q - s_p) eps.

    With eps the prediction at p this is DDIM (Song et al., 2021, eq. 13).
    """
    a = q.alpha / e.p.alpha
    return a * e.x + (q.sigma - a * e.p.sigma) * eps
