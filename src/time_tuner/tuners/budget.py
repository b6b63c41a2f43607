"""The budget of tuning, in network calls or in seconds; and the speed of a network, which relates the two."""

import re
import time
from dataclasses import dataclass
from numbers import Integral

import torch

from .._distributed import decided, num_processes
from ..models.base import Model
from ..models.counting import Cost
from ..plans.plan import Plan
from ..sampling import predict

_FORMS = re.compile(r"(?P<number>\d+(\.\d+)?)\s*(?P<unit>calls?|s|m|h)")
_SECONDS = {"s": 1.0, "m": 60.0, "h": 3600.0}
LONGEST_TIMED = 0.5  # seconds of a call that is timed, about


@dataclass(frozen=True)
class Budget:
    """The most that a tuner may spend; None for no limit. A network call is one forward of one batch, a backward counts
    as two. The seconds pass by the clock: a slow machine does less in them.

    Attributes:
        calls: the most network calls; None for no limit.
        seconds: the most seconds; None for no limit.
        default: whether it stands in for a budget that was not given.
    """

    calls: int | None = None
    seconds: float | None = None
    default: bool = False

    def __post_init__(self) -> None:
        for name in ("calls", "seconds"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"{name} of a budget must be positive, got {value!r}")

    @classmethod
    def parse(cls, text: "str | int | Budget | None") -> "Budget":
        """The budget of a text such as "20000calls", "60s", "2m" or "1.5h", or of a number of calls; None: no limit."""
        if isinstance(text, Budget):
            return text
        if text is None or (isinstance(text, Integral) and not isinstance(text, bool)):
            return cls(None if text is None else int(text))
        found = _FORMS.fullmatch(text.strip()) if isinstance(text, str) else None
        number, unit = (float(found["number"]), found["unit"]) if found else (0.0, "")
        counted = unit.startswith("call")
        if not number or (counted and number % 1):
            raise ValueError(f"budget must be written as in 20000calls, 60s or 2m, and more than 0, got {text!r}")
        return cls(calls=int(number)) if counted else cls(seconds=number * _SECONDS[unit])

    def __bool__(self) -> bool:
        return self.calls is not None or self.seconds is not None

    def __str__(self) -> str:
        limits = [] if self.calls is None else [f"{self.calls} calls"]
        return " and ".join(limits if self.seconds is None else [*limits, f"{self.seconds:g} s"]) or "none"


DEFAULT_BUDGET = Budget(seconds=120.0, default=True)
"""Where neither a budget is given nor the options of the tuner determine how much it does."""


def forward(samples: int, batch: int | None = None) -> Cost:
    """The cost of one prediction for so many samples, at most `batch` in a network call."""
    return Cost(-(-samples // (batch or samples)), samples)


@dataclass(frozen=True)
class Speed:
    """The seconds that a network takes for a call, and for each sample evaluation in it; of processes that share work,
    all of them together."""

    call: float
    evaluation: float

    def seconds(self, cost: Cost) -> float:
        """The seconds that a cost takes."""
        return self.call * cost.calls + self.evaluation * cost.evaluations


@torch.no_grad()
def measure_speed(
    model: Model, plan: Plan, shape: tuple[int, ...], most: int = 64, device: torch.device | str = "cpu"
) -> Speed:
    """The speed of a model at the last call of a plan, guidance included: by the least times of three calls with one
    sample of this shape, and of three with `most`, or fewer of a slow network."""

    def seconds(count: int) -> float:
        x = torch.zeros(count, *shape, device=device)
        began = time.perf_counter()
        float(predict(model, plan, len(plan) - 1, x).sum())  # the number waits for the device
        return time.perf_counter() - began

    plan = plan.with_guidance(len(plan))
    first = seconds(1)  # the first call is slower than the others
    several, processes = min(-(-most // num_processes()), 1 + int(LONGEST_TIMED / max(first, 1e-9))), num_processes()
    if several == 1:
        return Speed(*decided([0.0, first / processes]))
    one, all_ = (min(seconds(count) for _ in range(3)) for count in (1, several))
    evaluation = max(0.0, all_ - one) / (several - 1)
    return Speed(*decided([max(0.0, one - evaluation), evaluation / processes]))
