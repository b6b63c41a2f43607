"""Counts of network calls and sample evaluations, by purpose."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from .._distributed import decided, num_processes, rank, summed
from .base import Model, ModelAround


@dataclass(frozen=True)
class Cost:
    """Network calls, and the sample evaluations in them: batch x forward, twice that under classifier-free guidance; a
    backward counts as two forwards."""

    calls: int = 0
    evaluations: int = 0

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(self.calls + other.calls, self.evaluations + other.evaluations)

    def of_each(self, evaluations: int) -> "Cost":
        """The same calls with so many evaluations for each sample."""
        return Cost(self.calls, self.evaluations * evaluations)

    def __mul__(self, times: int) -> "Cost":
        return Cost(self.calls * times, self.evaluations * times)

    def of_all(self) -> "Cost":
        """What the processes that share work have spent, where this is the part of each: the calls of the first, and
        the evaluations of all."""
        evaluations = int(summed(torch.tensor(self.evaluations)))
        return Cost(decided(self.calls), evaluations)

    def own_part(self) -> "Cost":
        """The part of this process, where this is what all have spent."""
        return Cost(self.calls, (self.evaluations + num_processes() - 1 - rank()) // num_processes())


@dataclass
class CostLog:
    """The costs of a run: of each purpose, and the purpose of the calls that are made now. `on_change` is called after
    every change of either."""

    current: str = "tuning"
    spent: dict[str, Cost] = field(default_factory=dict)
    on_change: Callable[[], None] = lambda: None

    @contextmanager
    def purpose(self, name: str) -> Iterator[None]:
        """Calls in the block are counted under this purpose."""
        before, self.current = self.current, name
        self.on_change()
        try:
            yield
        finally:
            self.current = before

    def add(self, cost: Cost, purpose: str | None = None) -> None:
        """Count a cost, under the current purpose by default."""
        purpose = purpose or self.current
        self.spent[purpose] = self.of(purpose) + cost
        self.on_change()

    def count(self, prediction: Tensor, each: int = 1) -> None:
        """Count a prediction with so many evaluations for each sample, and its backward pass when it comes."""
        if isinstance(prediction, Tensor):
            self.add(Cost(1, each * len(prediction)))
            if prediction.requires_grad:
                purpose = self.current
                prediction.register_hook(lambda gradient: self.add(Cost(2, 2 * each * len(gradient)), purpose))

    def of(self, purpose: str) -> Cost:
        """The cost of one purpose."""
        return self.spent.get(purpose, Cost())

    @property
    def total(self) -> Cost:
        """The cost of all purposes."""
        return sum(self.spent.values(), Cost())

    def to_dict(self) -> dict[str, dict[str, int]]:
        """The costs of all processes that share work, in plain values."""
        return {name: asdict(cost.of_all()) for name, cost in self.spent.items()}


class CountedModel(ModelAround):
    """A model whose network calls are counted in a log, and their backward passes too."""

    def __init__(self, inner: Model, cost_log: CostLog) -> None:
        super().__init__(inner)
        self.cost_log = cost_log

    def predict(self, quantity: str, x: Tensor, t: Any, tau: Any = None) -> Tensor:
        prediction = self.inner.predict(quantity, x, t, tau)
        self.cost_log.count(prediction, self.evaluations)
        return prediction

    def parts(
        self, quantity: str, x: Tensor, t: Any, tau: Any = None, guided: bool = True
    ) -> tuple[Tensor, Tensor | None]:
        prediction, added = self.inner.parts(quantity, x, t, tau, guided)
        self.cost_log.count(prediction, self.evaluations if guided else 1)
        return prediction, added
