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

from ..._checks import accepts, check_int
from ...models.base import for_rows
from ...models.batching import BatchedModel
from ...models.counting import Cost
from ...noise import TEACHER, SeededNoise, first_seed
from ...plans.plan import Plan
from ..base import TuningRun
from ..budget import forward
from ..calibration import Calibration
from .candidates import candidate_plans
from .gauss_newton import GaussNewton
from .loss import Distance, TeacherLoss, TimeGradients
from .parameters import PARTS, Parameters
from .sizing import AGAIN, BATCH, FEWEST, MOST_HELD, MOST_RUNS, STARTS, costs, next_look, seconds_a_call, sizes
from .successive_halving import SuccessiveHalving, max_candidates
from .teacher import Pairs, described, teach, usual_teacher

DELTA = 1e-3
MAX_RESTARTS = 5  # after so many there is nothing to be found any more


def robust(x: Tensor, y: Tensor) -> Tensor:
    """sqrt(|x - y|^2 + delta) of every sample, (B,)."""
    return ((x - y).double().square().flatten(1).sum(1) + DELTA).sqrt()


class Joint:
    """A tuner of all that a deterministic plan holds."""

    def __call__(
        self,
        eps: BatchedModel,
        plan: Plan,
        calibration: Calibration,
        run: TuningRun,
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
            eps, plan, calibration, run: the model, the plan to tune, the seeds, the budget and the kept state.
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
        if not accepts(distance, 2):
            raise ValueError(f"distance must be a function (x, y), got {distance!r}")
        if not (checkpoint_steps is None or isinstance(checkpoint_steps, bool)):
            raise ValueError(f"checkpoint_steps must be True, False or None, got {checkpoint_steps!r}")
        if not isinstance(others, Sequence) or not all(isinstance(other, Plan) for other in others):
            raise ValueError(f"others must be a list of plans, got {others!r}")
        teacher = _teacher(plan, teacher)
        starts = check_int("starts", starts, 1)
        size = run.state.get("size", {})
        if not size or not run.same_budget:
            size = _size(eps, plan, len(teacher), calibration, run, size.get("pairs", pairs), iterations)
        sure = 1 + len(others)  # what was given takes part in any case
        count = max(sure, min(starts, max_candidates(size["expected"])))
        more = max(count, len(run.state.get("order", ()))) > sure  # also where a smaller budget goes on
        plans = candidate_plans(plan, starts if more else 1, others, parts)
        if not run.state:
            _try_out(eps, Parameters(plan, parts), distance, calibration, run, checkpoint_steps is not False)
        taught = _taught(eps, teacher, size["pairs"], calibration, run, None if cache is None else Path(cache))
        lesson = TeacherLoss(eps, taught, distance, run.cost_log)
        search = _Search(lesson, parts, size, run, checkpoint_steps)
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
        return costs(plan, _teacher(plan, teacher), batch, starts=check_int("starts", starts, 1), **options)


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
    eps: BatchedModel,
    parameters: Parameters,
    distance: Distance,
    calibration: Calibration,
    run: TuningRun,
    checkpoint: bool,
) -> None:
    """Raise a ValueError if the network or the distance has no gradient, before the teacher's runs are made."""
    two = torch.empty(2, *calibration.shape, device=calibration.device)
    x = SeededNoise(first_seed(calibration.seed, TEACHER))(two)
    lesson, v = TeacherLoss(eps, Pairs(x, x), distance, run.cost_log), torch.zeros(len(parameters)).double()
    with run.cost_log.purpose("sizing"):
        lesson.slopes(parameters, v, torch.arange(2), TimeGradients(), checkpoint=checkpoint)


def _taught(
    eps: BatchedModel, teacher: Plan, pairs: int, calibration: Calibration, run: TuningRun, cache: Path | None
) -> Pairs:
    """The teacher's pairs, which a calibration that several plans are tuned on has already."""
    key = (described(teacher), pairs)
    if key not in calibration.taught:
        like = torch.empty(pairs, *calibration.shape, device=calibration.device)
        first = first_seed(calibration.seed, TEACHER)
        calibration.taught[key] = teach(eps, teacher, first, like, run, cache, eps.batch)
    taught: Pairs = calibration.taught[key]
    return taught


