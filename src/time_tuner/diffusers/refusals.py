"""Pipelines whose loops no plan runs, and why."""

from typing import Any

from ..plans.plan import Plan

_TOKENS = "its network predicts discrete tokens, which have no noise level"
_MEMORY = "it draws the noise of every step itself, and passes it to its own scheduler"
_PER_TOKEN = "parts of its state have noise of their own, which its own scheduler is given part by part"
_OWN = "its scheduler has kinds of steps that no other scheduler has"

REFUSED_PIPELINES: dict[str, str] = {
    "AmusedImg2ImgPipeline": _TOKENS,
    "AmusedInpaintPipeline": _TOKENS,
    "AmusedPipeline": _TOKENS,
    "AudioDiffusionPipeline": "it runs backwards over the levels of a DDIMScheduler",
    "ChronoEditPipeline": "it changes the number of frames, also in its scheduler's memory of earlier calls",
    "CycleDiffusionPipeline": _MEMORY,
    "DiffusionGemmaPipeline": _TOKENS,
    "HeliosPyramidPipeline": "it runs in stages of several resolutions, and adds noise between them",
    "KarrasVePipeline": _OWN,
    "LEditsPPPipelineStableDiffusion": _MEMORY,
    "LEditsPPPipelineStableDiffusionXL": _MEMORY,
    "LLaDA2Pipeline": _TOKENS,
    "LTXConditionPipeline": _PER_TOKEN,
    "RePaintPipeline": _OWN,
    "SanaWMPipeline": _PER_TOKEN,
    "ScoreSdeVePipeline": _OWN,
    "StableDiffusionLatentUpscalePipeline": "its loop applies EDM's preconditioning to states x_0 + sigma eps, where a "
    "plan of its betas has states alpha x_0 + sigma eps",
    "StableDiffusionParadigmsPipeline": "it runs the steps of its scheduler in parallel",
}
"""The classes by name, and why they are refused."""


def check_pipeline(pipe: Any) -> None:
    """Raise a ValueError if no plan runs in this pipeline; anything else than a pipeline is accepted."""
    name = type(pipe).__name__
    if name in REFUSED_PIPELINES:
        raise ValueError(f"{name} cannot be driven by a plan: {REFUSED_PIPELINES[name]}")


FIXED_START = (
    "Cosmos2TextToImagePipeline",
    "Cosmos2VideoToWorldPipeline",
    "CosmosTextToWorldPipeline",
    "CosmosVideoToWorldPipeline",
)
"""Pipelines whose first state is noise of deviation sigma_max, whatever the scheduler."""


def has_fixed_start(pipe: Any) -> bool:
    """Whether the first state of a pipeline is of a fixed noise level."""
    return type(pipe).__name__ in FIXED_START


def check_start(plan: Plan, pipe: Any) -> None:
    """Raise a ValueError if the plan starts elsewhere than this pipeline does."""
    name, start = type(pipe).__name__, float(plan.t[0])
    if has_fixed_start(pipe) and abs(start / plan.schedule.T - 1) > 1e-3:
        raise ValueError(
            f"plan must start at sigma = {plan.schedule.T:g} in a {name}, which begins with noise of sigma_max, got "
            f"sigma = {start:.4g}: make or tune one that starts there"
        )


_HALVES = "its network treats the halves of a batch differently"

KEEPS_GUIDANCE = {
    "TextToVideoZeroPipeline": _HALVES,
    "TextToVideoZeroSDXLPipeline": _HALVES,
}
"""Pipelines of which no guidance can be left out, and why."""


def check_guidance(pipe: Any) -> None:
    """Raise a ValueError if guidance cannot be left out of any call of this pipeline."""
    kind = type(pipe)
    reason = KEEPS_GUIDANCE.get(kind.__name__)
    if any(base.__name__ == "PAGMixin" for base in kind.__mro__):
        reason = f"under perturbed attention guidance {_HALVES}"
    networks = (getattr(pipe, name, None) for name in ("unet", "transformer"))
    if any(getattr(network, "is_cache_enabled", False) for network in networks):
        reason = "a cache of its network's activations expects every call: pipe.transformer.disable_cache()"
    if reason is not None:
        raise ValueError(f"guidance cannot be left out of a {kind.__name__}: {reason}")
