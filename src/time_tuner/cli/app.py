"""The command `time-tuner`: demo, doctor, tune, show, check, sample, compare, evaluate."""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import typer

from .. import __version__, data, plots
from .._distributed import launched, num_processes, rank, share_work
from ..evaluation.drawing import draw, sample_units
from ..loading import model_facts
from ..models.conditions import Conditions
from ..plans.plan import Plan
from ..tuners import Budget, check_plan, tuner_of
from ..tuners.check import SAMPLES as CHECK_SAMPLES
from . import options, output, sample, values
from .errors import Commands
from .help import EXIT_CODES, Command, examples
from .options import AGAINST, CALLS, CURVE_CALLS, with_model

FEW_SAMPLES, SAMPLES = 32, 256  # to tune pipelines, and other models, on
PICTURES = (".png", ".svg", ".pdf")


app = typer.Typer(
    cls=Commands,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    help="Make an already trained diffusion model sample well in a few steps, without touching its weights.",
    epilog="\n".join(
        [
            examples(
                "time-tuner demo                          # what tuning does, in three minutes",
                "time-tuner tune --calls 5 --budget 2m    # a plan for the bundled digits network",
                "time-tuner tune --help                   # the options of a command",
                "time-tuner --install-completion          # names of commands, options and values by the Tab key",
            ),
            "",
            "Exit codes:",
            *(f"  {code:<5}{text}" for code, text in EXIT_CODES.items()),
        ]
    ),
)


def main() -> None:
    """The entry point of the command. Started by `torchrun`, all processes do the work, and the first one writes."""
    try:
        if launched():
            share_work()
            output.stdout.quiet = output.stderr.quiet = bool(rank())
        app(prog_name="time-tuner")
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)


@app.callback(invoke_without_command=True)
def root(context: typer.Context, version: options.Version_ = False) -> None:
    if version:
        print(f"time-tuner {__version__}")
    elif context.invoked_subcommand is None:
        typer.echo(context.get_help())


START, PLANS, DRAWING = "Begin here", "Plans", "Samples"


