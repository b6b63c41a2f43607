"""The command `time-tuner`: demo, tune, sample, show, compare."""

import logging
import sys
import traceback
import warnings
from pathlib import Path
from typing import Annotated, Any

import typer

from .. import __version__, data, plots
from ..loading import model_facts
from ..models.conditions import Conditions
from ..tuners import TUNERS, Budget, tuner_of
from . import options, output, sample
from .options import CALLS, Sampler_, Seed_, Spacing_, with_model

FEW_SAMPLES, SAMPLES = 32, 256  # to tune pipelines, and other models, on
PICTURES = (".png", ".svg", ".pdf")


class Commands(typer.core.TyperGroup):
    """The group of commands, in which every error is one line on standard error and an exit code."""

    def main(self, *args: Any, **kwargs: Any) -> Any:
        """Run a command, then exit: 0, 2 for an error, 130 for Ctrl-C."""
        kwargs["standalone_mode"] = False
        log, handler = logging.getLogger("time_tuner"), output.LogHandler()
        log.addHandler(handler)
        log.setLevel(logging.INFO)
        try:
            with warnings.catch_warnings():
                warnings.showwarning = lambda message, *_: output.note(f"warning: {message}")
                code = super().main(*args, **kwargs)
        except Exception as error:
            print(f"error: {' '.join(_message(error).split())}", file=sys.stderr)
            sys.exit(2)
        finally:
            log.removeHandler(handler)
        if code == 130:
            print("interrupted: the command has written nothing", file=sys.stderr)
        sys.exit(code if isinstance(code, int) else 0)


def _message(error: Exception) -> str:
    """What is wrong: without an error number, and with the place of an error that nobody has foreseen."""
    if isinstance(error, typer.TyperException):
        return str(error.format_message())
    if isinstance(error, OSError) and error.strerror:
        file = error.filename2 or error.filename  # of a move, the one that was meant
        return f"{file}: {error.strerror}" if file else error.strerror
    if isinstance(error, ValueError | OSError):
        return str(error)
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if "site-packages" not in frame.filename] or frames
    return f"{type(error).__name__} at {own[-1].filename}:{own[-1].lineno}: {error}"


app = typer.Typer(
    cls=Commands,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    help="Make an already trained diffusion model sample well in a few steps, without touching its weights.",
    epilog="Start with: time-tuner demo",
)


def main() -> None:
    """The entry point of the command."""
    try:
        app(prog_name="time-tuner")
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)


