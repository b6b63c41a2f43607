"""The ratios of a run by a search in one number each, with forward calls only."""

import math
import sys
from collections.abc import Sequence

import torch
from torch import Tensor

from ..._distributed import decided
from ...models.batching import BatchedModel, accepts_times, predict_each
from ..base import TuningRun
from ..budget import forward
from ..calibration import CalibrationBatch
from ..network_times import level_of, level_range, level_stride, time_of_level
from .minimize import STRIDE, Minimizer, lowest, mapped, minimize, minimize_levels, send
from .objectives import OBJECTIVES, Objective, Step
from .runs import PlanRun, Run, State, direct_state, first_state

MOST = 16  # values of a search at most; five to eight are usual


class Problem:
    """A step, its objective, and the best state after it so far with the noise predicted there."""

    def __init__(self, step: Step, objective: Objective) -> None:
        self.step, self.objective, self.target = step, objective, objective.target(step)
        self.lowest = math.inf
        self.best: tuple[State, Tensor | None] = step.state, None

    def evaluate(self, ratio: float, state: State, noise: Tensor | None) -> float:
        """The loss at a ratio that led to this state, with this prediction of the noise in it."""
        value = float(self.objective.mean(state[1] if noise is None else noise, self.target, self.step.batch))
        if not math.isfinite(value):
            if ratio == 1:
                raise self.step.broken()
            value = sys.float_info.max
        if value < self.lowest:
            self.lowest, self.best = value, (state, noise)
        return value


def evaluate(problems: Sequence[Problem], ratios: Sequence[float]) -> list[float]:
    """The loss of each problem at its ratio; the network is called for all of them together."""
    steps, model = [problem.step for problem in problems], problems[0].step.batch.model
    new = [i for i, step in enumerate(steps) if ratios[i] != 1 and _predicts_noise(step)]
    ps, taus = [steps[i].p.t for i in new], [ratios[i] * steps[i].p.t for i in new]
    noise = dict(zip(new, predict_each(model, [steps[i].x for i in new], ps, taus), strict=True))
    states = [_after(step, ratios[i], noise.get(i)) for i, step in enumerate(steps)]
    by_noise = [i for i, problem in enumerate(problems) if problem.objective.result == "noise"]
    qs = [steps[i].q.t for i in by_noise]
    after = dict(zip(by_noise, predict_each(model, [states[i][1] for i in by_noise], qs, qs), strict=True))
    return [problem.evaluate(ratios[i], states[i], after.get(i)) for i, problem in enumerate(problems)]


def _predicts_noise(step: Step) -> bool:
    """Whether the call of a step is made of one prediction of the noise, guidance included."""
    row = step.run.plan.rows[step.k] if isinstance(step.run, PlanRun) else None
    return row is not None and row.predicts == "eps" and row.guidance is None and not row.reused


def _after(step: Step, ratio: float, noise: Tensor | None = None) -> State:
    """The state after a step whose conditioning time is `ratio` times t_k, with this prediction where there is one."""
    if isinstance(step.run, PlanRun) and _predicts_noise(step) and (ratio == 1 or noise is not None):
        return step.run.follow(step.k, step.state, step.untuned_noise if noise is None else noise, step.batch)
    return step.run.step(step.k, step.state, ratio * step.p.t, step.batch)


