"""The parameters of joint tuning: one vector of numbers, which is zero at the plan itself."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ...plans.plan import Plan
from ...sampling import coefficients
from ...schedules.base import time_at_angle
from ..base import PARTS

WIDEST = 4.0  # e^4 times its even share an increment of the grid is at most


def check_parts(parts: str | Sequence[str]) -> tuple[str, ...]:
    """The parts in the order of `PARTS`; a ValueError for an unknown part, or none."""
    if not isinstance(parts, Iterable):
        raise ValueError(f"parts must be some of {', '.join(PARTS)}, got {parts!r}")
    parts = (parts,) if isinstance(parts, str) else tuple(parts)
    unknown = [part for part in parts if part not in PARTS]
    if unknown or not parts:
        raise ValueError(f"parts must be some of {', '.join(PARTS)}, got {unknown[0] if unknown else 'none'!r}")
    return tuple(part for part in PARTS if part in parts)


def reusing(plan: Plan) -> Tensor:
    """The calls that may reuse guidance, and the guided calls whose guidance that is, (2, n): the last one before each,
    and those that the plan reuses already."""
    guided = torch.tensor(plan.guided)
    known = torch.zeros(len(plan), len(plan)) if plan.reuse is None else plan.reuse.detach()
    before = (~guided[:, None] & guided).tril(-1)
    last = before & (before.flip(1).cumsum(1).flip(1) == 1)
    return (last | (known != 0)).nonzero().T


class Parameters:
    r"""The parts of a plan that are tuned, as a vector v.

    - "times": the step ends between the first and the last. In the angle phi = arctan(sigma / alpha), which is finite
      where alpha or sigma is 0, increment i of the grid is multiplied by e^{v_i}, and all are scaled to the same sum:
      a grid stays monotone and keeps its ends, whatever v is.
    - "tau": the conditioning time is e^{v_k} times that of the plan, within the trained range.
    - "corrections": the strictly lower triangular C, added to that of the plan.
    - "reuse": G at the calls without guidance, for the last guided call before each, added to that of the plan, and
      what else the plan reuses. For two or all guided calls before, short runs end farther away: on exact digits in 8
      calls, of which 4 are guided, at .24 and .36 after 150 iterations, where one has .17, and no reuse .19.

    For a network of whole levels `rounded` gives the times that it receives. Conditioning times are then no part of v:
    they are `ratios` times t, rounded, with the derivative of the times before they are rounded.
    """

    def __init__(
        self,
        plan: Plan,
        parts: str | Sequence[str] = PARTS,
        rounded: Callable[[Tensor], Tensor] | None = None,
        ratios: Tensor | None = None,
    ) -> None:
        if plan.t.is_inference():
            with torch.inference_mode(False):  # its tensors have no gradient, those of a copy do
                plan = Plan.from_dict(plan.to_dict())
        self.start, self.rounded = plan, rounded
        self.parts = check_parts(parts) if parts or rounded is None else ()
        if rounded is not None:
            self.parts = tuple(part for part in self.parts if part != "tau")
        self.ratios = plan.tau / plan.t[:-1] if ratios is None else ratios
        with torch.inference_mode(False):
            self.lower = torch.tril_indices(len(plan), len(plan), -1)
            self.pairs = reusing(plan)
        self.angles = plan.schedule.at(plan.step_times).angle
        times = len(plan.steps) if len(plan.steps) > 1 else 0  # a single step lies between the fixed ends
        sizes = {"times": times, "tau": len(plan), "corrections": self.lower.shape[1], "reuse": self.pairs.shape[1]}
        self.sizes = [sizes[part] for part in self.parts]

    def __len__(self) -> int:
        return sum(self.sizes)

    def plan(self, v: Tensor) -> Plan:
        """The plan at v, with the gradient of v."""
        plan, split, weights = self.start, dict(zip(self.parts, v.split(self.sizes), strict=True)), dict[str, Any]()
        ratios = self.start.tau / self.start.t[:-1] * torch.exp(split["tau"]) if "tau" in split else None
        if "times" in split:
            plan = plan.with_times(self._step_times(split["times"]), ratios)
        elif ratios is not None:
            plan = plan.with_ratios(ratios)
        for part, places in (("corrections", self.lower), ("reuse", self.pairs)):
            if len(values := split.get(part, ())):
                c = torch.zeros(len(plan), len(plan), dtype=torch.float64).index_put(tuple(places), values)
                known = getattr(plan, part)
                weights[part] = c if known is None else known + c
        plan = replace(plan, **weights) if weights else plan
        if self.rounded is None:
            return plan
        tau = plan.with_ratios(self.ratios).tau
        return plan.with_tau(tau + (self.rounded(tau) - tau.detach()))

    def at_corrections(self, rows: Sequence[Tensor]) -> Tensor:
        """Where the plan has the corrections of these rows, (k,) of call k, in place of its own, and nothing else
        moves."""
        v, at = torch.zeros(len(self), dtype=torch.float64), self.parts.index("corrections")
        here = torch.cat(list(rows))
        if self.start.corrections is not None:
            here = here - self.start.corrections[tuple(self.lower)]
        first = sum(self.sizes[:at])
        v[first : first + len(here)] = here
        return v

    def linear(self, v: Tensor) -> tuple[Plan, Tensor, Tensor]:
        """The plan at v, without gradient; the numbers of its run, (M,); and their derivative by v, (M, P).

        The numbers are, call after call, the weights of the first state and of the predictions so far in the state
        after the call, see `coefficients`; then those with which calls reuse guidance, in the order of `pairs`; then
        log tau of each call, and log t.
        """
        # The network may be called in inference mode, of which the arithmetic around it is no part.
        with torch.inference_mode(False), torch.enable_grad():
            v = v.detach().clone().requires_grad_()
            plan = self.plan(v)
            weights = [row[: k + 2] for k, row in enumerate(coefficients(plan))]
            reused = plan.reuse_weights[tuple(self.pairs)]
            numbers = torch.cat([*weights, reused, plan.tau.log(), plan.t[:-1].log()])
            unit = torch.eye(len(numbers), dtype=v.dtype)
            (derivative,) = torch.autograd.grad(numbers, v, unit, is_grads_batched=True)
        return plan.detached(), numbers.detach(), derivative

    @torch.no_grad()
    def directions(self, v: Tensor) -> Tensor:
        """A basis of directions in v, (P, P), each of which has an effect on few calls: column i of "times" moves the
        end of step i alone, and the last one nothing; the others are the numbers of v themselves."""
        basis = torch.eye(len(v), dtype=v.dtype)
        if count := self.sizes[0] if self.parts[0] == "times" else 0:
            increments = self.angles.diff().abs() * torch.exp(v[:count])
            for i in range(count - 1):
                basis[i : i + 2, i] = torch.tensor([1.0, -1.0]) * increments[i : i + 2].min() / increments[i : i + 2]
            basis[:count, count - 1] = 1
        return basis

    @torch.no_grad()
    def keep_inside(self, v: Tensor) -> None:
        """Move v, in place, to where each of its numbers has an effect: increments do not vanish, and tau lies in the
        trained range."""
        split = dict(zip(self.parts, v.split(self.sizes), strict=True))
        if "times" in split:
            split["times"].sub_(split["times"].mean()).clamp_(-WIDEST, WIDEST)
        if "tau" in split:
            plan = self.plan(v)
            split["tau"].copy_(torch.log(plan.tau / (self.start.tau / self.start.t[:-1] * plan.t[:-1])))

    def _step_times(self, values: Tensor) -> Tensor:
        times = self.start.step_times
        if len(times) == 2:
            return times
        increments, schedule = -self.angles.diff(), self.start.schedule
        grown = increments * torch.exp(values)
        angles = self.angles[0] - (grown * (increments.sum() / grown.sum())).cumsum(0)
        # A grid that ends at 0 may reach below the least trained time before its end.
        least = min(schedule.t_min, float(times[-2].detach()))
        return torch.cat([times[:1], time_at_angle(schedule, angles[:-1]).clamp(least, schedule.T), times[-1:]])
