"""Tuners: each improves a plan for the same number of calls. `tune` calibrates, tunes and guards; see `base`."""

from ..plans.build import reference_plan
from .arguments import SAMPLER, TUNERS, own_plan, pattern_search, tuner_of
from .base import Progress, Tuner, TuningRun
from .budget import Budget
from .calibration import Calibration
from .check import PlanCheck, check_plan
from .costs import REFERENCE_CALLS
from .distances import efficientnet_distance, features, lpips_distance
from .estimate import Estimate, estimate
from .guard import ReferenceDistance
from .joint.tuner import Joint
from .least_squares import LeastSquares
from .timesteps.objectives import OBJECTIVES, Objective, Step
from .timesteps.tuner import Parallel, Sequential
from .tune import tune, tune_several

__all__ = [
    "OBJECTIVES",
    "REFERENCE_CALLS",
    "SAMPLER",
    "TUNERS",
    "Budget",
    "Calibration",
    "Estimate",
    "Joint",
    "LeastSquares",
    "Objective",
    "Parallel",
    "PlanCheck",
    "Progress",
    "ReferenceDistance",
    "Sequential",
    "Step",
    "Tuner",
    "TuningRun",
    "check_plan",
    "efficientnet_distance",
    "estimate",
    "features",
    "lpips_distance",
    "own_plan",
    "pattern_search",
    "reference_plan",
    "tune",
    "tune_several",
    "tuner_of",
]
