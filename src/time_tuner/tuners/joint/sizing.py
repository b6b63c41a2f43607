"""How many pairs and iterations of joint tuning a budget is enough for, and the cost of so many."""

from ...models.counting import Cost
from ...plans.plan import Plan
from ..budget import Budget, Speed, forward
from .successive_halving import max_candidates, num_trials
from .teacher import AT_ONCE, MOST, SHARE, teacher_cost

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


def joint_cost(
    plan: Plan,
    teacher: int,
    batch: int | None,
    budget: Budget,
    speed: Speed | None,
    pairs: int | None,
    iterations: int | None,
    given: int,
    candidates: int,
    checkpointed: bool | None,
) -> dict[str, tuple[Cost, Cost]]:
    """The usual and the largest cost of the teacher and of tuning; {} where only an unknown speed decides.

    Args:
        plan, batch, budget, speed: see `Tuner.cost`.
        teacher: its calls.
        pairs, iterations: the options; None by default.
        given: candidates that take part in any case.
        candidates: the option.
        checkpointed: whether activations are computed again; None where memory decides.
    """
    limit = budget.seconds
    if limit is not None and speed is None and (pairs is None or iterations is None):
        return {}
    wanted = pairs or num_pairs(teacher, budget, batch) or MOST
    made = wanted
    if limit is not None and speed is not None:
        group = min(AT_ONCE, wanted)
        made = min(wanted, int(SHARE * limit * group / speed.seconds(teacher_cost(group, teacher, batch))))
    left = None if limit is None or speed is None else limit - speed.seconds(teacher_cost(made, teacher, batch))
    usual_count = most_count = num_iterations(plan, budget, batch, speed, left)
    if iterations is not None:
        usual_count, most_count = min(iterations, usual_count) if budget else iterations, iterations
    elif limit is not None:
        most_count = int(usual_count * RUNS / FEWEST_RUNS)
    held = max(1, min(MOST_HELD, made // 4))

    def looks(count: int) -> Cost:
        taking_part = max(given, min(candidates, max_candidates(count)))
        number, at = 1 + taking_part + num_trials(taking_part), next_look(0)
        while at <= count:
            number, at = number + 1, next_look(at)
        ranking = forward(min(held, BATCH), batch) * (RANKED * (taking_part > given))
        return (forward(held, batch) * number + ranking) * len(plan)

    def tuning(count: int, runs: float) -> Cost:
        return forward(min(BATCH, made - held), batch) * round(runs * len(plan) * count) + looks(count)

    usual = tuning(usual_count, RUNS + RECOMPUTED * bool(checkpointed))
    most = tuning(most_count, MOST_RUNS + MOST_RECOMPUTED * (checkpointed is not False))
    if budget.calls is not None and most.calls > budget.calls:
        # Iterations that cost less are more, and with them the looks, whose calls hold more samples.
        looked = looks(budget.calls // (FEWEST_RUNS * len(plan))).evaluations
        most = Cost(budget.calls, budget.calls * min(BATCH, batch or BATCH) + looked)
    return {
        "teacher": (teacher_cost(made, teacher, batch), teacher_cost(wanted, teacher, batch)),
        "tuning": (usual, most),
    }
