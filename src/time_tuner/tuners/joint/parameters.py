"""What joint tuning moves in a plan, as one vector of numbers that is zero at the plan itself."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from ...plans.plan import Plan
from ...sampling import coefficients
from ...schedules.base import time_at_angle

PARTS = ("times", "tau", "corrections")
WIDEST = 4.0


class Parameters:
    r"""The parts of a plan that are tuned.

    - "times": the step ends between the first and the last. In the angle phi = arctan(sigma / alpha), which is finite
      where alpha or sigma is 0, increment i of the grid is multiplied by e^{v_i}, and all are scaled to the same sum:
      a grid stays monotone and keeps its ends, whatever v is.
    - "tau": the network is told e^{v_k} times what the plan tells it, within the trained range.
    - "corrections": the strictly lower triangular C, added to that of the plan.

    Args:
        plan: where all of them are zero.
        parts: names in `PARTS`.

    Raises:
        ValueError: an unknown part, or none.
    """

    def __init__(self, plan: Plan, parts: Sequence[str] = PARTS) -> None:
        if not isinstance(parts, Iterable):
            raise ValueError(f"tune must name some of {', '.join(PARTS)}, got {parts!r}")
        parts = (parts,) if isinstance(parts, str) else tuple(parts)
        unknown = [part for part in parts if part not in PARTS]
        if unknown or not parts:
            raise ValueError(f"tune must name some of {', '.join(PARTS)}, got {unknown[0] if unknown else 'none'!r}")
        self.start, self.parts = plan, tuple(part for part in PARTS if part in parts)
        calls = len(plan)
        self.lower = torch.tril_indices(calls, calls, -1)
        angles = plan.schedule.at(plan.step_times).angle
        self.first, self.increments = angles[0], -angles.diff()
        times = len(plan.steps) if len(plan.steps) > 1 else 0  # a single step lies between the fixed ends
        sizes = {"times": times, "tau": calls, "corrections": self.lower.shape[1]}
        self.sizes = [sizes[part] for part in self.parts]

    def __len__(self) -> int:
        return sum(self.sizes)

    def plan(self, v: Tensor) -> Plan:
        """The plan at v, with the gradient of v."""
        made = self.start
        for part, values in zip(self.parts, v.split(self.sizes), strict=True):
            if part == "times":
                made = made.with_times(self._ends(values))
            elif part == "tau":
                made = made.with_ratios(self.start.tau / self.start.t[:-1] * torch.exp(values))
            elif len(values):
                c = torch.zeros(len(made), len(made), dtype=torch.float64)
                c = c.index_put((self.lower[0], self.lower[1]), values)
                made = made.with_corrections(c if made.corrections is None else made.corrections + c)
        return made

    def linear(self, v: Tensor) -> tuple[Plan, Tensor, Tensor]:
        """The plan at v, without gradient; the numbers of its run, (M,); and their derivative by v, (M, P).

        The numbers are, call after call, the weights that the state after it gives to the first state and to what the
        network has said so far, see `Plan.coefficients`; then log tau of each call, and log t.
        """
        v = v.detach().requires_grad_()
        with torch.enable_grad():
            plan = self.plan(v)
            weights = [row[: k + 2] for k, row in enumerate(coefficients(plan))]
            numbers = torch.cat([*weights, plan.tau.log(), plan.t[:-1].log()])
        (derivative,) = torch.autograd.grad(numbers, v, torch.eye(len(numbers), dtype=v.dtype), is_grads_batched=True)
        return self.plan(v.detach()), numbers.detach(), derivative

    @torch.no_grad()
    def keep_inside(self, v: Tensor) -> None:
        """Move v, in place, to where every number of it still has an effect: increments do not vanish, and tau lies
        in the trained range."""
        split = dict(zip(self.parts, v.split(self.sizes), strict=True))
        if "times" in split:
            split["times"].sub_(split["times"].mean()).clamp_(-WIDEST, WIDEST)
        if "tau" in split:
            plan = self.plan(v)
            split["tau"].copy_(torch.log(plan.tau / (self.start.tau / self.start.t[:-1] * plan.t[:-1])))

    def _ends(self, values: Tensor) -> Tensor:
        ends = self.start.step_times
        if len(ends) == 2:
            return ends
        grown = self.increments * torch.exp(values)
        angles = self.first - (grown * (self.increments.sum() / grown.sum())).cumsum(0)
        inner = time_at_angle(self.start.schedule, angles[:-1])
        # A grid that ends at 0 may reach below the least trained time on its way.
        inner = inner.clamp(min(self.start.schedule.t_min, float(ends[-2].detach())), self.start.schedule.T)
        return torch.cat([ends[:1], inner, ends[-1:]])
