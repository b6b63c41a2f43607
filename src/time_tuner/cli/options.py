"""Options that several commands have, and what their texts stand for."""

import functools
import inspect
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from .. import data, evaluation
from .._files import read_text
from .._spec import parse_call
from ..evaluation import FEATURES
from ..loading import BUNDLED, loader_of
from ..models.base import Model
from ..models.conditions import Conditions
from ..noise import STEP_NOISE
from ..plans.plan import Plan, bundled_plans
from ..samplers import SAMPLERS, sampler_of
from ..spacings import SPACINGS, spacing_of
from ..tuners import SAMPLER, TUNERS, own_plan
from ..tuners.grids import MODEL_SPACINGS

CALLS = 10  # the default
MOST_PROMPTS = 2**24  # bytes of a file
AGAINST, CURVE_CALLS = ",".join(evaluation.AGAINST), ",".join(map(str, evaluation.CALLS))


METAVARS: dict[Any, str] = {str: "TEXT", int: "N", float: "X", Path: "PATH"}
METAVARS |= {kind | None: name for kind, name in METAVARS.items()}


def option(kind: Any, group: str, text: str, *flags: str, **more: Any) -> Any:
    """An option of this type, with its group in the help and its help; by default its flag is the name of the
    parameter."""
    more.setdefault("metavar", METAVARS.get(kind))
    return Annotated[kind, typer.Option(*flags, help=text, rich_help_panel=group, **more)]


def argument(kind: Any, name: str, text: str, **more: Any) -> Any:
    """An argument of this type, with its help."""
    return Annotated[kind, typer.Argument(metavar=name, help=text, show_default=False, **more)]


def one_of(*names: str) -> dict[str, Any]:
    """The completion of a value that starts with one of these names."""
    return {"autocompletion": lambda incomplete: [name for name in names if name.startswith(incomplete)]}


def plan_files(incomplete: str) -> list[str]:
    """The completion of a plan: bundled plans, and the plan files and folders of the current folder."""
    files = [f"{path}/" if path.is_dir() else str(path) for path in sorted(Path().glob(f"{incomplete}*"))]
    return [name for name in (*bundled_plans(), *files) if name.startswith(incomplete)]


PLAN_FILE: dict[str, Any] = {"autocompletion": plan_files}
RUN = "sampler(option=value):calls@spacing, as in 'ddim(eta=0.5):10@quadratic'; or a plan file or a bundled plan, with "
OUTPUT, PLAN, TUNING, SAMPLES, COMPARISON = "Output", "Plan", "Tuning", "Samples", "Comparison"

# Several commands.
Json_ = option(bool, OUTPUT, "Print one JSON object instead, for scripts.", "--json")
Seed_ = option(int, SAMPLES, "Of the first sample; the next ones count up.", min=0, max=STEP_NOISE - 1)
Spacing_ = option(
    str | None,
    PLAN,
    f"Grid: {', '.join(SPACINGS)}; with options as in 'karras(rho=5)'.  [default: that of the schedule, of pipelines "
    "that of their own scheduler]",
    **one_of(*SPACINGS),
)
Version_ = option(bool, "Options", "Print the version and exit.", "--version")

# demo, doctor
DoctorDevice_ = option(str | None, "Model", "cpu, cuda, ...  [default: cpu]", "--device")
DemoOut_ = option(Path, OUTPUT, "Folder for pictures and plans.")

# tune
Calls_ = option(int | None, PLAN, f"Network calls; which plan, of a file of several.  [default: {CALLS}]")
SeveralCalls_ = option(
    str | None, PLAN, f"Network calls of a run; several, as in 4,5,8, for a plan for each.  [default: {CALLS}]"
)
Evaluations_ = option(
    int | None,
    PLAN,
    "Instead of calls, under guidance: network evaluations of a run, 2 for each call with guidance and 1 for each "
    "other; which calls have it is searched for.",
    min=2,
)
Start_ = option(
    str | None,
    PLAN,
    f"Start from this sampler: {', '.join(SAMPLERS)}; with options as in 'ddim(eta=0.5)'.  [default: the best untuned "
    "plan of all samplers and spacings]",
    "--sampler",
    **one_of(*SAMPLERS),
)
End_ = option(
    float | None,
    PLAN,
    "The time t where the run ends, for a decoder or a second plan that takes a state with noise left.  [default: that "
    "of the spacing]",
)
Method_ = option(
    str | None,
    TUNING,
    f"{', '.join(TUNERS)}; with options as in 'joint(pairs=128)'.  [default: joint; least_squares for a network "
    "without gradients; sequential for a sampler that draws noise, and --data]",
    **one_of(*TUNERS),
)
Budget_ = option(
    str | None, TUNING, "What tuning may spend, as in 20000calls, 60s or 2m.  [default: 2m]", metavar="BUDGET"
)
TunedSamples_ = option(
    int | None, TUNING, "How many to tune on and to measure on.  [default: 256, of pipelines 32]", "--samples", min=2
)
Data_ = option(
    Path | None,
    TUNING,
    "Tune on these: a folder of pictures, or an .npz.  [default: the model's own samples]",
    "--data",
)
DryRun_ = option(bool, OUTPUT, "Print what it will cost, and do nothing.", "--dry-run")
PlanOut_ = option(Path, OUTPUT, "The plan file to write.")
Overwrite_ = option(bool, OUTPUT, "Replace a plan file that exists.", "--overwrite")

