"""The file that keeps the state of a tuner at work: a JSON object, written whole after each step. Its `inputs` are all
that the plan is tuned from, without which a state is not continued; `budget`, `seconds` and `spent` are those of tuning
so far, `state` is the tuner's own, and `plan` the tuned plan when it is finished."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from importlib.metadata import PackageNotFoundError, version
from math import dist, hypot
from numbers import Integral, Real
from pathlib import Path
from types import FunctionType
from typing import Any
from zlib import crc32

import torch
from torch import nn

from .._files import one_line, read_json, write_json
from ..plans.plan import Plan

FORMAT = "time-tuner partial plan"
MOST_BYTES = 64 * 2**20  # of a checkpoint that is read
CLOSE = 1e-2  # by so much of itself a prediction differs when it is repeated, in low precision or on other threads
FOLLOWS = {"data": "samples", "options": "tuner", "model": "shape"}  # inputs that differ wherever another one does

logger = logging.getLogger("time_tuner")


class Checkpoint:
    """The file that keeps the state of a run, which plain `inputs` determine."""

    def __init__(self, path: Path, inputs: Mapping[str, Any]) -> None:
        self.path, self.inputs = path, dict(inputs)

    def load(self, level: int = logging.INFO) -> dict[str, Any]:
        """The entries of the file, {} where it does not exist or has other inputs; which is logged at this level.

        Raises:
            ValueError: the file is something else.
        """
        if not self.path.exists():
            return {}
        other = list[str]()
        try:
            values = read_json(self.path, MOST_BYTES)
            if not isinstance(values, dict) or values.get("format") != FORMAT:
                raise ValueError(f"its 'format' is not {FORMAT!r}")
            if not (other := self._different(values.get("inputs"))):
                _check_entries(values)
        except ValueError as error:
            raise ValueError(
                f"checkpoint {str(self.path)!r} is no partial plan ({one_line(error)}): name another file, or remove it"
            ) from None
        if other:
            logger.log(level, "%s was made with another %s: starting anew", self.path, ", another ".join(other))
            return {}
        logger.log(level, "continuing from %s", self.path)
        return values

    def save(self, **entries: Any) -> None:
        """Write the file; of several processes that share work the first alone does."""
        write_json(self.path, {"format": FORMAT, "inputs": self.inputs, **entries})

    def _different(self, kept: Any) -> list[str]:
        """The names of the inputs that differ, without those that differ only because another one does."""
        inputs = self.inputs
        if not isinstance(kept, Mapping) or kept.keys() != inputs.keys():
            return ["version"]
        names = [name for name in inputs if kept[name] != inputs[name]]
        old, new = kept["model"], inputs["model"]
        if _numbers(old) and len(old) == len(new) and dist(old, new) <= CLOSE * hypot(*new):
            names = [name for name in names if name != "model"]
        before = kept.get("options")
        before = before if isinstance(before, Mapping) else {}
        options = [name for name, value in inputs.get("options", {}).items() if before.get(name) != value]
        names = [name for name in names if FOLLOWS.get(name) not in names]
        return [each for name in names for each in (options if name == "options" else [name])]


def _check_entries(values: Mapping[str, Any]) -> None:
    """Raise a ValueError unless the entries of a file are of the kinds that are written; the state is the tuner's."""
    costs = values.get("costs", {})
    whole = isinstance(costs, Mapping) and all(
        isinstance(one, Mapping) and one.keys() == {"calls", "evaluations"} and all(map(_is_count, one.values()))
        for one in costs.values()
    )
    ranking = values.get("ranking") or {}
    for name, valid in (
        ("budget", isinstance(values.get("budget", ""), str)),
        ("seconds", _numbers([values.get("seconds", 0.0)]) and values.get("seconds", 0.0) >= 0),
        ("costs", whole and ("costs" in values or "state" not in values)),
        ("state", isinstance(values.get("state", {}), Mapping)),
        ("units", _names(values.get("units", []))),
        ("ranking", isinstance(ranking, Mapping) and _numbers(list(ranking.values()))),
        ("plan", isinstance(values.get("plan"), Mapping | None)),
    ):
        if not valid:
            raise ValueError(f"its {name!r} is {str(values.get(name))[:40]!r}")


def _is_count(value: Any) -> bool:
    """Whether this is a number of calls."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63


def _names(values: Any) -> bool:
    """Whether this is a list of texts."""
    return isinstance(values, list) and all(isinstance(one, str) for one in values)


def _numbers(values: Any) -> bool:
    """Whether this is a list of numbers in the range of floats."""
    return isinstance(values, list) and all(isinstance(one, int | float) and abs(one) < 1e300 for one in values)


def plain(value: Any, depth: int = 4) -> Any:
    """An option as a JSON value; a function by its name, its code and what it holds: numbers, networks, and functions,
    to this depth."""
    if isinstance(value, str | bool | None):
        return value
    if isinstance(value, Real):  # numpy's numbers too
        return int(value) if isinstance(value, Integral) else float(value)
    if isinstance(value, Plan):
        return value.to_dict()
    if isinstance(value, Sequence):
        return [plain(one) for one in value]
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, nn.Module):
        sums = [f"{float(one.detach().cpu().double().sum()):.6g}" for one in value.parameters()]
        return f"{type(value).__qualname__} {' '.join(sums)}"
    code = getattr(value, "__code__", None)
    if code is None:
        return str(value) if isinstance(value, Path) else f"a {type(value).__qualname__}"
    held = [cell.cell_contents for cell in value.__closure__ or ()] if depth else []
    simple = [one for one in (*code.co_consts, *held) if isinstance(one, str | int | float)]
    simple += [plain(one, depth - 1) for one in held if isinstance(one, FunctionType | nn.Module)]
    return f"{value.__qualname__} {crc32(code.co_code + repr((code.co_names, simple)).encode()):08x}"


def versions() -> dict[str, str]:
    """The versions of this library and of torch."""
    try:
        own = version("time-tuner")
    except PackageNotFoundError:  # it runs from its sources
        own = "unknown"
    return {"time-tuner": own, "torch": str(torch.__version__)}
