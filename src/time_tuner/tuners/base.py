r"""Tuners, and the run in which a tuner works.

A *tuner* improves a plan for the same number of network calls. It is a frozen dataclass: its fields are its options,
in Python, in texts such as "joint(pairs=128)" and on the command line. Four are known:

| tuner | tunes | a step | its loss | needs |
|---|---|---|---|---|
| `Sequential` | the ratios tau / t, one after another | a search for one ratio | of the state after the call | data |
| `Parallel` | the same, each on its own | the same | the same | data |
| `Joint` | step times, ratios and corrections | an iteration of Gauss-Newton | distance to a teacher | nothing |
| `LeastSquares` | corrections | the row of one call | distance to a teacher's path | nothing |

A *calibration* holds data and noise of a seed. A *budget* limits the network calls or the seconds; the best plan found
until then is the result. A *cost log* counts network calls by purpose. A *checkpoint* keeps the *state* of the tuner
after each step, plain values from which an interrupted run continues to the same plan. In the end the *guard* compares
the plan with the untuned one on held-out noise. A new tuner is one such dataclass and its entry in `TUNERS`.
"""

import logging
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Self, TypeAlias, cast

from .._distributed import check_same, decided, num_processes, rank
from .._files import one_line
from ..models.batching import BatchedModel, is_memory_full
from ..models.counting import Cost, CostLog
from ..plans.plan import Plan
from .budget import Budget, Speed
from .calibration import Calibration
from .checkpoint import Checkpoint

if TYPE_CHECKING:
    from .ranking import Ranked

PARTS = ("times", "tau", "corrections", "reuse")
"""What a plan holds that can be tuned: step times, conditioning times, corrections, and, where it leaves guidance out
of some calls, what these reuse of it."""

logger = logging.getLogger("time_tuner")


@dataclass(frozen=True)
class Tuner(ABC):
    """The base class of tuners; a subclass must implement `tune`."""

    uses_data: ClassVar[bool] = True
    """Whether it tunes on calibration data: by default the model's own samples."""

    @abstractmethod
    def tune(self, model: BatchedModel, plan: Plan, run: "TuningRun") -> Plan:
        """The plan, tuned, with a report in its provenance. The calls of the model are counted."""

    @property
    def tunes(self) -> Sequence[str]:
        """The parts of a plan that it tunes: all other parts stay those of the given plan."""
        return PARTS

    def starts(self, plan: Plan) -> Sequence[Plan]:
        """The plans whose untuned tables are ranked: this one, and others of which it may return one."""
        return (plan,)

    ranks_on_its_pairs: ClassVar[bool] = False
    """Whether the untuned plans are ranked on runs of the teacher that it tunes on; if not these are made for it."""

    @property
    def max_starts(self) -> int:
        """From how many plans it may start."""
        return 1

    @property
    def sized(self) -> bool:
        """Whether its options determine how much it does, so that it needs no budget."""
        return False

    def check(self, plan: Plan, own_samples: bool) -> None:
        """Raise a ValueError, before any network call, if it cannot tune this plan, or cannot use the given data.
        `own_samples` is False if data is given."""
        return

    def for_model(self, model: BatchedModel, plan: Plan, calibration: Calibration) -> Self:
        """The tuner with those options that the model decides, after a few network calls with two samples."""
        return self

    def try_out(self, model: BatchedModel, plan: Plan, run: "TuningRun") -> None:
        """Raise a ValueError, after a few network calls with two samples, if it cannot tune this model."""
        return

    def cost(
        self, plan: Plan, samples: int, batch: int | None, budget: Budget, speed: Speed | None
    ) -> dict[str, tuple[Cost, Cost]]:
        """The usual and the largest cost by purpose, "tuning" and perhaps "teacher"; {} where they are not known. Calls
        hold `batch` samples at most; the cost of tuning will be cut to the budget."""
        return {}

    def exchanged(self, plan: Plan, tuning: Cost, numbers: int) -> int:
        """The bytes that processes which share the work exchange in this much tuning, of samples of so many numbers, at
        most: by default the loss of every sample after every call."""
        return 8 * tuning.evaluations

    def following(self, tuned: Plan) -> Self:
        """The tuner of the next plan of `tune_several`, after this one was tuned."""
        return self


PHASES = {"sizing": "timing the network", "data": "own samples", "grids": "ranking grids", "reference": "reference run"}
"""Phases of a run that have other names than their purposes in the cost log."""

INTERVAL = 0.1  # seconds between two reports of progress, at least, but for those of steps and of new phases


