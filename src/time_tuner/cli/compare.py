"""Runs of one model side by side: their samples, their distances to a reference run, and their costs."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table
from torch import Tensor

from .. import data, plots
from .._checks import check_int
from .._spec import parse_run
from ..evaluation.drawing import REFERENCE_CALLS, decode, draw, reference_plans
from ..metrics import distance, exact_moments
from ..models.base import Model
from ..models.exact import ExactModel, Gaussian
from ..plans.plan import Plan
from . import output, values
from .options import check_names, read_plans, untuned_plan

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PICTURES = 10


@dataclass(frozen=True)
class Run:
    """One run of the comparison: its name, its plan, its samples (n, ...), and the distance of each from the end of the
    reference run from the same noise, (n,); None for a stochastic run, which ends elsewhere by design."""

    name: str
    plan: Plan
    samples: Tensor
    distances: Tensor | None = None


@dataclass(frozen=True)
class Comparison:
    """Runs from the same noise, and the reference run to where the first of them ends."""

    model: Model
    reference: Run
    runs: Sequence[Run]


def read_runs(texts: Sequence[str], spacing: str | None = None) -> dict[str, Plan | Callable[[Model], Plan]]:
    """The plans of runs by name; an untuned one as a function of the model that it is made for.

    Args:
        texts: `sampler(option=value):calls@spacing`, or plans as `read_plans` takes them.
        spacing: of runs that name none.

    Raises:
        ValueError: a text of another form, or an unknown name in it.
    """
    runs: dict[str, Plan | Callable[[Model], Plan]] = {}
    for text in texts:
        if ".json" in text or "/" in text or Path(text).is_file():
            for name, plan in read_plans(text).items():
                short = name.rpartition("/")[2] if ".json" in name else name  # a file without its folder
                runs[name if short in runs else short] = plan
            continue
        sampler, calls, written = parse_run(text)
        check_names(sampler, written)
        check_int(f"calls of {text}", calls, 1)
        runs[text] = partial(untuned_plan, sampler=sampler, calls=calls, spacing=written or spacing)
    return runs


def compare(
    model: Model,
    plans: Mapping[str, Plan],
    count: int,
    seed: int,
    batch: int,
    bar: output.Bar,
    reference_calls: int = REFERENCE_CALLS,
) -> Comparison:
    """Draw samples by several plans from the same noise, and by the reference runs to where these end.

    Args:
        model: the model.
        plans: by the names of the runs.
        count: samples of each run.
        seed: of the first sample.
        batch: the most samples in one network call.
        bar: advances by `work(...)` in all.
        reference_calls: of the reference runs.
    """

    def run(name: str, plan: Plan, reference: Run | None = None) -> Run:
        samples = draw(model, plan, count, seed, batch, bar.advance)
        apart = None if reference is None or plan.stochastic else distance(samples, reference.samples)
        return Run(name, plan, samples, apart)

    references = {
        end: run("reference", plan) for end, plan in reference_plans(model, plans.values(), reference_calls).items()
    }
    runs = [run(name, plan, references[float(plan.t[-1])]) for name, plan in plans.items()]
    return Comparison(model, next(iter(references.values())), runs)


def work(model: Model, plans: Mapping[str, Plan], count: int) -> int:
    """The sample evaluations of a comparison."""
    return count * sum(map(len, [*plans.values(), *reference_plans(model, plans.values()).values()]))


def measured(comparison: Comparison) -> list[dict[str, Any]]:
    """What the table has of each run: the mean, the standard deviation and the distance by their values of each sample
    (n,), None where there is no distance; of the tutorial's Gaussian the exact mean and standard deviation."""
    exact, count = gaussian_of(comparison.model), len(comparison.reference.samples)
    rows = []
    for run in comparison.runs:
        flat = run.samples.double().reshape(count, -1)
        squares = (flat - flat.mean()).square().mean(1)  # of each sample
        std = float(squares.mean().sqrt())
        row = {"run": run.name, "calls": len(run.plan), "evaluations": count * len(run.plan)}
        row |= {"mean": flat.mean(1), "std": squares / (2 * std) + std / 2, "distance": run.distances}
        if exact is not None:
            mean, deviation = (float(value.mean()) for value in exact_moments(exact, run.plan))
            row |= {"exact mean": mean, "exact std": deviation}
        rows.append(row)
    return rows


