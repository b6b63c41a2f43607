"""Samples of a model by a plan, drawn in batches from seeds of their own."""

from pathlib import Path

import torch
from torch import Tensor

from .. import data, plots
from ..evaluation.drawing import decode
from ..models.base import Model
from ..models.conditions import Conditions
from ..plans.plan import Plan
from .options import read_plans

BATCH = 256


def one_plan(text: str, calls: int | None) -> Plan:
    """The plan of a file, see `read_plans`; a ValueError if it has several, and none is chosen."""
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
