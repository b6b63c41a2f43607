"""Plans in diffusers pipelines: a scheduler that runs them, and tuning on the pipeline itself."""

from .scheduler import TimeTunerScheduler

__all__ = ["TimeTunerScheduler"]
