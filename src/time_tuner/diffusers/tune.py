"""Tuning on a pipeline itself."""

from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from ..noise import Constraint
from ..plans.plan import Plan
from ..samplers import Sampler
from ..tuners import (
    SAMPLER,
    Budget,
    Joint,
    Progress,
    ReferenceDistance,
    Tuner,
    own_plan,
    pattern_search,
    tune,
    tuner_of,
)
from .model import BATCH, PipelineModel
from .native_grid import OwnGrid
from .refusals import check_start

SAMPLES = 32
"""Samples to tune a pipeline on, by default."""

OTHER_NAMES = {"prompt": "prompts", "num_inference_steps": "calls", "class_label": "class_labels", "steps": "calls"}
"""Names that a pipeline's call, or other libraries, have for arguments of `tune_pipeline`."""


def tune_pipeline(
    pipe: Any,
    calls: int | None = None,
    tuner: Tuner | str | None = None,
    *,
    prompts: Sequence[str] | None = None,
    class_labels: Sequence[int] | None = None,
    sampler: Sampler | str | None = None,
    spacing: str | None = None,
    end: float | None = None,
    evaluations: int | None = None,
    samples: int = SAMPLES,
    batch: int = BATCH,
    data: Any = None,
    seed: int = 0,
    guard: bool | ReferenceDistance = True,
    budget: str | int | Budget | None = None,
    checkpoint: str | Path | None = None,
    progress: bool | Callable[[Progress], None] = False,
    noise: Constraint | None = None,
    **inputs: Any,
) -> Plan:
    """The best plan for a number of network calls of a pipeline, tuned on the pipeline itself.

    Its text encoder, guidance, ControlNet and other parts are run by its own code. Everything is done in its latent
    space, in its own dtype.

    Args:
        pipe: a diffusers pipeline.
        calls: the number of network calls, `num_inference_steps` of a run; 8 by default, without `evaluations`.
        tuner: a tuner, or the text of one such as "joint(pairs=128)"; see `tune`. "joint", the default, uses
            gradients through the network where there are any, the others forward calls only.
        prompts: texts of the kind that the pipeline will be used with. Sample i has prompt i modulo their number.
            Instead of them `prompt_embeds=` (n, ...) and what belongs to it, or `class_labels=`; None for a pipeline
            without conditions.
        class_labels: labels.
        sampler: of the untuned plan that tuning starts from, as `make_plan` takes it. By default tuning starts from the
            best plan of every deterministic sampler, on every spacing and on the grid of the pipeline's own scheduler;
            where a spacing is given, from DPM-Solver++(2M).
        spacing: of that untuned plan; where a sampler is given, the grid of the pipeline's own scheduler by default.
        end: the time where the plan ends, see `make_plan`; by default that of the spacing. With it the grid of
            the pipeline's own scheduler, which ends elsewhere, is no start.
        evaluations: instead of `calls`, of a pipeline under classifier-free guidance: the best plan of at most so many
            evaluations of the network, two for each call with guidance and one for each call without. It is run with
            `pipe.scheduler.attach(pipe)`.
        samples: the number of samples to tune on, and of others to measure on.
        batch: the most samples in one network call.
        data: latents to calibrate on, (n, ...); the pipeline's own samples by default.
        seed: of all noise.
        guard: see `tune`.
        budget: of tuning, see `tune`.
        checkpoint: a file that keeps what is found, see `tune`.
        progress: called with the `Progress`, see `tune`.
        noise: the constraint of the noise, see `tune`; a run of the pipeline then needs first states under it, which
            most pipelines take as `latents=`.
        **inputs: of the pipeline's call: `guidance_scale`, `height`, `negative_prompt`, `image`, ...; a single value is
            for all prompts, a list of as many has one for each.

    Returns:
        The plan. To run it: `pipe.scheduler = TimeTunerScheduler.from_plan(plan, pipe)`.

    Raises:
        ValueError: a pipeline that cannot be driven, no prompts where it needs them, or what `tune` raises.
    """
    tuner = None if tuner is None else tuner_of(tuner)
    for name in inputs:
        if name in OTHER_NAMES:
            raise ValueError(f"{name}= of a pipeline is {OTHER_NAMES[name]}= of tune_pipeline")
        if name in {field.name for field in fields(tuner or Joint)}:
            kind = type(tuner or Joint()).__name__
            raise ValueError(f"{name} is an option of the tuner: give tuner={kind}({name}=...), or the text of it")
    if evaluations is not None:
        calls, tuner = pattern_search(evaluations, None, calls, tuner)
    calls = 8 if calls is None else calls
    with PipelineModel(pipe, prompts, class_labels, batch, **inputs) as model:
        if evaluations is not None and model.undivided is not None:
            raise ValueError(f"evaluations={evaluations} needs guidance that can be left out: {model.undivided}")
        plan = own_plan(model, calls, sampler or SAMPLER, spacing, end)
        check_start(plan, pipe)
        if spacing is None and end is None and isinstance(model.spacing, OwnGrid):
            plan = model.spacing.as_received(plan)
        passed = model.spacing.defaults(calls) if isinstance(model.spacing, OwnGrid) else {}
        return tune(
            model,
            plan.with_provenance(**passed, **model.facts()),
            tuner,
            data,
            seed,
            guard,
            any_start=sampler is None and spacing is None,
            samples=samples,
            batch=batch,
            shape=model.shape,
            device=model.device,
            budget=budget,
            checkpoint=checkpoint,
            progress=progress,
            noise=noise,
        )
