"""The search of joint tuning: successive halving of candidates by Gauss-Newton, the winner to the end of the budget."""

import logging
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..._distributed import num_processes
from ...models.batching import is_memory_full
from ...noise import TEACHER, first_seed
from ...plans.plan import Plan
from ..base import TuningRun
from ..budget import forward
from .candidates import path_on, rows_on
from .forward_only import gradients_by_differences
from .gauss_newton import ANCHOR, KNOWN_ANCHOR, GaussNewton
from .levels import LevelSteps
from .loss import Gradients, TeacherLoss
from .parameters import Parameters
from .sizing import BATCH, MOST_HELD, MOST_RECOMPUTED, Runs, next_look, num_rows_on
from .successive_halving import SuccessiveHalving

LEVEL_PAIRS = 32  # of those that are tuned on, for coordinate steps between levels: the same ones at every look
MAX_RESTARTS = 5  # after which a solver, at 1/32 of its first rate, does not get any further

logger = logging.getLogger("time_tuner")

TOO_SMALL = "is not enough for one iteration: give a larger one"


class JointSearch:
    """One search.

    Args:
        loss: the distance to the teacher's ends: a quarter of the pairs are for validation, the others for iterations.
        parts: what is tuned; of a network that takes whole levels alone, "tau" by coordinate steps at every look.
        plans: the candidates, the plan itself first; where the budget is too small for all it remains alone.
        limit: the iterations; None for as many as the budget allows.
        run: budget, kept state and progress.
        teacher: the teacher's plan, where derivatives are differences between runs; None for those of the network.
        checkpoint_steps: whether activations are computed again; None where memory decides.
        taking_part: how many of the plans take part at most, the best by their validation loss; None for all.
    """

    halving: SuccessiveHalving

    def __init__(
        self,
        loss: TeacherLoss,
        parts: Sequence[str],
        plans: Sequence[Plan],
        limit: int | None,
        run: TuningRun,
        teacher: Plan | None,
        checkpoint_steps: bool | None,
        taking_part: int | None = None,
    ) -> None:
        self.loss, self.limit, self.run, self.plans = loss, limit, run, plans
        self.taking_part = taking_part
        self.calls = max(map(len, plans))
        whole = loss.model.whole_levels
        self.rounded = loss.model.rounded_times if whole else None
        self.parts = tuple(part for part in parts if not (whole and part == "tau"))
        self.steps: list[LevelSteps] | None = [] if whole and "tau" in parts else None
        held = min(MOST_HELD, len(loss.pairs) // 4)
        self.train = len(loss.pairs) - held
        self.validation = torch.arange(self.train, len(loss.pairs))
        self.done: int = run.state.get("done", 0)  # iterations, and those before the last look at validation pairs:
        self.looked_at: int = run.state.get("looked_at", self.done)
        self.teacher = teacher
        self.times = loss.time_gradients(plans[0], self.parts) if teacher is None else None
        self.checkpointed = checkpoint_steps
        self._plans = [_compact(one) for one in plans]
        if teacher is None and checkpoint_steps is None and self.parts:
            self.checkpointed = loss.needs_checkpointing(plans[0], self._rows())

    def __call__(self) -> tuple[Plan, dict[str, Any]]:
        """The best plan found, and what is to be known of it."""
        run, plan = self.run, self.plans[0]
        # 1. The cost of an iteration, and whether the budget is enough for one.
        calls, one = self.calls, forward(min(BATCH, self.train), self.loss.model.batch).calls
        if self.times is None:
            most = max(Runs.forward_only(one, self.parts).most for one in self.plans)
        else:  # a run, two backward, one to judge the step
            most = 6 + self.times.calls + MOST_RECOMPUTED * bool(self.checkpointed)
        look, iteration = self._calls(len(self.validation)), round(most * calls) * one
        rows = (look + self._calls(self._rows_on())) if self._rows_on() else 0
        if self.steps is not None:  # a look has a sweep of the levels, too, which is cut short where the budget ends
            iteration = self._sweep_calls() + (iteration if self.parts else 0)
        if not run.state and not run.can_afford(look + (look + rows) * len(self.plans) + iteration):
            self.plans, self._plans, self.calls = [plan], self._plans[:1], len(plan)
            if not run.can_afford(2 * look + (rows or iteration)):
                run.stop(TOO_SMALL)
                return plan, {"iterations": 0}
        # 2. Iterations, of one candidate after the other until one remains.
        self._begin()
        halving, first = self.halving, self.halving.solvers[0]
        pace = 0.0 if self.teacher is None else self._seconds(iteration)
        while self._share() < 1 and run.can_afford(iteration + look, pace):
            if (halving.solver.restarts > MAX_RESTARTS or self._settled()) and halving.decided:
                break
            before = run.seconds
            self._iterate(halving.solver)
            if self.teacher is not None:  # iterations by differences are long; the others end soon after the clock
                pace = run.seconds - before
            if halving.trial_ends(self._share()) or self.done >= next_look(self.looked_at) or not self.parts:
                self._look()
        # 3. The best of all plans that were validated.
        self._validate_new(1.0)
        best = min(halving.solvers, key=lambda solver: solver.best_loss)
        if self.done:
            run.save_step(self.done, 1.0, (first.first_loss, best.best_loss), self._state())
        if not run.can_afford(iteration + look, pace):
            run.stop(f"was spent at iteration {self.done}" if self.done else TOO_SMALL)
        notes = {
            "iterations": self.done,
            "start_times": [round(float(t), 6) for t in best.parameters.start.step_times],
            "validation_loss": {"untuned": first.first_loss, "tuned": best.best_loss},
        }
        return best.parameters.plan(best.best_v), notes

    def _begin(self) -> None:
        """Set up the solvers, or restore those of an earlier run."""
        state = self.run.state
        anchor = KNOWN_ANCHOR if self.times is None else ANCHOR
        solvers = [GaussNewton(self._parameters(one), anchor) for one in self.plans]
        for solver, kept in zip(solvers, state.get("solvers", []), strict=False):
            solver.restore(kept)
        if self.steps is not None:
            self.steps += map(LevelSteps, self.plans)
            for solver, steps, kept in zip(solvers, self.steps, state.get("levels", []), strict=False):
                steps.strides = kept["strides"]
                solver.parameters = self._with_ratios(solver, torch.tensor(kept["ratios"], dtype=torch.float64))
        self.run.resume()
        self.halving = SuccessiveHalving(solvers, state)
        if not self.done:
            self._validate_new(0.0)
            self.loss.check_finite(solvers[0].plan(), solvers[0].first_loss, self.validation)
        if not state:
            self._begin_with_rows()
            self.halving.keep_best(self.taking_part)
            self.halving.began_at = self._share()
        elif not self.run.same_budget:
            self.halving.rescale(self._share() / state["share"])

    def _rows_on(self) -> int:
        """On how many pairs rows of corrections are found at the beginning, see `num_rows_on`; 0 with gradients."""
        if self.teacher is None:
            return 0
        return num_rows_on(self.parts, self.calls, len(self.loss.pairs), self.loss.pairs.x[0].numel())

    def _begin_with_rows(self) -> None:
        """Begin from corrections by least squares along the run where they are better than the candidate itself."""
        teacher, rows = self.teacher, torch.arange(self._rows_on())
        if teacher is None or not len(rows):
            return
        with self.run.cost_log.purpose("teacher"):
            path = path_on(self.loss, teacher, rows)
        for solver in self.halving.solvers:
            plan = solver.parameters.start
            if plan.t[1] > teacher.t[0]:
                continue
            v = solver.parameters.at_corrections(rows_on(self.loss, plan, path, rows))
            loss = self.loss.mean(solver.parameters.plan(v), self.validation)
            if loss < solver.best_loss:
                solver.begin_at(v, loss)

    def _iterate(self, solver: GaussNewton) -> None:
        """One step of a solver, on the next few pairs; of levels alone there is none, but a look."""
        if self.parts:
            rows = self._rows()
            solver.step(self._gradients(solver, rows), lambda plan: self.loss.mean(plan, rows))
        self.done += 1
        self.run.share = self._share()

    def _gradients(self, solver: GaussNewton, rows: Tensor) -> Gradients:
        if self.times is None:
            return gradients_by_differences(self.loss, solver.parameters, solver.v, rows)
        generator = torch.Generator().manual_seed(first_seed(0, TEACHER) + self.done)
        draw, state = generator if solver.needs_curvature else None, generator.get_state()
        while True:
            generator.set_state(state)
            try:
                return self.loss.gradients(solver.parameters, solver.v, rows, self.times, draw, bool(self.checkpointed))
            except (RuntimeError, MemoryError) as error:
                if not is_memory_full(error):
                    raise
                samples = min(self.loss.model.batch or len(rows), len(rows))
                if self.checkpointed and samples == 1:
                    raise
            # The backward pass is short of memory, too: first activations are computed again, then the batch is halved.
            if self.checkpointed:
                self.loss.model.halve(samples)
            else:
                self.checkpointed = True
                logger.warning("the memory is not enough for the activations of a run: they are computed again")

    def _rows(self) -> Tensor:
        """The pairs of the next iteration. All are used in a random order before any is used again, in another one: so
        each counts as often as any other in the mean of iterates."""
        size = min(BATCH, self.train)
        epoch, first = divmod(self.done * size, self.train)
        last, rows = first + size, torch.empty(0, dtype=torch.long)
        while len(rows) < last:  # they may extend into the next order
            generator = torch.Generator().manual_seed(first_seed(0, TEACHER) + epoch)
            rows, epoch = torch.cat([rows, torch.randperm(self.train, generator=generator)]), epoch + 1
        return rows[first:last]

    def _look(self) -> None:
        """Validate the solver on trial, begin the next trial if this one is over, and save the state."""
        self.looked_at, share, solver = self.done, self._share(), self.halving.solver
        ends = self.halving.trial_ends(share)
        if self.parts:
            solver.validate(self.loss.mean(solver.plan(), self.validation), share)
        if self.steps is not None:
            self._sweep(solver, self.steps[self.halving.solvers.index(solver)])
            ends = ends or (self._settled() and not self.halving.decided)
        if ends:
            self.halving.next_trial(share)
        self.run.save_step(self.done, share, (solver.first_loss, solver.best_loss), self._state())

    def _sweep(self, solver: GaussNewton, steps: LevelSteps) -> None:
        """Move the levels of a solver's best plan on training pairs, if the validation pairs agree."""
        plan, rows = solver.parameters.plan(solver.best_v), torch.arange(min(LEVEL_PAIRS, self.train))
        if not self.run.can_afford(self._sweep_calls()):
            return
        found = steps.sweep(
            plan, lambda plan: self.loss.mean(plan, rows), lambda: self.run.can_afford(self._sweep_calls())
        )
        if not torch.equal(found.tau, plan.tau):
            loss = self.loss.mean(found, self.validation)
            if loss < solver.best_loss:
                solver.best_loss, solver.improved_at = loss, self._share()
                solver.parameters = self._with_ratios(solver, found.tau / found.t[:-1])
            else:  # the same sweep again would be in vain
                steps.halve()

    def _sweep_calls(self) -> int:
        """The network calls of one loss in a sweep, and of the look at validation pairs that may follow."""
        return self._calls(min(LEVEL_PAIRS, self.train)) + self._calls(len(self.validation))

    def _with_ratios(self, solver: GaussNewton, ratios: Tensor) -> Parameters:
        return self._parameters(solver.parameters.start, ratios)

    def _parameters(self, plan: Plan, ratios: Tensor | None = None) -> Parameters:
        return Parameters(plan, self.parts, self.rounded, ratios)

    def _settled(self) -> bool:
        """Whether levels alone are tuned, and no neighbour of any level of the solver on trial is better."""
        if self.steps is None or self.parts:
            return False
        return self.steps[self.halving.remaining[self.halving.trial]].settled

    def _validate_new(self, share: float) -> None:
        """Validate the solvers that have moved since they were."""
        for solver in self.halving.solvers:
            if not solver.validated:
                solver.validate(self.loss.mean(solver.plan(), self.validation), share)

    def _state(self) -> dict[str, Any]:
        solvers = [solver.to_dict() for solver in self.halving.solvers]
        counts = {"pairs": len(self.loss.pairs), "done": self.done, "looked_at": self.looked_at, "share": self._share()}
        state = {**counts, **self.halving.to_dict(), "solvers": solvers, "plans": self._plans}
        if self.steps is not None:
            pairs = zip(self.halving.solvers, self.steps, strict=True)
            state["levels"] = [{"ratios": a.parameters.ratios.tolist(), "strides": b.strides} for a, b in pairs]
        return state

    def _calls(self, count: int) -> int:
        """The network calls of a run from so many pairs."""
        return self.calls * forward(count, self.loss.model.batch).calls

    def _seconds(self, iteration: int) -> float:
        """The seconds that an iteration of so many calls will take, by the pace so far."""
        spent = sum(self.run.cost_log.of(purpose).evaluations for purpose in ("teacher", "tuning"))
        once = min(BATCH, self.train, self.loss.model.batch or BATCH) / num_processes()
        return self.run.seconds * iteration * once / max(1, spent)

    def _share(self) -> float:
        """The share of the iterations or of the budget that is spent."""
        return max(0.0 if self.limit is None else self.done / self.limit, self.run.spent_share)


def _compact(plan: Plan) -> dict[str, Any]:
    """The plan in plain values, without the rows that follow from them."""
    return {name: value for name, value in plan.to_dict().items() if name != "rows"}
