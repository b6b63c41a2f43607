"""TimeTuner (Xia et al., CVPR 2024): what the network is told at each call, one number at a time.

At call k the solver stands at t_k and the network is told tau_k = r_k t_k. The published loss is

L_k(r) = E |eps(x_k, t_k, t_k) - eps(x_{k+1}(r), t_{k+1}, t_{k+1})|^2,

where x_{k+1}(r) is reached from x_k with the prediction eps(x_k, t_k, r t_k): the noise seen after the step should be
the noise seen before it; `OBJECTIVES` has others. The last ratio stays 1 unless asked for. *Sequential*: x_k is reached
from x_T = alpha_T x_0 + sigma_T eps through the calls tuned so far. *Parallel*: x_k = alpha_k x_0 + sigma_k eps, and
every call stands alone.
"""

from dataclasses import dataclass
from typing import Any

from ..._checks import choose
from ...models.batching import BatchedModel
from ...models.counting import Cost
from ...plans.plan import Plan
from ..base import TuningRun
from ..budget import forward
from ..calibration import Calibration
from .adam import adam
from .objectives import Asked, find_objective
from .runs import PlanRun
from .search import MOST, Search

USUAL = 6
ADAM_BATCH = 64


@dataclass(frozen=True)
class Conditioning:
    """A tuner of the conditioning times; `strategy` is "sequential" or "parallel"."""

    strategy: str

    def __call__(
        self,
        eps: BatchedModel,
        plan: Plan,
        calibration: Calibration,
        tuning: TuningRun,
        optimizer: str = "search",
        objective: Asked | None = None,
        last: bool = False,
        lr: float = 2e-3,
        iterations: int = 500,
    ) -> Plan:
        """The plan with its conditioning times tuned, from untuned.

        Args:
            eps, plan, calibration: the model, the plan to tune, and what to tune it on.
            tuning: the budget, the kept state and the progress.
            optimizer: "search", or "adam" for the published procedure, to which the last two belong.
            objective: a name in `OBJECTIVES`, an `Objective`, or a function `f(step, x) -> (B,)`; by default "substeps",
                and "published" for samplers that draw noise and for the published optimiser.
            last: whether the last ratio is tuned too; the published procedure leaves it at 1.
            lr, iterations: of Adam, for each ratio; every iteration has a fresh batch and fresh noise.
        """
        choose("optimizer", optimizer, ("search", "adam"))
        if plan.corrections is not None and plan.corrections.any():
            raise ValueError(
                f"method={self.strategy!r} tunes plans without corrections, got {plan!r}: take method='joint' with "
                "tune=('tau',), which keeps them, or plan.with_corrections(None)"
            )
        objective = _default(plan, optimizer) if objective is None else objective
        goal = find_objective(objective)
        untuned = plan.with_tau(plan.t[:-1]).with_corrections(None)
        run = PlanRun(untuned)
        notes: dict[str, Any] = {
            "optimizer": optimizer,
            "objective": objective if isinstance(objective, str) else "own",
        }
        if optimizer == "adam":
            size = eps.batch or ADAM_BATCH
            ratios = adam(
                run, lambda i: calibration.batch(eps, i, size), self.strategy, lr, iterations, goal, last, tuning
            )
            notes |= {"lr": lr, "iterations": iterations, "batch": size}
        else:
            found = Search(run, calibration.draws(eps), self.strategy, goal, last, tuning)()
            ratios = found.ratios
            notes |= {
                "loss_before": [before for before, _ in found.losses],
                "loss_after": [after for _, after in found.losses],
            }
        # Nothing holds Adam back where the loss is flat; a network is told times that it was trained at.
        return untuned.with_ratios(ratios).with_provenance(**notes)

    def cost(
        self,
        plan: Plan,
        samples: int,
        batch: int | None,
        optimizer: str = "search",
        objective: Asked | None = None,
        last: bool = False,
        iterations: int = 500,
        **options: Any,
    ) -> dict[str, tuple[Cost, Cost]]:
        """What tuning this plan costs as a rule, and at most; the published procedure's is exact."""
        goal = find_objective(_default(plan, optimizer) if objective is None else objective)
        run, steps = PlanRun(plan), len(plan) - (not last)
        looks = goal.sees == "noise"
        before = [k if self.strategy == "sequential" else run.reach(k) - 1 for k in range(steps)]
        if optimizer == "adam":
            once = forward(batch or ADAM_BATCH)
            each = (goal.calls + (goal.target is find_objective("published").target) + 3 + 3 * looks) * steps
            exact = once * iterations * (sum(before) + each)
            return {"tuning": (exact, exact)}
        once = forward(samples, batch)
        if self.strategy == "sequential":  # the step before has asked what the network says of its end
            begins = [goal.calls + (k == 0 or not looks) for k in range(steps)]
        else:
            begins = [goal.calls + past + 1 for past in before]

        def of(values: int) -> Cost:
            # Told its own time the network is asked but once, and that answer is `said`.
            return once * (sum(begins) + steps * (looks + (values - 1) * (1 + looks)))

        return {"tuning": (of(USUAL), of(MOST))}


def _default(plan: Plan, optimizer: str) -> str:
    """The objective that did best where it was measured (docs/tuning.md), where it can be had."""
    return "published" if plan.stochastic or optimizer == "adam" else "substeps"
