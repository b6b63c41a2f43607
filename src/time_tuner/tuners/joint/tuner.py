"""Joint tuning: where the steps are, what the network is told and how past predictions are combined, all at once.

Many steps of a good solver, the teacher, take noise x_T to an end y; no data set is needed. What is minimised over the
numbers of a plan is E sqrt(|x_K - y|^2 + delta), or a distance of the user's, where x_K is the end of the plan's run
from the same noise. LD3 (Tong et al., 2024, https://arxiv.org/abs/2405.15506) tunes the steps in this way, TimeTuner
(Xia et al., 2024) what the network is told, S4S (Frankel et al., 2025, https://arxiv.org/abs/2502.17423) and GAS
(Oganov et al., 2025, https://arxiv.org/abs/2510.17699) the coefficients too.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..._checks import takes, whole
from ...models.batching import Batched
from ...noise import first_seed, seeded_noise
from ...plans.plan import Plan
from ..base import Job
from ..budget import Cost, forward
from ..calibration import Calibration
from .candidates import starting_plans
from .gauss_newton import Descent
from .loss import Distance, Lesson, TimeSlopes
from .parameters import PARTS, Parameters
from .sizing import AGAIN, BATCH, FEWEST, MOST_HELD, MOST_RUNS, STARTS, costs, next_look, seconds_a_call, sizes
from .successive_halving import Tournament, entries
from .teacher import Pairs, described, teach, usual_teacher

TEACHER = 8  # the purpose of its seeds, beside those of the calibration
DELTA = 1e-3
SETBACKS = 5  # after so many there is nothing to be found any more


def robust(x: Tensor, y: Tensor) -> Tensor:
    """sqrt(|x - y|^2 + delta) of every sample, (B,)."""
    return ((x - y).double().square().flatten(1).sum(1) + DELTA).sqrt()


class Joint:
    """A tuner of all that a deterministic plan holds."""

    def __call__(
        self,
        eps: Batched,
        plan: Plan,
        calibration: Calibration,
        job: Job,
        tune: Sequence[str] = PARTS,
        teacher: Plan | None = None,
        cache: str | Path | None = None,
        pairs: int | None = None,
        iterations: int | None = None,
        distance: Distance = robust,
        starts: int = STARTS,
        others: Sequence[Plan] = (),
        checkpoint_steps: bool | None = None,
    ) -> Plan:
        """The plan, tuned.

        Args:
            eps, plan, calibration, job: the model, the plan to tune, the seeds, the budget and the kept state.
            tune: which of "times", "tau" and "corrections".
            teacher: the many-step plan to learn from; by default 40 calls of UniPC(3), or the plan's if more.
            cache: a .safetensors file that keeps the teacher's runs, to go on from there or to use them again.
            pairs: runs of the teacher, of which a quarter are to validate on; by default what a quarter of the time
                is enough for, or, where the budget is in calls, a third of it, 16 to 2048.
            iterations: each on 16 pairs; by default what the budget allows, or two minutes of this network.
            distance: `distance(x, y)` between the ends of the plan and of the teacher.
            starts: how many starts enter a tournament at most, fewer where there is little to spend: the plan, and
                those that end nearest untuned, of others, other spacings, which may begin later, and other orders of
                its sampler; 1: the plan and others alone.
            others: more starts, such as tuned plans for other numbers of calls, which are resampled.
            checkpoint_steps: keep the activations of one call of the network at a time, for a third more work; by
                default where memory asks for it.

        Raises:
            ValueError: the plan draws noise, the teacher ends elsewhere, or the network has no gradient or is broken.
        """
        parts = _checked(plan, tune)
        if not calibration.own:
            raise ValueError("data must be left out for method='joint', which learns from the ends of its teacher")
        if torch.is_inference_mode_enabled():
            raise ValueError("method='joint' needs gradients: call it outside of torch.inference_mode")
        if not takes(distance, 2):
            raise ValueError(f"distance must be a function (x, y), got {distance!r}")
        if not (checkpoint_steps is None or isinstance(checkpoint_steps, bool)):
            raise ValueError(f"checkpoint_steps must be True, False or None, got {checkpoint_steps!r}")
        if not isinstance(others, Sequence) or not all(isinstance(other, Plan) for other in others):
            raise ValueError(f"others must be a list of plans, got {others!r}")
        teacher = _teacher(plan, teacher)
        starts = whole("starts", starts, 1)
        size = job.state.get("size", {})
        if not size or not job.same_budget:
            size = _size(eps, plan, len(teacher), calibration, job, size.get("pairs", pairs), iterations)
        sure = 1 + len(others)  # what was given takes part in any case
        count = max(sure, min(starts, entries(size["expected"])))
        more = max(count, len(job.state.get("order", ()))) > sure  # also where a smaller budget goes on
        plans = starting_plans(plan, starts if more else 1, others, parts)
        if not job.state:
            _try_out(eps, Parameters(plan, parts), distance, calibration, job, checkpoint_steps is not False)
        taught = _taught(eps, teacher, size["pairs"], calibration, job, None if cache is None else Path(cache))
        lesson = Lesson(eps, taught, distance, calibration.samples)
        search = _Search(lesson, parts, size, job, checkpoint_steps)
        found, notes = search(plans, sure, count)
        made = {"tune": list(parts), "teacher": repr(teacher), "pairs": len(taught)}
        return found.with_provenance(**{**plan.provenance, **made, **notes})

    def cost(
        self,
        plan: Plan,
        samples: int,
        batch: int | None,
        tune: Sequence[str] = PARTS,
        teacher: Plan | None = None,
        starts: int = STARTS,
        **options: Any,
    ) -> dict[str, tuple[Cost, Cost]]:
        """What the teacher's runs and tuning this plan cost as a rule, and at most."""
        _checked(plan, tune)
        return costs(plan, _teacher(plan, teacher), batch, starts=whole("starts", starts, 1), **options)


