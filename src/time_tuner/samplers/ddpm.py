"""Denoising diffusion probabilistic models (Ho et al., 2020), https://arxiv.org/abs/2006.11239."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..schedules import Point
from .base import Evaluation, Noise, Sampler, check_option


@dataclass(frozen=True)
class DDPM(Sampler):
    r"""Ancestral sampling, alg. 2 and sec. 3.2, on any subset of the noise levels:

    x_q = (x_p - s^2 / sigma_p eps) / a + sqrt(var) z, with a = alpha_p / alpha_q, s^2 = sigma_p^2 - a^2 sigma_q^2
    (in the paper's letters sqrt(1 - beta) and beta of the respaced betas), z ~ N(0, I).

    - `variance`: "large" is var = s^2 (the paper's sigma_t^2 = beta_t), "small" is var = s^2 sigma_q^2 / sigma_p^2 (its
      beta~_t).
    """

    paper: ClassVar[str] = "Ho et al., 2020, https://arxiv.org/abs/2006.11239"
    variance: str = "large"

    def __post_init__(self) -> None:
        check_option(self, "variance", ("large", "small"))

    def step(self, past: tuple[Evaluation, ...], q: Point, noise: Noise) -> Tensor:
        e, p = past[-1], past[-1].p
        a = p.alpha / q.alpha
        s = p.sigma * torch.sqrt(-torch.expm1(2 * (p.lam - q.lam)))
        mean = (e.x - s**2 / p.sigma * e.eps) / a
        deviation = s if self.variance == "large" else s * q.sigma / p.sigma
        return mean + deviation * noise(e.x)
