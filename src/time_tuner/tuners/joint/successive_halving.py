"""Which of several starts is worth the budget: successive halving."""

from collections.abc import Sequence
from typing import Any

from .gauss_newton import GaussNewton

TRIAL_SHARE = 0.35  # the share of the budget that the tournament takes
TURN = 20  # iterations, at least, of starts that are looked for: after fewer one that is soon at its best leads


class SuccessiveHalving:
    """Several descents, of which one goes to the end of the budget.

    In a round every solver that is left has a turn, and the worse half by validation loss is out (Jamieson and
    Talwalkar, 2016, https://arxiv.org/abs/1502.07943). All turns get the same share of the budget.

    Attributes:
        tried: all descents.
        left: those that are not out, by their place in `tried`.
        turn: whose turn it is, by its place in `left`.
        since: the share of the budget at which the turn began.
    """

    def __init__(self, tried: Sequence[GaussNewton], kept: dict[str, Any]) -> None:
        self.tried = list(tried)
        self.left: list[int] = kept.get("left", list(range(len(tried))))
        self.turn: int = kept.get("turn", 0)
        self.since: float = kept.get("since", 0.0)

    @property
    def solver(self) -> GaussNewton:
        """The one whose turn it is."""
        return self.tried[self.left[self.turn]]

    @property
    def decided(self) -> bool:
        """Whether only one is left."""
        return len(self.left) == 1

    def over(self, share: float) -> bool:
        """Whether the turn is over at this share of the budget; the last one's never is."""
        return not self.decided and share - self.since >= TRIAL_SHARE / num_rounds(len(self.tried))

    def next(self, share: float) -> None:
        """The next turn, whose solver has looked where it is."""
        self.turn, self.since = self.turn + 1, share
        if self.turn == len(self.left):
            self.left = sorted(self.left, key=lambda i: self.tried[i].best)[: (self.turn + 1) // 2]
            self.turn = 0
        self.solver.moved_at = share  # it had no chance of progress since

    def stretch(self, factor: float) -> None:
        """Go on in another budget, in which all shares are larger by this factor."""
        self.since *= factor
        for solver in self.tried:
            solver.moved_at *= factor

    def to_dict(self) -> dict[str, Any]:
        """How it stands, in plain values, but for the descents."""
        return {"left": self.left, "turn": self.turn, "since": self.since}


def max_candidates(iterations: int) -> int:
    """How many descents at most may take part where so many iterations are expected in all."""
    count = 1
    while num_rounds(count + 1) * TURN <= TRIAL_SHARE * iterations:
        count += 1
    return count


def num_rounds(count: int) -> int:
    """How many turns there are among so many descents."""
    return 0 if count == 1 else count + num_rounds((count + 1) // 2)
