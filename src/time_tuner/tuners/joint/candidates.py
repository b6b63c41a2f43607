"""Candidates of joint tuning: the plan itself, plans of the user's, and plans on the best grids."""

from collections.abc import Callable, Iterator, Sequence
from itertools import chain

import torch
from torch import Tensor

from ..._distributed import own_rows
from ...models.base import for_rows
from ...models.counting import Cost
from ...plans.build import make_plan, resample, untuned
from ...plans.plan import Plan
from ...samplers.ddim import DDIM
from ..budget import forward
from ..least_squares import rows_in_turn
from ..network_times import received
from ..ranking import APART, Ranked, differs_only_in, each_untuned_plan
from .loss import TeacherLoss
from .teacher import CALLS, TeacherPath

FITTED, FEW = 64, 32  # pairs that rows are found on, and those by which all grids are compared
AGAIN = 3  # grids more than are wanted that are compared on all pairs
CLEARLY = 0.8
"""Another grid is tuned before the first one if its distance, corrected, is below this share of that one's. On exact
digits in 3 calls a grid that is 11 % nearer ends twice as far when both are tuned. On colour patches in 5 calls one
that is 40 % nearer ends nearer, too."""

MOST_SHARE = 5  # calls for a guided one, in the search for a pattern
MOST_GRIDS = 36  # in the table, about
PATH_BYTES = 2**31  # of the teacher's runs that are in memory


