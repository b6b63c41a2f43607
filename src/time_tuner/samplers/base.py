"""What a sampler is: a pure function of what the network said so far."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from torch import Tensor

from .._checks import choose
from ..schedules import Point

Noise: TypeAlias = Callable[[Tensor], Tensor]
"""CalibrationBatch standard normal noise of the shape of its argument."""


@dataclass(frozen=True)
class Evaluation:
    """One call of the network: the state x at point p, and the noise eps that the network saw in it.

    `data` is what it said of the data, at points where that does not follow from the noise; `stage` is the number of
    the call in its step, from 0.
    """

    x: Tensor
    eps: Tensor
    p: Point
    data: Tensor | None = None
    stage: int = 0

    @property
    def x0(self) -> Tensor:
        """The data this predicts, (x - sigma eps) / alpha."""
        return (self.x - self.p.sigma * self.eps) / self.p.alpha if self.data is None else self.data


class Sampler:
    """Base of all samplers. A sampler is a frozen dataclass of plain options that implements `step`.

    Everything it computes is linear in the states, predictions and draws that it is given, with weights that depend on
    the points alone. That is what lets a plan run it as rows of numbers: `step` and `correct` are called with unit
    vectors, once for each call of a plan, and never with an image.
    """

    @property
    def convergence(self) -> int:
        """Order of the global error in the step length, on smooth problems (weak order for stochastic samplers).

        Where a sampler lowers its order, in the first steps and in the last, the steps have to be short for it to show.
        """
        return 1

    def steps(self, calls: int, to_zero: bool = True) -> tuple[int, ...]:
        """Network calls of each step of a run of `calls`; `to_zero` when the run ends at sigma = 0.

        Raises:
            ValueError: this many calls cannot be divided into steps; the message names the nearest numbers that can.
        """
        return (1,) * calls

    def stages(self, calls: int) -> tuple[float, ...]:
        """Where in a step of this many calls each call is made: 0 at its start, 1 at its end, linear in lam between."""
        return (0.0,) * calls

    def look_back(self, step: int, stage: int, steps: int) -> int:
        """How many evaluations call number `stage` of step number `step` of `steps` sees, its own included.

        May grow by at most one from one call to the next.
        """
        return stage + 1

    def step(self, past: tuple[Evaluation, ...], q: Point, noise: Noise) -> Tensor:
        """The state at q, from the last evaluations (the newest last; as many as `look_back` says).

        Called only with sigma > 0 at q, and alpha > 0 in the past: a step to sigma = 0 is x = x0 for every sampler, and
        one from alpha = 0 is alpha_q x0 + sigma_q eps. CalibrationBatch noise at most once.
        """
        raise NotImplementedError

    def correct(self, past: tuple[Evaluation, ...]) -> Tensor | None:
        """A better state at the point of the newest evaluation, in the light of that evaluation; None for none.

        `past` is what the call before saw, and the newest evaluation. The prediction of the data, x0, stays what the
        network made of the state that it saw.
        """
        return None


def check_option(sampler: Sampler, name: str, allowed: tuple[object, ...]) -> None:
    """Raise a ValueError unless the option is one of those allowed."""
    choose(f"{name} of {type(sampler).__name__}", getattr(sampler, name), allowed)
