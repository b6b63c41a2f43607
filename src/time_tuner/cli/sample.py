"""Samples of a model by a plan, drawn in batches from seeds of their own."""

from pathlib import Path

import torch
from torch import Tensor

from .. import data, plots
from ..models.base import HookedModel, Model, for_rows
from ..models.conditions import Conditions
from ..noise import STEP_NOISE, SeededNoise
from ..plans.plan import Plan
from ..sampling import sample
from . import output
from .options import read_plans

BATCH = 256


def one_plan(text: str, calls: int | None) -> Plan:
    """The plan of a file, see `read_plans`.

    Raises:
        ValueError: the file has several, and none is chosen.
    """
    plans = list(read_plans(text, calls).values())
    return plans[0] if len(plans) == 1 else Plan.load(text, calls)


def note_of(plan: Plan, name: str, model: Model) -> str | None:
    """A note if the plan was made for another model or another kind of pipeline."""
    made_for, pipeline = plan.provenance.get("model", name), model.facts().get("pipeline")
    other = plan.provenance.get("pipeline", pipeline)
    if pipeline is not None and other != pipeline:
        return f"note: the plan was tuned for a {other}, and the model is a {pipeline}"
    return f"note: the plan was made for --model {made_for}" if made_for != name else None


def batch_of(model: Model, conditions: Conditions) -> int:
    """The most samples in one network call."""
    return conditions.batch or model.max_batch or BATCH


def noise_of(model: Model, seeds: range) -> Tensor:
    """The noise (n, ...) of samples with these seeds."""
    assert model.shape is not None
    return SeededNoise(seeds)(torch.empty(len(seeds), *model.shape, device=model.device))


def draw(model: Model, plan: Plan, count: int, seed: int, batch: int, bar: output.Bar) -> Tensor:
    """Samples (count, ...) of the seeds `seed`, `seed + 1`, ...; each depends on its own seed alone.

    Args:
        model: the model; sample i is under its condition i modulo their number.
        plan: the plan.
        count: the number of samples.
        seed: of the first one.
        batch: the most samples in one network call.
        bar: advances by a share of its whole work, `samples x calls`, with every network call.
    """
    drawn = []
    counted = HookedModel(model, lambda quantity, x, t, prediction: bar.advance(len(x)))
    for first in range(0, count, batch):
        rows = range(first, min(first + batch, count))
        seeds = range(seed + rows.start, seed + rows.stop)
        x = plan.initial_state(noise_of(model, seeds))
        part = for_rows(counted, torch.arange(rows.start, rows.stop))
        drawn.append(sample(part, plan, x, SeededNoise([STEP_NOISE + s for s in seeds])).cpu())
    return torch.cat(drawn)


def decode(model: Model, samples: Tensor, batch: int) -> Tensor:
    """The pictures that samples (n, ...) stand for, in batches; the samples themselves where they have no decoder."""
    numbers = torch.arange(len(samples)).split(batch)
    parts = [for_rows(model, rows).decode(samples[rows].to(model.device)).cpu() for rows in numbers]
    return torch.cat(parts)


def check_drawable(model: Model, count: int) -> None:
    """Raise a ValueError, before any sample is drawn, if so many cannot be made into one picture."""
    assert model.shape is not None
    if not model.has_decoder:
        plots.check_drawable(count, model.shape)
    elif count > 100:  # fewer make a sheet in any case
        plots.check_drawable(count, decode(model, torch.zeros(1, *model.shape), 1).shape[1:])


def write(samples: Tensor, model: Model, batch: int, out: Path) -> None:
    """Write samples as an .npz file, or as a picture."""
    pictures = decode(model, samples, batch)
    if out.suffix.lower() == ".npz":
        data.save_arrays({"samples": samples} | ({"pictures": pictures} if model.has_decoder else {}), out)
    elif data.is_picture(pictures.shape[1:]):
        plots.save(plots.sample_sheet(pictures), out)
    else:
        plots.save(plots.distributions({f"{len(samples)} samples": samples}, plots.target_density(model)), out)
