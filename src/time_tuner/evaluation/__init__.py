"""Evaluation: plans of one model beside everything else in as few calls, in numbers and in pictures."""

from .evaluate import AGAINST, CALLS, evaluate
from .features import FEATURES
from .measures import METRICS, Metric
from .report import Report, Run

__all__ = ["AGAINST", "CALLS", "FEATURES", "METRICS", "Metric", "Report", "Run", "evaluate"]