# sample
Plan_ = option(
    str | None, PLAN, "A plan file, or a bundled plan; instead of sampler and spacing.", "--plan", **PLAN_FILE
)
Sampler_ = option(
    str | None,
    PLAN,
    f"{', '.join(SAMPLERS)}; with options as in 'ddim(eta=0.5)'.  [default: {SAMPLER}]",
    **one_of(*SAMPLERS),
)
Count_ = option(int | None, SAMPLES, "How many samples.  [default: 64, of pipelines 4]", "-n", "--count", min=1)
SamplesOut_ = option(Path, OUTPUT, "Where to: .png for pictures, .npz for arrays.")

# show
ShownPlan_ = argument(str | None, "PLAN", "A plan file, or a bundled plan.", **PLAN_FILE)
ShownModel_ = option(str | None, "Model", "Instead of a plan: a model, or a pipeline.", **one_of(*BUNDLED))
ShownCalls_ = option(int | None, PLAN, "Which plan, of a file of several.  [default: all]")
ShownOut_ = option(Path | None, OUTPUT, "Plot what was tuned: .png, .svg or .pdf.")

# compare
Runs_ = argument(list[str], "RUN...", f"{RUN}:calls for one of several.", **PLAN_FILE)
RunCount_ = option(
    int | None, SAMPLES, "Samples a run.  [default: 100, of pipelines 8, of numbers 10000]", "-n", "--count", min=2
)
ComparedOut_ = option(Path | None, OUTPUT, "The picture, or .npz for arrays.  [default: comparison.png]")

# check
CheckedPlan_ = argument(str, "PLAN", "A plan file, or a bundled plan.", **PLAN_FILE)
CheckSamples_ = option(int, SAMPLES, "Samples of each run.", "-n", "--count", min=2)

# evaluate
EvaluatedRuns_ = argument(list[str] | None, "PLAN...", f"Plan files; or {RUN}:calls for one of several.", **PLAN_FILE)
EvaluatedPlans_ = option(list[str] | None, PLAN, "A plan file; the same as PLAN.", "--plans")
Against_ = option(str, COMPARISON, "Untuned samplers to compare with, as in 'ddim,unipc(order=3)@quadratic'.")
CurveCalls_ = option(str, COMPARISON, "Network calls of the untuned samplers.")
Target_ = option(
    Path | None,
    COMPARISON,
    "Data to compare the samples with: a folder of pictures, or an .npz.  [default: the model's own samples]",
    "--data",
)
Features_ = option(
    str | None,
    COMPARISON,
    f"{', '.join(FEATURES)}, or package.module:function.  [default: pixels; of the bundled models digits, pictograms]",
    **one_of(*FEATURES),
)
EvaluatedCount_ = option(
    int | None, SAMPLES, "Samples of each run.  [default: 100, of pipelines 8]", "-n", "--count", min=4
)
RankingBudget_ = option(
    str,
    COMPARISON,
    "Time to rank all untuned plans in, for each number of calls; none for no ranking.",
    "--budget",
)
ReportOut_ = option(Path, OUTPUT, "The folder to write.")

MODEL_OPTIONS: dict[str, Any] = {
    "model": option(
        str,
        "Model",
        f"{', '.join(BUNDLED)}, package.module:function of your own, or a diffusers pipeline: the folder "
        "that it was saved to, or its id on the Hub.",
        **one_of(*BUNDLED),
    ),
    "label": option(str | None, "Model", "Of the samples: 3, or 0,1,2 in a cycle.  [default: any]"),
    "guidance_scale": option(
        float | None, "Model", "Classifier-free guidance; 1 for none.  [default: the model's own]"
    ),
    "device": option(str | None, "Model", "cpu, cuda, ...  [default: cpu, of pipelines cuda if any]"),
    "batch": option(
        int | None, "Model", "The most samples in one network call.  [default: 256, of pipelines 4]", min=1
    ),
    "prompt": option(str | None, "Pipelines", "Of a pipeline that takes prompts."),
    "prompts": option(Path | None, "Pipelines", "A file of prompts, one a line, used in a cycle."),
    "negative_prompt": option(str | None, "Pipelines", "For all prompts."),
    "height": option(int | None, "Pipelines", "Of the pictures, in pixels."),
    "width": option(int | None, "Pipelines", "Of the pictures, in pixels."),
    "dtype": option(str | None, "Pipelines", "float32, float16 or bfloat16."),
    "offload": option(bool | None, "Pipelines", "Keep the parts off the device until they are needed.", "--offload"),
}
"""The options of every command that runs a model, by the names of their parameters."""


