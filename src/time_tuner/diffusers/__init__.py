"""Plans in diffusers pipelines: a scheduler that runs them, and tuning on the pipeline itself."""

from ..digits.pipeline import ClassConditionalPipeline, digits_pipeline
from .export import sdnext_sampler, to_sigmas, to_timesteps
from .model import PipelineModel
from .scheduler import TimeTunerScheduler
from .tune import tune_pipeline

__all__ = [
    "ClassConditionalPipeline",
    "PipelineModel",
    "TimeTunerScheduler",
    "digits_pipeline",
    "sdnext_sampler",
    "to_sigmas",
    "to_timesteps",
    "tune_pipeline",
]
