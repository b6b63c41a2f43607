"""Tuners: each takes a plan to a better one. `tune` calibrates, tunes and judges."""

from ..plans.build import reference_plan
from .base import Progress, TuningRun
from .budget import Budget
from .calibration import Calibration
from .guard import ReferenceDistance
from .timesteps.objectives import OBJECTIVES, Objective, Step
from .tune import REFERENCE_CALLS, TUNERS, estimate, options_of, tune, tune_several

__all__ = [
    "OBJECTIVES",
    "REFERENCE_CALLS",
    "TUNERS",
    "Budget",
    "Calibration",
    "Objective",
    "Progress",
    "ReferenceDistance",
    "Step",
    "TuningRun",
    "estimate",
    "options_of",
    "reference_plan",
    "tune",
    "tune_several",
]
