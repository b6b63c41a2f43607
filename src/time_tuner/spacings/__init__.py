"""Spacings: where the steps of a run end, S + 1 falling times on a schedule for S steps, one table."""

import inspect
import re
from collections.abc import Callable
from functools import partial
from typing import TypeAlias

from torch import Tensor

from .._spec import parse_options
from .by_snr import ays, exponential, karras, kl_optimal, logsnr
from .by_time import leading, linspace, quadratic, trailing, uniform

__all__ = ["SPACINGS", "Spacing", "spacing_of"]

Spacing: TypeAlias = Callable[..., Tensor]
"""`spacing(schedule, steps, start=None, end=None, **options)`: steps + 1 falling times, float64.

The grid runs from `start` (T by default) to `end`, whose default is the spacing's own: the least trained time, or 0. An
end above 0 is reached by the spacing's own rule; an end of 0 is the last step, from the least trained time.
"""

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
    "ays": ays,
}
"""Every spacing by its name in `make_plan` and on the command line."""


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
    known = list(inspect.signature(found).parameters)[4:]
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
