"""What a run of `tune` costs, by purpose: own samples, teacher, ranking, tuning, reference run and guard."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from ..models.counting import Cost
from ..plans.build import reference_plan
from ..plans.plan import Plan
from .base import Tuner
from .budget import Budget, Speed, forward
from .calibration import OWN_CALLS
from .guard import MOST_NOISE, ReferenceDistance
from .joint.sizing import num_pairs
from .joint.teacher import FEWEST, teacher_cost, teacher_of
from .ranking import ROUNDS, SECONDS_SHARE, SHARE, Rounds

REFERENCE_CALLS = 100
"""Of the reference run of the guard."""


def planned_costs(
    tuner: Tuner,
    plan: Plan,
    free: bool,
    samples: int,
    batch: int | None,
    own_samples: bool,
    guard: bool | ReferenceDistance,
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
                ranking = _cut(ranking, Budget(seconds=SECONDS_SHARE * budget.seconds), speed)
                made = _cut(own, Budget(seconds=SECONDS_SHARE * budget.seconds), speed)
            costs["ranking"] = ranking, rounds.cost(len(plan), batch)
            usual, most = costs.get("teacher", (Cost(), Cost()))
            costs["teacher"] = usual + made, most + own
    again = 1
    if guard is True:
        reference = run * len(reference_plan(plan.schedule, float(plan.t[-1]), REFERENCE_CALLS))
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


def seconds_on(devices: int, costs: Mapping[str, tuple[Cost, Cost]], speed: Speed) -> float:
    """The usual seconds of a run of `tune` on so many devices, by the speed of one: each call is made of its samples
    divided among the devices."""
    total = 0.0
    for usual, _ in costs.values():
        each = usual.evaluations / max(1, usual.calls)  # samples of a call
        total += usual.calls * (speed.call + speed.evaluation * math.ceil(each / devices))
    return total


def bytes_exchanged(tuner: Tuner, plan: Plan, costs: Mapping[str, tuple[Cost, Cost]], numbers: int) -> int:
    """The bytes that each of several processes receives in the usual run of `tune`, of samples of so many numbers, with
    one evaluation for each sample of a call: ends of runs once, losses, and what the tuner exchanges."""
    sample, usual = 4 * numbers, {name: each for name, (each, _) in costs.items()}
    calls = {
        "data": len(reference_plan(plan.schedule, 0.0, OWN_CALLS)),
        "teacher": len(teacher_of(plan, getattr(tuner, "teacher", None))) if not plan.stochastic else 1,
        "reference": REFERENCE_CALLS,
    }
    total = sum(sample * (usual[name].evaluations // count) for name, count in calls.items() if name in usual)
    for name in ("ranking", "guard", "grids"):
        if name in usual:
            total += (sample if plan.stochastic else 8) * (usual[name].evaluations // len(plan))
    return total + (tuner.exchanged(plan, usual["tuning"], numbers) if "tuning" in usual else 0)


@dataclass(frozen=True)
class Memory:
    """The memory that tuning needs, in bytes: of each device, and of the main memory of each process."""

    device: int
    host: int


def memory_needed(
    plan: Plan, numbers: int, weights: int, activations: int, samples: int, pairs: int, path: bool = False
) -> Memory:
    """The memory of a process that shares the work.

    Args:
        plan: that is tuned.
        numbers: of a state.
        weights: bytes of the network on each device.
        activations: bytes of a call with one sample.
        samples: in a call of this process.
        pairs: of the teacher, whose noise and ends each process holds.
        path: whether the states of the teacher's runs at the calls of the plan are kept, as by `LeastSquares`.
    """
    states = 2 + 2 * len(plan)  # the noise, the state, and a state and a prediction of every call
    held = 2 * pairs * 4 * numbers
    device = weights + samples * (activations + states * 4 * numbers) + held
    return Memory(device, held + (pairs * (len(plan) - 1) * 4 * numbers if path else 0))
