"""Options as people give them: checked, or written in a few characters as in `eta=0.5, variance=small`."""

from collections.abc import Iterable
from inspect import signature
from numbers import Integral
from typing import Any


def whole(name: str, value: Any, least: int | None = None) -> int:
    """A whole number, which may be one of numpy's.

    Raises:
        ValueError: names what it is for, if it is none or less than the least.
    """
    if not isinstance(value, Integral) or isinstance(value, bool) or (least is not None and int(value) < least):
        raise ValueError(
            f"{name} must be a whole number{'' if least is None else f' of at least {least}'}, got {value!r}"
        )
    return int(value)


def takes(function: Any, count: int) -> bool:
    """Whether this is a function of so many arguments, as far as it tells what it takes."""
    try:
        signature(function).bind(*[None] * count)
    except TypeError:
        return False
    except ValueError:  # it does not tell
        return callable(function)
    return True


def parse_value(text: str) -> Any:
    """An option's value as written: none, true or false, a whole or a decimal number, or else the text itself."""
    words = {"none": None, "true": True, "false": False}
    if text.lower() in words:
        return words[text.lower()]
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def parse_options(options: str | Iterable[str] | None) -> dict[str, Any]:
    """Options from `name=value, ...`, or from a list of `name=value`."""
    values: dict[str, Any] = {}
    parts = (options or "").split(",") if options is None or isinstance(options, str) else options
    for option in parts:
        key, equals, value = option.partition("=")
        if not option.strip() and isinstance(options, str | None):
            continue
        if not equals or key.strip() in ("", "name"):
            raise ValueError(f"an option is written NAME=VALUE, as in eta=0.5, got {option!r}")
        values[key.strip()] = parse_value(value.strip())
    return values
