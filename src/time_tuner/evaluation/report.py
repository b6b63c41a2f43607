"""The result of an evaluation: as text, JSON, CSV, and as one page."""

import csv
import io
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .._files import replacing, write_json
from ..metrics import Interval
from ..plans.plan import Plan
from ..tuners.checkpoint import versions
from .measures import METRICS

PLAN, UNTUNED, BEST, REFERENCE = "plan", "untuned", "best untuned", "reference"
"""The kinds of runs."""


@dataclass(frozen=True)
class Run:
    """One run of an evaluation.

    Attributes:
        name: of the run, in tables.
        series: the curve that it belongs to.
        kind: "plan", "untuned", "best untuned" or "reference".
        plan: that it follows.
        evaluations: of the network for a sample; under classifier-free guidance those of the plan, else its calls.
        values: metrics with their intervals, by name; those that a run has, see `METRICS`.
        pictures: of the first samples, (n, ...).
    """

    name: str
    series: str
    kind: str
    plan: Plan
    evaluations: int
    values: Mapping[str, Interval] = field(default_factory=dict)
    pictures: Tensor | None = None

    @property
    def calls(self) -> int:
        """Network calls of the run."""
        return len(self.plan)

    def with_results(self, values: Mapping[str, Interval], pictures: Tensor) -> "Run":
        """The run with these metrics and pictures."""
        return replace(self, values=dict(values), pictures=pictures)


