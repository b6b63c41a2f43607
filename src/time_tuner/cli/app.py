"""The command `time-tuner`: demo, tune, sample, show, compare."""

import sys
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from .. import __version__, data, plots
from ..plans.build import make_plan
from ..plans.plan import Plan
from ..samplers import SAMPLERS, sampler_of
from ..spacings import SPACINGS
from ..tuners import OBJECTIVES, Budget
from ..tuners.joint.parameters import PARTS
from ..tuners.tune import TUNERS
from . import options as arguments
from . import output as report
from . import sample as drawing
from . import tune as tuning
from .options import Calls_, Guidance_, Label_, Model_, Prompt_, Prompts_, Sampler_, Seed_, Spacing_

SAMPLES, PIPELINE_SAMPLES, PIPELINE_BATCH = 256, 32, 4  # to tune on


class Commands(typer.core.TyperGroup):
    """The group of commands, in which every error is one line on stderr and an exit code."""

    def main(self, *args: Any, **kwargs: Any) -> Any:
        """Run a command, then exit: 0, 2 for bad input, 130 for Ctrl-C."""
        kwargs["standalone_mode"] = False
        try:
            code = super().main(*args, **kwargs)
        except (typer.TyperException, ValueError, OSError) as error:
            _complain(f"error: {' '.join(_said(error).split())}")
            sys.exit(2)
        if code == 130:
            _complain("interrupted: nothing was written by the step that was running")
        sys.exit(code if isinstance(code, int) else 0)


def _said(error: Exception) -> str:
    """What is wrong, without an error number."""
    if isinstance(error, typer.TyperException):
        return str(error.format_message())
    if isinstance(error, OSError) and error.strerror:
        file = error.filename2 or error.filename  # of a move, the one that was asked for
        return f"{file}: {error.strerror}" if file else error.strerror
    return str(error)


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
        _complain("interrupted")
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
    """See what tuning does: the bundled digits in 5 and 10 calls, untuned and tuned side by side.

    Takes about three minutes; pictures and plans are written into one folder.
    """
    from .demo import run

    arguments.check_seed(seed)
    run(out, seed)


