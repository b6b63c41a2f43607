"""Which of several candidates is tuned to the end of the budget: successive halving."""

from collections.abc import Sequence
from typing import Any

from .gauss_newton import GaussNewton

TRIAL_SHARE = 0.35  # of the budget, for all rounds
FEWEST_ITERATIONS = 20  # of a trial: after fewer a candidate that is soon at its best would lead


class SuccessiveHalving:
    """Several solvers, of which one is run to the end of the budget; or those of an earlier run in this state.

    In a round every solver that remains has a trial, and the worse half by validation loss is out (Jamieson and
    Talwalkar, 2016, https://arxiv.org/abs/1502.07943). All trials get the same share of the budget.

    Attributes:
        remaining: the places of those that remain in `solvers`.
        entered: how many took part in the first round.
        trial: the place of the one on trial in `remaining`.
        began_at: the share of the budget at which its trial began.
    """

    def __init__(self, solvers: Sequence[GaussNewton], state: dict[str, Any]) -> None:
        self.solvers = solvers
        self.remaining: list[int] = state.get("remaining", list(range(len(solvers))))
        self.entered: int = state.get("entered", len(self.remaining))
        self.trial: int = state.get("trial", 0)
        self.began_at: float = state.get("began_at", 0.0)

    @property
    def solver(self) -> GaussNewton:
        """The solver on trial."""
        return self.solvers[self.remaining[self.trial]]

    @property
    def decided(self) -> bool:
        """Whether only one remains."""
        return len(self.remaining) == 1

    def keep_best(self, count: int | None) -> None:
        """Only so many take part, the best by their validation loss; None for all. No trial has begun yet."""
        ranked = sorted(self.remaining, key=lambda i: self.solvers[i].best_loss)
        self.remaining = sorted(ranked[:count])
        self.entered = len(self.remaining)

    def trial_ends(self, share: float) -> bool:
        """Whether the trial is over at this share of the budget; that of the last one never is."""
        return not self.decided and share - self.began_at >= TRIAL_SHARE / num_trials(self.entered)

    def next_trial(self, share: float) -> None:
        """Begin the next trial; the solver of this one was validated."""
        self.trial, self.began_at = self.trial + 1, share
        if self.trial == len(self.remaining):
            ranked = sorted(self.remaining, key=lambda i: self.solvers[i].best_loss)
            self.remaining, self.trial = ranked[: (self.trial + 1) // 2], 0
        self.solver.improved_at = share  # it could not improve since its last trial

    def rescale(self, factor: float) -> None:
        """Continue in another budget, in which all shares are larger by this factor."""
        self.began_at *= factor
        for solver in self.solvers:
            solver.improved_at *= factor

    def to_dict(self) -> dict[str, Any]:
        """The state in plain values, without that of the solvers."""
        return {"remaining": self.remaining, "entered": self.entered, "trial": self.trial, "began_at": self.began_at}


def max_candidates(iterations: float) -> int:
    """The most candidates of which each has a long enough trial, where so many iterations are expected in all."""
    count = 1
    while num_trials(count + 1) * FEWEST_ITERATIONS <= TRIAL_SHARE * iterations:
        count += 1
    return count


def num_trials(count: int) -> int:
    """The trials of all rounds of so many candidates."""
    return 0 if count == 1 else count + num_trials((count + 1) // 2)
