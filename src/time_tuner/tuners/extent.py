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
BATCH = 32
SECONDS = 120.0  # what tuning is to take where no budget is given
LOOK, LOOKS = 10, 25  # at least so many iterations between two looks at the validation pairs, so many looks at most
STARTS = 60  # about as many are ranked: spacings times orders
MOST_HELD, FEWEST = 256, 8  # of two plans, a few pairs that end elsewhere altogether make the difference
FEWEST_PAIRS, MOST_PAIRS = 16, 1024  # by default
LEAST_ITERATIONS, MOST_ITERATIONS = 100, 1500  # by default
LEAST_CALL = 1e-3  # seconds
NO_BUDGET = Budget()


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


def sizes(
    plan: Plan, teacher: int, call: float, budget: Budget, pairs: int | None = None, iterations: int | None = None
) -> dict[str, int]:
    """The pairs of a teacher of so many calls, and the iterations: a quarter of the time for the pairs, the rest for
    tuning, where `call` is the seconds that the model takes for 32 samples."""
    seconds = budget.seconds or SECONDS
    if pairs is None:
        pairs = int(min(MOST_PAIRS, max(FEWEST_PAIRS, 0.25 * seconds / (call * teacher / BATCH))))
    if iterations is None and not budget:
        iterations = int(min(MOST_ITERATIONS, max(LEAST_ITERATIONS, 0.75 * seconds / (call * 3 * len(plan)))))
    return {"pairs": pairs, "iterations": iterations or 10**9}


def teacher_cost(
    plan: Plan,
    call: float = 0.0,
    budget: Budget = NO_BUDGET,
    teacher: Plan | None = None,
    pairs: int | None = None,
    cache: str | Path | None = None,
    **options: Any,
) -> tuple[Cost, Cost]:
    """What the teacher's runs cost as a rule, and at most; exact where the number of pairs is given, or `call`,
    the seconds that the model takes for 32 samples. Where there is a `cache`, as a rule it holds them."""
    calls = TEACHER_CALLS if teacher is None else len(teacher)
    if call and pairs is None:
        pairs = sizes(plan, calls, call, budget)["pairs"]
    least, most = (forward(count, TEACHER_BATCH) * calls for count in (pairs or 4 * FEWEST_PAIRS, pairs or MOST_PAIRS))
    return Cost(calls, calls) if cache is not None and Path(cache).exists() else least, most


def tuning_cost(
    plan: Plan,
    call: float = 0.0,
    budget: Budget = NO_BUDGET,
    pairs: int | None = None,
    iterations: int | None = None,
    **options: Any,
) -> tuple[Cost, Cost]:
    """What tuning this plan costs as a rule, and at most."""
    calls = len(plan)
    if call and pairs is None:
        pairs = sizes(plan, TEACHER_CALLS, call, budget)["pairs"]
    held = min(MOST_HELD, (pairs or MOST_PAIRS) // 4)
    if iterations is None:  # a budget is for all of its calls, or for three quarters of its seconds
        timed = budget.seconds and call and int(0.75 * budget.seconds / (call * 3 * calls))
        known = call and not budget and sizes(plan, TEACHER_CALLS, call, budget)["iterations"]
        iterations = (budget.calls and budget.calls // (3 * calls)) or timed or known or None

    def of(count: int) -> Cost:
        looks = forward(held) * calls * min(LOOKS, count // LOOK) + forward(min(held, BATCH)) * calls * STARTS
        return Cost(3 * calls * count, 3 * calls * BATCH * count) + looks

    return of(iterations or (LEAST_ITERATIONS + MOST_ITERATIONS) // 4), of(iterations or MOST_ITERATIONS)