def patterns(plan: Plan, evaluations: int) -> list[Plan]:
    """Untuned plans that make so many evaluations under classifier-free guidance: guidance at the first m of K calls,
    2 m + (K - m) in all, from guidance at all calls to guidance at a fifth of them.

    Left out of the last third of a run guidance changes the end by less than 0.1 %, and tuned plans need it at fewer
    calls still (docs/results.md).
    """
    found = list[Plan]()
    for guided in range(evaluations // 2, 0, -1):
        calls = evaluations - guided
        if calls > MOST_SHARE * guided:
            break
        try:
            other = resample(untuned(plan), calls)
        except ValueError:  # not so many calls of this sampler
            continue
        found.append(other.with_guidance(guided))
    return found


def warm_starts(plan: Plan, others: Sequence[Plan]) -> list[Plan]:
    """Tuned plans, resampled to the number of calls of this one; a ValueError if one does not fit."""
    found = [resample(other, len(plan)) for other in others]
    for other, fitting in zip(others, found, strict=True):
        same = abs(float(fitting.t[-1] - plan.t[-1])) < 1e-9 and fitting.schedule == plan.schedule
        if not same or fitting.stochastic:
            raise ValueError(
                f"warm_starts must be deterministic plans to t = {float(plan.t[-1]):.6g} on the schedule of the plan, "
                f"got {other!r}"
            )
    return found


def candidate_plans(plan: Plan, ranking: Sequence[Ranked], parts: Sequence[str], count: int) -> list[Plan]:
    """So many of the nearest untuned plans, which differ from the plan only in what is tuned, with what is not tuned;
    each has another grid."""
    found, angles = list[Plan](), list[Tensor]()
    for one in ranking:
        other, angle = one.plan, plan.schedule.at(one.plan.t).angle
        if len(found) == count:
            break
        again = any((angle - known).abs().max() <= APART for known in angles)
        if again or not differs_only_in(parts, other, plan) or differs_only_in((), other, plan):
            continue
        if "tau" not in parts:
            other = other.with_ratios(plan.tau / plan.t[:-1])
        if "corrections" not in parts:
            other = other.with_corrections(plan.corrections)
        found.append(other)
        angles.append(angle)
    return found


class CorrectedPlans:
    """Plans on other grids, with corrections by least squares along the run, see `least_squares`.

    Where corrections are tuned, all samplers on a grid are starts of one and the same search, and what an untuned plan
    reaches says little of what a tuned one will: on exact colour patches in 5 calls "leading" is the fourth best grid
    untuned, and ends 28 % nearer than any other with corrections. So grids are ranked by DDIM with its corrections.

    Args:
        loss: the distance to the teacher's ends.
        teacher: whose runs the rows are found on.
        plan: to whose end the plans lead.
        parts: what is tuned: without "times" there is the grid of the plan alone.
    """

    def __init__(self, loss: TeacherLoss, teacher: Plan, plan: Plan, parts: Sequence[str]) -> None:
        self.loss, self.teacher, self.plan, self.parts = loss, teacher, plan, parts
        self.fit = torch.arange(num_fitted(len(loss.pairs), loss.pairs.x[0].numel()))
        self.held = torch.arange(len(self.fit), min(len(loss.pairs), 2 * len(self.fit)))

    def __call__(
        self, first: Sequence[Plan], count: int, evaluations: float, stop: Callable[[], bool]
    ) -> list[tuple[float, Plan]]:
        """The nearest `count` of the plans, each with its mean distance: as many as can be ranked in so many sample
        evaluations and until `stop`, on the grids of the `first` plans before those of the table."""
        if not len(self.held) or len(self.plan) < 2 or count < 1:
            return []
        once = len(self.plan) * (len(self.fit[:FEW]) + len(self.held[:FEW]))
        grids = self._grids(first, max(1, int(evaluations / once)))
        path = path_on(self.loss, self.teacher, self.fit)
        # All grids are compared on a few pairs, the best of them on all, by other pairs than their rows are found on.
        found = list[tuple[float, Plan]]()
        for base in grids:
            found.append((self.loss.mean(self._corrected(base, path, self.fit[:FEW]), self.held[:FEW]), base))
            if stop():
                break
        found.sort(key=lambda each: each[0])
        again = [base for _, base in found[: count + AGAIN]]
        if not any(base is grids[0] for base in again):
            again.append(grids[0])
        best = list[tuple[float, Plan]]()
        for base in again:
            one = self._corrected(base, path, self.fit)
            best.append((self.loss.mean(one, self.held), one))
            if stop():
                break
        # The first grid is the first, unless another is nearer by far.
        best.sort(key=lambda each: each[0] * (CLEARLY if torch.equal(each[1].t, grids[0].t) else 1))
        return best[:count]

    def _grids(self, first: Sequence[Plan], most: int) -> list[Plan]:
        """DDIM on so many grids of calls: those of the first plans, of the plan, and of the untuned table."""
        plan, found, angles = self.plan, list[Plan](), list[Tensor]()
        for one in chain(first, [plan], self._table()):
            if len(found) == most:
                break
            if len(one) != len(plan):
                continue
            angle, fits = plan.schedule.at(one.t).angle, "times" in self.parts or torch.equal(one.t, plan.t)
            again = any((angle - known).abs().max() <= APART for known in angles)
            if again or not fits or (one.t.diff() >= 0).any() or one.t[1] > self.teacher.t[0]:
                continue
            angles.append(angle)
            base = plan.with_corrections(None)  # with its own sampler, which makes no difference to what can be reached
            if one is not plan:
                base = make_plan(DDIM(), plan.schedule, times=one.t, guided=plan.guided)
                if "tau" not in self.parts:
                    base = base.with_ratios(plan.tau / plan.t[:-1])
            spacing = {name: value for name, value in one.provenance.items() if name == "spacing"}
            found.append(received(self.loss.model, base).with_provenance(**spacing))
        return found

    def _table(self) -> Iterator[Plan]:
        """The untuned plans, made when they are needed."""
        for _, one in each_untuned_plan(self.plan, self.loss.model.fixed_start):
            yield one

    def _corrected(self, base: Plan, path: TeacherPath, rows: Tensor) -> Plan:
        """The plan with its corrections by least squares on some of the pairs of the path."""
        corrections = torch.zeros(len(base), len(base), dtype=torch.float64)
        for k, row in enumerate(rows_on(self.loss, base, path, rows)):
            corrections[k, :k] = row
        return base.with_corrections(corrections)


def path_on(loss: TeacherLoss, teacher: Plan, rows: Tensor) -> TeacherPath:
    """The teacher's runs of some of the pairs; of several processes that share work, of those of this one."""
    own = own_rows(rows)
    return TeacherPath(for_rows(loss.model, own), teacher, teacher.initial_state(loss.pairs.x[own]))


def rows_on(loss: TeacherLoss, plan: Plan, path: TeacherPath, rows: Tensor) -> list[Tensor]:
    """The rows of corrections (k,) of a plan by least squares, on the first pairs of a path, those of these `rows`."""
    own = own_rows(rows)  # the first ones of the path, too
    targets = [*(path.at(t)[: len(own)] for t in plan.t[1:-1]), loss.pairs.y[own]]
    return [row for row, _ in rows_in_turn(loss.model, plan, loss.pairs.x[rows], targets)]


def num_fitted(pairs: int, numbers: int) -> int:
    """Of so many pairs, of so many numbers each, those on which rows are found: half of them, 64 at most, or fewer if
    the memory is short."""
    return int(min(FITTED, pairs // 2, PATH_BYTES // (4 * 2 * CALLS * numbers)))


def corrected_cost(plan: Plan, pairs: int, teacher: int, count: int, evaluations: float, batch: int | None) -> Cost:
    """The cost of so many of `CorrectedPlans`, whose ranking may take so many evaluations."""
    fitted = min(FITTED, pairs // 2)
    once = forward(min(FEW, fitted), batch) + forward(min(FEW, pairs - fitted), batch)
    if count < 1 or len(plan) < 2 or not once.evaluations:
        return Cost()
    grids = max(1, min(MOST_GRIDS, int(evaluations / (len(plan) * once.evaluations))))
    held = forward(min(fitted, pairs - fitted), batch)
    again = (forward(fitted, batch) + held) * ((count + AGAIN) * len(plan))
    return once * (grids * len(plan)) + forward(fitted, batch) * teacher + again