@dataclass(frozen=True)
class Report:
    """What `evaluate` returns: `print(report)` shows a table, `write(folder)` keeps everything.

    Attributes:
        runs: the plans, the untuned runs, the best untuned ones and the reference.
        facts: of the evaluation, plain values.
        left_out: why runs are not there, by name.
        command: that reproduces it, or None.
    """

    runs: Sequence[Run]
    facts: Mapping[str, Any]
    left_out: Mapping[str, str] = field(default_factory=dict)
    command: str | None = None

    @property
    def metrics(self) -> list[str]:
        """The names of the metrics that any of the runs has."""
        return [name for name in METRICS if any(name in run.values for run in self.runs)]

    @property
    def by_evaluations(self) -> bool:
        """Whether runs of as many calls have other evaluations, because one leaves guidance out of some calls."""
        return len({run.evaluations / run.calls for run in self.runs}) > 1

    def sorted(self) -> list[Run]:
        """The runs by evaluations; of as many evaluations the best untuned first, then untuned ones, then plans."""
        order = {BEST: 0, UNTUNED: 1, PLAN: 2, REFERENCE: 3}
        return sorted(self.runs, key=lambda run: (run.kind == REFERENCE, run.evaluations, run.calls, order[run.kind]))

    def best(self, metric: str, evaluations: int) -> Run | None:
        """The best run of so many evaluations by a metric, the reference left out; None where no run is alone the
        best."""
        some = [run for run in self.runs if run.evaluations == evaluations and metric in run.values]
        some = [run for run in some if run.kind != REFERENCE]
        sign = -1 if METRICS[metric].more_is_better else 1
        some.sort(key=lambda run: sign * run.values[metric].value)
        alone = len(some) > 1 and some[0].values[metric].value != some[1].values[metric].value
        return some[0] if alone else None

    @property
    def sizes(self) -> list[str]:
        """What tables say of the size of a run."""
        return ["calls", "evaluations"] if self.by_evaluations else ["calls"]

    def verdicts(self) -> list[str]:
        """A sentence for each plan: its distance, beside the best untuned plan of as many calls with guidance at the
        same ones, and the calls of an untuned run that is as near; where guidance is left out, its evaluations."""
        return [self._verdict(run) for run in self.runs if run.kind == PLAN and "distance" in run.values]

    def __str__(self) -> str:
        rows = [["run", *self.sizes, *(METRICS[name].title for name in self.metrics)]]
        for run in self.sorted():
            cells = [shown(run.values[name]) if name in run.values else "-" for name in self.metrics]
            name = f"{run.name} (best untuned)" if run.kind == BEST else run.name
            rows.append([name, *(str(getattr(run, size)) for size in self.sizes), *cells])
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ["  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip() for row in rows]
        facts = ", ".join(f"{name} {value}" for name, value in self.facts.items() if name != "environment")
        notes = ["± is half of the interval of 95 %.", facts, *self.verdicts()]
        notes += [f"left out, {name}: {why}" for name, why in self.left_out.items()]
        return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:], "", *notes])

    def to_dict(self) -> dict[str, Any]:
        """The report as plain values: facts, metrics, and the runs with their plans."""
        runs = []
        for run in self.sorted():
            values = {name: {"value": v.value, "low": v.low, "high": v.high} for name, v in run.values.items()}
            runs.append({"name": run.name, "kind": run.kind, "series": run.series, "calls": run.calls,
                         "evaluations": run.evaluations, "values": values, "plan": run.plan.to_dict()})  # fmt: skip
        metrics = {name: {"title": METRICS[name].title, "text": METRICS[name].text} for name in self.metrics}
        return {
            **self.facts,
            "command": self.command,
            "metrics": metrics,
            "left out": dict(self.left_out),
            "runs": runs,
        }

    def to_csv(self) -> str:
        """The table with a line for each run: its value of each metric, and the ends of the interval."""
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        names = self.metrics
        ends = [f"{n}{end}" for n in names for end in ("", " low", " high")]
        writer.writerow(["run", "kind", "series", "calls", "evaluations", *ends])
        for run in self.sorted():
            cells = [(v.value, v.low, v.high) if (v := run.values.get(n)) else ("", "", "") for n in names]
            about = (run.name, run.kind, run.series, run.calls, run.evaluations)
            writer.writerow([*about, *(cell for three in cells for cell in three)])
        return out.getvalue()

    def write(self, folder: str | PathLike[str]) -> list[Path]:
        """Write index.html, a page that needs no network, report.txt, report.csv and report.json; returns their paths.

        Raises:
            OSError: a file cannot be written there.
        """
        from .page import page

        folder = Path(folder)
        texts = {"report.txt": f"{self}\n", "report.csv": self.to_csv(), "index.html": page(self)}
        for name, text in texts.items():
            with replacing(folder / name) as file:
                file.write(text.encode())
        write_json(folder / "report.json", self.to_dict())
        return [folder / name for name in ("index.html", "report.txt", "report.csv", "report.json")]

    def _verdict(self, run: Run) -> str:
        own, unit = run.values["distance"], self.sizes[-1]
        size = f"{run.calls} calls" + (f", {run.evaluations} evaluations" if self.by_evaluations else "")
        text = f"{run.name}, {size}, ends at a distance of {shown(own)} from the reference run"
        near = [one for one in self.runs if one.kind == BEST and one.plan.guided == run.plan.guided
                and "distance" in one.values]  # fmt: skip
        for one in near:
            other = one.values["distance"]
            if other.value:
                side = "nearer" if own.value < other.value else "farther"
                text += f", {abs(1 - own.value / other.value):.0%} {side} than {one.name}, the best untuned plan, at "
                text += shown(other)
        enough = [one for one in self.runs if one.kind in (UNTUNED, BEST) and "distance" in one.values
                  and one.values["distance"].value <= own.value]  # fmt: skip
        fewest = min(enough, key=lambda one: one.evaluations, default=run)
        if fewest.evaluations != run.evaluations:
            name = fewest.series if fewest.kind == UNTUNED else fewest.name
            text += f"; {name} is as near in {getattr(fewest, unit)} {unit}"
        return f"{text}."


def shown(value: Interval) -> str:
    """A value with half of its interval, to two digits of that; as in "1.33±0.05"."""
    digits = 3 if not 0 < value.error < float("inf") else min(max(1 - int(f"{value.error:e}".partition("e")[2]), 0), 6)
    return f"{value.value:.{digits}f}±{value.error:.{digits}f}"


def environment() -> dict[str, str]:
    """When, by what and on what the numbers were made."""
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        **versions(),
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "threads": str(torch.get_num_threads()),
    }
