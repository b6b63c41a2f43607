"""Candidates of joint tuning: the plan itself, plans of the user's, and the nearest untuned plans."""

from collections.abc import Sequence

from torch import Tensor

from ...plans.build import resample
from ...plans.plan import Plan
from ..ranking import APART, Ranked, differs_only_in


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


def candidate_plans(plan: Plan, ranking: Sequence[Ranked], parts: Sequence[str], count: int) -> list[Plan]:
    """So many of the nearest untuned plans, which differ from the plan only in what is tuned, with what is not tuned.

    They have different grids, of which the nearest sampler takes part: where corrections are tuned the samplers on a
    grid are starts of one and the same search. Where they are not, nothing but the grid differs.
    """
    found, angles = list[Plan](), list[Tensor]()
    for one in ranking:
        other, angle = one.plan, plan.schedule.at(one.plan.t).angle
        if len(found) == count:
            break
        again = any((angle - known).abs().max() <= APART for known in angles)
        if again or not differs_only_in(parts, other, plan) or differs_only_in((), other, plan):
            continue
        if "tau" not in parts:
            other = other.with_ratios(plan.tau / plan.t[:-1])
        if "corrections" not in parts:
            other = other.with_corrections(plan.corrections)
        found.append(other)
        angles.append(angle)
    return found
