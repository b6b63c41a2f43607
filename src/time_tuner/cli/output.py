"""What the command line prints: results on standard output, progress and notes on standard error."""

import json
import logging
import math
import re
import shutil
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, Self

from rich import box
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn
from rich.table import Table
from torch import Tensor

from ..models.counting import Cost
from ..plans.plan import Plan
from ..tuners import PlanCheck
from ..tuners import Progress as TuningProgress
from ..tuners.guard import unchanged
from ..tuners.units import INPUTS

stdout = Console(highlight=False, markup=False)
stderr = Console(stderr=True, highlight=False, markup=False)

INTERVAL = 30.0  # seconds between two lines of progress where there is no terminal


def result(*items: str | Table) -> None:
    """Print texts and tables on standard output."""
    for item in items:
        stdout.print(item, soft_wrap=isinstance(item, str))


def report(values: Mapping[str, Any] | None, *items: str | Table) -> None:
    """Print values as one JSON object, in which a number that is not finite is null; or without values the items."""
    if values is None:
        result(*items)
    else:
        print(json.dumps(_plain(values), indent=2))


def _plain(value: Any) -> Any:
    """The value as JSON can hold it."""
    if isinstance(value, Mapping):
        return {str(name): _plain(part) for name, part in value.items()}
    if isinstance(value, Tensor):
        return _plain(value.tolist())
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if isinstance(value, str | int | None) else str(value)


def note(text: str) -> None:
    """Print a line on standard error."""
    stderr.print(text, soft_wrap=True)


class LogHandler(logging.Handler):
    """Prints the messages of the library on standard error, a line each."""

    def emit(self, record: logging.LogRecord) -> None:
        note(record.getMessage())


def partial_of(out: Path) -> Path:
    """The file, or the folder, that keeps what is finished of `out`, beside it."""
    return out.with_name(f"{out.name}.partial")


def kept_parts(out: Path) -> list[Path]:
    """The files and folders that an interrupted run has left beside `out`."""
    known = re.compile(rf"{re.escape(partial_of(out).name)}(-[0-9]+)?(\.units)?")
    return sorted(filter(lambda path: known.fullmatch(path.name), out.parent.iterdir())) if out.parent.is_dir() else []


def remove_parts(out: Path) -> None:
    """Remove what was kept of `out`; another process, which writes the same file, may do that, too."""
    for path in kept_parts(out):
        if (path / INPUTS).exists():
            shutil.rmtree(path, ignore_errors=True)
        elif not path.is_dir():
            path.unlink(missing_ok=True)


@contextmanager
def resumable(out: Path) -> Iterator[None]:
    """Where Ctrl-C ends the block and something is kept of `out`, a line says where; else the interrupt goes on."""
    try:
        yield
    except KeyboardInterrupt:
        kept = kept_parts(out)
        if not kept:
            raise
        where = " and ".join(map(str, kept))
        print(f"interrupted: the state is kept in {where}, and the same command continues from it", file=sys.stderr)
        sys.exit(130)


class Bar:
    """One bar over a piece of work, with the time that is left; without a terminal, a line now and then.

    Use it in a `with` block, at whose end it disappears.

    Args:
        what: is in progress.
        total: of the work, in any unit.
    """

    def __init__(self, what: str, total: float = 1.0) -> None:
        columns = (TextColumn("{task.description}", markup=False), BarColumn(), TaskProgressColumn())
        self._progress = Progress(*columns, console=stderr, transient=True, disable=not stderr.is_terminal)
        self._task = self._progress.add_task(what, total=total)
        self.what, self.total, self._done = what, total, 0.0
        self._began = self._last = time.monotonic()

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._progress.stop()

    @property
    def elapsed(self) -> float:
        """The seconds since it was made."""
        return time.monotonic() - self._began

    def advance(self, amount: float = 1) -> None:
        """So much more of the work is done."""
        self._done += amount
        left = self.elapsed * (self.total / self._done - 1)
        self.show(f"{self.what}, {duration(left)} left", self._done)

    def show(self, text: str, done: float) -> None:
        """So much of the work is done, and this is in progress."""
        self._progress.update(self._task, description=text, completed=done)
        if not stderr.is_terminal and time.monotonic() - self._last > INTERVAL:
            self._last = time.monotonic()
            note(f"{done / self.total:.0%}, {text}")

    def tuning(self, progress: TuningProgress) -> None:
        """A tuner has got so far; the total is 1."""
        self.show(str(progress), progress.fraction)


