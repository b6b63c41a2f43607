"""A network as a model: its prediction type, the unit and the dtype of its time, and its condition."""

from collections.abc import Callable, Mapping
from copy import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..schedules import NoiseSchedule, as_float64
from .base import Model, for_samples
from .predictions import Prediction

TIME_DTYPES = ("float32", "int", "bfloat16", "float16")

INDEXED = ("used as indices must be", "scalar types: Long", "index tensor", "Expected dtype int")
"""What torch raises for a table, an embedding, a one-hot code and `gather` whose index is a fraction."""


@dataclass(eq=False, repr=False)
class NetworkModel(Model):
    """A network under conditions of its own, without guidance; `model_wrapper` explains the fields.

    `condition` is (B, ...), or (1, ...) for one that all samples share; None for a network without a condition.
    """

    network: Callable[..., Any]
    schedule: NoiseSchedule
    prediction: Prediction
    kwargs: Mapping[str, Any]
    time_dtype: str
    shape: tuple[int, ...] | None
    condition: Tensor | None = None

    def __post_init__(self) -> None:
        weights = next(self.network.parameters(), None) if isinstance(self.network, nn.Module) else None
        self.device = "cpu" if weights is None else weights.device
        self.num_conditions = self._count_conditions()

    def _count_conditions(self) -> int | None:
        given = [self.condition, *self.kwargs.values()]
        counts = [len(value) for value in given if isinstance(value, Tensor) and value.dim()]
        return next((count for count in counts if count > 1), None)

    def with_condition(self, condition: Tensor | None) -> "NetworkModel":
        """The network under other conditions."""
        other = copy(self)
        other.condition = condition
        other.num_conditions = other._count_conditions()
        return other

    def select(self, rows: Tensor) -> "NetworkModel":
        if clash := self._clash(0):
            raise ValueError(clash)
        if self.condition is None or len(self.condition) == 1:
            return self
        return self.with_condition(self.condition[rows.to(self.condition.device)])

    def predict(self, quantity: str, x: Tensor, t: Any, tau: Any = None) -> Tensor:
        p = for_samples(self.schedule.at(t), x)
        if quantity == "x0" and not self.prediction.determines_data and (p.alpha == 0).any():
            name = type(self.prediction).__name__.lower()
            raise ValueError(
                f"a prediction of the {name} does not determine the data at alpha = 0 (t = {float(p.t.max()):.4g}): "
                "start the run a little later (times=)"
            )
        time = self.input_time(t if tau is None else tau, x)
        condition = () if self.condition is None else (rows_of("condition", self.condition, x),)
        output = self._output(self.prediction.network_input(x, p), time, *condition)
        convert = self.prediction.data if quantity == "x0" else self.prediction.noise
        return convert(_checked(output, x), x, p)

    def _output(self, x: Tensor, time: Tensor, *condition: Tensor) -> Any:
        try:
            return self.network(x, time, *condition, **self.kwargs)
        except torch.OutOfMemoryError:
            raise
        except (IndexError, RuntimeError) as error:
            hint = self._clash(len(x))
            if self.time_dtype != "int" and any(text in str(error) for text in INDEXED):
                hint = f"the network uses its time as an index ({error}): give time_dtype='int'"
            if hint is None:
                raise
            raise ValueError(hint) from error

    def _clash(self, batch: int) -> str | None:
        """Why the arguments of the network do not fit a batch of so many samples, 0 for any part of a batch; None if
        they may."""
        for name, value in self.kwargs.items():
            if isinstance(value, Tensor) and value.dim() and len(value) not in (1, batch):
                return (
                    f"model_kwargs[{name!r}] has {len(value)} rows, and a batch may hold other samples: give a row for "
                    "each sample as condition= of bind, with guidance_type='classifier-free' and guidance_scale=1, or "
                    "bind what is no batch to the network with functools.partial"
                )
        return None

    def input_time(self, tau: Any, x: Tensor) -> Tensor:
        """What the network receives for tau: (B,), float32, or int64 with time_dtype="int"."""
        time = self._rounded(self.schedule.network_time(tau))
        if self.time_dtype == "int":
            return time.long().expand(len(x)).to(x.device)
        return time.to(torch.float32).to(x.device).expand(len(x))

    def rounded_times(self, tau: Any) -> Tensor:
        times = as_float64(tau).detach()
        if self.time_dtype == "float32":
            return times
        return as_float64(self.schedule.from_network_time(self._rounded(self.schedule.network_time(times))))

    def _rounded(self, time: Tensor) -> Tensor:
        if self.time_dtype == "float32":
            return time
        if self.time_dtype == "int":
            return time.detach().round()
        return time.to(getattr(torch, self.time_dtype)).to(time.dtype)


def rows_of(name: str, condition: Tensor | None, x: Tensor) -> Tensor:
    """A condition for every row of x: (1, ...) or (B, ...) -> (B, ...)."""
    if condition is None:
        raise ValueError(f"{name}= is needed, of shape (B, ...) or (1, ...)")
    if len(condition) not in (1, len(x)):
        raise ValueError(f"{name} must have a batch of 1 or of x, {len(x)}, got shape {tuple(condition.shape)}")
    return condition.to(x.device).expand(len(x), *condition.shape[1:])


def _checked(output: Any, x: Tensor) -> Tensor:
    """The network's output of the shape of x, without the variance that it may have learned."""
    values: Any = output if isinstance(output, Tensor) else getattr(output, "sample", output)
    if isinstance(values, tuple) and values:  # as of a diffusers network with return_dict=False
        values = values[0]
    if not isinstance(values, Tensor):
        raise ValueError(f"model must return a tensor of the shape of x, {tuple(x.shape)}, got {type(output).__name__}")
    if values.shape == x.shape:
        return values
    hint = ""
    if x.dim() > 1 and values.shape == (len(x), 2 * x.shape[1], *x.shape[2:]):
        if x.dim() > 2:
            return values[:, : x.shape[1]]  # the other half predicts the variance
        hint = f": of a learned variance, wrap a network that returns the mean alone, output[:, :{x.shape[1]}]"
    raise ValueError(
        f"model must return a tensor of the shape of x, {tuple(x.shape)}, got shape {tuple(values.shape)}{hint}"
    )