@dataclass(frozen=True)
class Progress:
    """How far a run is.

    Attributes:
        phase: "sizing", "data", "teacher", "ranking", "grids", "tuning", "reference" or "guard".
        fraction: of the whole run that is done, in time; it does not fall.
        seconds_left: of the whole run, estimated; None where nothing is known yet.
        calls: network calls made.
        step: steps or iterations that the tuner has made.
        losses: of the last step, or of the best iterate: untuned and tuned; None before there is one.
    """

    phase: str
    fraction: float
    seconds_left: float | None
    calls: int
    step: int = 0
    losses: tuple[float, float] | None = None

    def __str__(self) -> str:
        loss = [] if self.losses is None else [f"loss {self.losses[0]:.4g} -> {self.losses[1]:.4g}"]
        left = [] if self.seconds_left is None else [f"{self.seconds_left:.0f} s left"]
        return ", ".join([PHASES.get(self.phase, self.phase), *loss, f"{self.calls:,} calls", *left])


Listener: TypeAlias = Callable[[Progress], None]


@contextmanager
def listener(progress: bool | Listener) -> Iterator[Listener | None]:
    """A listener that shows one bar over the whole run on standard error for True, none for False, or the given one. Of
    several processes that share work the first alone has one."""
    if progress is not True or rank():
        yield None if isinstance(progress, bool) or rank() else progress
        return
    from tqdm import tqdm  # only who looks at it waits for its import

    with tqdm(total=100, bar_format="{percentage:3.0f}%|{bar:20}| {desc}") as bar:

        def show(progress: Progress) -> None:
            bar.set_description_str(str(progress), refresh=False)
            bar.update(100 * progress.fraction - bar.n)

        yield show
        bar.refresh()