def waiting(what: str) -> AbstractContextManager[Any]:
    """A moving sign that something takes a while, on a terminal."""
    return stderr.status(what) if stderr.is_terminal else nullcontext()


def table(*columns: str, title: str = "", left: int = 1) -> Table:
    """An empty table in the house style; the first `left` columns have words, the others numbers."""
    made = Table(title=title or None, title_style="bold", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    made.title_justify = made.caption_justify = "left"
    for i, column in enumerate(columns):
        words = i < left
        made.add_column(column, justify="left" if words else "right", no_wrap=not words, overflow="fold")
    return made


def plan_table(plan: Plan) -> Table:
    """A row for each call of a plan, and its end."""
    guidance = [] if all(plan.guided) else ["guidance"]
    made = table("call", "t", "tau", "tau / t", "alpha", "sigma", *guidance, left=0)
    for k in range(len(plan)):
        t, tau = float(plan.t[k]), float(plan.tau[k])
        ratio = f"{tau / t:.4f}" if tau != t else "1"
        has = ["yes" if plan.guided[k] else "no"] if guidance else []
        made.add_row(str(k), f"{t:.5f}", f"{tau:.5f}", ratio, f"{plan.alpha[k]:.5f}", f"{plan.sigma[k]:.5f}", *has)
    made.add_row("end", f"{plan.t[-1]:.5f}", "", "", f"{plan.alpha[-1]:.5f}", f"{plan.sigma[-1]:.5f}", style="dim")
    return made


def facts_table(facts: Mapping[str, Any]) -> Table:
    """A line for each fact that is not None."""
    made = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    made.add_column(style="bold", no_wrap=True)
    made.add_column(overflow="fold")
    for name, value in facts.items():
        if value is not None:
            made.add_row(name, _readable(value))
    return made


def plan_facts(plan: Plan) -> dict[str, Any]:
    """The sampler, the schedule and the provenance of a plan."""
    facts: dict[str, Any] = {"sampler": plan.sampler, "schedule": plan.schedule, "calls": len(plan)}
    if not all(plan.guided):
        facts["guidance"] = f"at {sum(plan.guided)} of {len(plan)} calls, {plan.evaluations} evaluations"
    if plan.corrections is not None:
        nonzero = int((plan.corrections != 0).sum())
        facts["corrections"] = f"{nonzero}, at most {float(plan.corrections.abs().max()):.4g}"
    provenance = dict(plan.provenance)
    made_for = provenance.pop("made_for", None)
    if isinstance(made_for, dict):  # without the hash and the numbers of the weights
        network = made_for.get("network") or {}
        shown = {name: network[name] for name in ("class", "dtype", "quantisation") if name in network}
        rest = {name: value for name, value in made_for.items() if name != "network"}
        facts["made for"] = shown | rest
    return {**facts, **provenance}


def plan_texts(plan: Plan) -> list[str | Table]:
    """What `show` prints of a plan: its facts, its calls, and what tuning has gained."""
    return [facts_table(plan_facts(plan)), plan_table(plan), *([f"{verdict(plan)}."] if measured(plan) else [])]


def measured(plan: Plan) -> bool:
    """Whether the provenance of a plan has what the guard has measured."""
    return {"distance", "reverted_calls"} <= plan.provenance.keys()


PURPOSES = {
    "teacher": "the teacher's runs",
    "data": "own samples to tune on",
    "ranking": "ranking of untuned plans",
    "grids": "ranking of grids",
    "reference": "reference run",
}


def cost_table(costs: Mapping[str, tuple[Cost, Cost]], title: str = "") -> Table:
    """The estimated cost of tuning by purpose: usual, and at most."""
    made = table("purpose", "network calls", "at most", "sample evaluations", "at most", title=title)
    total = sum((usual for usual, _ in costs.values()), Cost()), sum((most for _, most in costs.values()), Cost())
    for name, (usual, most) in {**costs, "in all": total}.items():
        figures = (usual.calls, most.calls, usual.evaluations, most.evaluations)
        made.add_row(
            PURPOSES.get(name, name), *(f"{figure:,}" for figure in figures), end_section=name == list(costs)[-1]
        )
    return made


def devices_table(devices: Mapping[int, tuple[float, int]]) -> Table:
    """The estimated time on several devices, and what each exchanges with the others."""
    made = table("devices like this one", "seconds", "exchanged", left=0)
    for count, (seconds, exchanged) in devices.items():
        made.add_row(str(count), f"{seconds:,.1f}", f"{exchanged / 1e6:,.2f} MB" if exchanged else "")
    made.caption = "torchrun --nproc-per-node N -m time_tuner tune ... divides the samples among N devices."
    return made


def duration(seconds: float) -> str:
    """A duration in hours, minutes or seconds."""
    for unit, length in (("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"


def with_error(values: Tensor) -> str:
    """The mean of values (n,) and its standard error, which has two digits that count."""
    error = float(values.double().std()) / math.sqrt(len(values))
    digits = 1 - math.floor(math.log10(error)) if 0 < error < math.inf else 4
    return "{1:.{0}f}±{2:.{0}f}".format(min(max(digits, 0), 8), float(values.double().mean()), error)


def measure_table(plan: Plan) -> Table:
    """The distances of a tuned plan under the guard, from its provenance: untuned plans, and what tuning found."""
    distance, calls = plan.provenance["distance"], plan.provenance["reference_calls"]
    names = plan.provenance.get("untuned_plans", {})
    kind = "energy distance" if plan.stochastic else "mean distance"
    calls_made = f"{len(plan)} calls" if all(plan.guided) else f"{len(plan)} calls, {plan.evaluations} evaluations"
    title = f"{calls_made}, {kind} to the end of a {calls}-call run, on held-out noise"
    made = table("plan", "", "distance", "change", title=title, left=2)
    untuned, best = distance["untuned"], distance.get("best untuned")
    rows = {"the start": ("", untuned)} if best != untuned else {}
    if names:
        rows = {"best untuned" if rows else "best untuned, the start": (names["best"], best)} | rows
        spent = {name: cost["evaluations"] for name, cost in plan.provenance.get("cost", {}).items()}
        made.caption = (
            f"change: of the distance of the start. {names['ranked']} untuned plans were ranked. Sample evaluations: "
            f"{spent.get('ranking', 0):,} of the ranking, {spent.get('teacher', 0):,} of the teacher, "
            f"{spent.get('tuning', 0):,} of tuning."
        )
    if "runner-up" in names:
        rows["runner-up"] = names["runner-up"], distance["runner-up"]
    rows |= {"tuned, before the guard": ("", distance["unguarded"]), "tuned": ("", distance["tuned"])}
    for name, (which, value) in rows.items():
        change = f"{value / untuned - 1:+.1%}" if untuned and value != untuned else ""
        made.add_row(name, which, f"{value:.4f}", change)
    return made


def check_table(found: PlanCheck) -> Table:
    """The distances of a plan and of those that it is compared with, from the nearest on."""
    made = table("plan", "distance", title=f"{len(next(iter(found.distances.values())))} samples")
    for name, distances in sorted(found.distances.items(), key=lambda each: float(each[1].mean())):
        made.add_row(name, with_error(distances))
    made.caption = "± is one standard error."
    return made


def verdict(plan: Plan) -> str:
    """The distances in one sentence."""
    distance, reverted = plan.provenance["distance"], plan.provenance["reverted_calls"]
    untuned, unguarded, tuned = (distance[key] for key in ("untuned", "unguarded", "tuned"))
    names, best = plan.provenance.get("untuned_plans", {}), distance.get("best untuned", untuned)
    if not unchanged(plan):
        start = f"{names['best']}, the best untuned plan" if names and best == untuned else "the start"
        text = f"the tuned plan ends {1 - tuned / untuned:.1%} nearer to the reference run than {start}"
        if reverted:
            calls = f"call{'s' * (len(reverted) > 1)} {', '.join(map(str, reverted))}"
            text += f", with tau of {calls} set back, which was harmful"
        if names and best != untuned:
            side = "and {:.1%} nearer" if tuned <= best else "but {:.1%} farther"
            text += f", {side.format(abs(1 - tuned / best))} than {names['best']}, the best untuned plan"
    elif unguarded == untuned:
        text = "tuning changed nothing: the plan is the untuned one"
    else:
        found = "worse" if unguarded > tuned else "not better by more than its standard error"
        name = f"{names['best']}, the best untuned one" if names and tuned == best else "the untuned one"
        text = f"the tuned plan was {found} on held-out noise: the plan is {name}"
    return f"{text}; {plan.provenance['stopped']}" if "stopped" in plan.provenance else text


def _readable(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.5g}"
    if isinstance(value, list):
        return ", ".join(map(_readable, value)) or "none"
    if isinstance(value, dict):
        return ", ".join(f"{name} {_readable(part)}" for name, part in value.items())
    return str(value)
