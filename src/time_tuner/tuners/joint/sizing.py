"""How many pairs and iterations of joint tuning a budget is enough for, and the cost of so many."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ...models.counting import Cost
from ...plans.plan import Plan
from ..budget import Budget, Speed, forward
from ..ranking import SECONDS_SHARE
from .candidates import corrected_cost, num_fitted
from .parameters import check_parts, reusing
from .successive_halving import max_candidates, num_trials
from .teacher import AT_ONCE, MOST, SHARE, teacher_cost

if TYPE_CHECKING:
    from .tuner import Joint

BATCH = 16  # pairs of an iteration: of twice as many half the steps are made, and each is hardly better
RECOMPUTED, MOST_RECOMPUTED = 1.5, 2  # runs more of an iteration, for each backward of a checkpoint
MOST_ITERATIONS = 800  # in the default budget: twice as many gained nothing (benchmarks/joint.py cost)
SHORT_SHARE = 0.2  # of the seconds left, that another candidate may take in a budget for one: it saves about as many
RANKING = 0.1  # of the iterations, that the ranking of grids may cost
FEWEST_PAIRS = 16  # beside a budget of calls, of which the teacher's are no part
LEAST_CALL = 1e-3  # seconds that the arithmetic of tuning takes around a call of a small network
FIRST_LOOK = 20  # iterations until the validation pairs are looked at
FEWEST_COMPARED = 64  # pairs, to compare a corrected plan with the start: of 8 validation pairs too much is chance
MOST_HELD = 256  # validation pairs, a quarter of all up to these; a few that end far away make the difference


def difference_calls(plan: Plan, parts: Sequence[str]) -> int:
    """The calls that the differences of one pair take beside its run; where a step makes several calls the most."""
    calls = len(plan)
    by_part = {
        "times": math.comb(calls, 2),
        "tau": math.comb(calls + 1, 2),
        "corrections": math.comb(calls, 3),
        "reuse": int((calls - reusing(plan)[0]).sum()),
    }
    return sum(by_part[part] for part in parts)


def num_rows_on(parts: Sequence[str], calls: int, pairs: int, numbers: int) -> int:
    """Of so many pairs, of so many numbers each, those on which rows of corrections are found before the differences
    are used: half of those of iterations, 64 at most, or fewer if the memory is short; 0 where there is nothing to
    find."""
    if "corrections" not in parts or calls < 2:
        return 0
    held = max(1, min(MOST_HELD, pairs // 4))
    return num_fitted(pairs - held, numbers)


def num_others(tuner: "Joint", most: int, pairs: int) -> int:
    """How many candidates are made beside the plan and the warm starts, where the budget is enough to tune `most`.

    One is made for a smaller budget, too, where corrections are tuned by gradients: the better one of the two is tuned.
    In 2000 calls that ends nearer in 4 of 6 exact problems, and by half of the distance on colour patches in 10 calls.
    """
    found = "corrections" in tuner.tunes and tuner.gradients is not False and pairs >= FEWEST_COMPARED
    alone = tuner.evaluations is None and not found
    count = max(most, 1 if alone else 2)
    return (count if tuner.evaluations else min(tuner.candidates, count)) - 1 - len(tuner.warm_starts)


def affordable_others(
    tuner: "Joint",
    plan: Plan,
    most: int,
    pairs: int,
    teacher: int,
    batch: int | None,
    speed: Speed | None,
    seconds: float | None,
) -> int:
    """`num_others`; 0 where the budget is enough to tune one candidate, and the corrections of another one would take
    more than SHORT_SHARE of the seconds that are left."""
    count = num_others(tuner, most, pairs)
    if most >= 2 or speed is None or seconds is None or tuner.evaluations is not None:
        return count
    cost = corrected_cost(plan, pairs, teacher, count, 0.0, batch)
    return count if speed.seconds(cost) <= SHORT_SHARE * seconds else 0


@dataclass(frozen=True)
class Runs:
    """How many runs of BATCH pairs an iteration costs: the fewest, the usual number, the most.

    With gradients they are a run, a backward or two, a run to judge the step, and the differences in times.
    """

    fewest: float = 4
    usual: float = 5.5
    most: float = 8

    @classmethod
    def forward_only(cls, plan: Plan, parts: Sequence[str]) -> "Runs":
        """A run, those of the differences, and one to judge the step."""
        runs = 2 + difference_calls(plan, parts) / len(plan)
        return cls(runs, runs, runs)

    @classmethod
    def of(cls, tuner: "Joint", plan: Plan) -> "Runs":
        """Of a tuner that is known to have gradients or not."""
        return cls.forward_only(plan, check_parts(tuner.parts)) if tuner.gradients is False else cls()


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
    plan: Plan,
    budget: Budget,
    batch: int | None = None,
    speed: Speed | None = None,
    seconds: float | None = None,
    runs: float = Runs.usual,
) -> int:
    """The iterations that are expected in a budget of calls, or in this many seconds at this speed, of so many runs."""
    once = forward(BATCH, batch)
    if budget.calls is not None:
        return max(1, int(budget.calls / (runs * len(plan) * once.calls)))
    if speed is None or seconds is None:
        return MOST_ITERATIONS
    count = int(seconds / (runs * len(plan) * max(LEAST_CALL, speed.seconds(once))))
    return min(count, MOST_ITERATIONS) if budget.default else count


def joint_cost(
    tuner: "Joint", teacher: int, plan: Plan, batch: int | None, budget: Budget, speed: Speed | None
) -> dict[str, tuple[Cost, Cost]]:
    """The usual and the largest cost of the teacher, of so many calls, and of tuning; {} where only an unknown speed
    decides."""
    limit = budget.seconds
    if limit is not None and speed is None and not tuner.sized:
        return {}
    # 1. The pairs.
    runs = Runs.of(tuner, plan)
    made, left = tuner.pairs or num_pairs(teacher, budget, batch) or MOST, None
    most_teacher = teacher_cost(made, teacher, batch)
    if limit is not None and speed is not None:
        group = min(AT_ONCE, made)
        made = min(made, int(SHARE * limit * group / speed.seconds(teacher_cost(group, teacher, batch))))
        left = (1 - SECONDS_SHARE) * limit - speed.seconds(teacher_cost(made, teacher, batch))
    # 2. The other candidates, and the iterations.
    others, grids = 0, Cost()
    if "corrections" in tuner.tunes:
        expected = tuner.iterations or num_iterations(plan, budget, batch, speed, left, runs.usual)
        others = affordable_others(tuner, plan, max_candidates(expected), made, teacher, batch, speed, left)
        share = RANKING * expected * runs.usual * len(plan) * BATCH
        grids = corrected_cost(plan, made, teacher, others, share, batch)
        left = left if left is None or speed is None else left - speed.seconds(grids)
    held, expected = max(1, min(MOST_HELD, made // 4)), num_iterations(plan, budget, batch, speed, left, runs.usual)
    most_count = int(expected * runs.usual / runs.fewest) if limit is not None else expected
    if tuner.iterations is not None:
        expected, most_count = min(tuner.iterations, expected) if budget else tuner.iterations, tuner.iterations

    rows_on = 0 if tuner.gradients is not False else num_rows_on(check_parts(tuner.parts), len(plan), made, 1)
    path = forward(rows_on, batch) * teacher if rows_on else Cost()

    def looks(count: int) -> Cost:
        sure = 1 + len(tuner.warm_starts)
        taking_part = max(sure, min(tuner.candidates, max_candidates(count)))
        begun = max(taking_part, sure + num_others(tuner, max_candidates(count), made))
        number, at = 1 + begun + num_trials(taking_part), next_look(0)
        while at <= count:
            number, at = number + 1, next_look(at)
        rows = (forward(rows_on, batch) + forward(held, batch)) * taking_part if rows_on else Cost()
        return (forward(held, batch) * number + rows) * len(plan)

    def tuning(count: int, runs: float) -> Cost:
        return forward(min(BATCH, made - held), batch) * round(runs * len(plan) * count) + looks(count)

    again = 0.0 if tuner.gradients is False else 1.0  # checkpoints are for gradients
    usual = tuning(expected, runs.usual + again * RECOMPUTED * bool(tuner.checkpoint_steps))
    most = tuning(most_count, runs.most + again * MOST_RECOMPUTED * (tuner.checkpoint_steps is not False))
    if budget.calls is not None and most.calls > budget.calls:
        # Iterations that cost less are more, and with them the looks, whose calls hold more samples.
        looked = looks(budget.calls // int(runs.fewest * len(plan))).evaluations
        most = Cost(budget.calls, budget.calls * min(BATCH, batch or BATCH) + looked)
    costs = {"teacher": (teacher_cost(made, teacher, batch) + path, most_teacher + path), "tuning": (usual, most)}
    if others > 0:
        costs["grids"] = grids, grids
    return costs
