"""The ratios of a run by a search in one number each, with forward calls only."""

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...models.batching import BatchedModel, accepts_times
from ..base import TuningRun
from ..budget import forward
from ..calibration import CalibrationBatch
from .minimize import answer, descend, lowest
from .objectives import OBJECTIVES, Objective, Step, where
from .runs import PlanRun, Run, State, direct, start

MOST = 16  # values that a search asks for at most; five to eight are usual


@dataclass(frozen=True)
class Found:
    """What a search has found: the ratios (K,), and the loss of each step that was tuned, before and after."""

    ratios: Tensor
    losses: list[tuple[float, float]]


class Problem:
    """One step, its objective, and the best that was seen of it so far."""

    def __init__(self, step: Step, objective: Objective, keep: bool = False) -> None:
        self.step, self.objective, self.keep = step, objective, keep
        self.target = objective.target(step)
        self.seen: dict[float, float] = {}
        self.best: tuple[State, Tensor | None] | None = None  # the state after the step, what the network says of it

    def note(self, ratio: float, state: State, said: Tensor | None) -> float:
        """The loss at a ratio, which led to this state."""
        value = float(self.objective.mean(state[1] if said is None else said, self.target))
        if not math.isfinite(value):
            if ratio == 1:
                raise ValueError(
                    f"eps, or the objective, returned NaN or infinity {where(self.step.run, self.step.k)} while tuning"
                )
            value = sys.float_info.max
        if self.keep and (not self.seen or value < min(self.seen.values())):
            self.best = state, said
        self.seen[ratio] = value
        return value


def evaluate(asked: Sequence[tuple[Problem, float]]) -> list[float]:
    """The loss of each problem at its ratio; the network is asked about all of them at once."""
    problems = [problem for problem, _ in asked]
    steps = [problem.step for problem in problems]
    model = steps[0].draws.model
    states: list[State]
    if len(asked) == 1 or not isinstance(model, BatchedModel):
        states = [_after(step, ratio) for step, (_, ratio) in zip(steps, asked, strict=True)]
    else:
        new = [i for i, (_, ratio) in enumerate(asked) if ratio != 1 and steps[i].run.says_noise(steps[i].k)]
        taus = [asked[i][1] * steps[i].p.t for i in new]
        said = dict(zip(new, model.each([steps[i].x for i in new], [steps[i].p.t for i in new], taus), strict=True))
        states = [_follow(step, said[i]) if i in said else _after(step, asked[i][1]) for i, step in enumerate(steps)]
    sees = [i for i, problem in enumerate(problems) if problem.objective.sees == "noise"]
    qs = [steps[i].q.t for i in sees]
    if isinstance(model, BatchedModel) and len(asked) > 1:
        seen = dict(zip(sees, model.each([states[i][1] for i in sees], qs, qs), strict=True))
    else:
        seen = {i: model(states[i][1], q, q) for i, q in zip(sees, qs, strict=True)}
    return [p.note(ratio, states[i], seen.get(i)) for i, (p, ratio) in enumerate(asked)]


def _follow(step: Step, said: Tensor) -> State:
    assert isinstance(step.run, PlanRun)
    return step.run.follow(step.k, step.state, said, step.draws)


def _after(step: Step, ratio: float) -> State:
    """The state after a step whose network is told `ratio` times t_k."""
    if (
        ratio == 1 and isinstance(step.run, PlanRun) and step.run.says_noise(step.k)
    ):  # that was asked before, or will be of use
        return _follow(step, step.said)
    return step.run.step(step.k, step.state, ratio * step.p.t, step.draws)


