"""Samples of a model by a plan, drawn in batches from seeds of their own; and the reference runs of plans."""

from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from torch import Tensor

from .._distributed import gathered, num_processes, of_all, own_rows, share
from ..models.base import HookedModel, Model, for_rows
from ..models.batching import BatchedModel
from ..noise import STEP_NOISE, SeededNoise
from ..plans.build import reference_plan
from ..plans.plan import Plan
from ..sampling import sample
from ..tuners.calibration import ANSWERED, Calibration
from ..tuners.checkpoint import versions
from ..tuners.units import Units, plan_key

REFERENCE_CALLS = 100


def draw(
    model: Model,
    plan: Plan,
    count: int,
    seed: int,
    batch: int,
    advance: Callable[[int], None],
    units: Units | None = None,
) -> Tensor:
    """Samples (count, ...) of the seeds `seed`, `seed + 1`, ..., at most `batch` in a network call; each depends on its
    own seed alone.

    Args:
        model, plan, count, seed, batch: the run.
        advance: called with the number of samples in every call, of all processes that share the work.
        units: where finished batches are kept, and read from; None for nowhere.
    """
    assert model.shape is not None
    drawn = []
    counted = BatchedModel(
        HookedModel(model, lambda quantity, x, t, prediction: advance(len(x) * num_processes())), of_all(batch)
    )
    key, shape = "" if units is None else plan_key(plan), model.shape
    for group in torch.arange(count).split(of_all(batch) or count):

        def made(group: Tensor = group) -> Tensor:
            rows = own_rows(group)
            seeds = [seed + row for row in rows.tolist()]
            noise = SeededNoise(seeds)(torch.empty(len(rows), *shape, device=model.device))
            steps = SeededNoise([STEP_NOISE + one for one in seeds])
            return gathered(sample(for_rows(counted, rows), plan, plan.initial_state(noise), steps).cpu(), len(group))

        if units is None:
            drawn.append(made())
            continue
        first, last = int(group[0]), int(group[-1])
        number = first % (model.num_conditions or 1)  # its conditions begin with this one
        name = f"samples by {key}, seeds {seed + first} to {seed + last}, condition {number} on"
        if name in units:
            advance(len(group) * len(plan))
        drawn.append(units.tensor(name, shape, made))
    return torch.cat(drawn)


def sample_units(folder: Path, model: Model, batch: int, description: str | None = None) -> Units:
    """The finished batches of samples that a folder keeps for a model, which is recognised by a prediction for each of
    its conditions, up to 16, and by a description."""
    network, several = BatchedModel(model, batch), max(2, model.num_conditions or 0)
    answer = Calibration(network, model.schedule, None, several).answer(network, min(several, ANSWERED))
    shape = list(model.shape or ())
    return Units(folder, {"model": answer, "shape": shape, "description": description, "versions": versions()})


def decode(model: Model, samples: Tensor, batch: int) -> Tensor:
    """The pictures that samples (n, ...) stand for, in batches; the samples themselves where they have no decoder."""
    numbers = share(len(samples)).split(batch)
    parts = [for_rows(model, rows).decode(samples[rows].to(model.device)).cpu() for rows in numbers]
    return gathered(torch.cat(parts), len(samples))


def reference_plans(model: Model, plans: Iterable[Plan], calls: int = REFERENCE_CALLS) -> dict[float, Plan]:
    """The plans of the reference runs, by where plans end."""
    ends = dict.fromkeys(float(plan.t[-1]) for plan in plans)
    return {end: reference_plan(model.schedule, end, calls) for end in ends}
