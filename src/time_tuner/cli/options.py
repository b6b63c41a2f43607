"""Options that several commands have, and what their texts stand for."""

import functools
import inspect
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from .. import data
from ..loading import loader_of
from ..models.base import Model
from ..models.conditions import Conditions
from ..noise import STEP_NOISE
from ..plans.build import make_plan
from ..plans.plan import Plan
from ..samplers import SAMPLERS, sampler_of
from ..spacings import SPACINGS, spacing_of

SAMPLER = "dpmpp"  # the default, as of `tune_pipeline`
CALLS = 10  # the default


def _option(kind: Any, text: str, *flags: str, **more: Any) -> Any:
    """An option of this type, with its help; by default its flag is the name of the parameter."""
    return Annotated[kind, typer.Option(*flags, help=text, **more)]


Sampler_ = _option(str | None, f"{', '.join(SAMPLERS)}; with options as in 'ddim(eta=0.5)'.  [default: {SAMPLER}]")
Spacing_ = _option(
    str | None,
    f"Grid: {', '.join(SPACINGS)}; with options as in 'karras(rho=5)'.  [default: that of the schedule, of pipelines "
    "that of their own scheduler]",
)
Seed_ = _option(int, "Of the first sample; the next ones count up.")

MODEL_OPTIONS: dict[str, Any] = {
    "model": _option(
        str,
        "digits, latent-digits, gaussian, package.module:function of your own, or a diffusers pipeline: the folder "
        "that it was saved to, or its id on the Hub.",
    ),
    "label": _option(str | None, "Of the samples: 3, or 0,1,2 in a cycle.  [default: any]"),
    "prompt": _option(str | None, "Of a pipeline that takes prompts."),
    "prompts": _option(Path | None, "A file of prompts, one a line, used in a cycle."),
    "negative_prompt": _option(str | None, "For all prompts."),
    "guidance_scale": _option(float | None, "Classifier-free guidance; 1 for none.  [default: the model's own]"),
    "height": _option(int | None, "Of a pipeline's pictures, in pixels."),
    "width": _option(int | None, "Of a pipeline's pictures, in pixels."),
    "dtype": _option(str | None, "Of a pipeline: float32, float16 or bfloat16."),
    "device": _option(str | None, "cpu, cuda, ...  [default: cpu, of pipelines cuda if any]"),
    "batch": _option(int | None, "The most samples in one network call.  [default: 256, of pipelines 4]", min=1),
}
"""The options of every command that runs a model, by the names of their parameters."""


def with_model(command: Callable[..., None]) -> Callable[..., None]:
    """A command that is called with `model` (a name) and `conditions`, with the options of models in their place."""
    kind = inspect.Parameter.KEYWORD_ONLY
    own = [p.replace(kind=kind) for p in inspect.signature(command).parameters.values()]
    own = [p for p in own if p.name not in ("model", "conditions")]
    defaults = {"model": "digits"}
    others = [
        inspect.Parameter(name, kind, annotation=option, default=defaults.get(name))
        for name, option in MODEL_OPTIONS.items()
    ]

    @functools.wraps(command)
    def run(**values: Any) -> None:
        given = {name: values.pop(name) for name in MODEL_OPTIONS}
        command(model=given.pop("model"), conditions=read_conditions(**given), **values)

    run.__signature__ = inspect.Signature([*own, *others])  # type: ignore[attr-defined]
    return run


def read_conditions(label: str | None, prompt: str | None, prompts: Path | None, **others: Any) -> Conditions:
    """The conditions that the options of a command stand for.

    Raises:
        ValueError: both prompts and a single prompt, a file without prompts, or labels that are not whole numbers.
    """
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
    """The whole numbers of a text such as "4,5,8".

    Raises:
        ValueError: another text, or a number below the least.
    """
    try:
        numbers = tuple(int(part) for part in text.split(","))
    except ValueError:
        numbers = ()
    if not numbers or (least is not None and min(numbers) < least):
        bound = "" if least is None else f" of at least {least}"
        raise ValueError(f"{option} must be a whole number{bound}, or several as in 4,5,8, got {text!r}")
    return numbers


def loader(name: str) -> Callable[[Conditions], Model]:
    """What loads a model by name; nothing is loaded yet, but the module of a function is imported."""
    if ":" in name and os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())  # as `python -m` does, but not a command
    return loader_of(name)


def check_names(sampler: str | None, spacing: str | None) -> None:
    """Raise a ValueError, before anything is loaded, for the text of a sampler or a spacing that is unknown."""
    if sampler is not None:
        sampler_of(sampler)
    if spacing is not None:
        spacing_of(spacing)


def untuned_plan(model: Model, sampler: str | None, calls: int, spacing: str | None) -> Plan:
    """The untuned plan of these options; without a spacing on the model's own grid, or else the schedule's default."""
    chosen = sampler_of(sampler or SAMPLER)
    grid = spacing or model.spacing or model.schedule.default_spacing(chosen.convergence)
    return make_plan(chosen, model.schedule, calls, grid).with_provenance(spacing=str(grid))


def read_plans(text: str, calls: int | None = None) -> dict[str, Plan]:
    """The plans of a file or of a bundled name, by their names in tables: all of them, or the one with these calls.

    Args:
        text: `path.json`, or `path.json:CALLS`, or a bundled name such as "digits/joint-5".
        calls: the number of calls.

    Raises:
        OSError, ValueError: see `Plan.load`.
    """
    path, colon, number = text.rpartition(":")
    if colon and not Path(text).exists():
        if not number.isdecimal():
            raise ValueError(f"one plan of a file is written path.json:calls, got {text!r}")
        text, calls = path, int(number)
    if calls is not None:
        return {f"{text}:{calls}": Plan.load(text, calls)}
    plans = Plan.load_several(text)
    return {text: plans[0]} if len(plans) == 1 else {f"{text}:{len(plan)}": plan for plan in plans}


def check_suffix(path: Path, suffixes: tuple[str, ...], option: str = "--out") -> None:
    """Raise a ValueError before any work is done if the file could not be written, or is of another kind."""
    if path.suffix.lower() not in suffixes:
        raise ValueError(f"{option} must end in {' or '.join(suffixes)}, got {str(path)!r}")
    data.check_writable(path)


def check_seed(seed: int) -> None:
    if not 0 <= seed < STEP_NOISE:
        raise ValueError(f"--seed must be a whole number from 0 to {STEP_NOISE - 1}, got {seed}")
