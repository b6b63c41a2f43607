"""Where the steps of a run end, a grid of S + 1 times from a schedule for S steps, and where its calls are made."""

import inspect
import re
from collections.abc import Callable
from functools import partial
from typing import TypeAlias

from torch import Tensor

from .._spec import parse_options
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


_TEXT = re.compile(r"(?P<name>\w+)(\((?P<options>[^()]*)\))?")


def spacing_of(text: str) -> Spacing:
    """The spacing of a name in `SPACINGS`, which may be followed by options, as in "karras(rho=5)".

    Raises:
        ValueError: a name or an option that there is not.
    """
    match = _TEXT.fullmatch(text.strip())
    if match is None or match["name"] not in SPACINGS:
        raise ValueError(f"spacing must be one of {', '.join(SPACINGS)}, or as in karras(rho=5), got {text!r}")
    found = SPACINGS[match["name"]]
    options = parse_options(match["options"])
    known = list(inspect.signature(found).parameters)[2:]
    unknown = [name for name in options if name not in known]
    if unknown:
        takes = ", ".join(known) or "none"
        raise ValueError(f"spacing {match['name']!r} has no option {unknown[0]!r}; its options: {takes}")
    for name, value in options.items():
        if not isinstance(value, int | float) or isinstance(value, bool):
            default = inspect.signature(found).parameters[name].default
            if isinstance(default, int | float):
                raise ValueError(f"{name} of spacing {match['name']!r} must be a number, got {value!r}")
    return partial(found, **options)
