"""Makes an already trained diffusion model sample well in a few steps, without touching its weights."""

from ._distributed import share_work
from .evaluation import evaluate
from .loading import load_model
from .models import exact
from .models.base import Model, as_model
from .models.wrapper import model_wrapper
from .noise import SeededNoise
from .paper.interface import TimeTuner
from .plans.build import make_plan, resample
from .plans.plan import Plan
from .samplers import SAMPLERS
from .sampling import sample, trajectory
from .schedules import (
    SCHEDULES,
    NoiseScheduleFlow,
    NoiseScheduleVE,
    NoiseScheduleVP,
    named_betas,
    rescale_zero_terminal_snr,
    resolution_shift,
    respaced_betas,
    schedule_from,
)
from .spacings import SPACINGS
from .tuners.arguments import TUNERS
from .tuners.estimate import estimate
from .tuners.joint.tuner import Joint
from .tuners.least_squares import LeastSquares
from .tuners.timesteps.tuner import Parallel, Sequential
from .tuners.tune import tune, tune_several

__all__ = [
    "SAMPLERS",
    "SCHEDULES",
    "SPACINGS",
    "TUNERS",
    "Joint",
    "LeastSquares",
    "Model",
    "NoiseScheduleFlow",
    "NoiseScheduleVE",
    "NoiseScheduleVP",
    "Parallel",
    "Plan",
    "SeededNoise",
    "Sequential",
    "TimeTuner",
    "as_model",
    "estimate",
    "evaluate",
    "exact",
    "load_model",
    "make_plan",
    "model_wrapper",
    "named_betas",
    "resample",
    "rescale_zero_terminal_snr",
    "resolution_shift",
    "respaced_betas",
    "sample",
    "schedule_from",
    "share_work",
    "trajectory",
    "tune",
    "tune_several",
]

__version__ = "0.1.0"


def __getattr__(name: str) -> object:
    """What diffusers looks up here to load a saved pipeline: our scheduler, and the base class that can load it."""
    if name in ("TimeTunerScheduler", "SchedulerMixin"):
        from importlib import import_module

        return getattr(import_module(".diffusers.scheduler", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
