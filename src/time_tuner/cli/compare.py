"""Several runs of one model side by side: what each gives, what it should give, what it costs."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from rich.table import Table
from torch import Tensor

from .. import plots
from ..data import is_picture
from ..metrics import distance, exact_moments
from ..models.base import Model
from ..models.exact import ExactModel, Gaussian
from ..noise import SeededNoise
from ..plans.build import parse_run
from ..plans.plan import Plan
from ..sampling import sample
from ..tuners import reference_plan
from ..tuners.tune import REFERENCE_CALLS
from . import output as report
from .sample import shape_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PICTURES = 10


@dataclass(frozen=True)
class Run:
    """One run of the comparison: its name, its samples and how long they took."""

    name: str
    plan: Plan
    samples: Tensor
    seconds: float


def read_run(text: str, model: Model, spacing: str | None) -> Plan:
    """A plan from `sampler[(option=value)]:calls[@spacing]`, or from a plan file, `path.json[:calls]`."""
    path, _, calls = text.partition(".json")
    if (calls == "" and text.endswith(".json")) or calls.startswith(":"):
        if calls and not calls[1:].isdecimal():
            raise ValueError(f"a plan file of several is written path.json:calls, got {text!r}")
        return Plan.load(f"{path}.json", int(calls[1:]) if calls else None)
    return parse_run(text, model.schedule, spacing)


def draw(model: Model, runs: Sequence[str], spacing: str | None, count: int, seed: int) -> list[Run]:
    """`count` samples of each run, all from the same noise."""
    plans = [read_run(text, model, spacing) for text in runs]
    x = SeededNoise(seed)(torch.empty(count, *shape_of(model)))
    drawn = []
    for text, plan in zip(runs, plans, strict=True):
        meter = report.Meter(model)
        began = time.perf_counter()
        with meter.bar(text, len(plan)):
            samples = sample(meter, plan, plan.initial_state(x), SeededNoise(2**31 + seed))
        drawn.append(Run(text.rpartition("/")[2], plan, samples, time.perf_counter() - began))
    return drawn


def table(model: Model, runs: Sequence[Run], count: int, seed: int) -> Table:
    """A row for each run: mean and standard deviation, and what they should be, or how far it ends from many calls."""
    if isinstance(model, ExactModel) and isinstance(model.distribution, Gaussian):
        return _moments(model.distribution, runs)
    made = report.table("run", "calls", "mean", "std", "distance", "seconds", title=f"{count} samples, seed {seed}")
    ends: dict[float, Tensor] = {}
    reference_calls = REFERENCE_CALLS
    for run in runs:
        end = float(run.plan.t[-1])
        if end not in ends:
            meter, reference = report.Meter(model), reference_plan(model.schedule, end, REFERENCE_CALLS)
            reference_calls = len(reference)
            with meter.bar("many-call run to measure by", reference_calls):
                x = SeededNoise(seed)(torch.empty(count, *shape_of(model)))
                ends[end] = sample(meter, reference, reference.initial_state(x))
        apart = "-" if run.plan.stochastic else f"{float(distance(run.samples, ends[end]).mean()):.4f}"
        values = (f"{float(run.samples.mean()):.4f}", f"{float(run.samples.std()):.4f}", apart, f"{run.seconds:.2f}")
        made.add_row(run.name, str(len(run.plan)), *values)
    made.caption = (
        f"distance: to the end of a {reference_calls}-call deterministic run from the same noise, on average; a "
        "stochastic run ends elsewhere by design."
    )
    made.caption_justify = "left"
    return made


def _moments(model: Gaussian, runs: Sequence[Run]) -> Table:
    made = report.table("run", "calls", "mean", "std", "exact mean", "exact std", "seconds")
    for run in runs:
        mean, std = (float(value.mean()) for value in exact_moments(model, run.plan))
        sampled = (f"{float(run.samples.mean()):.4f}", f"{float(run.samples.std()):.4f}")
        made.add_row(run.name, str(len(run.plan)), *sampled, f"{mean:.5f}", f"{std:.5f}", f"{run.seconds:.2f}")
    made.add_row("the data", "", "", "", f"{float(model.mean.mean()):.5f}", f"{float(model.std.mean()):.5f}", "")
    made.caption = "exact: of the run itself, propagated through its coefficients."
    made.caption_justify = "left"
    return made


def picture(model: Model, runs: Sequence[Run]) -> "Figure":
    """The runs side by side: histograms with the target density, or the same pictures from the same noise.

    Raises:
        ValueError: samples of this shape cannot be drawn.
    """
    if is_picture(shape_of(model)):
        strips = [plots.Strip(run.name, run.samples[:PICTURES], f"{len(run.plan)} calls") for run in runs]
        return plots.image_grid({"The same noise in every column": strips}, "Comparison")
    return plots.histograms({run.name: run.samples for run in runs}, plots.target_density(model))


def compare(model: Model, runs: Sequence[str], spacing: str | None, count: int, seed: int, out: Path) -> None:
    """Draw, print the table, save the picture."""
    plots.check_sheet(count, shape_of(model))
    drawn = draw(model, runs, spacing, count, seed)
    report.say.print(table(model, drawn, count, seed))
    plots.save(picture(model, drawn), out)
    report.say.print(f"wrote {out}", soft_wrap=True)
