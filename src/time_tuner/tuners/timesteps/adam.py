"""The published optimiser of TimeTuner (Xia et al., CVPR 2024)."""

from collections.abc import Callable

import torch
from torch import Tensor

from ..._checks import check_int
from ..base import TuningRun
from ..calibration import CalibrationBatch
from .objectives import OBJECTIVES, Objective, Step, loss, where
from .runs import Run, direct, start


def adam(
    run: Run,
    batches: Callable[[int], CalibrationBatch],
    strategy: str,
    lr: float = 2e-3,
    iterations: int = 500,
    objective: Objective = OBJECTIVES["published"],
    last: bool = False,
    tuning: TuningRun | None = None,
) -> Tensor:
    """The ratios (K,) by the published procedure: Adam on each in turn, from 1, a fresh batch at every iteration, the
    states computed anew for it. `batches(i)` gives the draws of iteration i, counted through."""
    iterations = check_int("iterations", iterations, 1)
    if not lr > 0:
        raise ValueError(f"lr must be positive, got {lr}")
    tuning = TuningRun() if tuning is None else tuning
    ratios = torch.ones(len(run), dtype=torch.float64)
    steps = len(run) - (not last)
    kept: list[float] = tuning.state.get("ratios", [])
    ratios[: len(kept)] = torch.tensor(kept, dtype=torch.float64)
    for k in range(len(kept), steps):
        tuning.resume_at(k)
        t = run.point(k).t
        ratio = torch.ones((), dtype=torch.float64, requires_grad=True)
        optimizer = torch.optim.Adam([ratio], lr=lr, betas=(0.9, 0.999))
        values: list[float] = []
        cost = (
            (k if strategy == "sequential" else run.reach(k) - 1)
            + objective.calls
            + 4
            + 3 * (objective.sees == "noise")
        )
        for i in range(iterations):
            if not tuning.can_afford(cost):
                break
            draws = batches(k * iterations + i)
            with torch.no_grad():
                state = direct(run, k, draws) if strategy == "parallel" else start(run, draws)
                for j in range(k if strategy == "sequential" else 0):
                    state = run.step(j, state, ratios[j] * run.point(j).t, draws)
                target = objective.target(Step(run, k, state, draws))
            with torch.enable_grad():
                value = loss(run, k, state, ratio * t, draws, target, objective)
                if not value.requires_grad:
                    raise ValueError(
                        "optimizer='adam' needs a network with a gradient in the time it is told: it has none"
                    )
                optimizer.zero_grad(set_to_none=True)
                value.backward()
            values.append(float(value.detach()))
            if not torch.isfinite(value):
                raise ValueError(f"eps, or the objective, returned NaN or infinity {where(run, k)} while tuning")
            optimizer.step()
        ratios[k] = ratio.detach()
        if len(values) < iterations:
            tuning.stop(f"was spent at step {k} of {steps}")
            break
        tuning.done(k + 1, steps, values[0], values[-1], {"ratios": ratios[: k + 1].tolist()})
    return ratios
