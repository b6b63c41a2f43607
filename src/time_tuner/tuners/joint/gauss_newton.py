"""Gauss and Newton's way down from a start, on random pairs, with the best mean of the way so far kept."""

import math
from collections.abc import Callable
from typing import Any

import torch

from ...plans.plan import Plan
from .loss import Gradients
from .parameters import Parameters

RATE = 0.3  # the share of Newton's step, at first
MOMENTUM, MEMORY = 0.8, 0.95  # of the gradient, of the curvature: what a step forgets 1 - this of
RECENT = 3  # the place after step n has the weight n^3, about, in the mean of the way
DAMPING = 1e-3  # the curvature's diagonal is raised by this share of it,
ANCHOR = 0.1  # and by this share of the loss over the number of steps, for what is not known yet
REACH = 1.5  # how far a whole step may go in the numbers, of which a tenth is much
PATIENCE = 0.25  # the share of the budget without progress after which it goes back
GOOD = 0.5  # the share of the promised gain at which steps may grow
MIN_STEP_SCALE, MAX_STEP_SCALE = 1 / 32, 3.0
NUMBERS = ("step_scale", "first", "best", "restarts", "moved_at", "stale", "steps", "curved", "num_averaged")
VECTORS = ("v", "mean_v", "best_v", "gradient", "curvature")


class GaussNewton:
    """A way down from one start.

    A step goes a share of the way to the minimum of the quadratic model that the gradient and the curvature of the last
    pairs make, damped (Levenberg, 1944; Marquardt, 1963), and no further than to where the ends of runs have moved by
    that share of their distance to the teacher's. The share is RATE times a trust: a step that leads nowhere on its own
    pairs is taken back and halves the trust, one that gains half of what the model promised raises it. It does not fall
    otherwise: a few pairs lead astray, here and there, and what counts is the mean of where the way has led (Polyak and
    Juditsky, 1992), with more weight on what is later (Shamir and Zhang, 2013, https://arxiv.org/abs/1212.1824). Where
    it shows no progress on validation pairs for a while, the way goes on from the best mean seen at half the rate.

    Attributes:
        v, mean_v, best_v: where it is, the mean of the way since it last went back, and the best such mean seen.
        trust: in the model, 1 at first.
        restarts: how often it went back to the best.
        first, best: the validation loss of the start, and the least so far (infinite before the first look).
        moved_at: the share of the budget at which that was, or at which it last went back.
        stale: whether there were steps since the last look.
        steps, curved, way: how many there were, how many of them told the curvature, and how many are in the mean.
    """

    def __init__(self, parameters: Parameters) -> None:
        self.parameters = parameters
        count, self.steps, self.curved = len(parameters), 0, 0
        self.v, self.mean_v, self.best_v = (torch.zeros(count, dtype=torch.float64) for _ in range(3))
        self.first, self.best, self.num_averaged = math.inf, math.inf, 0
        self.stale, self.restarts, self.moved_at, self.step_scale = True, 0, 0.0, 1.0
        self.gradient = torch.zeros(count, dtype=torch.float64)
        self.curvature = torch.zeros(count, count, dtype=torch.float64)

    def plan(self) -> Plan:
        """The plan in the mean of the way."""
        return self.parameters.plan(self.mean_v)

    def best_plan(self) -> Plan:
        """The best plan seen."""
        return self.parameters.plan(self.best_v)

    @property
    def curious(self) -> bool:
        """Whether the next step should be told the curvature: every second one is enough."""
        return self.curved <= self.steps // 2

    def step(self, slopes: Gradients, loss_of: Callable[[Plan], float]) -> None:
        """One step; `loss_of` is the loss of a plan on the same pairs.

        Raises:
            ValueError: the loss is NaN or infinite at the start itself.
        """
        if not slopes.finite() and not self.v.any():
            raise ValueError("the distance, or its gradient, is NaN or infinite: eps or distance returned such values")
        if not slopes.finite():
            self._go_back()  # it was too far
            return
        self.steps += 1
        self.gradient = torch.lerp(slopes.gradient, self.gradient, MOMENTUM)
        if slopes.curvature is not None:
            self.curvature = torch.lerp(slopes.curvature, self.curvature, MEMORY)
            self.curved += 1
        gradient = self.gradient / (1 - MOMENTUM**self.steps)
        curvature = self.curvature / (1 - MEMORY**self.curved)
        raised = curvature + torch.diag(
            DAMPING * curvature.diagonal() + ANCHOR * abs(slopes.loss) / self.steps + 1e-300
        )
        rate = RATE * self.step_scale / 2**self.restarts
        step = -rate * torch.linalg.solve(raised, gradient)
        # Of a distance that is a cone, v^T curvature v is the mean of |J v|^2 / d: how far ends move, over d.
        moved = math.sqrt(max(0.0, float(step @ curvature @ step)))
        most = rate * min(math.sqrt(abs(slopes.loss)) / max(moved, 1e-300), REACH / max(float(step.norm()), 1e-300))
        before, step = self.v.clone(), step * min(1.0, most)
        self.v += step
        self.parameters.keep_inside(self.v)
        promised = -float(slopes.gradient @ step + 0.5 * step @ curvature @ step)
        gained = slopes.loss - loss_of(self.parameters.plan(self.v))
        if not gained > 0:
            self.v.copy_(before)
            self.step_scale = max(self.step_scale / 2, MIN_STEP_SCALE)
        elif gained > GOOD * promised:
            self.step_scale = min(1.5 * self.step_scale, MAX_STEP_SCALE)
        self.num_averaged += 1
        self.mean_v.lerp_(self.v, (RECENT + 1) / (self.num_averaged + RECENT))
        self.stale = True

    def look(self, loss: float, share: float) -> None:
        """Note the validation loss of `plan()`; the first look is at the start itself."""
        self.first = loss if math.isinf(self.first) else self.first
        if loss < self.best:
            self.best_v, self.best, self.moved_at = self.mean_v.clone(), loss, share
        elif share - self.moved_at > PATIENCE:
            self._go_back()
            self.moved_at = share
        self.stale = False

    def _go_back(self) -> None:
        self.v.copy_(self.best_v)
        self.mean_v.copy_(self.best_v)
        self.gradient.zero_()  # what is known of the curvature still holds
        self.restarts, self.num_averaged = self.restarts + 1, 0

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
