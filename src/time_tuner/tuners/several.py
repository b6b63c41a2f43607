"""Plans for several numbers of calls in one go."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from ..plan import Plan
from ..sampling import Eps
from . import Calibration, tune
from .batches import Batched


def tune_several(
    eps: Eps,
    plans: Sequence[Plan],
    method: str = "joint",
    data: Any = None,
    seed: int = 0,
    *,
    samples: int = 256,
    shape: tuple[int, ...] | None = None,
    device: torch.device | str = "cpu",
    checkpoint: str | Path | None = None,
    done: Callable[[Sequence[Plan]], None] = lambda plans: None,
    **options: Any,
) -> list[Plan]:
    """The plans tuned, from the fewest calls to the most.

    They are tuned on the same data, or by the same runs of the teacher; with `method="joint"` each starts from its
    neighbour, too. A budget is for each.

    Args:
        eps, method, data, seed, samples, shape, device, checkpoint, options: see `tune`.
        plans: for different numbers of calls, on one schedule.
        done: called with the plans that are finished, after each.

    Raises:
        ValueError: two plans for the same number of calls; and see `tune`.
    """
    plans = sorted(plans, key=len)
    counts = [len(plan) for plan in plans]
    if len(set(counts)) < len(counts) or not plans:
        raise ValueError(f"plans must be for different numbers of calls, got {counts or 'none'}")
    if not isinstance(data, Calibration):
        data = Calibration(Batched(eps, samples), plans[0].schedule, data, samples, seed, shape, device)
    tuned: list[Plan] = []
    for plan in plans:
        path = None if checkpoint is None else Path(f"{checkpoint}-{len(plan)}")
        more = {**options}
        if method == "joint" and tuned:
            more = {"pairs": tuned[-1].provenance["pairs"], "others": tuned[-1:], **options}
        tuned.append(tune(eps, plan, method, data, device=device, checkpoint=path, **more))
        done(tuned)
    return tuned