def _size(
    eps: BatchedModel,
    plan: Plan,
    teacher: int,
    calibration: Calibration,
    run: TuningRun,
    pairs: int | None,
    iterations: int | None,
) -> dict[str, int]:
    """How many pairs and iterations: as asked for, or what the time is enough for, by how fast the network is."""
    pairs = None if pairs is None else check_int("pairs", pairs, FEWEST)
    iterations = None if iterations is None else check_int("iterations", iterations, 1)
    call, budget = 0.0, run.meter.budget
    if budget.calls is None and (pairs is None or iterations is None):
        model = for_rows(eps, torch.arange(BATCH))
        with run.cost_log.purpose("sizing"):
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

    tournament: SuccessiveHalving

    def __init__(
        self,
        lesson: TeacherLoss,
        parts: Sequence[str],
        size: dict[str, int],
        run: TuningRun,
        checkpoint_steps: bool | None,
    ) -> None:
        self.lesson, self.parts, self.size, self.run = lesson, parts, size, run
        count = len(lesson.pairs)
        held = min(MOST_HELD, count // 4)
        self.train, self.held = count - held, torch.arange(count - held, count)
        self.checkpoint_steps = checkpoint_steps
        self.order: list[int] = run.state.get("order", [])
        self.done: int = run.state.get("done", 0)
        self.seen: int = run.state.get("seen", self.done)
        self.times = TimeGradients()

    def __call__(self, plans: Sequence[Plan], sure: int, count: int) -> tuple[Plan, dict[str, Any]]:
        """The best plan found, and how. So many of the plans take part, the first few for sure."""
        run = self.run
        self.times = self.lesson.time_slopes(plans[0], self.parts)
        look = self._calls(plans[0], len(self.held))
        if self.checkpoint_steps is None:
            self.checkpoint_steps = self.lesson.crowded(plans[0], self._rows())
        asked = 0 if self.times.by_gradient else len(self.times.by_asking)
        runs = MOST_RUNS - 2 + asked + (AGAIN if self.checkpoint_steps else 0)
        iteration = runs * self._calls(plans[0], min(BATCH, self.train))
        ranking = self._calls(plans[0], min(BATCH, len(self.held))) * len(plans[sure:])
        if not run.state and not run.can_afford(ranking + look * count + iteration):
            plans, sure, count = plans[:1], 1, 1
            if not run.can_afford(2 * look + iteration):
                run.stop("is not enough for one iteration")
                return plans[0], {"iterations": 0}
        self._begin(plans, sure, count)
        tournament, given = self.tournament, self.tournament.tried[0]
        while self._share() < 1 and run.can_afford(iteration + look):
            if tournament.solver.restarts > MAX_RESTARTS and tournament.decided:
                break
            self._iterate(tournament.solver)
            if tournament.over(self._share()) or self.done >= next_look(self.seen):
                self._look()
        self._look_at_new(1.0)
        best = min(tournament.tried, key=lambda one: one.best)
        if self.done:
            run.done(self.done, self.done, given.first, best.best, self._kept())
        if not run.can_afford(iteration + look):
            run.stop(f"was spent at iteration {self.done}" if self.done else "is not enough for one iteration")
        notes = {"iterations": self.done, "loss_before": given.first, "loss_after": best.best}
        start = [round(float(t), 6) for t in best.parameters.start.step_times]
        return best.best_plan(), {**notes, "start": start}

    def _begin(self, plans: Sequence[Plan], sure: int, count: int) -> None:
        """The tournament, begun, or as an earlier run has left it."""
        state = self.run.state
        self.order = self.order or self._ranked(plans, sure, count)
        tried = [GaussNewton(Parameters(plans[i], self.parts)) for i in self.order]
        for solver, kept in zip(tried, state.get("tried", []), strict=False):
            solver.restore(kept)
        self.run.resume_at(self.done)
        self.tournament = SuccessiveHalving(tried, state)
        if not self.done:
            self._look_at_new(0.0)
            self.lesson.check(tried[0].plan(), tried[0].first, self.held)
        if not state:
            self.tournament.since = self._share()
        elif not self.run.same_budget:
            self.tournament.stretch(self._share() / state["share"])

    def _look(self) -> None:
        """See how far the one whose turn it is has come on the validation pairs, whether its turn is over, and keep
        that."""
        self.seen, share, solver = self.done, self._share(), self.tournament.solver
        over = self.tournament.over(share)
        solver.look(self.lesson.of(solver.plan(), self.held), share)
        if over:
            self.tournament.next(share)
        total = self.done if share >= 1 else round(self.done / share)
        self.run.done(self.done, max(self.done, total), solver.first, solver.best, self._kept())

    def _look_at_new(self, share: float) -> None:
        """Look at the validation pairs where a solver has moved since."""
        for solver in self.tournament.tried:
            if solver.stale:
                solver.look(self.lesson.of(solver.plan(), self.held), share)

    def _kept(self) -> dict[str, Any]:
        """All that it takes to go on from here, as JSON holds it."""
        tried = [one.to_dict() for one in self.tournament.tried]
        how_far = {"done": self.done, "seen": self.seen, "share": self._share()}
        return {"size": self.size, "order": self.order, **how_far, **self.tournament.to_dict(), "tried": tried}

    def _calls(self, plan: Plan, count: int) -> int:
        """The network calls of a run of so many pairs."""
        return len(plan) * forward(count, self.lesson.model.batch).calls

    def _share(self) -> float:
        """How much of the budget is used up."""
        return max(self.done / self.size["iterations"], self.run.meter.share)

    def _ranked(self, plans: Sequence[Plan], sure: int, count: int) -> list[int]:
        """So many of the plans: the first few, and those that end nearest untuned, of each grid the best one, for where
        corrections are tuned the orders of a sampler come to the same."""
        losses: dict[int, float] = {}

        def loss(i: int) -> tuple[float, int]:
            losses[i] = losses.get(i) or self.lesson.of(plans[i], self.held[:BATCH])
            return losses[i], i

        grids: dict[bytes, list[int]] = {}
        for i, plan in enumerate(plans[sure:], sure):
            grids.setdefault(plan.step_times.numpy().tobytes(), []).append(i)
        # The other orders are asked about on the best grids alone.
        nearest = sorted(grids.values(), key=lambda grid: loss(grid[0]))[: count - sure]
        return [*range(sure), *sorted((min(grid, key=loss) for grid in nearest), key=loss)]

    def _iterate(self, solver: GaussNewton) -> None:
        """One step downhill on a few pairs."""
        rows, draw = self._rows(), torch.Generator().manual_seed(first_seed(0, TEACHER) + self.done)
        told, again = draw if solver.curious else None, bool(self.checkpoint_steps)
        slopes = self.lesson.slopes(solver.parameters, solver.v, rows, self.times, told, again)
        solver.step(slopes, lambda plan: self.lesson.of(plan, rows))
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
