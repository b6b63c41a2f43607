"""Pipelines whose loops no plan runs, and why."""

from typing import Any

_EDM = "its network has EDM's preconditioning, whose states are not those of betas or of a flow"
_OWN_NOISE = "parts of its state have noise of their own"
_FIXED = "its scheduler has steps of its own, which another scheduler does not have"

REFUSED_PIPELINES: dict[str, str] = {}
"""The classes, by the beginning of their names, and why they are refused."""


def check_pipeline(pipe: Any) -> None:
    """Raise a ValueError if no plan runs in this pipeline; anything else than a pipeline is accepted."""
    reason = REFUSED_PIPELINES.get(type(pipe).__name__)
    if reason is not None:
        raise ValueError(f"{type(pipe).__name__} cannot be driven: {reason}")
