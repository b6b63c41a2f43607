"""Samples of a model by a plan, drawn in batches from seeds of their own; and the reference runs of plans."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import torch
from torch import Tensor

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
        advance: called with the number of samples in every call.
        units: where finished batches are kept, and read from; None for nowhere.
    """
    assert model.shape is not None
    drawn = []
    counted = BatchedModel(HookedModel(model, lambda quantity, x, t, prediction: advance(len(x))), batch)
    key, shape = "" if units is None else plan_key(plan), model.shape
    for rows in torch.arange(count).split(batch):
        seeds = [seed + row for row in rows.tolist()]

        def made(rows: Tensor = rows, seeds: Sequence[int] = seeds) -> Tensor:
            noise = SeededNoise(seeds)(torch.empty(len(rows), *shape, device=model.device))
            steps = SeededNoise([STEP_NOISE + one for one in seeds])
            return sample(for_rows(counted, rows), plan, plan.initial_state(noise), steps).cpu()

        if units is None:
            drawn.append(made())
            continue
        number = int(rows[0]) % (model.num_conditions or 1)  # its conditions begin with this one
        name = f"samples by {key}, seeds {seeds[0]} to {seeds[-1]}, condition {number} on"
        if name in units:
            advance(len(rows) * len(plan))
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
    numbers = torch.arange(len(samples)).split(batch)
    parts = [for_rows(model, rows).decode(samples[rows].to(model.device)).cpu() for rows in numbers]
    return torch.cat(parts)


def reference_plans(model: Model, plans: Iterable[Plan], calls: int = REFERENCE_CALLS) -> dict[float, Plan]:
    """The plans of the reference runs, by where plans end."""
    ends = dict.fromkeys(float(plan.t[-1]) for plan in plans)
    return {end: reference_plan(model.schedule, end, calls) for end in ends}
