"""Spacings: where the steps of a run end, S + 1 falling times on a schedule for S steps, one table."""

import inspect
from collections.abc import Callable
from functools import partial
from typing import TypeAlias

from torch import Tensor

from .._spec import entry_of, parse_call
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


def spacing_of(text: str | Spacing) -> Spacing:
    """The spacing of a text `name(option=value, ...)`, such as "karras(rho=5)"; the names are those of `SPACINGS`. A
    function is a spacing itself.

    Args:
        text: the text, or a function.

    Returns:
        The spacing, a function `spacing(schedule, steps, start=None, end=None)`.

    Raises:
        ValueError: another text, an unknown name or option, or text where the option is a number.
    """
    if callable(text):
        return text
    name, options = parse_call(text)
    spacing = entry_of("spacing", SPACINGS, name, options, fixed=("schedule", "steps", "start", "end"))
    for option, value in options.items():
        default = inspect.signature(spacing).parameters[option].default
        if isinstance(default, int | float) and (isinstance(value, bool) or not isinstance(value, int | float)):
            raise ValueError(f"{option} of spacing {name!r} must be a number, got {value!r}")
    return partial(spacing, **options)
