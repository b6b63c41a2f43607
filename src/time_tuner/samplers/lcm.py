"""Multistep consistency sampling (Song et al., 2023, https://arxiv.org/abs/2303.01469, alg. 1), the sampler of latent
consistency models (Luo et al., 2023, https://arxiv.org/abs/2310.04378, alg. 3)."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ..schedules import Point
from .base import Evaluation, Noise, Sampler


@dataclass(frozen=True)
class LCM(Sampler):
    r"""x_q = alpha_q x_0 + sigma_q z with z ~ N(0, I): the predicted data with new noise.

    It is for distilled models, whose prediction of the data is a sample: if the predicted data have the distribution of
    the data, every state of a run has that of its time. It is no solver: other networks predict the mean of the data
    given the state, with which runs lose deviation at every number of calls.
    """

    paper: ClassVar[str] = "Song et al., 2023, https://arxiv.org/abs/2303.01469"
    convergence = 0

    def step(self, past: tuple[Evaluation, ...], q: Point, noise: Noise) -> Tensor:
        return self.first_step(past[-1], q, noise)

    def first_step(self, e: Evaluation, q: Point, noise: Noise) -> Tensor:
        return q.alpha * e.x0 + q.sigma * noise(e.x)
