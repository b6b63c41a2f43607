"""Makes an already trained diffusion model sample well in a few steps, without touching its weights."""

from . import exact
from .bundled import Model, load_model
from .models import model_wrapper
from .plan import Plan, make_plan
from .samplers import SAMPLERS
from .sampling import sample, seeded_noise, trajectory
from .schedules import NoiseScheduleVP, respaced_betas
from .spacings import SPACINGS
from .tuner import TimeTuner
from .tuners import TUNERS, tune

__all__ = [
    "SAMPLERS",
    "SPACINGS",
    "TUNERS",
    "Model",
    "NoiseScheduleVP",
    "Plan",
    "TimeTuner",
    "exact",
    "load_model",
    "make_plan",
    "model_wrapper",
    "respaced_betas",
    "sample",
    "seeded_noise",
    "trajectory",
    "tune",
]

__version__ = "0.1.0"
