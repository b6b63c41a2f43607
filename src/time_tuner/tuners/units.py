"""Finished units of work in a folder, from which an interrupted run continues: groups of a teacher's runs, batches of
samples, rankings. Each unit is a file that is written whole: a process that is killed, at any moment, loses the unit
that it works at."""

import hashlib
import json
import logging
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .._distributed import decided, from_first, gathered, of_all, own_rows, rank
from .._files import one_line, parse_json, read_json, read_tensors, write_json, write_tensors
from ..models.base import Model, for_rows, own_share
from ..models.counting import Cost, CostLog
from ..plans.plan import Plan
from ..sampling import sample
from .checkpoint import MOST_BYTES, Checkpoint

INPUTS = "inputs.json"

logger = logging.getLogger("time_tuner")


class Units:
    """The finished units of a run, by their names.

    Args:
        folder: of the files; made with the first unit.
        inputs: all that the units are made from beside their names, in plain values, with the entry "model", numbers of
            a prediction. Units that were made from other inputs are removed.

    Attributes:
        cost_log: where the network calls of units are counted.
        owner: what units are made for, such as a plan. The calls of a unit that was kept are counted for its own owner,
            whose run continues, and for no other one.
        counted: the units whose calls are counted, with their purpose and cost; None where an earlier run counted them.

    Raises:
        ValueError: the folder holds something else.
    """

    def __init__(self, folder: Path, inputs: Mapping[str, Any]) -> None:
        self.folder, self.cost_log, self.owner = folder, CostLog(), ""
        self.counted: dict[str, tuple[str, Cost] | None] = {}
        self._checkpoint = Checkpoint(folder / INPUTS, inputs)
        if not rank() and folder.exists() and not self._checkpoint.load(logging.DEBUG):
            self.remove()

    def tensor(self, name: str, shape: Sequence[int], make: Callable[[], Tensor]) -> Tensor:
        """The tensor of a unit, (n, *shape): the one that is kept, or else the one that `make` returns, which is then
        kept.

        Raises:
            OSError: it cannot be written; names the file.
        """
        path = self._path(name, ".safetensors")

        def check(shapes: dict[str, tuple[int, ...]], kept: dict[str, str]) -> None:
            if kept.get("name") != name or shapes.keys() != {"unit"} or shapes["unit"][1:] != tuple(shape):
                raise ValueError(f"it holds another unit, of shapes {shapes}")

        found, cost = None, asdict(Cost())
        if not rank() and path.exists():
            try:
                tensors, kept = read_tensors(path, check)
                known = parse_json(kept.get("cost", "").encode())
                if kept.get("owner") == self.owner:
                    cost = {name: int(known[name]) for name in cost}
                found = tensors["unit"]
            except (OSError, ValueError, TypeError, KeyError) as error:
                logger.warning("%s cannot be read (%s): the unit is made again", path, one_line(error))
        if (found := from_first(found)) is not None:
            if (cost := decided(cost))["calls"] and path.stem not in self.counted:
                own = Cost(**cost).own_part()
                self.counted[path.stem] = self.cost_log.current, own
                self.cost_log.add(own)
            return found
        before = self.cost_log.of(self.cost_log.current)
        made = make()
        spent = self.cost_log.of(self.cost_log.current)
        own = Cost(spent.calls - before.calls, spent.evaluations - before.evaluations)
        self.counted[path.stem] = self.cost_log.current, own
        cost = asdict(own.of_all())
        if not rank():
            self._begin()
            write_tensors(path, {"unit": made.cpu()}, {"name": name, "owner": self.owner, "cost": json.dumps(cost)})
        return made

    def resume(self, counted: Iterable[str]) -> None:
        """The costs in the log are now those of an earlier run, in which these units are counted: add those of others
        that this run has counted, and count none of these again."""
        before, self.counted = self.counted, dict.fromkeys(counted)
        for unit, entry in before.items():
            if entry is not None and unit not in self.counted:
                purpose, cost = self.counted[unit] = entry
                self.cost_log.add(cost, purpose)

    def values(self, name: str, make: Callable[[], Any]) -> Any:
        """The JSON value of a unit: the one that is kept, or else the one that `make` returns, which is then kept."""
        path = self._path(name, ".json")
        found = None
        if not rank() and path.exists():
            try:
                kept = read_json(path, MOST_BYTES)
                if not isinstance(kept, Mapping) or kept.get("name") != name:
                    raise ValueError("it holds another unit")
                found = kept["values"]
            except (OSError, ValueError, KeyError) as error:
                logger.warning("%s cannot be read (%s): the unit is made again", path, one_line(error))
        if (found := decided(found)) is not None:
            return found
        made = make()
        if not rank():
            self._begin()
            write_json(path, {"name": name, "values": made})
        return made

    def __contains__(self, name: str) -> bool:
        """Whether the unit is kept."""
        return decided(self._path(name, ".safetensors").exists())

    def remove(self) -> None:
        """Remove the folder. Another process may be removing it, too."""
        if not rank() and self._checkpoint.path.exists():  # else it is another folder, or there is none
            shutil.rmtree(self.folder, ignore_errors=True)

    def _path(self, name: str, suffix: str) -> Path:
        return self.folder / f"unit-{hashlib.sha256(name.encode()).hexdigest()[:24]}{suffix}"

    def _begin(self) -> None:
        """The inputs are written before the first unit."""
        if not self._checkpoint.path.exists():
            self._checkpoint.save()


def runs(units: Units | None, name: str, model: Model, plan: Plan, noise: Tensor, batch: int | None = None) -> Tensor:
    """The ends of a deterministic plan's runs from noise (n, ...): a unit for each `batch` of them, where units are
    kept."""
    if units is None:
        own, mine = own_share(model, len(noise))
        return gathered(sample(own, plan, plan.initial_state(noise[mine])), len(noise))
    parts = list[Tensor]()
    for rows in torch.arange(len(noise)).split(of_all(batch) or len(noise)):

        def make(rows: Tensor = rows) -> Tensor:
            mine = own_rows(rows)
            return gathered(sample(for_rows(model, mine), plan, plan.initial_state(noise[mine])), len(rows))

        described = f"{name}, {plan_key(plan)}, {int(rows[0])} to {int(rows[-1])}"
        parts.append(units.tensor(described, noise.shape[1:], make).to(noise.device))
    return torch.cat(parts)


def plan_key(plan: Plan) -> str:
    """A text by which a plan is known, whatever its provenance."""
    values = {name: value for name, value in plan.to_dict().items() if name not in ("rows", "provenance")}
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()[:24]
