"""Multistep DPM-Solver++ of the ODE and of the SDE (Lu et al., 2022), https://arxiv.org/abs/2211.01095."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..schedules import Point
from .base import Evaluation, Noise, check_option
from .exponential import Multistep, differences, frame, phi


@dataclass(frozen=True)
class DPMSolverPP(Multistep):
    r"""The multistep solver of order 1, 2 (alg. 2) or 3, with h = lam_q - lam_p and phi_1 = e^{-h} - 1:

    x_q = sigma_q / sigma_p x_p - alpha_q phi_1 D0 - alpha_q phi_1 / 2 D1 (order 2), or
    ... + alpha_q (phi_1 / h + 1) D1 - w alpha_q ((phi_1 + h) / h^2 - 1/2) D2 (order 3), where D0 is the newest x0 and
    D1, D2 are divided differences of the last two or three x0 in lam, scaled by h and h^2.

    - `lower_order_final`: see `Multistep`.
    - `algorithm_type`: "dpmsolver++" is for the data prediction; "dpmsolver" is the same rule for the noise prediction,
      with alpha and sigma exchanged and h for -h.
    - `third_order_weight`: w. "published" is w = 1, half of the weight in the Taylor expansion, with which order 3
      converges as order 2. "taylor" is w = 2, with which it converges as order 3.
    """

    paper: ClassVar[str] = "Lu et al., 2022, https://arxiv.org/abs/2211.01095"
    algorithm_type: str = "dpmsolver++"
    third_order_weight: str = "published"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_option(self, "algorithm_type", ("dpmsolver++", "dpmsolver"))
        check_option(self, "third_order_weight", ("published", "taylor"))

    @property
    def convergence(self) -> int:
        return self.order if self.third_order_weight == "taylor" else min(self.order, 2)

    def step(self, past: tuple[Evaluation, ...], q: Point, noise: Noise) -> Tensor:
        data = self.algorithm_type == "dpmsolver++"
        x, b, hh = frame(past[-1], q, data)
        d, w = differences(past, q, data), phi(hh)
        x = x - b * w[0] * d[0]
        if len(d) == 2:
            return x - b * w[0] / 2 * d[1]
        if len(d) == 3:
            return x - b * w[1] * d[1] - (2 if self.third_order_weight == "taylor" else 1) * b * w[2] * d[2]
        return x


@dataclass(frozen=True)
class SDEDPMSolverPP(Multistep):
    r"""SDE-DPM-Solver++ of order 1 or 2 (eq. 18 and app. D), with h = lam_q - lam_p and z ~ N(0, I):

    x_q = sigma_q / sigma_p e^{-h} x_p + alpha_q (1 - e^{-2h}) (D0 + D1 / 2) + sigma_q sqrt(1 - e^{-2h}) z,

    with D0, D1 as in `DPMSolverPP`. Order 1 is DDIM with eta = 1.
    """

    paper: ClassVar[str] = "Lu et al., 2022, https://arxiv.org/abs/2211.01095"

    def __post_init__(self) -> None:
        check_option(self, "order", (1, 2))
        super().__post_init__()

    def step(self, past: tuple[Evaluation, ...], q: Point, noise: Noise) -> Tensor:
        x, alpha, hh = frame(past[-1], q, data=True)
        d = differences(past, q, data=True)
        variance = -torch.expm1(2 * hh)
        mean = torch.exp(hh) * x + alpha * variance * (d[0] if len(d) == 1 else d[0] + d[1] / 2)
        return mean + q.sigma * torch.sqrt(variance) * noise(past[-1].x)