def _checked(plan: Plan, tune: Sequence[str]) -> tuple[str, ...]:
    """The parts that are tuned, of a plan that can be."""
    if plan.stochastic:
        raise ValueError(
            f"joint tuning needs a plan without noise, whose runs have one end to learn, got {plan.sampler!r}: "
            "take a deterministic sampler, such as ddim(eta=0), dpmpp or unipc"
        )
    parameters = Parameters(plan, tune)
    if not len(parameters):
        raise ValueError(f"a plan for {len(plan)} calls has no {' or '.join(parameters.parts)} to tune: add 'tau'")
    return parameters.parts


def _teacher(plan: Plan, teacher: Plan | None) -> Plan:
    """What the plan is to learn from, if it can."""
    teacher = usual_teacher(plan) if teacher is None else teacher
    if not isinstance(teacher, Plan):
        raise ValueError(f"teacher must be a Plan, got {teacher!r}")
    if teacher.schedule != plan.schedule:
        raise ValueError(f"teacher must be on the plan's schedule, {plan.schedule!r}, got {teacher.schedule!r}")
    if abs(float(teacher.t[-1] - plan.t[-1])) > 1e-9 or teacher.stochastic:
        raise ValueError(
            f"teacher must be a deterministic plan that ends where the plan does, at t = {float(plan.t[-1]):.6g}, "
            f"got {teacher!r} which ends at t = {float(teacher.t[-1]):.6g}"
        )
    if len(teacher) < len(plan):
        raise ValueError(f"teacher must make no fewer calls than the plan, {len(plan)}, got {teacher!r}: give another")
    return teacher


def _try_out(
    eps: Batched, parameters: Parameters, distance: Distance, calibration: Calibration, job: Job, checkpoint: bool
) -> None:
    """Raise a ValueError if the network or the distance has no gradient, before the teacher's runs are made."""
    two = torch.empty(2, *calibration.shape, device=calibration.device)
    x = seeded_noise(first_seed(calibration.seed, TEACHER))(two)
    lesson, v = Lesson(eps, Pairs(x, x), distance, calibration.samples), torch.zeros(len(parameters)).double()
    with job.ledger.during("sizing"):
        lesson.slopes(parameters, v, torch.arange(2), TimeSlopes(), checkpoint=checkpoint)


