"""Runs of one model side by side: their samples, their distances to a reference run, and their costs."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

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
from . import output
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


def table(comparison: Comparison, seed: int) -> Table:
    """A row for each run: mean and standard deviation, and either their exact values or the distance; and the cost."""
    model, runs = comparison.model, comparison.runs
    count = len(runs[0].samples)
    exact = model.distribution if isinstance(model, ExactModel) and isinstance(model.distribution, Gaussian) else None
    columns = ("distance",) if exact is None else ("exact\nmean", "exact\nstd")
    made = output.table("run", "calls", "evaluations", "mean", "std", *columns, title=f"{count:,} samples, seed {seed}")
    for run in runs:
        values = run.samples.double().reshape(count, -1)
        squares = (values - values.mean()).square().mean(1)  # of each sample
        std = float(squares.mean().sqrt())
        moments = (output.with_error(values.mean(1)), output.with_error(squares / (2 * std) + std / 2))
        if exact is not None:
            more = tuple(f"{float(value.mean()):.5f}" for value in exact_moments(exact, run.plan))
        else:
            more = ("-" if run.distances is None else output.with_error(run.distances),)
        made.add_row(run.name, str(len(run.plan)), f"{count * len(run.plan):,}", *moments, *more)
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
    runs = {f"reference, {len(reference.plan)} calls": reference} | {run.name: run for run in comparison.runs}
    if reference.samples[0].numel() <= 2:
        density = plots.target_density(model)
        shown = list(runs.items())[int(density is not None) :]  # the density is the reference
        return plots.distributions({name: run.samples for name, run in shown}, density)
    strips = []
    for name, run in runs.items():
        note = "" if run.distances is None else f"distance {float(run.distances.mean()):.2f}"
        strips.append(plots.Strip(name, decode(model, run.samples[:PICTURES], batch), note))
    if not data.is_picture(strips[0].images.shape[1:]):
        return None
    footnote = f"distance: to the reference, mean of {len(reference.samples)} samples"
    return plots.image_grid(strips, "The same noise in every column", footnote)


def write(comparison: Comparison, batch: int, out: Path | None) -> None:
    """Write the runs as a picture, or as arrays of an .npz file by their names; without a file, as a picture if there
    is one."""
    if out is not None and out.suffix.lower() == ".npz":
        data.save_arrays({run.name: run.samples for run in (comparison.reference, *comparison.runs)}, out)
    elif (figure := picture(comparison, batch)) is not None:
        out = out or Path("comparison.png")
        plots.save(figure, out)
    else:
        shape = tuple(comparison.reference.samples.shape[1:])
        output.result(f"samples of shape {shape} are no pictures: --out runs.npz keeps them as arrays")
        return
    output.result(f"wrote {out}")


def usual_count(model: Model) -> int:
    """How many samples of each run are drawn by default."""
    assert model.shape is not None
    if model.max_batch is not None:
        return 2 * model.max_batch
    return 10_000 if math.prod(model.shape) <= 2 else 100