@app.command(short_help="Make a plan for a number of network calls.")
def tune(
    out: Annotated[Path, typer.Option("--out", help="The plan file to write.")] = Path("plan.json"),
    model: Model_ = "digits",
    sampler: Sampler_ = "ddim",
    calls: Calls_ = 10,
    more_calls: Annotated[
        list[int] | None,
        typer.Argument(
            metavar="[CALLS]...",
            help="More numbers of calls, as in --calls 4 5 8: a plan for each.",
            show_default=False,
        ),
    ] = None,
    spacing: Spacing_ = None,
    method: Annotated[str, typer.Option("--method", help=f"One of {', '.join(TUNERS)}.")] = "sequential",
    samples: Annotated[
        int | None,
        typer.Option("--samples", help="How many to tune on, and to judge on.  [default: 256, of pipelines 32]"),
    ] = None,
    data_path: Annotated[
        Path | None,
        typer.Option(
            "--data", help="Tune on these: a folder of images, or an .npz.  [default: the model's own samples]"
        ),
    ] = None,
    objective: Annotated[
        str | None,
        typer.Option("--objective", help=f"What a step is tuned for: {', '.join(OBJECTIVES)}.", show_default=False),
    ] = None,
    last: Annotated[bool, typer.Option("--last", help="Tune the last call too.")] = False,
    tune_parts: Annotated[
        str | None,
        typer.Option("--tune", help=f"For joint: which of {','.join(PARTS)}.  [default: all]", show_default=False),
    ] = None,
    teacher: Annotated[
        Path | None,
        typer.Option(
            "--teacher", help="For joint: a .safetensors file that keeps the teacher's runs.", show_default=False
        ),
    ] = None,
    batch: Annotated[
        int | None, typer.Option("--batch", help="The most samples in one network call.  [default: all]")
    ] = None,
    budget: Annotated[
        str | None, typer.Option("--budget", help="What tuning may spend, as in 20000calls, 60s or 2m.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what it will cost, and do nothing.")] = False,
    label: Label_ = None,
    prompt: Prompt_ = None,
    prompts: Prompts_ = None,
    guidance_scale: Guidance_ = 1.0,
    seed: Seed_ = 0,
) -> None:
    """Tune a plan for a number of network calls, judge it on held-out noise, and save it.

    Of several numbers of calls, the plans go into one file. What is found is kept beside the plan while it is being
    found: interrupted, the same command goes on from there.
    """
    arguments.check_suffix(out, (".json",))
    arguments.check_seed(seed)
    labels = drawing.parse_labels(label)
    if data_path is not None and isinstance(labels, list):
        raise ValueError(f"--label must be one label where --data says what to tune on, got {label!r}")
    if samples is not None and samples < 2:
        raise ValueError(f"--samples must be at least 2, got {samples}")
    if teacher is not None:
        arguments.check_suffix(teacher, (".safetensors",), "--teacher")
    limit = Budget.parse(budget)
    made_by = sampler_of(sampler)
    parts = None if tune_parts is None else tuple(part.strip() for part in tune_parts.split(","))
    options = tuning.options_given(method, objective=objective, last=last or None, tune=parts, teacher=teacher)
    counts = sorted({calls, *(more_calls or [])})
    if arguments.is_pipeline(model, prompt, prompts):
        if data_path is not None or dry_run or len(counts) > 1:
            raise ValueError(
                "--data, --dry-run and several numbers of calls are not for pipelines, which are tuned on samples of "
                "their own, for one number at a time"
            )
        from . import pipelines as command

        given = command.conditions(prompts, prompt, labels) | arguments.guidance(guidance_scale)
        how = {"samples": samples or PIPELINE_SAMPLES, "seed": seed, "batch": batch or PIPELINE_BATCH, "budget": limit}
        plan = command.tune(model, calls, method, made_by, spacing, options=options, **how, **given)
        plan.save(out)
        tuning.tell([plan], out)
        return
    samples = samples or SAMPLES
    loaded = drawing.load(model, labels, guidance_scale)
    spacing = spacing or loaded.schedule.default_spacing(made_by.convergence)
    made = {"model": model, "label": labels, "guidance_scale": guidance_scale, "spacing": spacing}
    plans = [make_plan(made_by, loaded.schedule, count, spacing).with_provenance(**made) for count in counts]
    x0 = None if data_path is None else data.load_data(data_path, drawing.shape_of(loaded), samples)
    how = {"method": method, "samples": samples, "batch": batch, **options}
    if dry_run:
        tuning.foretell(loaded, plans, x0 is None, {**how, "budget": limit})
    else:
        tuning.tuned(loaded, plans, x0, how, {"seed": seed, "budget": limit}, out)


@app.command("sample", short_help="Draw samples, by a plan or untuned.")
def sample_command(
    out: Annotated[Path, typer.Option("--out", help="Where to: .png for pictures, .npz for the array.")] = Path(
        "samples.png"
    ),
    model: Model_ = "digits",
    plan_file: Annotated[
        Path | None, typer.Option("--plan", help="A plan file; instead of sampler and spacing.")
    ] = None,
    calls: Annotated[
        int | None, typer.Option("--calls", help="Network calls; which plan, of a file of several.  [default: 10]")
    ] = None,
    sampler: Annotated[str | None, typer.Option("--sampler", help=f"{', '.join(SAMPLERS)}.  [default: ddim]")] = None,
    spacing: Spacing_ = None,
    count: Annotated[int, typer.Option("-n", "--count", min=1, help="How many samples.")] = 64,
    label: Label_ = None,
    prompt: Prompt_ = None,
    prompts: Prompts_ = None,
    guidance_scale: Guidance_ = 1.0,
    seed: Annotated[int, typer.Option("--seed", help="Of the first sample; the next ones count on.")] = 0,
) -> None:
    """Draw samples, by a plan or untuned.

    A sample depends on its own seed alone, not on how many are drawn with it.
    """
    arguments.check_suffix(out, (".png", ".npz"))
    arguments.check_seed(seed)
    labels = drawing.parse_labels(label)
    if arguments.is_pipeline(model, prompt, prompts):
        if plan_file is None:
            raise ValueError("a pipeline needs --plan: tune one, time-tuner tune --model ...")
        from . import pipelines as command

        given = command.conditions(prompts, prompt, labels)
        drawn = command.draw(
            model, Plan.load(plan_file, calls), count, seed, given, **arguments.guidance(guidance_scale)
        )
        command.save(drawn, out)
        report.say.print(f"{count} pictures\nwrote {out}", soft_wrap=True)
        return
    loaded = drawing.load(model, labels, guidance_scale)
    if out.suffix.lower() == ".png":
        plots.check_sheet(count, drawing.shape_of(loaded))
    if plan_file is not None:
        if sampler or spacing:
            raise ValueError("give either --plan or --sampler and --spacing: a plan has its own")
        plan = Plan.load(plan_file, calls)
    else:
        calls = 10 if calls is None else calls
        plan = make_plan(sampler or "ddim", loaded.schedule, calls, spacing)
    made_for = plan.provenance.get("model", model)
    if made_for != model:
        report.aside.print(f"note: the plan was made for --model {made_for}", soft_wrap=True)
    began = time.perf_counter()
    drawn = drawing.draw(loaded, plan, count, seed)
    seconds = time.perf_counter() - began
    drawing.write(drawn, loaded, out)
    by = "untuned" if plan_file is None else f"by {plan_file}"
    report.say.print(f"{count} samples in {len(plan)} calls, {by}, {seconds:.1f} s\nwrote {out}", soft_wrap=True)


