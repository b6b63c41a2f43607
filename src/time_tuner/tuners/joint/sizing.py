"""How many pairs and iterations of joint tuning a budget is enough for."""

from ...plans.plan import Plan
from ..budget import Budget, Speed, forward
from .teacher import MOST

BATCH = 16  # pairs of an iteration: of twice as many half the steps are made, and each is hardly better
FEWEST_RUNS, RUNS, MOST_RUNS = 4, 5.5, 8  # runs of BATCH pairs that an iteration costs: one, a backward or two, one to
RECOMPUTED, MOST_RECOMPUTED = 1.5, 2  # judge it, differences in times; and one more for each backward of a checkpoint
MOST_ITERATIONS = 800  # in the default budget: twice as many gained nothing (benchmarks/joint.py cost)
FEWEST_PAIRS = 16  # beside a budget of calls, of which the teacher's are no part
LEAST_CALL = 1e-3  # seconds that the arithmetic of tuning takes around a call of a small network
FIRST_LOOK = 20  # iterations until the validation pairs are looked at
MOST_HELD = 256  # validation pairs, a quarter of all up to these; a few that end far away make the difference
RANKED = 45  # candidates to choose from, about: spacings, each also with late beginnings, and orders


def next_look(done: int) -> int:
    """The number of iterations after which the validation pairs are looked at again: progress is fastest at first."""
    return done + FIRST_LOOK + done // 3


def num_pairs(teacher: int, budget: Budget, batch: int | None = None) -> int | None:
    """The pairs of a teacher of so many calls beside a budget of calls: as many as cost a third of its sample
    evaluations, 16 to 2048. None without one: the clock decides."""
    if budget.calls is None:
        return None
    evaluations = budget.calls / 3 * BATCH / forward(BATCH, batch).calls
    return int(min(MOST, max(FEWEST_PAIRS, evaluations / teacher)))


def num_iterations(
    plan: Plan, budget: Budget, batch: int | None = None, speed: Speed | None = None, seconds: float | None = None
) -> int:
    """The iterations that are expected in a budget of calls, or in this many seconds at this speed."""
    once = forward(BATCH, batch)
    if budget.calls is not None:
        return max(1, int(budget.calls / (RUNS * len(plan) * once.calls)))
    if speed is None or seconds is None:
        return MOST_ITERATIONS
    count = int(seconds / (RUNS * len(plan) * max(LEAST_CALL, speed.seconds(once))))
    return min(count, MOST_ITERATIONS) if budget.default else count