def command(name: str, group: str, summary: str, *lines: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """What makes a function a command: its name, its group, its line in the list of commands, and its examples."""
    return app.command(name, cls=Command, rich_help_panel=group, short_help=summary, epilog=examples(*lines))


@command(
    "demo",
    START,
    "See what tuning does: pictures of a few calls, untuned and tuned.",
    "time-tuner demo",
    "time-tuner demo --out pictures --seed 100    # other noise",
)
def demo(out: options.DemoOut_ = Path("time-tuner-demo"), seed: options.Seed_ = 0) -> None:
    """Tune a few calls of bundled networks, and compare the plans with untuned runs from the same noise.

    Takes about three minutes; on a slow machine, or beside other work, it takes longer, which it says at the beginning.
    Pictures and plans are written into one folder. Interrupted, the same command continues.
    """
    from .demo import run

    if num_processes() > 1:
        raise ValueError("demo is for one process: leave torchrun out")
    run(out, seed)


@command(
    "doctor",
    START,
    "Say what is installed, and whether it works.",
    "time-tuner doctor",
    "time-tuner doctor --json",
)
def doctor(device: options.DoctorDevice_ = None, as_json: options.Json_ = False) -> None:
    """Say what is installed, which extras are missing, how fast a network is here, and whether the library works.

    The bundled networks draw digits, and a classifier that was trained apart must recognise them. A run on the
    tutorial's Gaussian must have the moments that follow from its coefficients. Folders must be writable. The exit code
    is 1 if one of these fails.
    """
    from .doctor import examine

    found = examine(device)
    output.report(found.to_dict() if as_json else None, found.table())
    if not found.works:
        raise typer.Exit(1)


@command(
    "tune",
    PLANS,
    "Make a plan for a number of network calls.",
    "time-tuner tune --calls 5 --budget 2m --out plan.json",
    "time-tuner tune --calls 4,5,8 --budget 2m --out plans.json            # a plan for each",
    "time-tuner tune --calls 5 --budget 2m --dry-run                       # what it costs",
    "time-tuner tune --model my_module:model --calls 8 --budget 5m         # a network of your own",
    "time-tuner tune --model path/to/pipeline --prompts prompts.txt --calls 8 --budget 10m",
    "time-tuner tune --label 3 --guidance-scale 2 --evaluations 8 --budget 2m",
)
@with_model
def tune(
    model: str,
    conditions: Conditions,
    out: options.PlanOut_ = Path("plan.json"),
    overwrite: options.Overwrite_ = False,
    calls: options.SeveralCalls_ = None,
    evaluations: options.Evaluations_ = None,
    method: options.Method_ = None,
    sampler: options.Start_ = None,
    spacing: options.Spacing_ = None,
    end: options.End_ = None,
    budget: options.Budget_ = None,
    samples: options.TunedSamples_ = None,
    data_path: options.Data_ = None,
    dry_run: options.DryRun_ = False,
    as_json: options.Json_ = False,
    seed: options.Seed_ = 0,
) -> None:
    """Find the best plan for a number of network calls, measure it on held-out noise, and save it.

    Untuned plans of every sampler and spacing are ranked, and the nearest ones are tuned; with --sampler or --spacing
    that plan is tuned. joint is best; where the network has no gradient it uses forward calls only, as the others do.
    The state of tuning is kept beside the plan file: interrupted, the same command continues.
    """
    from .tune import check_new, show_estimate, tune_plans

    options.check_suffix(out, ".json")
    if evaluations is not None and (calls or sampler or spacing):
        raise ValueError("give either --evaluations or --calls, --sampler and --spacing, which it searches for")
    counts = sorted(set(options.read_numbers("--calls", calls or str(CALLS), 1)))
    if not dry_run:
        check_new(out, overwrite)
    if data_path is not None and isinstance(conditions.label, tuple):
        raise ValueError(f"--label must be one label where --data is what to tune on, got {conditions.label}")
    limit, load = Budget.parse(budget), options.loader(model, sampler, spacing)
    tuner = None if method is None else tuner_of(method)
    with output.waiting(f"loading {model}"):
        loaded = load(conditions)
    assert loaded.shape is not None
    made_for = {"model": model, **conditions.given(), **loaded.facts()}
    starts: Sequence[Plan] | Sequence[int] = counts
    if sampler or spacing:
        starts = [options.untuned_plan(loaded, sampler, n, spacing, end) for n in counts]
    samples = samples or (SAMPLES if loaded.max_batch is None else FEW_SAMPLES)
    x0 = None if data_path is None else data.load_data(data_path, loaded.shape, samples)
    how: dict[str, Any] = {"samples": samples, "batch": conditions.batch or loaded.max_batch, "budget": limit}
    if starts is counts:
        how["end"] = end
    if evaluations is not None:
        starts, how["evaluations"] = [evaluations // 2], evaluations
    if dry_run:
        show_estimate(loaded, starts, tuner, as_json, own_samples=x0 is None, **how)
    else:
        tune_plans(loaded, starts, tuner, x0, seed, out, made_for, as_json, **how)


@command(
    "show",
    PLANS,
    "Print a plan, and plot it; or the facts of a model.",
    "time-tuner show digits/joint-5 --out plan.png",
    "time-tuner show digits/joint-5 --json",
    "time-tuner show --model latent-digits",
)
def show(
    plan: options.ShownPlan_ = None,
    model: options.ShownModel_ = None,
    calls: options.ShownCalls_ = None,
    out: options.ShownOut_ = None,
    as_json: options.Json_ = False,
) -> None:
    """Print plans: where the network is called, what it receives, how the plan was made, and what tuning has gained."""
    if out is not None:
        options.check_suffix(out, *PICTURES)
    if (plan is None) == (model is None):
        raise ValueError("give either PLAN, a plan file, or --model")
    if model is not None:
        options.loader(model)
        facts = model_facts(model)
        output.report({"model": model, **facts} if as_json else None, output.facts_table(facts))
        return
    assert plan is not None
    plans = options.read_plans(plan, calls)
    if out is not None:
        plots.save(plots.plot_plan(plans, f"What was tuned in {plan}"), out)
    texts = [text for one in plans.values() for text in output.plan_texts(one)]
    given = {**values.of_plans(plans), **({} if out is None else {"picture": out})}
    output.report(given if as_json else None, *texts, *([] if out is None else [f"wrote {out}"]))


@command(
    "check",
    PLANS,
    "Check whether a plan fits a model.",
    "time-tuner check digits/joint-5 --label 3",
    "time-tuner check plan.json --model my_module:model -n 64",
)
@with_model
def check(
    model: str,
    conditions: Conditions,
    plan: options.CheckedPlan_,
    calls: options.ShownCalls_ = None,
    count: options.CheckSamples_ = CHECK_SAMPLES,
    as_json: options.Json_ = False,
    seed: options.Seed_ = 0,
) -> None:
    """Compare a plan with itself without tuning and with a few untuned plans of as many calls, on few samples.

    What differs from the model that the plan was tuned for is named first. The exit code is 1 if the plan does not fit.
    """
    given, load = sample.one_plan(plan, calls), options.loader(model)
    with output.waiting(f"loading {model}"):
        loaded = load(conditions)
    with output.waiting(f"measuring on {count} samples"):
        found = check_plan(loaded, given, count, seed, batch=sample.batch_of(loaded, conditions))
    for difference in found.differences:
        output.note(f"note: {difference}")
    output.report(values.of_check(found) if as_json else None, output.check_table(found), f"{found.verdict}.")
    if found.fits is False:
        raise typer.Exit(1)


@command(
    "sample",
    DRAWING,
    "Draw samples, by a plan or untuned.",
    "time-tuner sample --plan digits/joint-5 --label 3 -n 64 --out threes.png",
    "time-tuner sample --sampler 'ddim(eta=0.5)' --spacing quadratic --calls 20 --out samples.npz",
)
@with_model
def sample_command(
    model: str,
    conditions: Conditions,
    out: options.SamplesOut_ = Path("samples.png"),
    plan: options.Plan_ = None,
    calls: options.Calls_ = None,
    sampler: options.Sampler_ = None,
    spacing: options.Spacing_ = None,
    count: options.Count_ = None,
    seed: options.Seed_ = 0,
) -> None:
    """Draw samples, by a plan or untuned.

    A sample depends on its own seed alone, not on how many are drawn with it. Finished batches are kept beside the
    file: interrupted, the same command continues.
    """
    options.check_suffix(out, ".png", ".npz")
    if plan is not None and (sampler or spacing):
        raise ValueError("give either --plan or --sampler and --spacing: a plan has its own")
    load = options.loader(model, sampler, spacing)
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
    units = None
    if count > batch:  # else there is one unit
        units = sample_units(output.partial_of(out), loaded, batch, f"{model}, {conditions.given()}")
    with output.resumable(out), output.Bar(f"{count} samples", count * len(made)) as bar:
        drawn = draw(loaded, made, count, seed, batch, bar.advance, units)
        sample.write(drawn, loaded, batch, out)
    output.remove_parts(out)
    by = "untuned" if plan is None else f"by {plan}"
    output.result(f"{count} samples in {len(made)} calls, {by}\nwrote {out}")


@command(
    "compare",
    DRAWING,
    "Compare runs of one model side by side.",
    "time-tuner compare ddim:5@leading digits/joint-5 ddim:20@leading -n 20 --out comparison.png",
    "time-tuner compare --model gaussian ddpm:1000 ddpm:10 ddim:10    # the tutorial's comparison",
)
@with_model
def compare(
    model: str,
    conditions: Conditions,
    runs: options.Runs_,
    spacing: options.Spacing_ = None,
    count: options.RunCount_ = None,
    out: options.ComparedOut_ = None,
    as_json: options.Json_ = False,
    seed: options.Seed_ = 0,
) -> None:
    """Compare runs of one model from the same noise: their samples, their distances to a reference run, their costs."""
    from . import compare as comparing

    if out is not None:
        options.check_suffix(out, *PICTURES, ".npz")
    load = options.loader(model, spacing=spacing)
    texts = comparing.read_runs(runs, spacing)
    with output.waiting(f"loading {model}"):
        loaded = load(conditions)
    count = count or comparing.usual_count(loaded)
    if out is not None and out.suffix.lower() in PICTURES:
        sample.check_drawable(loaded, 1)
    plans = {name: made if isinstance(made, Plan) else made(loaded) for name, made in texts.items()}
    batch = sample.batch_of(loaded, conditions)
    with output.Bar(f"{count} samples of each run", comparing.work(loaded, plans, count)) as bar:
        compared = comparing.compare(loaded, plans, count, seed, batch, bar)
    written = comparing.write(compared, batch, out)
    note = f"wrote {written}" if written else "these samples are no pictures: --out runs.npz keeps them as arrays"
    given = {**comparing.values_of(compared, seed), "out": written}
    output.report(given if as_json else None, comparing.table(compared, seed), note)


@command(
    "evaluate",
    DRAWING,
    "Measure plans beside everything else in as few calls, as one page.",
    "time-tuner evaluate digits/joint-5 --out report",
    "time-tuner evaluate plan.json --model my_module:model --against 'ddim,unipc(order=3)@quadratic' --calls 5,10",
)
@with_model
def evaluate(
    model: str,
    conditions: Conditions,
    runs: options.EvaluatedRuns_ = None,
    plans: options.EvaluatedPlans_ = None,
    against: options.Against_ = AGAINST,
    calls: options.CurveCalls_ = CURVE_CALLS,
    data_path: options.Target_ = None,
    features: options.Features_ = None,
    count: options.EvaluatedCount_ = None,
    budget: options.RankingBudget_ = "1m",
    out: options.ReportOut_ = Path("report"),
    as_json: options.Json_ = False,
    seed: options.Seed_ = 0,
) -> None:
    """Measure plans beside untuned samplers and beside the best of all untuned plans, from the same noise.

    Writes a page that needs no network, index.html, and the same numbers as text, CSV and JSON. What is finished is
    kept beside the folder: interrupted, the same command continues.
    """
    from .evaluate import run

    given = {"against": against, "calls": calls, "data": data_path, "features": features, "count": count}
    run(model, conditions, [*(plans or ()), *(runs or ())], out, {**given, "budget": budget, "seed": seed}, as_json)
