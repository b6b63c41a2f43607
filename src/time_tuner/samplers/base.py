"""The base of all samplers: a sampler is a pure function of the network's predictions so far."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, TypeAlias

from torch import Tensor

from .._checks import choose
from ..schedules import Point

Noise: TypeAlias = Callable[[Tensor], Tensor]
"""`noise(x)`: standard normal noise of the shape of x."""


@dataclass(frozen=True)
class Evaluation:
    """One call of the network: a state, and the prediction of the noise in it.

    Attributes:
        x: the state (B, ...); after a corrector, the corrected state.
        eps: the noise in x that follows from the prediction.
        p: the point where the call was made.
        data: the prediction of the data, where the noise does not determine it; None elsewhere.
        stage: the index of the call in its step, from 0.
    """

    x: Tensor
    eps: Tensor
    p: Point
    data: Tensor | None = None
    stage: int = 0

    @property
    def x0(self) -> Tensor:
        """The predicted data, (x - sigma eps) / alpha."""
        return (self.x - self.p.sigma * self.eps) / self.p.alpha if self.data is None else self.data


class Sampler:
    """Base of all samplers. A sampler is a frozen dataclass of plain options that implements `step`.

    `step` and `correct` are linear in the states, predictions and noise that they receive, with weights that depend on
    the points alone. A plan therefore calls them once for each of its calls, with unit vectors in place of images, and
    runs the weights that it finds. It refuses a sampler that is not linear.
    """

    paper: ClassVar[str] = ""
    """Where the rule was published, for tables: "authors, year, address"."""

    @property
    def convergence(self) -> int:
        """Order of the global error in the step length, on smooth problems (weak order for stochastic samplers).

        A sampler that lowers its order in the first and last steps reaches it where these steps are short. 0 is for
        samplers of distilled models, which are no solvers: every state has the right distribution if the predicted data
        have that of the data.
        """
        return 1

    def steps(self, calls: int, to_zero: bool = True) -> tuple[int, ...]:
        """The number of network calls of each step of a run; they sum to `calls`.

        Args:
            calls: of the run.
            to_zero: whether the run ends at sigma = 0.

        Raises:
            ValueError: this many calls cannot be divided into steps; the message names the nearest numbers that can.
        """
        return (1,) * calls

    def stages(self, calls: int) -> tuple[float, ...]:
        """Where in a step of this many calls each call is made: 0 at its start, 1 at its end, linear in lam between."""
        return (0.0,) * calls

    def look_back(self, step: int, stage: int, steps: int) -> int:
        """The number of evaluations that `step` receives at call `stage` of step `step` of `steps`, its own included.

        It may grow by at most one from one call to the next.
        """
        return stage + 1

    def step(self, past: tuple[Evaluation, ...], q: Point, noise: Noise) -> Tensor:
        """The state at q, of the shape of x.

        It is called only where sigma > 0 at q and alpha > 0 at all points of the past: for every sampler a step to
        sigma = 0 is x0, and a step from alpha = 0 is `first_step`.

        Args:
            past: the last evaluations, as many as `look_back` returns; the newest one last.
            q: the point of the next call, or the end of the run.
            noise: the source of noise; may be called once.
        """
        raise NotImplementedError

    def first_step(self, e: Evaluation, q: Point, noise: Noise) -> Tensor:
        """The state at q after a call at alpha = 0, where lam is infinite and the state is the noise itself: DDIM's."""
        return q.alpha * e.x0 + q.sigma * e.eps

    def correct(self, past: tuple[Evaluation, ...]) -> Tensor | None:
        """A more accurate state at the point of the newest evaluation, computed with that evaluation; None for none.

        The corrected evaluation keeps its x0, which the network predicted in the state that it received.

        Args:
            past: the evaluations that `step` received at the call before, and the newest one.
        """
        return None


def check_option(sampler: Sampler, name: str, allowed: tuple[object, ...]) -> None:
    """Raise a ValueError unless the option is one of those allowed."""
    choose(f"{name} of {type(sampler).__name__}", getattr(sampler, name), allowed)
