"""Options as people give them: checked, or written in a few characters as in `eta=0.5, variance=small`."""

from inspect import signature
from numbers import Integral
from typing import Any


def check_int(name: str, value: Any, least: int | None = None) -> int:
    """A whole number, which may be one of numpy's.

    Raises:
        ValueError: names what it is for, if it is none or less than the least.
    """
    if not isinstance(value, Integral) or isinstance(value, bool) or (least is not None and int(value) < least):
        raise ValueError(
            f"{name} must be a whole number{'' if least is None else f' of at least {least}'}, got {value!r}"
        )
    return int(value)


def accepts(function: Any, count: int) -> bool:
    """Whether this is a function of so many arguments, as far as it tells what it takes."""
    try:
        signature(function).bind(*[None] * count)
    except TypeError:
        return False
    except ValueError:  # it does not tell
        return callable(function)
    return True