def _taught(eps: Batched, teacher: Plan, pairs: int, calibration: Calibration, job: Job, cache: Path | None) -> Pairs:
    """The teacher's pairs, which a calibration that several plans are tuned on has already."""
    key = (described(teacher), pairs)
    if key not in calibration.taught:
        like = torch.empty(pairs, *calibration.shape, device=calibration.device)
        first = first_seed(calibration.seed, TEACHER)
        calibration.taught[key] = teach(eps, teacher, first, like, calibration.samples, job, cache, eps.batch)
    taught: Pairs = calibration.taught[key]
    return taught


def _size(
    eps: Batched,
    plan: Plan,
    teacher: int,
    calibration: Calibration,
    job: Job,
    pairs: int | None,
    iterations: int | None,
) -> dict[str, int]:
    """How many pairs and iterations: as asked for, or what the time is enough for, by how fast the network is."""
    pairs = None if pairs is None else whole("pairs", pairs, FEWEST)
    iterations = None if iterations is None else whole("iterations", iterations, 1)
    call, budget = 0.0, job.meter.budget
    if budget.calls is None and (pairs is None or iterations is None):
        model = eps.take(torch.arange(BATCH) % calibration.samples)
        with job.ledger.during("sizing"):
            call = seconds_a_call(model, plan, torch.zeros(BATCH, *calibration.shape, device=calibration.device))
    return sizes(plan, teacher, call, budget, pairs, iterations, eps.batch)


