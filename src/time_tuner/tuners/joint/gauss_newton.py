"""Damped Gauss-Newton on random pairs, of which the best mean of iterates is the result."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ...plans.plan import Plan
from .loss import Gradients
from .parameters import Parameters

RATE = 0.3  # the share of Newton's step, at first
MOMENTUM, MEMORY = 0.8, 0.95  # of the gradient, of the curvature: a step forgets 1 - this of them
RECENT = 3  # iterate n has about the weight n^3 in the mean of iterates
DAMPING = 1e-3  # the curvature's diagonal is raised by this share of itself,
ANCHOR = 0.1  # and by this share of the loss over the number of steps, for what is not known yet,
KNOWN_ANCHOR = 0.01  # or by this one where nothing is estimated by random directions
RADIUS = 1.5  # of a whole step in the parameters, in which 0.1 is much
PATIENCE = 0.25  # the share of the budget without a better mean, after which the solver restarts from the best
GOOD = 0.5  # the share of the predicted gain from which on steps may grow
MIN_STEP_SCALE, MAX_STEP_SCALE = 1 / 32, 3.0


class GaussNewton:
    """A damped Gauss-Newton method from one candidate plan.

    A step goes a share of the way to the minimum of the quadratic model of the gradient and the curvature, damped
    (Levenberg, 1944; Marquardt, 1963), and no further than to where the ends of runs have moved by that share of their
    distance to the teacher's. The share is RATE times `step_scale`: a step that gains nothing on its own pairs is
    rejected and halves the scale, one that gains half of what the model predicts raises it. It does not fall otherwise.
    Single pairs mislead a step, so the result is the mean of iterates (Polyak and Juditsky, 1992), in which later ones
    have more weight (Shamir and Zhang, 2013, https://arxiv.org/abs/1212.1824). Where that mean makes no progress on the
    validation pairs for a while, the method restarts from the best one at half the rate.

    Attributes:
        v, mean_v, best_v: the iterate, the mean of iterates since the last restart, the best such mean.
        step_scale: of the steps, 1 at first.
        restarts: from the best mean.
        first_loss, best_loss: the validation loss of the candidate, and the least so far; infinite before the first.
        improved_at: the share of the budget at which that was, or the last restart.
        validated: whether no step was made since the last validation.
        steps, curvatures, num_averaged: steps, steps with a new curvature, and iterates in the mean.
    """

    def __init__(self, parameters: Parameters, anchor: float = ANCHOR) -> None:
        self.parameters, self.anchor = parameters, anchor
        self.steps = self.curvatures = self.num_averaged = self.restarts = 0
        self.first_loss = self.best_loss = math.inf
        self.validated, self.improved_at, self.step_scale = False, 0.0, 1.0
        self.curvature = torch.zeros(len(parameters), len(parameters), dtype=torch.float64)
        self.v, self.mean_v, self.best_v, self.gradient = self.curvature.new_zeros(4, len(parameters)).unbind()

    def plan(self) -> Plan:
        """The plan at the mean of iterates."""
        return self.parameters.plan(self.mean_v)

    def begin_at(self, v: Tensor, loss: float) -> None:
        """Begin at v, whose validation loss is the least so far, in place of the candidate."""
        for own in (self.v, self.mean_v, self.best_v):
            own.copy_(v)
        self.best_loss = loss

    @property
    def needs_curvature(self) -> bool:
        """Whether the next step needs a new curvature: every second one does."""
        return self.curvatures <= self.steps // 2

    def step(self, new: Gradients, loss_of: Callable[[Plan], float]) -> None:
        """One step, by gradients at v on some pairs, and the loss of a plan on the same ones; a ValueError if the loss
        is NaN or infinite at the candidate itself."""
        if not new.finite() and not self.v.any():
            raise ValueError("the distance, or its gradient, is NaN or infinite: eps or distance returned such values")
        if not new.finite():
            self._restart()  # v is too far away
            return
        # 1. Averages of the gradient g and the curvature H, without their bias to 0 (Kingma and Ba, 2015).
        self.steps += 1
        self.gradient = torch.lerp(new.gradient, self.gradient, MOMENTUM)
        if new.curvature is not None:
            self.curvature = torch.lerp(new.curvature, self.curvature, MEMORY)
            self.curvatures += 1
        gradient = self.gradient / (1 - MOMENTUM**self.steps)
        curvature = self.curvature / (1 - MEMORY**self.curvatures)
        # 2. The damped step -rate (H + damping)^-1 g.
        damped = curvature + torch.diag(
            DAMPING * curvature.diagonal() + self.anchor * abs(new.loss) / self.steps + 1e-300
        )
        rate = RATE * self.step_scale / 2**self.restarts
        step = -rate * torch.linalg.solve(damped, gradient)
        # 3. Its length: of a distance that is a cone, step^T H step is the mean of |J step|^2 / d.
        moved = math.sqrt(max(0.0, float(step @ curvature @ step)))
        longest = rate * min(math.sqrt(abs(new.loss)) / max(moved, 1e-300), RADIUS / max(float(step.norm()), 1e-300))
        before, step = self.v.clone(), step * min(1.0, longest)
        self.v += step
        self.parameters.keep_inside(self.v)
        # 4. The gain against that of the quadratic model: the step is rejected, accepted, or the next one grows.
        predicted = -float(new.gradient @ step + 0.5 * step @ curvature @ step)
        gain = new.loss - loss_of(self.parameters.plan(self.v))
        if not gain > 0:
            self.v.copy_(before)
            self.step_scale = max(self.step_scale / 2, MIN_STEP_SCALE)
        elif gain > GOOD * predicted:
            self.step_scale = min(1.5 * self.step_scale, MAX_STEP_SCALE)
        # 5. The mean of iterates.
        self.num_averaged += 1
        self.mean_v.lerp_(self.v, (RECENT + 1) / (self.num_averaged + RECENT))
        self.validated = False

    def validate(self, loss: float, share: float) -> None:
        """Note the validation loss of `plan()` at this share of the budget; the first one is that of the candidate."""
        self.first_loss = loss if math.isinf(self.first_loss) else self.first_loss
        if loss < self.best_loss:
            self.best_v, self.best_loss, self.improved_at = self.mean_v.clone(), loss, share
        elif share - self.improved_at > PATIENCE:
            self._restart()
            self.improved_at = share
        self.validated = True

    def _restart(self) -> None:
        self.v.copy_(self.best_v)
        self.mean_v.copy_(self.best_v)
        self.gradient.zero_()  # the curvature still holds
        self.restarts, self.num_averaged = self.restarts + 1, 0

    def to_dict(self) -> dict[str, Any]:
        """The state of the solver as JSON values, without infinite ones."""
        values = {name: value for name, value in vars(self).items() if name not in ("parameters", "anchor")}
        plain = {name: value.tolist() if isinstance(value, Tensor) else value for name, value in values.items()}
        return {name: value for name, value in plain.items() if value != math.inf}

    def restore(self, state: dict[str, Any]) -> None:
        """The inverse of `to_dict`.

        Raises:
            ValueError: values of other names, kinds or shapes.
        """
        own = {name: value for name, value in vars(self).items() if name not in ("parameters", "anchor")}
        for name, value in state.items():
            made = torch.tensor(value, dtype=torch.float64) if isinstance(value, list) else value
            before = own.get(name)
            if isinstance(made, Tensor) and isinstance(before, Tensor) and not made.numel() + before.numel():
                made = before  # of a solver without parameters
            kind = (int, float) if isinstance(before, int | float) and not isinstance(before, bool) else type(before)
            if name not in own or not isinstance(made, kind):
                raise ValueError(f"a solver has no {name} of {value!r}")
            if (
                isinstance(made, Tensor)
                and isinstance(before, Tensor)
                and (made.shape != before.shape or not made.isfinite().all())
            ):
                raise ValueError(f"{name} of a solver must be finite and of shape {tuple(before.shape)}")
            setattr(self, name, made)