class Search:
    """The ratios of a run, each by a search in one number on the same draws, with forward calls only.

    Args:
        run, draws: what to tune, and what to tune it on.
        strategy: "sequential" or "parallel".
        objective: what a step should come to.
        last: whether the last ratio is tuned too.
        tuning: the budget, the kept state and the progress.
    """

    def __init__(
        self,
        run: Run,
        draws: CalibrationBatch,
        strategy: str,
        objective: Objective = OBJECTIVES["published"],
        last: bool = False,
        tuning: TuningRun | None = None,
    ) -> None:
        if last and objective.sees == "noise" and run.point(len(run)).sigma == 0:
            raise ValueError(
                "last=True needs an end before sigma = 0, where the network is never called, or an objective that "
                "looks at the state, such as objective='substeps'"
            )
        self.run, self.draws, self.strategy, self.objective = run, draws, strategy, objective
        self.tuning = TuningRun() if tuning is None else tuning
        self.steps = len(run) - (not last)
        kept = self.tuning.state.get("seen", {})
        self.seen: dict[int, dict[float, float]] = {
            int(k): {float(ratio): value for ratio, value in pairs} for k, pairs in kept.items()
        }

    @torch.no_grad()
    def __call__(self) -> Found:
        """Search; where the budget runs out the best so far is what is found, and steps not begun stay untuned."""
        together = self.strategy == "parallel" and self._goes_together()
        if together:
            self._together()
        else:
            self._one_by_one()
        self.tuning.resume_at(self.steps)
        ratios = torch.ones(len(self.run), dtype=torch.float64)
        losses = []
        for k in sorted(self.seen):
            ratios[k], value = lowest(self.seen[k], 1.0)
            losses.append((self.seen[k][1.0], value))
        return Found(ratios, losses)

    def _goes_together(self) -> bool:
        model, p = self.draws.model, self.run.point(0)
        if self.steps < 2 or not isinstance(self.run, PlanRun) or not isinstance(model, BatchedModel):
            return False
        larger = model.batch is None or model.batch > len(self.draws.x0)  # else there is nothing to gain
        return larger and accepts_times(model, self.draws.at(p), p.t)

    def _one_by_one(self) -> None:
        sequential = self.strategy == "sequential"
        state, known = start(self.run, self.draws), None
        for k in range(self.steps):
            if k in self.seen:  # by an earlier run, which this one continues
                if sequential:
                    step = Step(self.run, k, state, self.draws, known)
                    state = _after(step, lowest(self.seen[k], 1.0)[0])
                    known = self.draws.model(state[1], step.q.t, step.q.t) if self._looks(k) else None
                continue
            self.tuning.resume_at(k)
            if not self._affords([k], begins=True):
                self.tuning.stop(f"was spent at step {k} of {self.steps}")
                return
            if not sequential:
                state, known = direct(self.run, k, self.draws), None
            problem = Problem(Step(self.run, k, state, self.draws, known), self.objective, keep=sequential)
            self._solve([problem])
            if self.tuning.stopped:
                return
            self._report(k + 1, k)
            if problem.best is not None:
                state, known = problem.best

    def _together(self) -> None:
        if not self._affords(range(self.steps), begins=True):
            self.tuning.stop("was spent at the beginning")
            return
        states = [direct(self.run, k, self.draws) for k in range(self.steps)]
        points = [self.run.point(k).t for k in range(self.steps)]
        model = self.draws.model
        assert isinstance(model, BatchedModel)
        # What the network says of each state is asked in one go; an objective may ask for more.
        known = model.each([x for _, x in states], points, points)
        steps = [
            Step(self.run, k, state, self.draws, said)
            for k, (state, said) in enumerate(zip(states, known, strict=True))
        ]
        self._solve([Problem(step, self.objective) for step in steps])

    def _looks(self, k: int) -> bool:
        return self.objective.sees == "noise" and bool(self.run.point(k + 1).sigma > 0)

    def _affords(self, steps: Sequence[int], begins: bool = False) -> bool:
        """Whether another value of these steps is within the budget, or, as they begin, the first one."""
        calls = forward(len(self.draws.x0), getattr(self.draws.model, "batch", None)).calls
        each = 1 + (self.objective.sees == "noise")
        beginning = [self.objective.calls + self.run.reach(k) for k in steps] if begins else []
        return self.tuning.can_afford(calls * (each * len(steps) + sum(beginning)))

    def _solve(self, problems: Sequence[Problem]) -> None:
        """Search on all of them at once, a value each in turn; what is seen goes into `self.seen`."""
        low, high = self.run.schedule.t_min, self.run.schedule.T
        searches, wanted = {}, {}
        for problem in problems:
            t = float(problem.step.p.t)
            searches[problem.step.k] = descend(1.0, low / t, max(high / t, 1.0), most=MOST)
            wanted[problem.step.k] = next(searches[problem.step.k])
        kept = {k: dict(pairs) for k, pairs in self.seen.items()}
        by_step = {problem.step.k: problem for problem in problems}
        while wanted:
            new = [k for k, ratio in wanted.items() if ratio not in kept.get(k, {})]
            if new:
                self.tuning.resume_at(len(problems) - len(wanted))
                if any(self.seen.get(k) for k in new) and not self._affords(new):
                    where = f"step {new[0]} of {self.steps}" if len(problems) == 1 else "a value of every step"
                    self.tuning.stop(f"was spent at {where}")
                    return
                values = dict(zip(new, evaluate([(by_step[k], wanted[k]) for k in new]), strict=True))
            following = {}
            for k, ratio in wanted.items():
                value = values[k] if k in new else kept[k][ratio]
                self.seen.setdefault(k, {})[ratio] = value
                asked = answer(searches[k], value)
                if asked is not None:
                    following[k] = asked
            wanted = following
            if new and len(problems) > 1:
                self._report(len(problems) - len(wanted), new[0])

    def _report(self, done: int, k: int) -> None:
        state = {"seen": {str(k): [list(pair) for pair in pairs.items()] for k, pairs in self.seen.items()}}
        self.tuning.done(done, self.steps, self.seen[k][1.0], lowest(self.seen[k], 1.0)[1], state)