class Search:
    """The ratios of a run, the last one too if `last`, each by a search in one number on the same samples, by the
    strategy "sequential" or "parallel". `values` holds the losses of each step by their ratios."""

    def __init__(
        self,
        run: Run,
        batch: CalibrationBatch,
        strategy: str,
        tuning: TuningRun,
        objective: Objective = OBJECTIVES["published"],
        last: bool = False,
    ) -> None:
        self.run, self.batch, self.tuning, self.objective = run, batch, tuning, objective
        self.sequential, self.steps = strategy == "sequential", len(run) - (not last)
        kept = tuning.state.get("values", {})
        self.values: dict[int, dict[float, float]] = {int(k): dict(pairs) for k, pairs in kept.items()}

    @torch.no_grad()
    def __call__(self) -> tuple[Tensor, list[tuple[float, float]]]:
        """The ratios (K,), and the loss of each step that was tuned, untuned and tuned. Where the budget is spent the
        best so far is found, and steps not begun stay untuned."""
        together = self._tunes_together()
        state, known = first_state(self.run, self.batch), None
        for ks in [range(self.steps)] if together else [range(k, k + 1) for k in range(self.steps)]:
            kept = not together and ks[0] in self.values  # found by an earlier run, which this one continues
            if kept and not self.sequential:
                continue
            if not kept and not together:
                self.tuning.resume()
            if not kept and not self._can_afford(ks, first=True):
                self.tuning.stop(f"was spent at step {ks[0]} of {self.steps}")
                break
            steps = [Step(self.run, ks[0], state, self.batch, known)] if self.sequential else self._direct(ks)
            if kept:
                state, q = _after(steps[0], lowest(self.values[ks[0]], 1.0)[0]), steps[0].q
                predicted = self.objective.result == "noise" and q.sigma > 0
                known = self.batch.model(state[1], q.t, q.t) if predicted else None
                continue
            problems = [Problem(step, self.objective) for step in steps]
            if not self._solve(problems):
                break
            state, known = problems[0].best
        self.tuning.resume()
        ratios = torch.ones(len(self.run), dtype=torch.float64)
        losses = []
        for k in sorted(self.values):
            ratios[k], value = lowest(self.values[k], 1.0)
            losses.append((self.values[k][1.0], value))
        return ratios, losses

    def _tunes_together(self) -> bool:
        """Whether all steps are tuned together, in calls that hold several of them."""
        model, p = self.batch.model, self.run.point(0)
        if (
            self.sequential
            or self.steps < 2
            or not isinstance(self.run, PlanRun)
            or not isinstance(model, BatchedModel)
        ):
            return False
        larger = model.batch is None or model.batch > len(self.batch)  # else there is nothing to gain
        return larger and decided(accepts_times(model, self.batch.at(p), p.t))

    def _direct(self, ks: Sequence[int]) -> list[Step]:
        """The steps of the parallel strategy, of several with the noise predicted in all their states together."""
        states, points = [direct_state(self.run, k, self.batch) for k in ks], [self.run.point(k).t for k in ks]
        known: Sequence[Tensor | None] = [None]
        if len(ks) > 1:
            known = predict_each(self.batch.model, [x for _, x in states], points, points)
        return [Step(self.run, k, state, self.batch, noise) for k, state, noise in zip(ks, states, known, strict=True)]

    def _can_afford(self, steps: Sequence[int], first: bool = False) -> bool:
        """Whether another value of each of these steps is within the budget; or the first one, with its target."""
        calls = forward(len(self.batch), getattr(self.batch.model, "batch", None)).calls
        each = 1 + (self.objective.result == "noise")
        targets = [self.objective.calls + self.run.history(k) for k in steps] if first else []
        return self.tuning.can_afford(calls * (each * len(steps) + sum(targets)))

    def _solve(self, problems: Sequence[Problem]) -> bool:
        """Search in all of them together, a value of each after the other; whether the budget was enough."""
        by_step = {problem.step.k: problem for problem in problems}
        searches = {k: self._minimizer(float(problem.step.p.t)) for k, problem in by_step.items()}
        places = {k: next(search) for k, search in searches.items()}
        kept = {k: dict(pairs) for k, pairs in self.values.items()}
        while places:
            new = [k for k, ratio in places.items() if ratio not in kept.get(k, {})]
            if new:
                self.tuning.resume()
                if any(self.values.get(k) for k in new) and not self._can_afford(new):
                    self.tuning.stop(f"was spent at step {new[0]} of {self.steps}")
                    return False
                values = dict(zip(new, evaluate([by_step[k] for k in new], [places[k] for k in new]), strict=True))
            following = {}
            for k, ratio in places.items():
                value = self.values.setdefault(k, {})[ratio] = values[k] if k in new else kept[k][ratio]
                if (place := send(searches[k], value)) is not None:
                    following[k] = place
            places = following
            if new and (len(problems) > 1 or not places):
                self._save(min(by_step) + len(problems) - len(places), new[0])
        return True

    def _minimizer(self, t: float) -> Minimizer:
        """The search for the ratio at time t, from 1: among whole levels where the network takes those alone."""
        schedule = self.run.schedule
        if not self.batch.model.whole_levels:
            return minimize(1.0, schedule.t_min / t, max(schedule.T / t, 1.0), most=MOST)
        (low, high), start = level_range(schedule), level_of(schedule, t)
        search = minimize_levels(start, min(low, start), max(high, start), level_stride(schedule, t, STRIDE), most=MOST)
        return mapped(search, lambda level: 1.0 if level == start else time_of_level(schedule, level) / t)

    def _save(self, done: int, k: int) -> None:
        losses = self.values[k][1.0], lowest(self.values[k], 1.0)[1]
        values = {str(k): list(map(list, pairs.items())) for k, pairs in self.values.items()}
        self.tuning.save_step(done, done / self.steps, losses, {"values": values})
