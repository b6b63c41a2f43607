"""What the command line says: progress bars, tables of plans, and what tuning was worth."""

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from ..models.base import HookedModel, Model
from ..models.counting import Cost
from ..plans.plan import Plan
from ..tuners import Progress as Tuning

say = Console(highlight=False)
"""Where results go: standard output."""

aside = Console(stderr=True, highlight=False)
"""Where progress goes: standard error."""


class Meter(HookedModel):
    """A model that moves a progress bar whenever it is called."""

    def __init__(self, inner: Model) -> None:
        super().__init__(inner, self._count)
        self._progress: Progress | None = None

    def _count(self, *_: Any) -> None:
        if self._progress is not None:
            self._progress.advance(self._progress.task_ids[0])
            if self._progress.finished:
                self._stop()

    def tell(self, done: Tuning) -> None:
        """Say beside the bar how far a tuner is."""
        if self._progress is not None:
            self._progress.update(self._progress.task_ids[0], description=str(done))

    @contextmanager
    def bar(self, what: str, calls: int) -> Iterator[None]:
        """A bar of so many calls (an estimate will do), shown on a terminal until they are made or the block ends."""
        columns = (
            TextColumn("{task.description:28}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
        )
        self._progress = Progress(*columns, console=aside, transient=True, disable=not (calls and aside.is_terminal))
        self._progress.add_task(what, total=calls)
        self._progress.start()
        try:
            yield
        finally:
            self._stop()

    def _stop(self) -> None:
        if self._progress is not None:
            self._progress.stop()
            self._progress = None


def waiting(what: str) -> AbstractContextManager[Any]:
    """A moving sign that something is being waited for, on a terminal."""
    return aside.status(escape(what)) if aside.is_terminal else nullcontext()


def table(*columns: str, title: str = "", left: int = 1) -> Table:
    """An empty table in the house style; the first `left` columns hold words, the others numbers."""
    made = Table(title=title or None, title_justify="left", title_style="bold", header_style="bold")
    for i, column in enumerate(columns):
        made.add_column(column, justify="left" if i < left else "right")
    return made


def plan_table(plan: Plan) -> Table:
    """A row for each call of a plan, and where it ends."""
    made = table("call", "t", "tau", "tau / t", "alpha", "sigma", left=0)
    for k in range(len(plan)):
        t, tau = float(plan.t[k]), float(plan.tau[k])
        ratio = f"{tau / t:.4f}" if tau != t else "1"
        made.add_row(str(k), f"{t:.5f}", f"{tau:.5f}", ratio, f"{plan.alpha[k]:.5f}", f"{plan.sigma[k]:.5f}")
    made.add_row("end", f"{plan.t[-1]:.5f}", "", "", f"{plan.alpha[-1]:.5f}", f"{plan.sigma[-1]:.5f}", style="dim")
    return made


def facts_table(plan: Plan) -> Table:
    """Its sampler, its schedule, and what is known of its making, a line each."""
    made = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    made.add_column(style="bold", no_wrap=True)
    made.add_column(overflow="fold")
    facts = {"sampler": plan.sampler, "schedule": plan.schedule, "calls": len(plan)}
    if plan.corrections is not None:
        nonzero = int((plan.corrections != 0).sum())
        facts["corrections"] = f"{nonzero}, at most {float(plan.corrections.abs().max()):.4g}"
    for name, value in {**facts, **plan.provenance}.items():
        if value is None:
            continue
        made.add_row(escape(name), escape(_readable(value)))
    return made


def cost_table(costs: Mapping[str, tuple[Cost, Cost]], title: str = "") -> Table:
    """What tuning will cost, by purpose: as a rule, and at most."""
    made = table("what for", "network calls", "at most", "sample evaluations", "at most", title=title)
    total = Cost(), Cost()
    for name, (usual, most) in costs.items():
        made.add_row(WORDS.get(name, name), *_figures(usual, most), end_section=name == list(costs)[-1])
        total = total[0] + usual, total[1] + most
    made.add_row("in all", *_figures(*total))
    return made


WORDS = {
    "teacher": "the teacher's runs",
    "data": "samples to tune on",
    "tuning": "tuning",
    "reference": "many-call run to judge by",
    "guard": "judging",
}


def _figures(usual: Cost, most: Cost) -> tuple[str, str, str, str]:
    return f"{usual.calls:,}", f"{most.calls:,}", f"{usual.evaluations:,}", f"{most.evaluations:,}"


def duration(seconds: float) -> str:
    """So many seconds, as people say it."""
    for unit, length in (("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"


def measured(plan: Plan) -> str:
    """What the distances in the provenance of a tuned plan measure."""
    kind = "energy distance" if plan.stochastic else "mean distance"
    return f"{kind} to the end of a {plan.provenance['reference_calls']}-call run, on held-out noise"


def measure_table(plan: Plan, title: str = "") -> Table:
    """What tuning was worth, from the provenance of a plan that was judged."""
    note = plan.provenance
    made = table("plan", "distance", "change", title=title)
    for name, key in (("untuned", "untuned"), ("tuned, before the guard", "unguarded"), ("tuned", "tuned")):
        untuned, distance = note["distance"]["untuned"], note["distance"][key]
        change = "" if key == "untuned" or not untuned else f"{distance / untuned - 1:+.1%}"
        made.add_row(name, f"{distance:.4f}", change)
    return made


def verdict(plan: Plan) -> str:
    """The same in one sentence."""
    before, bare, after = (plan.provenance["distance"][key] for key in ("untuned", "unguarded", "tuned"))
    reverted = plan.provenance["reverted_calls"]
    if after == before:
        if bare == before:
            said = "tuning changed nothing: the untuned plan is handed over"
        else:
            found = "worse" if bare > before else "not nearer by more than chance"
            said = f"the tuned plan was {found} on held-out noise: the untuned plan is handed over"
    else:
        rows = f"row {reverted[0]} was" if len(reverted) == 1 else f"rows {', '.join(map(str, reverted))} were"
        back = f", after {rows} put back, which did harm" if reverted else ""
        said = f"the tuned plan ends {1 - after / before:.1%} nearer to the many-call run than the untuned one{back}"
    return f"{said}; {plan.provenance['stopped']}" if "stopped" in plan.provenance else said


def _readable(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.5g}"
    if isinstance(value, list):
        return ", ".join(map(_readable, value)) or "none"
    if isinstance(value, dict):
        return ", ".join(f"{name} {_readable(part)}" for name, part in value.items())
    return str(value)
