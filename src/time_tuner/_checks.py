"""Checks of what callers give, whose errors name the argument, the value and the way out."""

from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from importlib.util import find_spec
from inspect import signature
from numbers import Integral
from typing import Any, TypeVar

import torch

T = TypeVar("T")


def check_int(name: str, value: Any, least: int | None = None) -> int:
    """The value as an int; it may also be one of numpy's integers.

    Raises:
        ValueError: it is not a whole number, or less than the least.
    """
    if not isinstance(value, Integral) or isinstance(value, bool) or (least is not None and int(value) < least):
        raise ValueError(
            f"{name} must be a whole number{'' if least is None else f' of at least {least}'}, got {value!r}"
        )
    return int(value)


def choose(name: str, value: Any, allowed: Iterable[T]) -> T:
    """The one of the allowed values that this is.

    Raises:
        ValueError: it is none of them; the message names them, and the one that is spelled alike.
    """
    choices = list(allowed)
    for choice in choices:
        # 1 == True in Python, but order=True is a mistake.
        if isinstance(value, type(choice)) and isinstance(value, bool) == isinstance(choice, bool) and value == choice:
            return choice
    listed = ", ".join(choice if isinstance(choice, str) else repr(choice) for choice in choices)
    raise ValueError(f"{name} must be one of {listed}, got {value!r}{_did_you_mean(value, choices)}")


def check_options(owner: str, options: Iterable[str], known: Sequence[str]) -> None:
    """Raise a ValueError that names the known options, unless all of these are among them."""
    for option in options:
        if option not in known:
            listed = ", ".join(known) or "none"
            raise ValueError(f"{owner} has no option {option!r}; its options: {listed}{_did_you_mean(option, known)}")


def require(package: str, extra: str) -> None:
    """Raise a ValueError that names the command to install a package that is missing, by its extra."""
    if find_spec(package) is None:
        raise ValueError(f"the package {package} is missing: pip install 'time-tuner[{extra}]'")


def check_device(device: torch.device | str | None) -> torch.device:
    """The device of this name, the CPU by default.

    Raises:
        ValueError: there is no such device here.
    """
    try:
        return torch.empty(0, device=device or "cpu").device
    except (RuntimeError, AssertionError, TypeError) as error:
        reason = str(error).partition(" of ")[0] if "Expected one" in str(error) else str(error).splitlines()[0]
        raise ValueError(f"device must be one that torch can use here, got {device!r}: {reason}") from None


def accepts(function: Any, count: int, names: Iterable[str] = ()) -> bool:
    """Whether this is a function that can be called with so many arguments, and with others by these names, as far as
    its signature is known."""
    try:
        signature(function).bind(*[None] * count, **dict.fromkeys(names))
    except TypeError:
        return False
    except ValueError:  # a built-in function without a signature
        return callable(function)
    return True


def _did_you_mean(value: Any, choices: Sequence[Any]) -> str:
    names = {choice.lower(): choice for choice in choices if isinstance(choice, str)}
    near = get_close_matches(value.lower(), names, n=1) if isinstance(value, str) else []
    return f": did you mean {names[near[0]]!r}?" if near else ""