def with_model(command: Callable[..., None]) -> Callable[..., None]:
    """A command that is called with `model` (a name) and `conditions`, with the options of models in their place."""
    kind = inspect.Parameter.KEYWORD_ONLY
    own = [p.replace(kind=kind) for name, p in inspect.signature(command).parameters.items()
           if name not in ("model", "conditions")]  # fmt: skip
    model = [inspect.Parameter(name, kind, annotation=option, default="digits" if name == "model" else None)
             for name, option in MODEL_OPTIONS.items()]  # fmt: skip

    @functools.wraps(command)
    def run(**values: Any) -> None:
        given = {name: values.pop(name) for name in MODEL_OPTIONS}
        command(model=given.pop("model"), conditions=read_conditions(**given), **values)

    run.__signature__ = inspect.Signature([*own, *model])  # type: ignore[attr-defined]
    return run


def read_conditions(label: str | None, prompt: str | None, prompts: Path | None, **others: Any) -> Conditions:
    """The conditions that the options of a command stand for; a ValueError for texts that cannot be used."""
    if prompt is not None and prompts is not None:
        raise ValueError("give either --prompt or --prompts")
    texts = None if prompt is None else [prompt]
    if prompts is not None:
        texts = [line.strip() for line in read_text(prompts, MOST_PROMPTS).splitlines() if line.strip()]
        if not texts:
            raise ValueError(f"--prompts {prompts} has no prompt in it: write one a line")
    labels = () if label is None else read_numbers("--label", label)
    one_or_all = labels[0] if len(labels) == 1 else labels or None
    return Conditions(one_or_all, None if texts is None else tuple(texts), **others)


def read_numbers(option: str, text: str, least: int | None = None) -> tuple[int, ...]:
    """The whole numbers of a text such as "4,5,8"; a ValueError for another text, or a number below the least."""
    try:
        numbers = tuple(int(part) for part in text.split(","))
    except ValueError:
        numbers = ()
    if not numbers or (least is not None and min(numbers) < least):
        bound = "" if least is None else f" of at least {least}"
        raise ValueError(f"{option} must be a whole number{bound}, or several as in 4,5,8, got {text!r}")
    return numbers


def loader(name: str, sampler: str | None = None, spacing: str | None = None) -> Callable[[Conditions], Model]:
    """What loads a model by name; nothing is loaded yet, but the module of a function is imported, and the texts of a
    sampler and a spacing, which may come from there, are checked."""
    if ":" in name and os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())  # as `python -m` does, but not a command
    load = loader_of(name)
    check_names(sampler, spacing)
    return load


def check_names(sampler: str | None, spacing: str | None) -> None:
    """Raise a ValueError for the text of a sampler or a spacing that is unknown."""
    if sampler is not None:
        sampler_of(sampler)
    if spacing is not None and parse_call(spacing)[0] not in MODEL_SPACINGS:
        spacing_of(spacing)


def untuned_plan(model: Model, sampler: str | None, calls: int, spacing: str | None, end: float | None = None) -> Plan:
    """The untuned plan of these options; without a spacing on the model's own grid, or else the schedule's default."""
    return own_plan(model, calls, sampler or SAMPLER, spacing, end)


def read_plans(text: str, calls: int | None = None) -> dict[str, Plan]:
    """The plans of `path.json`, `path.json:CALLS` or a bundled name such as "digits/joint-5", by their names in tables:
    all of them, or the one with these calls; for errors see `Plan.load`."""
    path, colon, number = text.rpartition(":")
    if colon and not Path(text).exists():
        if not number.isdecimal():
            raise ValueError(f"one plan of a file is written path.json:calls, got {text!r}")
        text, calls = path, int(number)
    if calls is not None:
        return {f"{text}:{calls}": Plan.load(text, calls)}
    plans = Plan.load_several(text)
    return {text: plans[0]} if len(plans) == 1 else {f"{text}:{len(plan)}": plan for plan in plans}


def check_suffix(path: Path, *suffixes: str) -> None:
    """Raise a ValueError before any work is done if the file could not be written, or is of another kind."""
    if path.suffix.lower() not in suffixes:
        raise ValueError(f"--out must end in {' or '.join(suffixes)}, got {str(path)!r}")
    data.check_writable(path)
