"""Adam on the numbers of a plan, with the best so far kept."""

import math
from typing import Any

import torch
from torch import Tensor

from ..plan import Plan
from .parameters import Parameters

RATE = 0.05


class Descent:
    """A way down from one start.

    The learning rate is the same for all problems, for the numbers have one scale by design: a tenth is much in each
    of them. It falls by a cosine; what counts is the best plan that was seen on validation pairs.

    Attributes:
        first, best: the validation loss of the start, and the least so far (infinite before the first look).
        best_at: the share of the budget at which it was seen.
        stale: whether there were steps since the last look.
    """

    def __init__(self, parameters: Parameters) -> None:
        self.parameters = parameters
        self.v = torch.zeros(len(parameters), dtype=torch.float64, requires_grad=True)
        self.adam = torch.optim.Adam([self.v], lr=RATE, betas=(0.9, 0.99))
        self.best_v, self.first, self.best, self.best_at = self.v.detach().clone(), math.inf, math.inf, 0.0
        self.stale = True

    def plan(self) -> Plan:
        """The plan here, with the gradient of its numbers."""
        return self.parameters.plan(self.v)

    def best_plan(self) -> Plan:
        """The best plan seen."""
        return self.parameters.plan(self.best_v)

    def step(self, loss: Tensor, left: float) -> None:
        """One step of Adam; `left` is 0 at the full learning rate and 1 at the end.

        Raises:
            ValueError: the loss is NaN or infinite at the start itself.
        """
        (self.v.grad,) = torch.autograd.grad(loss, self.v)
        if not (torch.isfinite(loss) and torch.isfinite(self.v.grad).all()):
            if not self.v.any():
                raise ValueError("the end of the run, or its gradient, is NaN or infinite: eps returned such values")
            with torch.no_grad():  # too far: back to the best so far
                self.v.copy_(self.best_v)
            self.adam = torch.optim.Adam([self.v], lr=RATE, betas=(0.9, 0.99))
            return
        self.adam.param_groups[0]["lr"] = RATE * 0.5 * (1 + math.cos(math.pi * left))
        self.adam.step()
        self.parameters.keep_inside(self.v)
        self.stale = True

    def look(self, loss: float, share: float) -> None:
        """Note the validation loss here; the first look is at the start itself."""
        self.first = loss if math.isinf(self.first) else self.first
        if loss < self.best:
            self.best_v, self.best, self.best_at = self.v.detach().clone(), loss, share
        self.stale = False

    def to_dict(self) -> dict[str, Any]:
        """All that it takes to go on from here, as JSON holds it."""
        held = self.adam.state.get(self.v, {})
        moments = {name: held[name].tolist() for name in ("step", "exp_avg", "exp_avg_sq") if name in held}
        numbers = {"first": self.first, "best": self.best, "best_at": self.best_at}
        known = {name: value for name, value in numbers.items() if math.isfinite(value)}
        return known | {"v": self.v.tolist(), "best_v": self.best_v.tolist(), "moments": moments}

    def restore(self, kept: dict[str, Any]) -> None:
        """The inverse of `to_dict`."""
        with torch.no_grad():
            self.v.copy_(torch.tensor(kept["v"], dtype=torch.float64))
        self.best_v = torch.tensor(kept["best_v"], dtype=torch.float64)
        for name in ("first", "best", "best_at"):
            setattr(self, name, kept.get(name, getattr(self, name)))
        for name, values in kept["moments"].items():
            kind = torch.float32 if name == "step" else torch.float64
            self.adam.state[self.v][name] = torch.tensor(values, dtype=kind)
