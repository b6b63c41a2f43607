"""Where joint tuning may start from: the plan itself, and others of its sampler between the same two ends."""

from collections.abc import Sequence

from ..plan import Plan, make_plan
from ..resample import resample
from ..samplers import Sampler, sampler_from_dict, sampler_to_dict
from ..spacings import SPACINGS

ORDERS = (1, 2, 3, 4)


def starting_plans(plan: Plan, starts: int, others: Sequence[Plan] = ()) -> list[Plan]:
    """The plans that may be tried, the given one first.

    Args:
        plan: the plan to tune.
        starts: 1 for the plan and `others` alone; more for every spacing and every order of its sampler too.
        others: tuned plans for other numbers of calls, or plans with the calls and the ends of this one.

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
                f"others must be deterministic plans from t = {float(plan.t[0]):.6g} to {float(plan.t[-1]):.6g} on the "
                f"schedule of the plan, got {other!r}"
            )
        found.append(fitting)
    for spacing in SPACINGS if starts > 1 else ():
        for sampler in _orders(plan):
            try:
                other = make_plan(sampler, plan.schedule, len(plan), spacing)
            except ValueError:  # not on this schedule, or not for so few calls
                continue
            if _fits(other, plan) and all(other != one for one in found):
                found.append(other)
    return found


def _orders(plan: Plan) -> list[Sampler]:
    """The plan's sampler, and the same with every other order that it may have."""
    values = sampler_to_dict(plan.sampler)
    orders = [order for order in ORDERS if order != values["order"]] if "order" in values else []
    made = [plan.sampler]
    for order in orders:
        try:
            made.append(sampler_from_dict({**values, "order": order}))
        except ValueError:
            continue
    return made


def _fits(other: Plan, plan: Plan) -> bool:
    ends = zip((other.t[0], other.t[-1]), (plan.t[0], plan.t[-1]), strict=True)
    same = all(abs(float(a - b)) < 1e-9 for a, b in ends)
    return len(other) == len(plan) and same and not other.stochastic and other.schedule == plan.schedule
