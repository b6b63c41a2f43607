"""Runs written in a few characters, as the command line takes them: `ddim(eta=0.5):10@quadratic`."""

from collections.abc import Iterable
from typing import Any


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
