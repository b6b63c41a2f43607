"""What the command line does to draw samples: load a model under labels, draw in batches, write."""

import os
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .. import data, plots
from ..loading import load_model
from ..models.base import Model, for_rows
from ..noise import STEP_NOISE, SeededNoise
from ..plans.plan import Plan
from ..sampling import sample
from . import output as report

BATCH = 256


def load(name: str, label: Any, guidance_scale: float) -> Model:
    if ":" in name and os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())  # a command does not look where it is called, unlike `python -m`
    with report.waiting(f"loading {name}"):
        return load_model(name, label, guidance_scale)


def parse_labels(text: str | None) -> int | list[int] | None:
    """None, a label, or labels to be dealt out in turn."""
    if text is None:
        return None
    try:
        labels = [int(part) for part in text.split(",")]
    except ValueError:
        raise ValueError(f"--label must be a whole number, or several as in 0,1,2, got {text!r}") from None
    return labels if len(labels) > 1 else labels[0]


def shape_of(model: Model) -> tuple[int, ...]:
    """The shape of one sample of a loaded model, which has one."""
    assert model.shape is not None
    return model.shape


def draw(loaded: Model, plan: Plan, count: int, seed: int) -> Tensor:
    """Samples of the seeds `seed`, `seed + 1`, ..., in batches."""
    drawn = []
    meter = report.Meter(loaded)
    with meter.bar(f"{count} samples", len(plan) * -(-count // BATCH)):
        for first in range(0, count, BATCH):
            size = min(BATCH, count - first)
            seeds = range(seed + first, seed + first + size)
            x = plan.initial_state(SeededNoise(seeds)(torch.empty(size, *shape_of(loaded))))
            model = for_rows(meter, torch.arange(first, first + size))
            drawn.append(sample(model, plan, x, SeededNoise([STEP_NOISE + s for s in seeds])))
    return torch.cat(drawn)


def write(drawn: Tensor, model: Model, out: Path) -> None:
    if out.suffix.lower() == ".npz":
        data.save_samples(drawn, out)
    elif data.is_picture(shape_of(model)):
        plots.save(plots.sample_sheet(drawn), out)
    else:
        plots.save(plots.histograms({f"{len(drawn)} samples": drawn}, plots.target_density(model)), out)
