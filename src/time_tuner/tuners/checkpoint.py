"""What a plan is made from, in plain values: by these a run that is continued is known to be the same."""

from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from importlib.metadata import PackageNotFoundError, version
from math import dist, hypot
from pathlib import Path
from typing import Any
from zlib import crc32

from ..plans.plan import Plan

CLOSE = 1e-2  # what a model says twice may differ by so much of itself, in low precision or on other threads


def same(name: str, kept: Any, value: Any) -> bool:
    """Whether a kept value is that of this run; of what the model says, nearly."""
    if name != "model" or not isinstance(kept, list) or len(kept) != len(value):
        return bool(kept == value)
    return dist(kept, value) <= CLOSE * hypot(*value)


def plain(value: Any) -> Any:
    """An option of a method as JSON holds it; a function by its name and its code."""
    if isinstance(value, str | int | float | bool) or value is None:
        return value
    if isinstance(value, Plan):
        return value.to_dict()
    if isinstance(value, Sequence):
        return [plain(one) for one in value]
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in fields(value)}
    code = getattr(value, "__code__", None)
    if code is None:
        return str(value) if isinstance(value, Path) else f"a {type(value).__qualname__}"
    held = [cell.cell_contents for cell in value.__closure__ or ()]
    simple = [one for one in (*code.co_consts, *held) if isinstance(one, str | int | float)]
    return f"{value.__qualname__} {crc32(code.co_code + repr((code.co_names, simple)).encode()):08x}"


def versions() -> dict[str, str]:
    """The versions of what a plan is made with."""
    return {name: _version(name) for name in ("time-tuner", "torch")}


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "unknown"
