"""The published optimiser of TimeTuner (Xia et al., CVPR 2024)."""

from collections.abc import Callable

import torch
from torch import Tensor

from ..base import TuningRun
from ..calibration import CalibrationBatch
from .objectives import OBJECTIVES, Objective, Step, step_loss
from .runs import Run, direct_state, first_state

LR, ITERATIONS = 2e-3, 500  # as published


def adam(
    run: Run,
    batches: Callable[[int], CalibrationBatch],
    strategy: str,
    tuning: TuningRun,
    lr: float | None = None,
    iterations: int | None = None,
    objective: Objective = OBJECTIVES["published"],
    last: bool = False,
    calls: int = 1,
) -> Tensor:
    """The ratios (K,) by the published procedure: Adam on one after the other, from 1, with a fresh batch at every
    iteration, in which the states are computed anew. `batches(i)` gives the batch of iteration i of them all; a
    prediction for it takes `calls` network calls."""
    lr, iterations = LR if lr is None else lr, iterations or ITERATIONS
    steps, kept = len(run) - (not last), tuning.state.get("ratios", [])
    ratios = torch.ones(len(run), dtype=torch.float64)
    ratios[: len(kept)] = torch.tensor(kept, dtype=torch.float64)
    for k in range(len(kept), steps):
        tuning.resume()
        ratio = torch.ones((), dtype=torch.float64, requires_grad=True)
        optimizer = torch.optim.Adam([ratio], lr=lr, betas=(0.9, 0.999))
        values: list[float] = []
        before = k if strategy == "sequential" else run.history(k) - 1
        cost = calls * (before + objective.calls + 4 + 3 * (objective.result == "noise"))
        for i in range(iterations):
            if not tuning.can_afford(cost):
                break
            batch = batches(k * iterations + i)
            with torch.no_grad():
                state = direct_state(run, k, batch) if strategy == "parallel" else first_state(run, batch)
                for j in range(k if strategy == "sequential" else 0):
                    state = run.step(j, state, ratios[j] * run.point(j).t, batch)
                step = Step(run, k, state, batch)
                target = objective.target(step)
            with torch.enable_grad():
                value = step_loss(run, k, state, ratio * step.p.t, batch, target, objective)
                optimizer.zero_grad(set_to_none=True)
                if value.requires_grad:
                    value.backward()
            if ratio.grad is None:
                raise _no_gradient()
            ratio.grad = batch.mean_gradient(ratio.grad)
            values.append(float(value.detach()))
            if not torch.isfinite(value):
                raise step.broken()
            optimizer.step()
            tuning.share = (k + (i + 1) / iterations) / steps
        ratios[k] = ratio.detach()
        if len(values) < iterations:
            tuning.stop(f"was spent at step {k} of {steps}")
            break
        tuning.save_step(k + 1, (k + 1) / steps, (values[0], values[-1]), {"ratios": ratios[: k + 1].tolist()})
    return ratios


def check_gradient(value: Tensor, ratio: Tensor) -> None:
    """Raise a ValueError if a loss has no gradient by the ratio; one by the weights of the network is not enough."""
    if not value.requires_grad or torch.autograd.grad(value, ratio, allow_unused=True)[0] is None:
        raise _no_gradient()


def _no_gradient() -> ValueError:
    return ValueError("optimizer='adam' needs a network with a gradient in its time, this one has none: take 'search'")
