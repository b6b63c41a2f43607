"""Plans: where the steps of a run are, what the network receives at each call, and how predictions are combined."""

from .build import make_plan, parse_run, reference_plan, resample
from .plan import Plan

__all__ = ["Plan", "make_plan", "parse_run", "reference_plan", "resample"]