@app.callback(invoke_without_command=True)
def root(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    if version:
        print(f"time-tuner {__version__}")
    elif context.invoked_subcommand is None:
        print(context.get_help())


@app.command(short_help="See what tuning does: the bundled digits, side by side.")
def demo(
    out: Annotated[Path, typer.Option("--out", help="Folder for pictures and plans.")] = Path("time-tuner-demo"),
    seed: Seed_ = 0,
) -> None:
    """Tune 5 calls of the bundled digits network, and compare the plans with untuned runs from the same noise.

    Takes three minutes at most, on a slow machine with fewer samples. Pictures and plans are written into one folder.
    Interrupted, the same command continues.
    """
    from .demo import run

    options.check_seed(seed)
    run(out, seed)


@app.command(short_help="Make a plan for a number of network calls.")
@with_model
def tune(
    model: str,
    conditions: Conditions,
    out: Annotated[Path, typer.Option("--out", help="The plan file to write.")] = Path("plan.json"),
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a plan file that exists.")] = False,
    calls: Annotated[
        str, typer.Option("--calls", help="Network calls of a run; several, as in 4,5,8, for a plan for each.")
    ] = str(CALLS),
    tuner_text: Annotated[
        str | None,
        typer.Option(
            "--method",
            help=f"{', '.join(TUNERS)}; with options as in 'joint(pairs=128)'.  [default: joint; sequential for a "
            "network without gradients, a sampler that draws noise, and --data]",
        ),
    ] = None,
    sampler: Sampler_ = None,
    spacing: Spacing_ = None,
    budget: Annotated[
        str | None, typer.Option("--budget", help="What tuning may spend, as in 20000calls, 60s or 2m.")
    ] = None,
    samples: Annotated[
        int | None,
        typer.Option(
            "--samples", min=2, help="How many to tune on and to measure on.  [default: 256, of pipelines 32]"
        ),
    ] = None,
    data_path: Annotated[
        Path | None,
        typer.Option(
            "--data", help="Tune on these: a folder of pictures, or an .npz.  [default: the model's own samples]"
        ),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what it will cost, and do nothing.")] = False,
    seed: Seed_ = 0,
) -> None:
    """Tune a plan for a number of network calls, measure it on held-out noise, and save it.

    joint is best, and needs gradients through the network; sequential needs forward calls only. The state of tuning is
    kept beside the plan file: interrupted, the same command continues.
    """
    from .tune import check_new, show_estimate, tune_plans

    options.check_suffix(out, (".json",))
    options.check_seed(seed)
    counts = sorted(set(options.read_numbers("--calls", calls, 1)))
    if not dry_run:
        check_new(out, overwrite)
    if data_path is not None and isinstance(conditions.label, tuple):
        raise ValueError(f"--label must be one label where --data is what to tune on, got {conditions.label}")
    limit, load = Budget.parse(budget), options.loader(model)
    options.check_names(sampler, spacing)
    tuner = None if tuner_text is None else tuner_of(tuner_text)
    with output.waiting(f"loading {model}"):
        loaded = load(conditions)
    assert loaded.shape is not None
    made_for = {"model": model, **conditions.given(), **loaded.facts()}
    plans = [options.untuned_plan(loaded, sampler, n, spacing).with_provenance(**made_for) for n in counts]
    samples = samples or (SAMPLES if loaded.max_batch is None else FEW_SAMPLES)
    x0 = None if data_path is None else data.load_data(data_path, loaded.shape, samples)
    how = {"samples": samples, "batch": conditions.batch or loaded.max_batch, "budget": limit}
    if dry_run:
        show_estimate(loaded, plans, tuner, own_samples=x0 is None, **how)
    else:
        tune_plans(loaded, plans, tuner, x0, seed, out, **how)


@app.command("sample", short_help="Draw samples, by a plan or untuned.")
@with_model
def sample_command(
    model: str,
    conditions: Conditions,
    out: Annotated[Path, typer.Option("--out", help="Where to: .png for pictures, .npz for arrays.")] = Path(
        "samples.png"
    ),
    plan: Annotated[
        str | None, typer.Option("--plan", help="A plan file, or a bundled plan; instead of sampler and spacing.")
    ] = None,
    calls: Annotated[
        int | None,
        typer.Option("--calls", help=f"Network calls; which plan, of a file of several.  [default: {CALLS}]"),
    ] = None,
    sampler: Sampler_ = None,
    spacing: Spacing_ = None,
    count: Annotated[
        int | None, typer.Option("-n", "--count", min=1, help="How many samples.  [default: 64, of pipelines 4]")
    ] = None,
    seed: Seed_ = 0,
) -> None:
    """Draw samples, by a plan or untuned.

    A sample depends on its own seed alone, not on how many are drawn with it.
    """
    options.check_suffix(out, (".png", ".npz"))
    options.check_seed(seed)
    if plan is not None and (sampler or spacing):
        raise ValueError("give either --plan or --sampler and --spacing: a plan has its own")
    load = options.loader(model)
    options.check_names(sampler, spacing)
    given = None if plan is None else sample.one_plan(plan, calls)
    with output.waiting(f"loading {model}"):
        loaded = load(conditions)
    count = count or (64 if loaded.max_batch is None else loaded.max_batch)
    if out.suffix.lower() == ".png":
        sample.check_drawable(loaded, count)
    made = given or options.untuned_plan(loaded, sampler, CALLS if calls is None else calls, spacing)
    if note := sample.note_of(made, model, loaded):
        output.note(note)
    batch = sample.batch_of(loaded, conditions)
    with output.Bar(f"{count} samples", count * len(made)) as bar:
        drawn = sample.draw(loaded, made, count, seed, batch, bar)
    sample.write(drawn, loaded, batch, out)
    by = "untuned" if plan is None else f"by {plan}"
    output.result(f"{count} samples in {len(made)} calls, {by}\nwrote {out}")


@app.command(short_help="Print a plan, and plot it; or the facts of a model.")
def show(
    plan: Annotated[
        str | None, typer.Argument(metavar="PLAN", help="A plan file, or a bundled plan.", show_default=False)
    ] = None,
    model: Annotated[str | None, typer.Option("--model", help="Instead of a plan: a model, or a pipeline.")] = None,
    calls: Annotated[
        int | None, typer.Option("--calls", help="Which plan, of a file of several.  [default: all]")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Plot what was tuned: .png, .svg or .pdf.")] = None,
) -> None:
    """Print plans: where the network is called, what it receives, how the plan was made, and what tuning has gained."""
    if out is not None:
        options.check_suffix(out, PICTURES)
    if (plan is None) == (model is None):
        raise ValueError("give either PLAN, a plan file, or --model")
    if model is not None:
        options.loader(model)
        output.result(output.facts_table(model_facts(model)))
        return
    assert plan is not None
    plans = options.read_plans(plan, calls)
    for one in plans.values():
        output.result(output.facts_table(output.plan_facts(one)))
        output.result(output.plan_table(one))
        if {"distance", "reverted_calls"} <= one.provenance.keys():
            output.result(f"{output.verdict(one)}.")
    if out is not None:
        plots.save(plots.plot_plan(plans, f"What was tuned in {plan}"), out)
        output.result(f"wrote {out}")


@app.command(short_help="Compare runs of one model side by side.")
@with_model
def compare(
    model: str,
    conditions: Conditions,
    runs: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN...",
            help="sampler(option=value):calls@spacing, as in 'ddim(eta=0.5):10@quadratic'; or a plan file or a bundled "
            "plan, with :calls for one of several.",
            show_default=False,
        ),
    ],
    spacing: Spacing_ = None,
    count: Annotated[
        int | None,
        typer.Option("-n", "--count", min=2, help="Samples a run.  [default: 100, of pipelines 8, of numbers 10000]"),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="The picture, or .npz for arrays.  [default: comparison.png]")
    ] = None,
    seed: Seed_ = 0,
) -> None:
    """Compare runs of one model from the same noise: their samples, their distances to a reference run, their costs.

    The tutorial's comparison: time-tuner compare --model gaussian ddpm:1000 ddpm:10 ddim:10
    """
    from . import compare as comparing

    if out is not None:
        options.check_suffix(out, (*PICTURES, ".npz"))
    options.check_seed(seed)
    load = options.loader(model)
    options.check_names(None, spacing)
    texts = comparing.read_runs(runs, spacing)
    with output.waiting(f"loading {model}"):
        loaded = load(conditions)
    count = count or comparing.usual_count(loaded)
    if out is not None and out.suffix.lower() in PICTURES:
        sample.check_drawable(loaded, 1)
    plans = {name: made(loaded) for name, made in texts.items()}
    batch = sample.batch_of(loaded, conditions)
    with output.Bar(f"{count} samples of each run", comparing.work(loaded, plans, count)) as bar:
        compared = comparing.compare(loaded, plans, count, seed, batch, bar)
    output.result(comparing.table(compared, seed))
    comparing.write(compared, batch, out)
