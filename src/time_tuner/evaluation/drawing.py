"""Samples of a model by a plan, drawn in batches from seeds of their own; and the reference runs of plans."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from .._distributed import gathered, num_processes, share
from ..models.base import HookedModel, Model, for_rows
from ..noise import STEP_NOISE, SeededNoise
from ..plans.build import reference_plan
from ..plans.plan import Plan
from ..sampling import sample

REFERENCE_CALLS = 100


def draw(model: Model, plan: Plan, count: int, seed: int, batch: int, advance: Callable[[int], None]) -> Tensor:
    """Samples (count, ...) of the seeds `seed`, `seed + 1`, ..., at most `batch` in a network call; each depends on its
    own seed alone. `advance` is called with the number of samples in every call, of all processes that share the
    work."""
    assert model.shape is not None
    drawn = []
    counted = HookedModel(model, lambda quantity, x, t, prediction: advance(len(x) * num_processes()))
    for rows in share(count).split(batch):
        seeds = [seed + row for row in rows.tolist()]
        noise = SeededNoise(seeds)(torch.empty(len(rows), *model.shape, device=model.device))
        steps = SeededNoise([STEP_NOISE + one for one in seeds])
        drawn.append(sample(for_rows(counted, rows), plan, plan.initial_state(noise), steps).cpu())
    return gathered(torch.cat(drawn), count)


def decode(model: Model, samples: Tensor, batch: int) -> Tensor:
    """The pictures that samples (n, ...) stand for, in batches; the samples themselves where they have no decoder."""
    numbers = share(len(samples)).split(batch)
    parts = [for_rows(model, rows).decode(samples[rows].to(model.device)).cpu() for rows in numbers]
    return gathered(torch.cat(parts), len(samples))


def reference_plans(model: Model, plans: Iterable[Plan], calls: int = REFERENCE_CALLS) -> dict[float, Plan]:
    """The plans of the reference runs, by where plans end."""
    ends = dict.fromkeys(float(plan.t[-1]) for plan in plans)
    return {end: reference_plan(model.schedule, end, calls) for end in ends}
