"""Tuning on the pipeline itself."""

from collections.abc import Callable, Sequence
from typing import Any

from ..plans.plan import Plan
from ..samplers import Sampler
from ..tuners import Budget, Progress, ReferenceDistance, Tuner, tune
from .config import config_of
from .model import PipelineModel
from .native_grid import untuned


def tune_pipeline(
    pipe: Any,
    calls: int = 8,
    tuner: Tuner | str = "joint",
    *,
    prompts: Sequence[str] | None = None,
    class_labels: Sequence[int] | None = None,
    sampler: Sampler | str = "dpmpp",
    spacing: str | None = None,
    samples: int = 32,
    batch: int = 4,
    data: Any = None,
    seed: int = 0,
    guard: bool | ReferenceDistance = True,
    budget: str | int | Budget | None = None,
    progress: bool | Callable[[Progress], None] = False,
    **inputs: Any,
) -> Plan:
    """A plan for this number of network calls of a pipeline, tuned on the pipeline as it runs.

    Its text encoder, guidance, ControlNet and whatever else it has are those of its own code. All happens in its latent
    space, in the dtype that it runs in.

    Args:
        pipe: a diffusers pipeline.
        calls: of its network, `num_inference_steps` of the run.
        tuner: a tuner, or the text of one; "joint" needs gradients through the network, "sequential" forward calls.
        prompts: texts such as it will be used with, dealt out in turn to the samples, so that the plan holds over them;
            or `prompt_embeds=` (n, ...) and what goes with it; or `class_labels`; none where it takes none.
        class_labels: labels.
        sampler: a sampler, or the text of one, such as "ddim(eta=0.5)".
        spacing: where the run starts from, a name in `SPACINGS`; by default the grid of the pipeline's own scheduler.
        samples: how many to tune on, and to judge on.
        batch: how many of them the network sees at a time.
        data: latents to calibrate on, (n, ...); its own samples by default.
        seed, guard, budget, progress: see `time_tuner.tune`.
        **inputs: of the pipeline's call: `guidance_scale`, `height`, `negative_prompt`, `image`, ...; a single value
            holds for all prompts, a list of as many goes with them.

    Returns:
        The plan: `pipe.scheduler = TimeTunerScheduler.from_plan(plan)`.

    Raises:
        ValueError: a pipeline that cannot be driven; no prompts where it needs them; whatever `tune` raises.
    """
    config = config_of(getattr(pipe, "scheduler", {}) or {})
    with PipelineModel(pipe, prompts, class_labels, batch, **inputs) as eps:
        if samples < eps.conditions:
            raise ValueError(
                f"samples must be at least as many as there are conditions, {eps.conditions}, got {samples}"
            )
        plan = untuned(config, eps.schedule, sampler, calls, spacing).with_provenance(**eps.facts())
        tuned = tune(
            eps,
            plan,
            tuner,
            data,
            seed,
            guard,
            samples=samples,
            shape=eps.shape,
            device=eps.device,
            budget=budget,
            progress=progress,
        )
        return tuned.with_tau(eps.rounded_times(tuned.tau))