@app.command(short_help="Print a plan, and plot it; or say what a pipeline is.")
def show(
    plan_file: Annotated[Path | None, typer.Argument(metavar="PLAN", help="A plan file.", show_default=False)] = None,
    model: Annotated[
        str | None, typer.Option("--model", help="Instead of a plan: a diffusers pipeline.", show_default=False)
    ] = None,
    calls: Annotated[int | None, typer.Option("--calls", help="Which plan, of a file of several.")] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Plot tau against t: .png, .svg or .pdf.")] = None,
) -> None:
    """Print a plan: what the network is told at each call, how it was made, and what it is worth."""
    if out is not None:
        arguments.check_suffix(out, (".png", ".svg", ".pdf"))
    if (plan_file is None) == (model is None):
        raise ValueError("give either PLAN, a plan file, or --model")
    if model is not None:
        from . import pipelines as command

        for what, found in command.facts(model).items():
            report.say.print(f"{what}: {found}", soft_wrap=True, markup=False, highlight=False)
        return
    assert plan_file is not None
    plan = Plan.load(plan_file, calls)
    report.say.print(report.facts_table(plan))
    report.say.print(report.plan_table(plan))
    if {"distance", "reverted_calls"} <= plan.provenance.keys():
        report.say.print(f"{report.verdict(plan)}.", soft_wrap=True)
    if out is not None:
        plots.save(plots.plot_tau(plan), out)
        report.say.print(f"wrote {out}", soft_wrap=True)


@app.command("compare", short_help="Compare runs of one model side by side.")
def compare_command(
    runs: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN...",
            help="sampler[(option=value)]:calls[@spacing], as in ddim(eta=0.5):10@quadratic; or a plan file.",
            show_default=False,
        ),
    ],
    model: Model_ = "digits",
    spacing: Annotated[
        str | None,
        typer.Option(
            "--spacing",
            help=f"Of runs that name none: {', '.join(SPACINGS)}.  [default: linspace for gaussian, else the sampler's]",
            show_default=False,
        ),
    ] = None,
    count: Annotated[
        int | None, typer.Option("-n", "--count", min=2, help="Samples a run.  [default: 10000 numbers, 100 pictures]")
    ] = None,
    label: Label_ = None,
    guidance_scale: Guidance_ = 1.0,
    seed: Annotated[int, typer.Option("--seed", help="Of the first sample; the next ones count on.")] = 0,
    out: Annotated[Path, typer.Option("--out", help="The picture to write.")] = Path("comparison.png"),
) -> None:
    """Compare runs of one model from the same noise: what they give, how far they end from many calls, what they cost.

    The tutorial's comparison: time-tuner compare --model gaussian ddpm:1000 ddpm:10 ddim:10
    """
    from .compare import compare

    arguments.check_suffix(out, (".png", ".svg", ".pdf"))
    arguments.check_seed(seed)
    labels = drawing.parse_labels(label)
    loaded = drawing.load(model, labels, guidance_scale)
    count = (100 if data.is_picture(drawing.shape_of(loaded)) else 10_000) if count is None else count
    spacing = spacing or ("linspace" if model == "gaussian" else None)  # the tutorial's comparison is on its own grid
    compare(loaded, runs, spacing, count, seed, out)


def _complain(line: str) -> None:
    print(line, file=sys.stderr)
