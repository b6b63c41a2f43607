"""How much joint tuning does, by the network's speed and the budget, and what that costs."""

import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..plan import Plan
from ..sampling import Eps
from .budget import Budget, Cost, forward
from .teacher import BATCH as TEACHER_BATCH

TEACHER_CALLS = 60
BATCH = 16  # of twice as many half the steps are made, and each is hardly better
SECONDS = 120.0  # what tuning is to take where no budget is given
RUNS, MOST_RUNS = 6, 8  # an iteration costs as many: one, slopes in the times, a backward or two, one to judge it
LOOK = 10  # iterations until the first look at the validation pairs
STARTS = 45  # about as many are ranked: spacings, each with late beginnings, and orders
MOST_HELD, FEWEST = 256, 8  # of two plans, a few pairs that end elsewhere altogether make the difference
FEWEST_PAIRS, MOST_PAIRS = 16, 2048  # by default; long tuning on few pairs learns them by heart
LEAST_ITERATIONS, MOST_ITERATIONS = 80, 800  # by default
LEAST_CALL = 1e-3  # seconds
NO_BUDGET = Budget()


def next_look(done: int) -> int:
    """The number of iterations at which to look at the validation pairs again: progress is fastest at first."""
    return done + LOOK + done // 4


def seconds_a_call(eps: Eps, plan: Plan, noise: Tensor) -> float:
    """How long the model takes for a batch like this one: the shortest of some calls, the first of which is slow; of a
    small model at least what the arithmetic around a call takes."""
    x, p = plan.start(noise), plan.point(len(plan) - 1)
    took = []
    with torch.no_grad():
        for _ in range(4):
            began = time.perf_counter()
            float(eps(x, p.t, p.t).sum())
            took.append(time.perf_counter() - began)
    return max(min(took), LEAST_CALL)


def usual_pairs(teacher: int, call: float, budget: Budget) -> int:
    """The pairs of a teacher of so many calls that a quarter of the time is enough for; beside a budget in calls, as
    many as take a third of it."""
    calls = budget.calls / 3 if budget.calls is not None else 0.25 * (budget.seconds or SECONDS) / call
    return int(min(MOST_PAIRS, max(FEWEST_PAIRS, calls * BATCH / teacher)))


def usual_iterations(plan: Plan, call: float, budget: Budget) -> int:
    """The iterations that the rest of the time, or a budget in calls, is enough for."""
    each = RUNS * len(plan)
    if budget.calls is not None:
        return max(1, budget.calls // each)
    count = int(0.75 * (budget.seconds or SECONDS) / (call * each))
    return max(1, count) if budget else min(MOST_ITERATIONS, max(LEAST_ITERATIONS, count))


def sizes(
    plan: Plan, teacher: int, call: float, budget: Budget, pairs: int | None = None, iterations: int | None = None
) -> dict[str, int]:
    """The pairs of a teacher of so many calls; the iterations, as many as come where a budget ends them; and how many
    of them are expected. `call` is the seconds that the model takes for 16 samples."""
    expected = usual_iterations(plan, call, budget) if iterations is None else iterations
    return {
        "pairs": usual_pairs(teacher, call, budget) if pairs is None else pairs,
        "iterations": 10**9 if iterations is None and budget else expected,
        "expected": expected,
    }


def costs(
    plan: Plan,
    call: float = 0.0,
    budget: Budget = NO_BUDGET,
    teacher: Plan | None = None,
    pairs: int | None = None,
    iterations: int | None = None,
    cache: str | Path | None = None,
    **options: Any,
) -> dict[str, tuple[Cost, Cost]]:
    """What the teacher's runs and tuning cost as a rule, and at most: closer where `pairs` and `iterations` are given,
    or `call`, the seconds that the model takes for 16 samples. Of runs in a `cache` one is made again, to see whether
    they are this model's."""
    calls, runs = len(plan), TEACHER_CALLS if teacher is None else len(teacher)
    if pairs is None and (call or budget.calls):
        pairs = usual_pairs(runs, call, budget)
    if iterations is None and (call or budget.calls):
        iterations = usual_iterations(plan, call, budget)
    taught = [forward(count, TEACHER_BATCH) * runs for count in (pairs or 4 * FEWEST_PAIRS, pairs or MOST_PAIRS)]
    if cache is not None and Path(cache).exists():
        taught[0] = Cost(runs, runs)
    held = max(1, min(MOST_HELD, (pairs or MOST_PAIRS) // 4))

    def tuning(count: int, runs: int) -> Cost:
        looks, at = 1, next_look(0)
        while at <= count:
            looks, at = looks + 1, next_look(at)
        ranking = forward(min(held, BATCH)) * calls * STARTS
        return Cost(runs * calls * count, runs * calls * BATCH * count) + forward(held) * calls * looks + ranking

    usual, most = iterations or (LEAST_ITERATIONS + MOST_ITERATIONS) // 4, iterations or MOST_ITERATIONS
    return {"teacher": (taught[0], taught[1]), "tuning": (tuning(usual, RUNS), tuning(most, MOST_RUNS))}
