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
from .._spec import parse_call
from ..evaluation import FEATURES
from ..loading import loader_of
from ..models.base import Model
from ..models.conditions import Conditions
from ..noise import STEP_NOISE
from ..plans.plan import Plan
from ..samplers import SAMPLERS, sampler_of
from ..spacings import SPACINGS, spacing_of
from ..tuners import SAMPLER, TUNERS, own_plan
from ..tuners.grids import MODEL_SPACINGS

CALLS = 10  # the default
AGAINST, CURVE_CALLS = ",".join(evaluation.AGAINST), ",".join(map(str, evaluation.CALLS))


def option(kind: Any, text: str, *flags: str, **more: Any) -> Any:
    """An option of this type, with its help; by default its flag is the name of the parameter."""
    return Annotated[kind, typer.Option(*flags, help=text, **more)]


def argument(kind: Any, name: str, text: str) -> Any:
    """An argument of this type, with its help."""
    return Annotated[kind, typer.Argument(metavar=name, help=text, show_default=False)]


Sampler_ = option(str | None, f"{', '.join(SAMPLERS)}; with options as in 'ddim(eta=0.5)'.  [default: {SAMPLER}]")
Start_ = option(
    str | None,
    f"Start from this sampler: {', '.join(SAMPLERS)}; with options as in 'ddim(eta=0.5)'.  [default: the best untuned "
    "plan of all samplers and spacings]",
    "--sampler",
)
Spacing_ = option(
    str | None,
    f"Grid: {', '.join(SPACINGS)}; with options as in 'karras(rho=5)'.  [default: that of the schedule, of pipelines "
    "that of their own scheduler]",
)
Seed_ = option(int, "Of the first sample; the next ones count up.", min=0, max=STEP_NOISE - 1)

Version_ = option(bool, "Print the version and exit.", "--version")
DemoOut_ = option(Path, "Folder for pictures and plans.")
PlanOut_ = option(Path, "The plan file to write.")
Overwrite_ = option(bool, "Replace a plan file that exists.", "--overwrite")
SeveralCalls_ = option(
    str | None, f"Network calls of a run; several, as in 4,5,8, for a plan for each.  [default: {CALLS}]"
)
Evaluations_ = option(
    int | None,
    "Instead of calls, under guidance: network evaluations of a run, 2 for each call with guidance and 1 for each "
    "other; which calls have it is searched for.",
    min=2,
)
Method_ = option(
    str | None,
    f"{', '.join(TUNERS)}; with options as in 'joint(pairs=128)'.  [default: joint; least_squares for a network "
    "without gradients; sequential for a sampler that draws noise, and --data]",
)
End_ = option(
    float | None,
    "The time t where the run ends, for a decoder or a second plan that takes a state with noise left.  [default: that "
    "of the spacing]",
)
Budget_ = option(str | None, "What tuning may spend, as in 20000calls, 60s or 2m.")
Samples_ = option(int | None, "How many to tune on and to measure on.  [default: 256, of pipelines 32]", min=2)
Data_ = option(
    Path | None, "Tune on these: a folder of pictures, or an .npz.  [default: the model's own samples]", "--data"
)
DryRun_ = option(bool, "Print what it will cost, and do nothing.", "--dry-run")
SamplesOut_ = option(Path, "Where to: .png for pictures, .npz for arrays.")
Plan_ = option(str | None, "A plan file, or a bundled plan; instead of sampler and spacing.")
Calls_ = option(int | None, f"Network calls; which plan, of a file of several.  [default: {CALLS}]")
Count_ = option(int | None, "How many samples.  [default: 64, of pipelines 4]", "-n", "--count", min=1)
ShownPlan_ = Annotated[
    str | None, typer.Argument(metavar="PLAN", help="A plan file, or a bundled plan.", show_default=False)
]
ShownModel_ = option(str | None, "Instead of a plan: a model, or a pipeline.")
ShownCalls_ = option(int | None, "Which plan, of a file of several.  [default: all]")
ShownOut_ = option(Path | None, "Plot what was tuned: .png, .svg or .pdf.")
RUN = "sampler(option=value):calls@spacing, as in 'ddim(eta=0.5):10@quadratic'; or a plan file or a bundled plan, with "
Runs_ = argument(list[str], "RUN...", f"{RUN}:calls for one of several.")
RunCount_ = option(
    int | None, "Samples a run.  [default: 100, of pipelines 8, of numbers 10000]", "-n", "--count", min=2
)
CheckedPlan_ = argument(str, "PLAN", "A plan file, or a bundled plan.")
CheckSamples_ = option(int, "Samples of each run.", "-n", "--count", min=2)
ComparedOut_ = option(Path | None, "The picture, or .npz for arrays.  [default: comparison.png]")

EvaluatedRuns_ = Annotated[
    list[str] | None,
    typer.Argument(metavar="PLAN...", help=f"Plan files; or {RUN}:calls for one of several.", show_default=False),
]
EvaluatedPlans_ = option(list[str] | None, "A plan file; the same as PLAN.", "--plans")
Against_ = option(str, "Untuned samplers to compare with, as in 'ddim,unipc(order=3)@quadratic'.")
CurveCalls_ = option(str, "Network calls of the untuned samplers.")
Target_ = option(
    Path | None,
    "Data to compare the samples with: a folder of pictures, or an .npz.  [default: the model's own samples]",
    "--data",
)
Features_ = option(
    str | None,
    f"{', '.join(FEATURES)}, or package.module:function.  [default: pixels; of the bundled models digits, pictograms]",
)
EvaluatedCount_ = option(int | None, "Samples of each run.  [default: 100, of pipelines 8]", "-n", "--count", min=4)
RankingBudget_ = option(
    str, "Time to rank all untuned plans in, for each number of calls; none for no ranking.", "--budget"
)
ReportOut_ = option(Path, "The folder to write.")

MODEL_OPTIONS: dict[str, Any] = {
    "model": option(
        str,
        "digits, latent-digits, pictograms, gaussian, package.module:function of your own, or a diffusers pipeline: "
        "the folder that it was saved to, or its id on the Hub.",
    ),
    "label": option(str | None, "Of the samples: 3, or 0,1,2 in a cycle.  [default: any]"),
    "prompt": option(str | None, "Of a pipeline that takes prompts."),
    "prompts": option(Path | None, "A file of prompts, one a line, used in a cycle."),
    "negative_prompt": option(str | None, "For all prompts."),
    "guidance_scale": option(float | None, "Classifier-free guidance; 1 for none.  [default: the model's own]"),
    "height": option(int | None, "Of a pipeline's pictures, in pixels."),
    "width": option(int | None, "Of a pipeline's pictures, in pixels."),
    "dtype": option(str | None, "Of a pipeline: float32, float16 or bfloat16."),
    "device": option(str | None, "cpu, cuda, ...  [default: cpu, of pipelines cuda if any]"),
    "offload": option(bool | None, "Keep the parts of a pipeline off the device until they are needed.", "--offload"),
    "batch": option(int | None, "The most samples in one network call.  [default: 256, of pipelines 4]", min=1),
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
        texts = [line.strip() for line in prompts.read_text(encoding="utf-8").splitlines() if line.strip()]
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
