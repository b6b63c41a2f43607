"""Pseudo numerical methods (Liu et al., 2022), https://arxiv.org/abs/2202.09778: iPNDM and PNDM."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ..schedules import Point
from .base import Evaluation, Noise, Sampler, check_option
from .heun import euler_step

ADAMS_BASHFORTH = ((1.0,), (3 / 2, -1 / 2), (23 / 12, -16 / 12, 5 / 12), (55 / 24, -59 / 24, 37 / 24, -9 / 24))


def adams_bashforth(past: list[Evaluation]) -> Tensor:
    """The noise of one to four evaluations, combined with the weights of even steps (eq. 12)."""
    weights = ADAMS_BASHFORTH[len(past) - 1]
    first, *older = (w * e.eps for w, e in zip(weights, reversed(past), strict=True))
    return sum(older, first)


@dataclass(frozen=True)
class IPNDM(Sampler):
    """iPNDM (Zhang & Chen, 2023, https://arxiv.org/abs/2204.13902, app. H.2): Euler's step with the noise of the last
    `order` calls, combined with the Adams-Bashforth weights; fewer calls in the first steps.

    The weights are those of even steps in sigma / alpha on every grid, which limits the order to 2.
    """

    paper: ClassVar[str] = "Zhang & Chen, 2023, https://arxiv.org/abs/2204.13902"
    order: int = 4

    def __post_init__(self) -> None:
        check_option(self, "order", (1, 2, 3, 4))

    @property
    def convergence(self) -> int:
        return min(self.order, 2)

    def look_back(self, step: int, stage: int, steps: int) -> int:
        return min(self.order, step + 1)

    def step(self, past: tuple[Evaluation, ...], q: Point, noise: Noise) -> Tensor:
        return euler_step(past[-1], q, adams_bashforth(list(past)))


@dataclass(frozen=True)
class PNDM(Sampler):
    """PNDM of fourth order (alg. 2), whose first steps have several calls, where those of iPNDM have low order.

    - `skip_prk_steps=False`, the paper's F-PNDM: the first three steps are Runge-Kutta steps of four calls each (eq.
      13): at p, twice in the middle, at q. The middle is that of lam here, that of t in the paper.
    - `skip_prk_steps=True`, as Stable Diffusion uses it: the first step alone has two calls, and takes the mean of the
      noise at its two ends.

    Both are of order 2, as the paper proves.
    """

    paper: ClassVar[str] = "Liu et al., 2022, https://arxiv.org/abs/2202.09778"
    skip_prk_steps: bool = True
    convergence = 2

    def __post_init__(self) -> None:
        check_option(self, "skip_prk_steps", (True, False))

    @property
    def _start(self) -> tuple[int, int]:
        """The number of first steps that have several calls, and their number of calls."""
        return (1, 2) if self.skip_prk_steps else (3, 4)

    def steps(self, calls: int, to_zero: bool = True) -> tuple[int, ...]:
        first, each = self._start
        least = first * each + to_zero
        if 1 < calls < least:
            end, hint = "0" if to_zero else "t > 0", "" if self.skip_prk_steps else ", or skip_prk_steps=True"
            raise ValueError(
                f"calls of PNDM must be 1 or at least {least} in a run down to {end}, got {calls}: take {least}{hint}"
            )
        return (1,) if calls == 1 else (each,) * first + (1,) * (calls - first * each)

    def stages(self, calls: int) -> tuple[float, ...]:
        return {1: (0.0,), 2: (0.0, 1.0), 4: (0.0, 0.5, 0.5, 1.0)}[calls]

    def look_back(self, step: int, stage: int, steps: int) -> int:
        first, each = self._start
        if step < first:
            return each * step + stage + 1
        oldest = max(0, step - 3)  # the first calls of the last four steps, and all calls between them
        return step - oldest + 1 + (each - 1) * max(0, first - oldest)

    def step(self, past: tuple[Evaluation, ...], q: Point, noise: Noise) -> Tensor:
        stage = past[-1].stage
        own, steps = past[-1 - stage :], [e for e in past if e.stage == 0]
        eps = own[-1].eps
        if stage == 3:
            eps = (own[0].eps + 2 * own[1].eps + 2 * own[2].eps + own[3].eps) / 6
        elif stage == 1 and self.skip_prk_steps:
            eps = (own[0].eps + own[1].eps) / 2
        elif len(steps) > self._start[0]:
            eps = adams_bashforth(steps)
        return euler_step(own[0], q, eps)
