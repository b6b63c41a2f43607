"""Where joint tuning may start from: the plan itself, and others of its sampler to the same end."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..plan import Plan, make_plan
from ..resample import resample
from ..samplers import Sampler, sampler_from_dict, sampler_to_dict
from ..spacings import SPACINGS
from .parameters import PARTS

ORDERS = (1, 2, 3, 4)


def starting_plans(plan: Plan, starts: int, others: Sequence[Plan] = (), parts: Sequence[str] = PARTS) -> list[Plan]:
    """The plans that may be tried, the given one first.

    A start differs from the plan in what is tuned, and in nothing else: other spacings are for where times are tuned,
    other orders of the sampler for where corrections are. A run may begin later than that of the plan, as on
    "leading", which of few calls wastes none where there is only noise; it ends where the plan does.

    Args:
        plan: the plan to tune.
        starts: 1 for the plan and `others` alone; more for every spacing and every order of its sampler too.
        others: tuned plans for other numbers of calls, or plans with the calls and the end of this one.
        parts: what is tuned, see `Parameters`.

    Raises:
        ValueError: not a positive number, or plans that do not fit.
    """
    if not isinstance(starts, int) or starts < 1:
        raise ValueError(f"starts must be a whole number of at least 1, got {starts!r}")
    found = [plan]
    for other in others:
        fitting = resample(other, len(plan))
        if not _fits(fitting, plan):
            raise ValueError(
                f"others must be deterministic plans to t = {float(plan.t[-1]):.6g} on the schedule of the plan, "
                f"got {other!r}"
            )
        found.append(fitting)
    for sampler in _orders(plan, parts) if starts > 1 else ():
        for ends in _grids(plan, sampler, parts):
            try:
                other = make_plan(sampler, plan.schedule, len(plan), times=ends)
            except ValueError:  # not for so many steps
                continue
            if "tau" not in parts:
                other = other.with_tau(other.tau * plan.tau / plan.t[:-1])
            if "corrections" not in parts:
                other = other.with_corrections(plan.corrections)
            if all(other != one for one in found):
                found.append(other)
    return found


def _orders(plan: Plan, parts: Sequence[str]) -> list[Sampler]:
    """The plan's sampler, and the same with every other order that it may have."""
    values = sampler_to_dict(plan.sampler)
    orders = [order for order in ORDERS if order != values["order"]] if "order" in values else []
    made = [plan.sampler]
    for order in orders if "corrections" in parts else ():
        try:
            made.append(sampler_from_dict({**values, "order": order}))
        except ValueError:
            continue
    return made


def _grids(plan: Plan, sampler: Sampler, parts: Sequence[str]) -> list[Tensor]:
    """The step ends of the plan, and those of every spacing, as far as the end of the plan."""
    made = [plan.ends]
    steps = len(sampler.steps(len(plan), bool(plan.t[-1] == 0)))
    for spacing in SPACINGS.values() if "times" in parts else ():
        try:
            ends = spacing(plan.schedule, steps)
        except ValueError:  # not on this schedule
            continue
        if ends[-2] > plan.ends[-1]:
            made.append(torch.cat([ends[:-1], plan.ends[-1:]]))
    return made


def _fits(other: Plan, plan: Plan) -> bool:
    same = abs(float(other.t[-1] - plan.t[-1])) < 1e-9
    return len(other) == len(plan) and same and not other.stochastic and other.schedule == plan.schedule