def gaussian_of(model: Model) -> Gaussian | None:
    """The Gaussian whose exact moments are known, if the model is that of one."""
    return model.distribution if isinstance(model, ExactModel) and isinstance(model.distribution, Gaussian) else None


def values_of(comparison: Comparison, seed: int) -> dict[str, Any]:
    """The table as plain values: a mean and its standard error for each figure of samples."""
    runs = [
        {name: values.mean(value) if isinstance(value, Tensor) else value for name, value in row.items()}
        for row in measured(comparison)
    ]
    count = len(comparison.reference.samples)
    return {"samples": count, "seed": seed, "reference calls": len(comparison.reference.plan), "runs": runs}


def table(comparison: Comparison, seed: int) -> Table:
    """A row for each run: mean and standard deviation, and either their exact values or the distance; and the cost."""
    exact, count = gaussian_of(comparison.model), len(comparison.reference.samples)
    columns = ("distance",) if exact is None else ("exact\nmean", "exact\nstd")
    made = output.table("run", "calls", "evaluations", "mean", "std", *columns, title=f"{count:,} samples, seed {seed}")
    for row in measured(comparison):
        if exact is not None:
            more = tuple(f"{row[name]:.5f}" for name in ("exact mean", "exact std"))
        else:
            more = ("-" if row["distance"] is None else output.with_error(row["distance"]),)
        moments = (output.with_error(row["mean"]), output.with_error(row["std"]))
        made.add_row(row["run"], str(row["calls"]), f"{row['evaluations']:,}", *moments, *more)
    if exact is not None:
        made.add_row("the data", *[""] * 4, f"{float(exact.mean.mean()):.5f}", f"{float(exact.std.mean()):.5f}")
    made.caption = "± is one standard error. evaluations: network calls x samples in them. " + (
        f"distance: to the end of a deterministic run of {len(comparison.reference.plan)} calls from the same noise; a "
        "stochastic run ends elsewhere by design."
        if exact is None
        else "exact: of the run itself, propagated through its coefficients."
    )
    return made


def picture(comparison: Comparison, batch: int) -> "Figure | None":
    """The runs side by side, the reference first: pictures, points, or histograms with the density of the data; None
    where samples of this shape cannot be drawn."""
    model, reference = comparison.model, comparison.reference
    if reference.samples[0].numel() <= 2:
        runs = {f"reference, {len(reference.plan)} calls": reference} | {run.name: run for run in comparison.runs}
        density = plots.target_density(model)
        shown = list(runs.items())[int(density is not None) :]  # the density is the reference
        return plots.distributions({name: run.samples for name, run in shown}, density)
    first = strip(model, reference, batch, f"reference, {len(reference.plan)} calls")
    if not data.is_picture(first.images.shape[1:]):
        return None
    strips = [first, *(strip(model, run, batch) for run in comparison.runs)]
    footnote = (
        f"Every column begins from the same noise. Below a row: where it differs from the reference, white is equal. "
        f"distance: to the reference, mean of {len(reference.samples)} samples"
    )
    title = f"{len(comparison.runs)} runs beside the reference"
    return plots.image_grid(strips, title, footnote, reference=0)


def strip(model: Model, run: Run, batch: int, caption: str | None = None) -> plots.Strip:
    """The first samples of a run as a row of pictures, with the distance of all of them."""
    note = "" if run.distances is None else f"distance {float(run.distances.mean()):.2f}"
    return plots.Strip(caption or run.name, decode(model, run.samples[:PICTURES], batch), note)


def write(comparison: Comparison, batch: int, out: Path | None) -> Path | None:
    """Write the runs as a picture, or as arrays of an .npz file by their names; without a file, as a picture if there
    is one. Returns the path, None if nothing was written."""
    if out is not None and out.suffix.lower() == ".npz":
        data.save_arrays({run.name: run.samples for run in (comparison.reference, *comparison.runs)}, out)
        return out
    if (figure := picture(comparison, batch)) is None:
        return None
    out = out or Path("comparison.png")
    plots.save(figure, out)
    return out


def usual_count(model: Model) -> int:
    """How many samples of each run are drawn by default."""
    assert model.shape is not None
    if model.max_batch is not None:
        return 2 * model.max_batch
    return 10_000 if math.prod(model.shape) <= 2 else 100
