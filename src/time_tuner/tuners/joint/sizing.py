"""How much joint tuning does, by the network's speed and the budget, and what that costs."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...models.base import Model
from ...models.counting import Cost
from ...plans.plan import Plan
from ..budget import Budget, forward
from .successive_halving import max_candidates, num_rounds
from .teacher import teaching

BATCH = 16  # of twice as many half the steps are made, and each is hardly better
SECONDS = 120.0  # what tuning is to take where no budget is given
FEWEST_RUNS, RUNS, MOST_RUNS = 4, 6, 8  # an iteration costs: one, slopes in times, a backward or two, one to judge it
AGAIN = 2  # more, where activations are computed again for each backward
LOOK = 20  # iterations until the first look at the validation pairs
STARTS = 4  # enter a tournament,
RANKED = 45  # chosen from about as many: spacings, each with late beginnings, and orders
MOST_HELD, FEWEST = 256, 8  # of two plans, a few pairs that end elsewhere altogether make the difference
FEWEST_PAIRS, MOST_PAIRS = 16, 2048  # by default; long tuning on few pairs learns them by heart
LEAST_ITERATIONS, MOST_ITERATIONS = 80, 800  # by default
LEAST_CALL = 1e-3  # seconds
NO_BUDGET = Budget()


def next_look(done: int) -> int:
    """The number of iterations at which to look at the validation pairs again: progress is fastest at first."""
    return done + LOOK + done // 3


def seconds_a_call(eps: Model, plan: Plan, noise: Tensor) -> float:
    """How long the model takes for a batch like this one: the shortest of some calls, the first of which is slow; of a
    small model at least what the arithmetic around a call takes."""
    x, p = plan.initial_state(noise), plan.point(len(plan) - 1)
    took = []
    with torch.no_grad():
        for _ in range(4):
            began = time.perf_counter()
            float(eps(x, p.t, p.t).sum())
            took.append(time.perf_counter() - began)
    return max(min(took), LEAST_CALL)


def usual_pairs(teacher: int, call: float, budget: Budget, batch: int | None = None) -> int:
    """The pairs of a teacher of so many calls that a quarter of the time is enough for; beside a budget in calls, as
    many as take a third of its sample evaluations."""
    if budget.calls is None:
        evaluations = 0.25 * (budget.seconds or SECONDS) / call * BATCH
    else:
        evaluations = budget.calls / 3 * BATCH / forward(BATCH, batch).calls
    return int(min(MOST_PAIRS, max(FEWEST_PAIRS, evaluations / teacher)))


def usual_iterations(plan: Plan, call: float, budget: Budget, batch: int | None = None) -> int:
    """The iterations that the rest of the time, or a budget in calls, is enough for."""
    runs = RUNS * len(plan)
    if budget.calls is not None:
        return max(1, budget.calls // (runs * forward(BATCH, batch).calls))
    count = int(0.75 * (budget.seconds or SECONDS) / (call * runs))
    return max(1, count) if budget else min(MOST_ITERATIONS, max(LEAST_ITERATIONS, count))


def sizes(
    plan: Plan,
    teacher: int,
    call: float,
    budget: Budget,
    pairs: int | None = None,
    iterations: int | None = None,
    batch: int | None = None,
) -> dict[str, int]:
    """The pairs of a teacher of so many calls; the iterations, as many as come where a budget ends them; and how many
    of them are expected. `call` is the seconds that the model takes for 16 samples, `batch` the most in one call."""
    expected = usual_iterations(plan, call, budget, batch) if iterations is None else iterations
    return {
        "pairs": usual_pairs(teacher, call, budget, batch) if pairs is None else pairs,
        "iterations": 10**9 if iterations is None and budget else expected,
        "expected": expected,
    }


def costs(
    plan: Plan,
    teacher: Plan,
    batch: int | None = None,
    call: float = 0.0,
    budget: Budget = NO_BUDGET,
    pairs: int | None = None,
    iterations: int | None = None,
    cache: str | Path | None = None,
    starts: int = STARTS,
    others: Sequence[Plan] = (),
    checkpoint_steps: bool | None = None,
    **options: Any,
) -> dict[str, tuple[Cost, Cost]]:
    """What the teacher's runs and tuning cost as a rule, and at most: closer where `pairs` and `iterations` are given,
    or `call`, the seconds that the model takes for 16 samples. Of runs in a `cache` one is made again, to see whether
    they are this model's."""
    calls, runs = len(plan), len(teacher)
    if pairs is None and (call or budget.calls):
        pairs = usual_pairs(runs, call, budget, batch)
    if iterations is None and (call or budget.calls):
        iterations = usual_iterations(plan, call, budget, batch)
    taught = [teaching(count, runs, batch) for count in (pairs or 4 * FEWEST_PAIRS, pairs or MOST_PAIRS)]
    if cache is not None and Path(cache).exists():
        taught[0] = Cost(runs, runs)
    held = max(1, min(MOST_HELD, (pairs or MOST_PAIRS) // 4))

    def looking(count: int) -> Cost:
        given = 1 + len(others)
        entered = max(given, min(starts, max_candidates(count)))
        looks, at = 1 + entered + num_rounds(entered), next_look(0)
        while at <= count:
            looks, at = looks + 1, next_look(at)
        ranking = forward(min(held, BATCH), batch) * (RANKED * (entered > given))
        return (forward(held, batch) * looks + ranking) * calls

    def tuning(count: int, runs: int) -> Cost:
        return forward(BATCH, batch) * (runs * calls * count) + looking(count)

    again = 0 if checkpoint_steps is False else AGAIN
    usual = tuning(iterations or (LEAST_ITERATIONS + MOST_ITERATIONS) // 4, RUNS)
    most = tuning(iterations or MOST_ITERATIONS, MOST_RUNS + again)
    if budget.calls and most.calls > budget.calls:
        # Iterations that cost less are more, and with them the looks, whose calls hold more samples.
        looked = looking(budget.calls // (FEWEST_RUNS * calls)).evaluations
        most = Cost(budget.calls, budget.calls * min(BATCH, batch or BATCH) + looked)
    return {"teacher": (taught[0], taught[1]), "tuning": (usual, most)}
