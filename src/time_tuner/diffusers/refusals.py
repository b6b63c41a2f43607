"""Pipelines whose loops no plan runs, and why."""

from typing import Any

_EDM = "its network has EDM's preconditioning, whose states are not those of betas or of a flow"
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
    "Cosmos2TextToImagePipeline": _EDM,
    "Cosmos2VideoToWorldPipeline": _EDM,
    "CosmosTextToWorldPipeline": _EDM,
    "CosmosVideoToWorldPipeline": _EDM,
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
    "StableDiffusionLatentUpscalePipeline": _EDM,
    "StableDiffusionParadigmsPipeline": "it runs the steps of its scheduler in parallel",
}
"""The classes by name, and why they are refused."""


def check_pipeline(pipe: Any) -> None:
    """Raise a ValueError if no plan runs in this pipeline; anything else than a pipeline is accepted."""
    name = type(pipe).__name__
    if name in REFUSED_PIPELINES:
        raise ValueError(f"{name} cannot be driven by a plan: {REFUSED_PIPELINES[name]}")
