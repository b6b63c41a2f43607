"""Gauss and Newton's way down from a start, on random pairs, with the best plan so far kept."""

import math
from collections.abc import Callable
from typing import Any

import torch

from ..plan import Plan
from .lesson import Slopes
from .parameters import Parameters

RATE = 0.3  # the share of Newton's step, at first
MOMENTUM, MEMORY = 0.8, 0.95  # of the gradient, of the curvature: what a step forgets 1 - this of
DAMPING = 1e-3  # the curvature's diagonal is raised by this share of it,
ANCHOR = 0.1  # and by this share of the loss over the number of steps, for what is not known yet
REACH = 1.5  # how far a whole step may go in the numbers, of which a tenth is much
PATIENCE = 0.25  # the share of the budget without progress after which it goes back
GOOD = 0.5  # the share of the promised gain at which steps may grow
LEAST_TRUST, MOST_TRUST = 1 / 32, 3.0
NUMBERS = ("trust", "first", "best", "setbacks", "moved_at", "stale", "steps", "curved")
VECTORS = ("v", "best_v", "mean", "curvature")


class Descent:
    """A way down from one start.

    A step goes a share of the way to the minimum of the quadratic model that the gradient and the curvature of the last
    pairs make, damped (Levenberg, 1944; Marquardt, 1963), and no further than to where the ends of runs have moved by
    that share of their distance to the teacher's. The share is RATE times a trust: a step that leads nowhere on its own
    pairs is taken back and halves the trust, one that gains half of what the model promised raises it. It falls by a
    cosine, and is halved where validation pairs show no progress for a while, in which case the way goes on from the
    best plan seen. That one is what counts.

    Attributes:
        trust: in the model, 1 at first.
        setbacks: how often it went back to the best plan.
        first, best: the validation loss of the start, and the least so far (infinite before the first look).
        moved_at: the share of the budget at which that was, or at which it last went back.
        stale: whether there were steps since the last look.
        steps, curved: how many there were, and how many of them told the curvature.
    """

    def __init__(self, parameters: Parameters) -> None:
        self.parameters = parameters
        count, self.steps, self.curved = len(parameters), 0, 0
        self.v = torch.zeros(count, dtype=torch.float64)
        self.best_v, self.first, self.best = self.v.clone(), math.inf, math.inf
        self.stale, self.setbacks, self.moved_at, self.trust = True, 0, 0.0, 1.0
        self.mean = torch.zeros(count, dtype=torch.float64)
        self.curvature = torch.zeros(count, count, dtype=torch.float64)

    def plan(self) -> Plan:
        """The plan here."""
        return self.parameters.plan(self.v)

    def best_plan(self) -> Plan:
        """The best plan seen."""
        return self.parameters.plan(self.best_v)

    @property
    def curious(self) -> bool:
        """Whether the next step should be told the curvature: every second one is enough."""
        return self.curved <= self.steps // 2

    def step(self, slopes: Slopes, left: float, loss_of: Callable[[Plan], float]) -> None:
        """One step; `left` is 0 at the full rate and 1 at the end, `loss_of` the loss of a plan on the same pairs.

        Raises:
            ValueError: the loss is NaN or infinite at the start itself.
        """
        if not slopes.finite() and not self.v.any():
            raise ValueError("the distance, or its gradient, is NaN or infinite: eps or distance returned such values")
        if not slopes.finite():
            self._go_back()  # it was too far
            return
        self.steps += 1
        self.mean = torch.lerp(slopes.gradient, self.mean, MOMENTUM)
        if slopes.curvature is not None:
            self.curvature = torch.lerp(slopes.curvature, self.curvature, MEMORY)
            self.curved += 1
        rate = RATE * self.trust * 0.5 * (1 + math.cos(math.pi * left)) / 2**self.setbacks
        gradient = self.mean / (1 - MOMENTUM**self.steps)
        curvature = self.curvature / (1 - MEMORY**self.curved)
        raised = curvature + torch.diag(
            DAMPING * curvature.diagonal() + ANCHOR * abs(slopes.loss) / self.steps + 1e-300
        )
        step = -rate * torch.linalg.solve(raised, gradient)
        # Of a distance that is a cone, v^T curvature v is the mean of |J v|^2 / d: how far ends move, over d.
        moved = math.sqrt(max(0.0, float(step @ curvature @ step)))
        most = rate * min(math.sqrt(abs(slopes.loss)) / max(moved, 1e-300), REACH / max(float(step.norm()), 1e-300))
        before, step = self.v.clone(), step * min(1.0, most)
        self.v += step
        self.parameters.keep_inside(self.v)
        promised = -float(slopes.gradient @ step + 0.5 * step @ curvature @ step)
        gained = slopes.loss - loss_of(self.plan())
        if not gained > 0:
            self.v.copy_(before)
            self.trust = max(self.trust / 2, LEAST_TRUST)
            return
        self.stale = True
        if gained > GOOD * promised:
            self.trust = min(1.5 * self.trust, MOST_TRUST)

    def look(self, loss: float, share: float) -> None:
        """Note the validation loss here; the first look is at the start itself."""
        self.first = loss if math.isinf(self.first) else self.first
        if loss < self.best:
            self.best_v, self.best, self.moved_at = self.v.clone(), loss, share
        elif share - self.moved_at > PATIENCE:
            self._go_back()
            self.moved_at = share
        self.stale = False

    def _go_back(self) -> None:
        self.v.copy_(self.best_v)
        self.mean.zero_()  # what is known of the curvature still holds
        self.setbacks += 1

    def to_dict(self) -> dict[str, Any]:
        """All that it takes to go on from here, as JSON holds it."""
        numbers = {name: getattr(self, name) for name in NUMBERS}
        known = {name: value for name, value in numbers.items() if math.isfinite(value)}
        return known | {name: getattr(self, name).tolist() for name in VECTORS}

    def restore(self, kept: dict[str, Any]) -> None:
        """The inverse of `to_dict`."""
        for name in VECTORS:
            getattr(self, name).copy_(torch.tensor(kept[name], dtype=torch.float64))
        for name in NUMBERS:
            setattr(self, name, kept.get(name, getattr(self, name)))
