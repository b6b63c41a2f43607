"""Candidates of joint tuning: the plan itself, and others of its sampler to the same end."""

from collections.abc import Sequence
from itertools import product

import torch
from torch import Tensor

from ...plans.build import make_plan, resample
from ...plans.plan import Plan
from ...samplers import Sampler, sampler_from_dict, sampler_to_dict
from ...spacings import SPACINGS
from .parameters import PARTS

ORDERS = (1, 2, 3, 4)
APART = 0.02  # of the angles of two grids, for them to count as two
SHORTEST = 1.02  # times the end of the run, at least, where the last step begins: a shorter one wastes a call
LATE = (0, 1, 2)  # so many first steps of a grid with as many steps more are left out


def warm_starts(plan: Plan, others: Sequence[Plan]) -> list[Plan]:
    """Tuned plans, resampled to the number of calls of this one; a ValueError if one does not fit."""
    found = [resample(other, len(plan)) for other in others]
    for other, fitting in zip(others, found, strict=True):
        same = abs(float(fitting.t[-1] - plan.t[-1])) < 1e-9 and fitting.schedule == plan.schedule
        if not same or fitting.stochastic:
            raise ValueError(
                f"warm_starts must be deterministic plans to t = {float(plan.t[-1]):.6g} on the schedule of the plan, "
                f"got {other!r}"
            )
    return found


def candidate_plans(plan: Plan, given: Sequence[Plan] = (), parts: Sequence[str] = PARTS) -> list[Plan]:
    """The plans that may be tuned: this one and the given ones first, then those of every spacing and every order of
    its sampler.

    Candidates differ from the plan only in what is tuned: other spacings are for where times are tuned, other orders of
    the sampler for where corrections are. A run may begin later than that of the plan, on the grid of a longer run
    without its first steps, since a call where there is only noise is wasted; it ends where the plan does.
    """
    found = [plan, *given]
    for sampler in _orders(plan, parts):
        for times in _grids(plan, sampler, parts):
            try:
                other = make_plan(sampler, plan.schedule, len(plan), times=times)
            except ValueError:  # not for so many steps
                continue
            if "tau" not in parts:
                other = other.with_ratios(plan.tau / plan.t[:-1])
            if "corrections" not in parts:
                other = other.with_corrections(plan.corrections)
            if not any(_same(other, one) for one in found):
                found.append(other)
    return found


def _orders(plan: Plan, parts: Sequence[str]) -> list[Sampler]:
    """The plan's sampler, and the same of every other order that it may have."""
    values = sampler_to_dict(plan.sampler)
    orders = [order for order in ORDERS if order != values["order"]] if "order" in values else []
    samplers = [plan.sampler]
    for order in orders if "corrections" in parts else ():
        try:
            samplers.append(sampler_from_dict({**values, "order": order}))
        except ValueError:
            continue
    return samplers


def _grids(plan: Plan, sampler: Sampler, parts: Sequence[str]) -> list[Tensor]:
    """The step times of the plan, and those of every spacing, from its beginning or later, to the end of the plan."""
    steps = len(sampler.steps(len(plan), bool(plan.t[-1] == 0)))
    grids = [plan.step_times] if len(plan.steps) == steps else []
    for spacing, late in product(SPACINGS.values(), LATE) if "times" in parts else ():
        try:
            times = spacing(plan.schedule, steps + late)[late:]
        except ValueError:  # not on this schedule
            continue
        if not plan.schedule.at(times[0]).alpha and plan.point(0).alpha:
            continue  # a model that predicts noise may not be called there
        if times[-2] > plan.step_times[-1] * SHORTEST:
            grids.append(torch.cat([times[:-1], plan.step_times[-1:]]))
    angles = [plan.schedule.at(times).angle for times in grids]
    return [grids[i] for i in range(len(grids)) if all((angles[i] - one).abs().max() > APART for one in angles[:i])]


def _same(one: Plan, other: Plan) -> bool:
    """Whether two plans make the same run."""
    if one.sampler != other.sampler or len(one.step_times) != len(other.step_times):
        return False
    none = torch.zeros(len(one), len(one), dtype=torch.float64)
    numbers = [(p.step_times, p.tau, none if p.corrections is None else p.corrections) for p in (one, other)]
    return all(torch.allclose(a, b, rtol=1e-9, atol=1e-12) for a, b in zip(*numbers, strict=True))
