"""Plans: where the steps of a run are, what the network receives at each call, and how predictions are combined."""

from .build import make_plan, parse_run, reference_plan, resample
from .plan import Plan
from .schema import plan_schema

__all__ = ["Plan", "make_plan", "parse_run", "plan_schema", "reference_plan", "resample"]
