r"""TimeTuner (Xia et al., CVPR 2024, https://arxiv.org/abs/2310.09469): the conditioning times, one number at a time.

At call k the solver is at t_k and the network receives tau_k = r_k t_k. The published loss of the ratio r_k is

    L_k(r) = E |eps(x_k, t_k, t_k) - eps(x_{k+1}(r), t_{k+1}, t_{k+1})|^2,

where x_{k+1}(r) is the state after the call with the prediction eps(x_k, t_k, r t_k): the noise predicted after the
step should be the noise predicted before it. `OBJECTIVES` has other losses. The last ratio stays 1 by default.

*Sequential*: x_k is reached from x_T = alpha_T x_0 + sigma_T eps through the calls tuned before. *Parallel*:
x_k = alpha_k x_0 + sigma_k eps, and every call is tuned on its own.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from ..._checks import check_int, choose
from ...models.batching import BatchedModel
from ...models.counting import Cost
from ...plans.build import untuned
from ...plans.plan import Plan
from ...schedules import as_float64
from ..base import Tuner, TuningRun
from ..budget import Budget, Speed, forward
from ..network_times import ignores_time
from .adam import ITERATIONS, LR, adam, check_gradient
from .objectives import OBJECTIVES, Objective, ObjectiveLike, Step, find_objective, step_loss
from .runs import PlanRun, direct_state
from .search import MOST, Search

USUAL = 7  # values of a search, on average over the problems of the tests
ADAM_BATCH = 64


@dataclass(frozen=True)
class TimestepTuner(Tuner):
    """A tuner of the conditioning times.

    Attributes:
        optimizer: "search", with forward calls only; or "adam", the published procedure.
        objective: a name in `OBJECTIVES`, an `Objective`, or a function `f(step, x) -> (B,)`. By default "substeps",
            and "published" for samplers that draw noise and for Adam.
        last: whether the last ratio is tuned too.
        lr: of Adam, 0.002 by default.
        iterations: of Adam, for each ratio, 500 by default; every iteration has 64 fresh samples.
    """

    strategy: ClassVar[str]

    optimizer: str = "search"
    objective: ObjectiveLike | None = None
    last: bool = False
    lr: float | None = None
    iterations: int | None = None

    def __post_init__(self) -> None:
        choose("optimizer", self.optimizer, ("search", "adam"))
        choose("last", self.last, (True, False))
        if self.objective is not None:
            find_objective(self.objective)
        if self.optimizer == "search" and (self.lr, self.iterations) != (None, None):
            raise ValueError("lr and iterations are options of optimizer='adam': leave them out, or take that one")
        if self.iterations is not None:
            check_int("iterations", self.iterations, 1)
        if self.lr is not None and not self.lr > 0:
            raise ValueError(f"lr must be positive, got {self.lr!r}")

    @property
    def tunes(self) -> Sequence[str]:
        return ("tau",)

    @property
    def sized(self) -> bool:
        return self.iterations is not None

    def check(self, plan: Plan, own_samples: bool) -> None:
        if plan.corrections is not None and plan.corrections.any():
            raise ValueError(
                f"{self.strategy} tuning is for plans without corrections, got {plan!r}: take "
                "'joint(parts=tau)', which keeps them, or plan.with_corrections(None)"
            )
        name, objective = self._objective(plan)
        if name == "substeps" and plan.stochastic:
            raise ValueError(
                f"objective='substeps' compares with a run without noise, {plan.sampler!r} draws some: "
                "take objective='published' or 'noise'"
            )
        if self.last and objective.result == "noise" and plan.sigma[-1] == 0:
            raise ValueError(
                "last=True needs an end before sigma = 0, where the network is never called, or an objective of the "
                "state, such as objective='substeps'"
            )

    def try_out(self, model: BatchedModel, plan: Plan, run: TuningRun) -> None:
        """The network uses its time and has a gradient for Adam, and an objective of the user's returns a loss for each
        sample."""
        name, objective = self._objective(plan)
        if ignores_time(model, plan, run.calibration):
            raise ValueError(
                f"{self.strategy} tuning needs a network that uses its time, this one predicts the same at every "
                "conditioning time: take 'joint' or 'least_squares', which tune other parts of a deterministic plan"
            )
        if self.optimizer == "adam" and model.whole_levels:
            raise ValueError(
                "optimizer='adam' needs a gradient in the time, which a network of whole levels has none of: take "
                "'search'"
            )
        if name in OBJECTIVES and self.optimizer == "search":
            return
        batch, plan_run, ratio = run.calibration.trial(model), PlanRun(plan), torch.ones(()).double()
        with torch.no_grad():
            step = Step(plan_run, 0, direct_state(plan_run, 0, batch), batch)
            target = objective.target(step)
        with torch.set_grad_enabled(self.optimizer == "adam"):
            value = step_loss(plan_run, 0, step.state, ratio.requires_grad_() * step.p.t, batch, target, objective)
        if not value.isfinite():
            raise step.broken()
        if self.optimizer == "adam":
            check_gradient(value, ratio)

    def tune(self, model: BatchedModel, plan: Plan, run: TuningRun) -> Plan:
        name, objective = self._objective(plan)
        start = untuned(plan)
        plan = start.with_tau(start.t[:-1]).with_corrections(None)
        plan_run, calibration = PlanRun(plan), run.calibration
        notes: dict[str, Any] = {"optimizer": self.optimizer, "objective": name}
        if self.optimizer == "adam":
            ratios = adam(
                plan_run, lambda i: calibration.batch(model, i, ADAM_BATCH), self.strategy, run, self.lr,
                self.iterations, objective, self.last, forward(ADAM_BATCH, model.batch).calls,
            )  # fmt: skip
            notes |= {"lr": self.lr or LR, "iterations": self.iterations or ITERATIONS, "batch": ADAM_BATCH}
        else:
            ratios, losses = Search(plan_run, calibration.fixed(model), self.strategy, run, objective, self.last)()
            notes["loss"] = {name: [pair[i] for pair in losses] for i, name in enumerate(("untuned", "tuned"))}
        ratios = as_float64(ratios)
        tau = torch.where(ratios == 1, start.tau, plan.with_ratios(ratios).tau)  # calls that were not tuned keep theirs
        return plan.with_tau(tau).with_provenance(**notes)

    def cost(
        self, plan: Plan, samples: int, batch: int | None, budget: Budget, speed: Speed | None
    ) -> dict[str, tuple[Cost, Cost]]:
        """That of Adam is exact."""
        _, objective = self._objective(plan)
        run, steps, after = PlanRun(plan), len(plan) - (not self.last), objective.result == "noise"
        before = [k if self.strategy == "sequential" else run.history(k) - 1 for k in range(steps)]
        if self.optimizer == "adam":
            published = objective.target is OBJECTIVES["published"].target
            each = (objective.calls + published + 3 + 3 * after) * steps
            exact = forward(ADAM_BATCH, batch) * ((self.iterations or ITERATIONS) * (sum(before) + each))
            return {"tuning": (exact, exact)}
        begins = sum(before) + steps
        if self.strategy == "sequential":
            begins = min(1, steps) if after else steps  # the step before has predicted the noise in the state after it
        first = begins + (objective.calls + after) * steps  # at tau = t the prediction is `untuned_noise`
        usual, most = (first + steps * (values - 1) * (1 + after) for values in (USUAL, MOST))
        return {"tuning": (forward(samples, batch) * usual, forward(samples, batch) * most)}

    def _objective(self, plan: Plan) -> tuple[str, Objective]:
        """Its name and the objective; by default the one that was best where it was measured (docs/results.md)."""
        objective = self.objective
        if objective is None:
            objective = "published" if plan.stochastic or self.optimizer == "adam" else "substeps"
        return objective if isinstance(objective, str) else "own", find_objective(objective)


@dataclass(frozen=True)
class Sequential(TimestepTuner):
    """The sequential strategy of TimeTuner; see `TimestepTuner` for the options."""

    strategy: ClassVar[str] = "sequential"


@dataclass(frozen=True)
class Parallel(TimestepTuner):
    """The parallel strategy of TimeTuner; see `TimestepTuner` for the options."""

    strategy: ClassVar[str] = "parallel"
