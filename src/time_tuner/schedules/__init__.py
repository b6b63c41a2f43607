"""Noise schedules: the weights of data (alpha) and noise (sigma) in a state at time t.

A state is `x_t = alpha_t x_0 + sigma_t eps`; `lam_t = log(alpha_t / sigma_t)` is half its log signal-to-noise ratio.
Times and coefficients are float64 tensors on the CPU; as 0-dim tensors they broadcast against any state, keep its dtype
and carry gradients.
"""

from collections.abc import Mapping
from typing import Any

from .._checks import choose
from .base import NoiseSchedule, Point, Values, as_float64, as_schedule
from .betas import named_betas, rescale_zero_terminal_snr, respaced_betas
from .flow import NoiseScheduleFlow, resolution_shift
from .from_diffusers import distilled, schedule_from
from .scheduler_facts import SchedulerFacts, scheduler_facts
from .ve import NoiseScheduleVE
from .vp import NoiseScheduleVP

__all__ = [
    "SCHEDULES",
    "NoiseSchedule",
    "NoiseScheduleFlow",
    "NoiseScheduleVE",
    "NoiseScheduleVP",
    "Point",
    "SchedulerFacts",
    "Values",
    "as_float64",
    "as_schedule",
    "distilled",
    "named_betas",
    "rescale_zero_terminal_snr",
    "resolution_shift",
    "respaced_betas",
    "schedule_from",
    "schedule_from_dict",
    "scheduler_facts",
]

SCHEDULES: dict[str, type[NoiseSchedule]] = {
    "vp": NoiseScheduleVP,
    "ve": NoiseScheduleVE,
    "flow": NoiseScheduleFlow,
}
"""Every noise schedule by its name in a plan file."""

LARGEST = 2**63
"""The largest whole number of a schedule in a file."""


def schedule_from_dict(values: Mapping[str, Any]) -> NoiseSchedule:
    """The noise schedule of these values: the inverse of `NoiseSchedule.to_dict`.

    Args:
        values: the entry `name`, a name in `SCHEDULES`, and the arguments of the class.

    Returns:
        The noise schedule.

    Raises:
        ValueError: an unknown name, or values that the schedule does not take.
    """
    options = dict(values)
    name = options.pop("name", None)
    kind = SCHEDULES[choose("schedule name", name, SCHEDULES)]
    for option, value in options.items():
        if option == "dtype" or (isinstance(value, int) and abs(value) > LARGEST):
            raise ValueError(f"schedule {name!r} does not take {option} = {str(value)[:40]}")
    try:
        return kind(**options)
    except TypeError as error:
        raise ValueError(f"schedule {name!r} does not take these values: {error}") from None