class TuningRun:
    """One run of a tuner.

    A tuner that saves its state after each step with `save_step`, and begins from `state`, can be interrupted and
    continued: the state holds plain JSON values, from which it must find the same plan.

    Progress is reported after each step, when a phase begins, and ten times a second at most while network calls are
    made. The time left follows from the sample evaluations left (of those `planned`) and the pace so far; for the
    tuner's own work from the share of it that is done, or from the clock of its budget, whichever is less.

    Args:
        calibration: data, noise and seeds.
        budget: of tuning; no limit by default.
        cost_log: where network calls are counted.
        checkpoint: the file that keeps the state, or None.
        listener: called with the `Progress`, or None.
        planned: the sample evaluations that the run will make, by purpose.

    Attributes:
        calibration: data, noise and seeds.
        budget: of tuning.
        cost_log: where network calls are counted.
        state: saved by an earlier run; {} for a new run.
        same_budget: whether that run had the same budget.
        plan: the finished plan of that run, in plain values; None if that run did not finish.
        share: of the tuner's work that is done, from 0 to 1.
        stopped: why the tuner ended before it was done, or None.
        ranking: the untuned plans, the nearest first; empty where none were ranked.
        kept_ranking: their losses by name, from an earlier run or of this one; None for a new run.
    """

    ranking: "Sequence[Ranked]" = ()

    def __init__(
        self,
        calibration: Calibration | None = None,
        budget: Budget | None = None,
        cost_log: CostLog | None = None,
        checkpoint: Checkpoint | None = None,
        listener: Listener | None = None,
        planned: Mapping[str, Cost] | None = None,
    ) -> None:
        self.calibration = cast(Calibration, calibration)  # none where a tuner brings its own batches
        self.budget, self.cost_log = budget or Budget(), cost_log or CostLog()
        self._checkpoint, self._listener, self._planned = checkpoint, listener, planned or {}
        kept = {} if checkpoint is None else decided(checkpoint.load() if not rank() else {})
        costs = {name: Cost(**cost).own_part() for name, cost in kept["costs"].items()} if kept else None
        self._costs = costs  # of an earlier run, until this one continues it
        self._counted: list[str] = kept.get("units", [])  # the units of work in these
        self._continues, self._seconds = bool(kept), float(kept.get("seconds", 0.0))
        self.state: dict[str, Any] = kept.get("state", {})
        self.same_budget = kept.get("budget") == str(self.budget)
        self.plan: dict[str, Any] | None = kept.get("plan") if self.same_budget else None
        self.kept_ranking: dict[str, float] | None = kept.get("ranking")
        self.share, self.stopped = 0.0, cast("str | None", None)
        self._progress, self._reported = Progress("", 0.0, None, 0), 0.0
        self.begin()
        self._began = self._clock
        if listener is not None:
            self.cost_log.on_change = self._report

    def begin(self) -> None:
        """The tuner begins, and with it the clock of its budget."""
        self._clock = time.monotonic() - self._seconds

    def resume(self) -> None:
        """Count the calls and seconds of the earlier run in place of those spent on restoring its state."""
        if self._costs is not None:
            self.cost_log.spent, self._costs = self._costs, None
            if self.calibration is not None and self.calibration.units is not None:
                self.calibration.units.resume(self._counted)
            self.begin()

    @contextmanager
    def restoring(self) -> Iterator[None]:
        """Name the checkpoint in errors of the block until a new step is saved: its state may be what is wrong."""
        try:
            yield
        except Exception as error:
            if not self._continues or self._checkpoint is None or is_memory_full(error):
                raise
            raise ValueError(
                f"checkpoint {str(self._checkpoint.path)!r} cannot be continued from "
                f"({type(error).__name__}: {one_line(error)}): if the model can be called, remove it, to begin anew"
            ) from error

    @property
    def seconds(self) -> float:
        """The seconds that tuning has taken, those of an earlier run included."""
        return decided(self._elapsed)

    @property
    def _elapsed(self) -> float:
        """The seconds by the clock of this process."""
        return time.monotonic() - self._clock

    @property
    def spent_share(self) -> float:
        """The share of the budget that is spent, from 0; 0 where there is no limit."""
        calls = 0.0 if self.budget.calls is None else self.cost_log.of("tuning").calls / self.budget.calls
        return decided(max(calls, 0.0 if self.budget.seconds is None else self._elapsed / self.budget.seconds))

    def can_afford(self, calls: int, seconds: float = 0.0) -> bool:
        """Whether so many more network calls and seconds are within the budget, and any seconds are left."""
        limit, most = self.budget.calls, self.budget.seconds
        within = limit is None or self.cost_log.of("tuning").calls + calls <= limit
        return decided(within and (most is None or (self._elapsed < most and self._elapsed + seconds <= most)))

    def stop(self, how: str) -> None:
        """Note that the budget ended the tuner: "the budget of 60 s" and `how`."""
        if self.stopped is None:
            self.stopped = f"the budget of {self.budget} {how}"
            if self.state:
                logger.info("%s", self.stopped)
            else:
                logger.warning("%s; the plan is not tuned", self.stopped)

    def save_step(self, step: int, share: float, losses: tuple[float, float], state: Mapping[str, Any]) -> None:
        """Save the state after a step, from which a run continues, and report the progress: the number of steps made,
        the share of the tuner's work that is done, and the losses of the step, or of the best, untuned and tuned."""
        self.state, self.share = dict(state), share
        check_same(self.state, f"state after step {step}")
        self._save()
        self._progress = replace(self._progress, step=step, losses=losses)
        self._report(now=True)

    def keep_ranking(self, losses: Mapping[str, float]) -> None:
        """Save the losses of the untuned plans by name."""
        self.kept_ranking = dict(losses)
        self._save()

    def finish(self, plan: Mapping[str, Any]) -> None:
        """Save the finished plan, and report the end."""
        if self.plan is None:
            self._save(plan=dict(plan))
        self._call(self._progress.phase, 1.0, 0.0)

    def _save(self, **more: Any) -> None:
        self._continues = False
        if self._checkpoint is not None:
            costs = self.cost_log.to_dict()
            entries = {"budget": str(self.budget), "seconds": self._elapsed, "costs": costs, "state": self.state}
            entries["ranking"] = self.kept_ranking
            if self.calibration.units is not None:
                entries["units"] = list(self.calibration.units.counted)
            self._checkpoint.save(**entries, **more)

    def _report(self, now: bool = False) -> None:
        phase, seconds, last = self.cost_log.current, time.monotonic() - self._began, self._progress
        if now or phase != last.phase or seconds - self._reported >= INTERVAL:
            self._reported, left = seconds, self._left(seconds, phase in ("reference", "guard"))
            done = 0.0 if left is None else seconds / max(seconds + left, 1e-9)
            self._call(phase, max(last.fraction, done), left)

    def _call(self, phase: str, fraction: float, left: float | None) -> None:
        calls = self.cost_log.total.calls
        self._progress = replace(self._progress, phase=phase, fraction=fraction, seconds_left=left, calls=calls)
        if self._listener is not None:
            self._listener(self._progress)

    def _left(self, seconds: float, tuned: bool) -> float | None:
        """The seconds left; None where nothing is known."""
        spent = Counter({name: cost.evaluations for name, cost in self.cost_log.spent.items()})
        spent["tuning"] += 0 if self._costs is None else self._costs.get("tuning", Cost()).evaluations
        if not spent.total():
            return None

        def of(*phases: str) -> float:
            planned = {phase: self._planned.get(phase, Cost()).evaluations / num_processes() for phase in phases}
            left = (planned[phase] - spent[phase] for phase in phases)
            return seconds / spent.total() * sum(max(0, one) for one in left)

        ways = [of("teacher", "ranking", "grids", "tuning")] if "tuning" in self._planned else []
        if self.share > 0:
            tuning = seconds * spent["tuning"] / spent.total()  # the rest of the time is that of other phases
            ways = [tuning * (1 - self.share) / self.share]
        if self.budget.seconds is not None:
            ways.append(self.budget.seconds - self._elapsed)
        if tuned:
            ways = [0.0]
        return of("data", "reference", "guard") + max(0.0, min(ways)) if ways else None
