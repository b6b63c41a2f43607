"""What `tune` hands to every tuner: what it may spend, where it goes on from, and whom it tells how far it is."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from .._files import read_json, write_json
from ..models.counting import Cost, CostLog
from .budget import Budget, BudgetMeter
from .checkpoint import same

FORMAT = "time-tuner partial plan"


@dataclass(frozen=True)
class Progress:
    """How far a tuner is.

    Attributes:
        step, steps: how many steps (or iterations) are done, and of how many.
        before, after: the loss of the last one, untuned and tuned.
        calls: network calls spent on tuning.
        seconds_left: estimated.
    """

    step: int
    steps: int
    before: float
    after: float
    calls: int
    seconds_left: float

    def __str__(self) -> str:
        loss = f"loss {self.before:.4g} -> {self.after:.4g}"
        return f"step {self.step} of {self.steps}, {loss}, {self.calls} calls, {self.seconds_left:.0f} s left"


def tqdm_bar(what: str) -> Callable[[Progress], None]:
    """A listener that shows progress as a bar on standard error."""
    bar: tqdm[Any] = tqdm(desc=what, unit="step")

    def tell(progress: Progress) -> None:
        bar.total = progress.steps
        bar.set_postfix_str(
            f"loss {progress.before:.4g} -> {progress.after:.4g}, {progress.calls} calls", refresh=False
        )
        bar.update(progress.step - bar.n)
        if progress.step == progress.steps:
            bar.close()

    return tell


class TuningRun:
    """One run of a tuner.

    A tuner that saves its state after each step with `done` and starts from `state` can be interrupted and continued:
    the state is plain JSON values, and it must come to the same plan from it. In the end the plan is kept beside it:
    started again with the same budget, there is nothing left to do. `same_budget` is whether the state was kept under
    the same.

    Args:
        budget: what may be spent on tuning.
        cost_log: where the network calls are booked.
        path: the file that keeps the state while the tuner is at work; None to keep nothing.
        made: what the plan is tuned from, in plain values: a state that was made from anything else is not continued.
        tell: called with the `Progress` after each step.
        say: called with a sentence that people should read.

    Raises:
        ValueError: the file is there, and is not one that keeps such a state.
    """

    def __init__(
        self,
        budget: Budget | None = None,
        cost_log: CostLog | None = None,
        path: Path | None = None,
        made: Mapping[str, Any] | None = None,
        tell: Callable[[Progress], None] | None = None,
        say: Callable[[str], None] | None = None,
    ) -> None:
        self.path, self.made, self._tell = path, dict(made or {}), tell
        self.cost_log = CostLog() if cost_log is None else cost_log
        self.stopped: str | None = None
        kept = self._kept(say or (lambda sentence: None))
        self.meter = BudgetMeter(budget or Budget(), self.cost_log, kept.get("seconds", 0.0))
        self.state: dict[str, Any] = kept.get("state", {})
        self.same_budget = kept.get("budget") == str(self.meter.budget)
        self.plan: dict[str, Any] | None = kept.get("plan") if self.same_budget else None
        self._spent = Cost(**kept["spent"]) if kept else None
        self._base = (0, self.meter.seconds)

    def _kept(self, say: Callable[[str], None]) -> dict[str, Any]:
        if self.path is None or not self.path.exists():
            return {}
        try:
            values = read_json(self.path)
            if not isinstance(values, dict) or values.get("format") != FORMAT:
                raise ValueError(f"its 'format' is not {FORMAT!r}")
        except ValueError as error:
            raise ValueError(
                f"checkpoint {str(self.path)!r} is no partial plan ({error}): name another file, or remove it"
            ) from None
        made = values.get("made")
        made = made if isinstance(made, dict) else {}
        other = [name for name in self.made if not same(name, made.get(name), self.made[name])]
        if other or made.keys() != self.made.keys():
            differs = f"other {', other '.join(other)}" if other else "another version"
            say(f"{self.path} was made with {differs}: starting anew")
            return {}
        say(f"going on from {self.path}")
        return values

    @property
    def shown(self) -> bool:
        """Whether anyone is told how far it is."""
        return self._tell is not None

    def resume_at(self, step: int) -> None:
        """Say that work begins that is not in a kept state: what the state has cost is booked, in place of what it cost
        to take it up again."""
        if self._spent is not None:
            self.cost_log.spent["tuning"], self._spent = self._spent, None
            self._base = (step, self.meter.seconds)

    def can_afford(self, calls: int) -> bool:
        """Whether so many more network calls are within the budget."""
        return self.meter.can_afford(calls)

    def stop(self, how: str) -> None:
        """Note that the budget was spent before the tuner was done."""
        self.stopped = self.stopped or f"the budget of {self.meter.budget} {how}"

    def done(self, step: int, steps: int, before: float, after: float, state: Mapping[str, Any]) -> None:
        """Keep the state after a step, and tell how far it is."""
        seconds, spent = self.meter.seconds, self.cost_log.of("tuning")
        self.state = dict(state)
        self._keep()
        if self._tell is not None:
            pace = (seconds - self._base[1]) / max(1, step - self._base[0])
            self._tell(Progress(step, steps, before, after, spent.calls, pace * (steps - step)))

    def finish(self, plan: Mapping[str, Any]) -> None:
        """Keep the plan that came of it, in plain values."""
        self._keep(plan=dict(plan))

    def _keep(self, **more: Any) -> None:
        if self.path is not None:
            values = {"seconds": self.meter.seconds, "spent": asdict(self.cost_log.of("tuning")), "state": self.state}
            budget = str(self.meter.budget)
            write_json(self.path, {"format": FORMAT, "made": self.made, "budget": budget, **values, **more})
