"""Adam with a full matrix on the numbers of a plan, with the best so far kept."""

import math
from typing import Any

import torch
from torch import Tensor

from ..plan import Plan
from .parameters import Parameters

RATE = 0.03
BETAS = (0.9, 0.99)
DAMPING = 1e-2  # what the matrix, scaled to a diagonal of 1, is raised by
PATIENCE = 0.25  # the share of the budget without progress after which it goes back
NUMBERS = ("first", "best", "setbacks", "moved_at", "stale", "steps")
VECTORS = ("v", "best_v", "mean", "square")


class Descent:
    """A way down from one start.

    The step is as long as that of Adam (Kingma & Ba, 2015), in the direction that the whole matrix of second moments
    gives in place of its diagonal (Duchi et al., 2011): the numbers of a plan are few, and act on each other. The
    learning rate is the same for all problems, for the numbers have one scale by design: a tenth is much in each of
    them. It falls by a cosine, and is halved where validation pairs show no progress for a while, in which case the way
    goes on from the best plan seen. That one is what counts.

    Attributes:
        setbacks: how often it went back to the best plan.
        first, best: the validation loss of the start, and the least so far (infinite before the first look).
        moved_at: the share of the budget at which that was, or at which it last went back.
        stale: whether there were steps since the last look.
        steps: how many there were.
    """

    def __init__(self, parameters: Parameters) -> None:
        self.parameters = parameters
        self.v = torch.zeros(len(parameters), dtype=torch.float64, requires_grad=True)
        self.best_v, self.first, self.best = self.v.detach().clone(), math.inf, math.inf
        self.stale, self.setbacks, self.moved_at = True, 0, 0.0
        count, self.steps = len(parameters), 0
        self.mean = torch.zeros(count, dtype=torch.float64)
        self.square = torch.zeros(count, count, dtype=torch.float64)

    def plan(self) -> Plan:
        """The plan here, with the gradient of its numbers."""
        return self.parameters.plan(self.v)

    def best_plan(self) -> Plan:
        """The best plan seen."""
        return self.parameters.plan(self.best_v)

    def step(self, loss: Tensor, left: float) -> None:
        """One step; `left` is 0 at the full learning rate and 1 at the end.

        Raises:
            ValueError: the loss is NaN or infinite at the start itself.
        """
        (self.v.grad,) = torch.autograd.grad(loss, self.v)
        if not (torch.isfinite(loss) and torch.isfinite(self.v.grad).all()):
            if not self.v.any():
                raise ValueError(
                    "the distance, or its gradient, is NaN or infinite: eps or distance returned such values"
                )
            self._go_back()  # it was too far
            return
        rate = RATE * 0.5 * (1 + math.cos(math.pi * left)) / 2**self.setbacks
        with torch.no_grad():
            self.v.sub_(rate * self._direction(self.v.grad))
        self.parameters.keep_inside(self.v)
        self.stale = True

    def _direction(self, gradient: Tensor) -> Tensor:
        """The mean gradient over the root of the mean of its square, a matrix, as long as with the diagonal alone."""
        self.steps += 1
        self.mean = torch.lerp(gradient, self.mean, BETAS[0])
        self.square = torch.lerp(torch.outer(gradient, gradient), self.square, BETAS[1])
        mean, square = (
            moment / (1 - beta**self.steps) for moment, beta in zip((self.mean, self.square), BETAS, strict=True)
        )
        scale = square.diagonal().sqrt().clamp(min=1e-12)
        adam = mean / scale
        values, vectors = torch.linalg.eigh(square / torch.outer(scale, scale))
        turned = vectors @ ((vectors.T @ adam) / (values.clamp(min=0) + DAMPING).sqrt())
        direction: Tensor = turned * (adam.norm() / turned.norm().clamp(min=1e-12))
        return direction

    def look(self, loss: float, share: float) -> None:
        """Note the validation loss here; the first look is at the start itself."""
        self.first = loss if math.isinf(self.first) else self.first
        if loss < self.best:
            self.best_v, self.best, self.moved_at = self.v.detach().clone(), loss, share
        elif share - self.moved_at > PATIENCE:
            self._go_back()
            self.moved_at = share
        self.stale = False

    def _go_back(self) -> None:
        with torch.no_grad():
            self.v.copy_(self.best_v)
        self.mean.zero_()  # what is known of the directions still holds
        self.setbacks += 1

    def to_dict(self) -> dict[str, Any]:
        """All that it takes to go on from here, as JSON holds it."""
        numbers = {name: getattr(self, name) for name in NUMBERS}
        known = {name: value for name, value in numbers.items() if math.isfinite(value)}
        return known | {name: getattr(self, name).tolist() for name in VECTORS}

    def restore(self, kept: dict[str, Any]) -> None:
        """The inverse of `to_dict`."""
        for name in VECTORS:
            getattr(self, name).data.copy_(torch.tensor(kept[name], dtype=torch.float64))
        for name in NUMBERS:
            setattr(self, name, kept.get(name, getattr(self, name)))
