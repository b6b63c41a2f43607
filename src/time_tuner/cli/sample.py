"""What the command line does to draw samples: load a model under labels, draw in batches, write."""

import os
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .. import data, plots
from ..loading import Model, load_model
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


def dealt(labels: int | list[int] | None, first: int, count: int) -> int | list[int] | None:
    """The labels of samples `first`, ... of a batch; one for all, or none, as they are."""
    return [labels[i % len(labels)] for i in range(first, first + count)] if isinstance(labels, list) else labels


def draw(loaded: Model, name: str, plan: Plan, count: int, labels: Any, guidance_scale: float, seed: int) -> Tensor:
    """Samples of the seeds `seed`, `seed + 1`, ..., in batches."""
    drawn = []
    meter = report.Meter(loaded.eps)
    with meter.bar(f"{count} samples", len(plan) * -(-count // BATCH)):
        for first in range(0, count, BATCH):
            size = min(BATCH, count - first)
            if first and isinstance(labels, list):  # a batch has its labels built in
                meter.eps = load(name, dealt(labels, first, size), guidance_scale).eps
            seeds = range(seed + first, seed + first + size)
            x = plan.initial_state(SeededNoise(seeds)(torch.empty(size, *loaded.shape)))
            drawn.append(sample(meter, plan, x, SeededNoise([STEP_NOISE + s for s in seeds])))
    return torch.cat(drawn)


def write(drawn: Tensor, model: Model, out: Path) -> None:
    if out.suffix.lower() == ".npz":
        data.save_samples(drawn, out)
    elif data.is_picture(model.shape):
        plots.save(plots.sample_sheet(drawn), out)
    else:
        plots.save(plots.histograms({f"{len(drawn)} samples": drawn}, plots.target_density(model.eps)), out)