class _Search:
    """A tournament of several starts, whose winner is tuned to the end of the budget.

    Attributes:
        order: the places of those that take part, among the plans that might.
        tournament: theirs, from `_begin` on.
        done: the iterations made.
        seen: how many there were at the last look at the validation pairs.
        times: how slopes in the times are told.
    """

    tournament: Tournament

    def __init__(
        self, lesson: Lesson, parts: Sequence[str], size: dict[str, int], job: Job, checkpoint_steps: bool | None
    ) -> None:
        self.lesson, self.parts, self.size, self.job = lesson, parts, size, job
        count = len(lesson.pairs)
        held = min(MOST_HELD, count // 4)
        self.train, self.held = count - held, torch.arange(count - held, count)
        self.checkpoint_steps = checkpoint_steps
        self.order: list[int] = job.state.get("order", [])
        self.done: int = job.state.get("done", 0)
        self.seen: int = job.state.get("seen", self.done)
        self.times = TimeSlopes()

    def __call__(self, plans: Sequence[Plan], sure: int, count: int) -> tuple[Plan, dict[str, Any]]:
        """The best plan found, and how. So many of the plans take part, the first few for sure."""
        job = self.job
        self.times = self.lesson.time_slopes(plans[0], self.parts)
        look = self._calls(plans[0], len(self.held))
        if self.checkpoint_steps is None:
            self.checkpoint_steps = self.lesson.crowded(plans[0], self._rows())
        asked = 0 if self.times.by_gradient else len(self.times.by_asking)
        runs = MOST_RUNS - 2 + asked + (AGAIN if self.checkpoint_steps else 0)
        iteration = runs * self._calls(plans[0], min(BATCH, self.train))
        ranking = self._calls(plans[0], min(BATCH, len(self.held))) * len(plans[sure:])
        if not job.state and not job.affords(ranking + look * count + iteration):
            plans, sure, count = plans[:1], 1, 1
            if not job.affords(2 * look + iteration):
                job.stop("is not enough for one iteration")
                return plans[0], {"iterations": 0}
        self._begin(plans, sure, count)
        tournament, given = self.tournament, self.tournament.tried[0]
        while self._share() < 1 and job.affords(iteration + look):
            if tournament.descent.setbacks > SETBACKS and tournament.decided:
                break
            self._iterate(tournament.descent)
            if tournament.over(self._share()) or self.done >= next_look(self.seen):
                self._look()
        self._look_at_new(1.0)
        best = min(tournament.tried, key=lambda one: one.best)
        if self.done:
            job.done(self.done, self.done, given.first, best.best, self._kept())
        if not job.affords(iteration + look):
            job.stop(f"was spent at iteration {self.done}" if self.done else "is not enough for one iteration")
        notes = {"iterations": self.done, "loss_before": given.first, "loss_after": best.best}
        start = [round(float(t), 6) for t in best.parameters.start.ends]
        return best.best_plan(), {**notes, "start": start}

    def _begin(self, plans: Sequence[Plan], sure: int, count: int) -> None:
        """The tournament, begun, or as an earlier run has left it."""
        state = self.job.state
        self.order = self.order or self._ranked(plans, sure, count)
        tried = [Descent(Parameters(plans[i], self.parts)) for i in self.order]
        for descent, kept in zip(tried, state.get("tried", []), strict=False):
            descent.restore(kept)
        self.job.go_on(self.done)
        self.tournament = Tournament(tried, state)
        if not self.done:
            self._look_at_new(0.0)
            self.lesson.check(tried[0].plan(), tried[0].first, self.held)
        if not state:
            self.tournament.since = self._share()
        elif not self.job.same_budget:
            self.tournament.stretch(self._share() / state["share"])

    def _look(self) -> None:
        """See how far the one whose turn it is has come on the validation pairs, whether its turn is over, and keep
        that."""
        self.seen, share, descent = self.done, self._share(), self.tournament.descent
        over = self.tournament.over(share)
        descent.look(self.lesson.of(descent.plan(), self.held), share)
        if over:
            self.tournament.next(share)
        total = self.done if share >= 1 else round(self.done / share)
        self.job.done(self.done, max(self.done, total), descent.first, descent.best, self._kept())

    def _look_at_new(self, share: float) -> None:
        """Look at the validation pairs where a descent has moved since."""
        for descent in self.tournament.tried:
            if descent.stale:
                descent.look(self.lesson.of(descent.plan(), self.held), share)

    def _kept(self) -> dict[str, Any]:
        """All that it takes to go on from here, as JSON holds it."""
        tried = [one.to_dict() for one in self.tournament.tried]
        how_far = {"done": self.done, "seen": self.seen, "share": self._share()}
        return {"size": self.size, "order": self.order, **how_far, **self.tournament.to_dict(), "tried": tried}

    def _calls(self, plan: Plan, count: int) -> int:
        """The network calls of a run of so many pairs."""
        return len(plan) * forward(count, self.lesson.eps.batch).calls

    def _share(self) -> float:
        """How much of the budget is used up."""
        return max(self.done / self.size["iterations"], self.job.meter.share)

    def _ranked(self, plans: Sequence[Plan], sure: int, count: int) -> list[int]:
        """So many of the plans: the first few, and those that end nearest untuned, of each grid the best one, for where
        corrections are tuned the orders of a sampler come to the same."""
        losses: dict[int, float] = {}

        def loss(i: int) -> tuple[float, int]:
            losses[i] = losses.get(i) or self.lesson.of(plans[i], self.held[:BATCH])
            return losses[i], i

        grids: dict[bytes, list[int]] = {}
        for i, plan in enumerate(plans[sure:], sure):
            grids.setdefault(plan.ends.numpy().tobytes(), []).append(i)
        # The other orders are asked about on the best grids alone.
        nearest = sorted(grids.values(), key=lambda grid: loss(grid[0]))[: count - sure]
        return [*range(sure), *sorted((min(grid, key=loss) for grid in nearest), key=loss)]

    def _iterate(self, descent: Descent) -> None:
        """One step downhill on a few pairs."""
        rows, draw = self._rows(), torch.Generator().manual_seed(first_seed(0, TEACHER) + self.done)
        told, again = draw if descent.curious else None, bool(self.checkpoint_steps)
        slopes = self.lesson.slopes(descent.parameters, descent.v, rows, self.times, told, again)
        descent.step(slopes, lambda plan: self.lesson.of(plan, rows))
        self.done += 1

    def _rows(self) -> Tensor:
        """The pairs whose turn it is: all of them in random order, then in another one, and so on; so each counts as
        often as any other in the mean of the way."""
        size = min(BATCH, self.train)
        epoch, first = divmod(self.done * size, self.train)
        last, rows = first + size, torch.empty(0, dtype=torch.long)
        while len(rows) < last:  # they may go over into the next order
            draw = torch.Generator().manual_seed(first_seed(0, TEACHER) + epoch)
            rows, epoch = torch.cat([rows, torch.randperm(self.train, generator=draw)]), epoch + 1
        return rows[first:last]
