"""What tuning may cost, in network calls or in seconds."""

import re
import time
from dataclasses import dataclass
from numbers import Integral

from ..models.counting import Cost, CostLog

_FORMS = re.compile(r"(?P<number>\d+(\.\d+)?)\s*(?P<unit>calls?|s|m|h)")
_SECONDS = {"s": 1.0, "m": 60.0, "h": 3600.0}


@dataclass(frozen=True)
class Budget:
    """The most that a tuner may spend; None for no limit. One network call is one forward of one batch, and a backward
    counts as two."""

    calls: int | None = None
    seconds: float | None = None

    def __post_init__(self) -> None:
        for name in ("calls", "seconds"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"{name} of a budget must be positive, got {value!r}")

    @classmethod
    def parse(cls, text: "str | int | Budget | None") -> "Budget":
        """A budget as people write it: "20000calls", "60s", "2m", "1.5h", a number of calls, or None for no limit."""
        if isinstance(text, Budget):
            return text
        if text is None or (isinstance(text, int | Integral) and not isinstance(text, bool)):
            return cls(calls=None if text is None else int(text))
        found = _FORMS.fullmatch(text.strip()) if isinstance(text, str) else None
        number, unit = (float(found["number"]), found["unit"]) if found else (0.0, "")
        if not found or not number or (unit.startswith("call") and number % 1):
            raise ValueError(f"budget must be written as in 20000calls, 60s or 2m, and more than 0, got {text!r}")
        return cls(calls=int(number)) if unit.startswith("call") else cls(seconds=number * _SECONDS[unit])

    def __bool__(self) -> bool:
        return self.calls is not None or self.seconds is not None

    def cut(self, cost: Cost) -> Cost:
        """As much of a cost as so many calls allow."""
        if self.calls is None or cost.calls <= self.calls:
            return cost
        return Cost(self.calls, cost.evaluations * self.calls // cost.calls)

    def __str__(self) -> str:
        limits = [] if self.calls is None else [f"{self.calls} calls"]
        return " and ".join(limits if self.seconds is None else [*limits, f"{self.seconds:g} s"]) or "none"


def forward(samples: int, batch: int | None = None) -> Cost:
    """The cost of one prediction for so many samples, at most `batch` in a network call."""
    return Cost(-(-samples // (batch or samples)), samples)


class BudgetMeter:
    """How far a budget is used up, by what a cost_log holds under "tuning" and by the clock.

    Args:
        budget: what may be spent.
        cost_log: where calls are booked.
        seconds: spent before, by a run that this one continues.
    """

    def __init__(self, budget: Budget, cost_log: CostLog, seconds: float = 0.0) -> None:
        self.budget, self.cost_log = budget, cost_log
        self.began = time.monotonic() - seconds

    @property
    def calls(self) -> int:
        return self.cost_log.of("tuning").calls

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.began

    @property
    def share(self) -> float:
        """How much of the budget is used up, from 0 to 1; 0 where there is no limit."""
        calls = 0.0 if self.budget.calls is None else self.calls / self.budget.calls
        seconds = 0.0 if self.budget.seconds is None else self.seconds / self.budget.seconds
        return max(calls, seconds)

    def can_afford(self, calls: int) -> bool:
        """Whether so many more network calls are within the budget."""
        calls_left = self.budget.calls is None or self.calls + calls <= self.budget.calls
        return calls_left and (self.budget.seconds is None or self.seconds < self.budget.seconds)
