"""What a run of `tune` costs, by purpose: own samples, teacher, ranking, tuning, reference run and guard."""

from ..models.counting import Cost
from ..plans.build import reference_plan
from ..plans.plan import Plan
from .base import Tuner
from .budget import Budget, Speed, forward
from .calibration import OWN_CALLS
from .guard import MOST_NOISE, ReferenceDistance
from .joint.sizing import num_pairs
from .joint.teacher import FEWEST, teacher_cost, teacher_of
from .ranking import ROUNDS, SHARE, Rounds


def planned_costs(
    tuner: Tuner,
    plan: Plan,
    free: bool,
    samples: int,
    batch: int | None,
    own_samples: bool,
    guard: bool | ReferenceDistance,
    reference_calls: int,
    budget: Budget,
    speed: Speed | None,
) -> dict[str, tuple[Cost, Cost]]:
    """The usual and the largest cost of a run of `tune`, by purpose, with one evaluation for each sample of a call;
    `free` where it may start from any plan."""
    run, costs = forward(samples, batch), dict[str, tuple[Cost, Cost]]()
    if tuner.uses_data and own_samples:
        costs["data"] = (run * len(reference_plan(plan.schedule, 0.0, OWN_CALLS)),) * 2
    costs |= tuner.cost(plan, samples, batch, budget, speed)
    if "tuning" in costs:
        usual, most = costs["tuning"]
        costs["tuning"] = _cut(usual, budget, speed), _cut(most, budget, speed)
    ranked = (free or guard is not False or tuner.max_starts > 1) and not plan.stochastic
    if ranked:
        teacher = len(teacher_of(plan, getattr(tuner, "teacher", None)))
        pairs = ranking_pairs(tuner, budget, samples, teacher, batch)
        own = Cost() if tuner.ranks_on_its_pairs else teacher_cost(pairs, teacher, batch)
        limit = max(own.evaluations, int(SHARE * costs["tuning"][0].evaluations)) if "tuning" in costs else None
        if (rounds := Rounds.within(limit, len(plan), pairs)).plans:
            ranking, made = rounds.cost(len(plan), batch), own
            if budget.seconds is not None:
                ranking = _cut(ranking, Budget(seconds=SHARE * budget.seconds), speed)
                made = _cut(own, Budget(seconds=SHARE * budget.seconds), speed)
            costs["ranking"] = ranking, rounds.cost(len(plan), batch)
            usual, most = costs.get("teacher", (Cost(), Cost()))
            costs["teacher"] = usual + made, most + own
    again = 1
    if guard is True:
        reference = run * len(reference_plan(plan.schedule, float(plan.t[-1]), reference_calls))
        again += MOST_NOISE
        costs["reference"] = reference, reference * again
    if guard is not False:
        # The untuned plans, the tuned one, and one for each call that may be set back, of which two are usual.
        others = 2 * ("ranking" in costs)
        fewest, most_runs = min(4, 2 + len(plan)) + others, 2 + len(plan) + others
        costs["guard"] = run * (len(plan) * fewest), run * (len(plan) * most_runs * again)
    return costs


def _cut(cost: Cost, budget: Budget, speed: Speed | None) -> Cost:
    """As much of a cost as the budget allows."""
    if budget.calls is not None and cost.calls > budget.calls:
        cost = Cost(budget.calls, cost.evaluations * budget.calls // cost.calls)
    if budget.seconds is not None and speed is not None and (seconds := speed.seconds(cost)) > budget.seconds:
        share = budget.seconds / seconds
        cost = Cost(int(cost.calls * share), int(cost.evaluations * share))
    return cost


def ranking_pairs(tuner: Tuner, budget: Budget, samples: int, teacher: int, batch: int | None) -> int:
    """On how many runs of the teacher the untuned plans are ranked: those of the tuner, 256 at most; for a tuner that
    has none as many as there are samples, 64 at most."""
    if not tuner.ranks_on_its_pairs:
        return min(ROUNDS[-2], max(FEWEST, samples))
    pairs = getattr(tuner, "pairs", None) or num_pairs(teacher, budget, batch) or ROUNDS[-1]
    return min(pairs, ROUNDS[-1])
