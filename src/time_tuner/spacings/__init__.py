"""Where the steps of a run end, a grid of S + 1 times from a schedule for S steps, and where its calls are made."""

import inspect
from collections.abc import Callable
from functools import partial
from typing import TypeAlias

from torch import Tensor

from .._spec import entry_of, parse_call
from ..samplers import Sampler
from ..schedules import NoiseSchedule, NoiseScheduleFlow, NoiseScheduleVE
from .by_snr import ays, exponential, karras, kl_optimal, logsnr
from .by_time import leading, linspace, quadratic, trailing, uniform
from .dmn import dmn

__all__ = [
    "SPACINGS",
    "Spacing",
    "default_spacing",
    "spacing_of",
]

Spacing: TypeAlias = Callable[..., Tensor]
"""`spacing(schedule, steps)`: steps + 1 falling times, float64."""

SPACINGS: dict[str, Spacing] = {
    "linspace": linspace,
    "leading": leading,
    "trailing": trailing,
    "uniform": uniform,
    "quadratic": quadratic,
    "logsnr": logsnr,
    "exponential": exponential,
    "karras": karras,
    "kl_optimal": kl_optimal,
    "dmn": dmn,
    "ays": ays,
}
"""Every spacing by its name in `make_plan` and on the command line."""


def default_spacing(sampler: Sampler, schedule: NoiseSchedule) -> str:
    """The spacing of a run that names none: what measured best there, see docs/schedules.md.

    "quadratic" on a variance-preserving schedule, "trailing" on a flow; on a variance-exploding one "kl_optimal" for samplers
    of first order and "logsnr" for the others.
    """
    if isinstance(schedule, NoiseScheduleVE):
        return "kl_optimal" if sampler.convergence == 1 else "logsnr"
    return "trailing" if isinstance(schedule, NoiseScheduleFlow) else "quadratic"


def spacing_of(text: str) -> Spacing:
    """The spacing of a text `name(option=value, ...)`, such as "karras(rho=5)"; the names are those of `SPACINGS`.

    Raises:
        ValueError: another text, an unknown name or option, or text where the option is a number.
    """
    name, options = parse_call(text)
    spacing = entry_of("spacing", SPACINGS, name, options, fixed=("schedule", "steps", "start", "end"))
    for option, value in options.items():
        default = inspect.signature(spacing).parameters[option].default
        if isinstance(default, int | float) and (isinstance(value, bool) or not isinstance(value, int | float)):
            raise ValueError(f"{option} of spacing {name!r} must be a number, got {value!r}")
    return partial(spacing, **options)
