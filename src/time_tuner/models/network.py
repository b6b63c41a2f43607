"""A network as a model: its prediction type, the unit and the dtype of its time, and its condition."""

from collections.abc import Callable, Mapping
from copy import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .._checks import accepts
from ..schedules import NoiseSchedule, as_float64
from .base import Model, for_samples
from .batching import is_memory_full
from .fingerprint import network_fingerprint
from .predictions import Prediction

TIME_DTYPES = ("float32", "int", "bfloat16", "float16")

INDEXED = ("used as indices must be", "scalar types: Long", "index tensor", "Expected dtype int")
"""What torch raises for a table, an embedding, a one-hot code and `gather` whose index is a fraction."""

CLASSES = ("num_class_embeds", "num_embeds_ada_norm")
"""The entries of diffusers' configurations that have the number of classes."""

OUT_OF_RANGE = ("out of range", "out of bounds", "Class values must be")
"""What torch raises, on the CPU, for the same with an index that they do not have."""


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
        self.device = device_of(self.network)
        self.num_conditions = self._count_conditions()
        self.whole_levels = self.time_dtype == "int"

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

    def fingerprint(self) -> dict[str, Any]:
        conditions = "none" if self.condition is None else "given"
        kind = self.prediction.name_in_diffusers
        return {"network": network_fingerprint(self.network), "prediction_type": kind, "conditions": conditions}

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
        except (IndexError, RuntimeError, TypeError) as error:
            if is_memory_full(error):
                raise
            hint = self._reason(error, x, time, *condition)
            if hint is None:
                raise
            raise ValueError(hint) from error

    def _reason(self, error: Exception, x: Tensor, time: Tensor, *condition: Tensor) -> str | None:
        """Why the network has failed; None if the reason lies inside the network."""
        names = ["x", "time", *["condition"] * len(condition), *(f"{name}=" for name in self.kwargs)]
        called = self.network.forward if isinstance(self.network, nn.Module) else self.network
        if not accepts(called, 2 + len(condition), self.kwargs):
            return (
                f"model must be a network called with ({', '.join(names)}), got one for other arguments: {error}; "
                "a condition is given to bind, with guidance_type='classifier-free', others as model_kwargs="
            )
        if clash := self._clash(len(x)):
            return clash
        if self.shape is not None and x.shape[1:] != self.shape:
            return f"x must have shape (B, {', '.join(map(str, self.shape))}), got {tuple(x.shape)}: {error}"
        labels = [part for part in condition if part.dim() == 1]
        if any(text in str(error) for text in INDEXED):
            if labels and labels[0].is_floating_point():
                return f"the network uses its condition or its time as an index ({error}): give condition.long()"
            if self.time_dtype != "int":
                return f"the network uses its time as an index ({error}): give time_dtype='int'"
        if labels and not labels[0].is_floating_point() and any(text in str(error) for text in OUT_OF_RANGE):
            return f"condition must be labels of the network's classes, from 0, got {labels[0].tolist()}: {error}"
        return None

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


def device_of(network: Any) -> torch.device | str:
    """The device of a network's states: that of its weights, or where accelerate's hooks bring them for a call."""
    weights = next(network.parameters(), None) if isinstance(network, nn.Module) else None
    if weights is None or weights.device.type != "meta":
        return "cpu" if weights is None else weights.device
    hook = getattr(network, "_hf_hook", None)
    devices = (getattr(one, "execution_device", None) for one in getattr(hook, "hooks", [hook]))
    device = next((one for one in devices if one is not None), None)
    return "cpu" if device is None else torch.empty(0, device=device).device


def num_classes(network: Any) -> int | None:
    """The number of classes of a network, "no class" included: its attribute `num_classes`, or that of the
    configuration of a diffusers network; None where it is not known."""
    if isinstance(known := getattr(network, "num_classes", None), int):
        return known
    config = getattr(network, "config", {})
    found = [config.get(name) for name in CLASSES] if isinstance(config, Mapping) else []
    return next((number for number in found if isinstance(number, int)), None)


def check_labels(name: str, labels: Any, classes: int | None) -> None:
    """Raise a ValueError if one of the labels (n,) is none of so many classes; None for an unknown number."""
    given = torch.as_tensor(labels) if classes and labels is not None else torch.empty(0)
    if given.is_floating_point() or given.dim() > 1:  # an embedding
        return
    wrong = [label for label in given.reshape(-1).tolist() if not 0 <= label < (classes or 0)]
    if wrong:
        raise ValueError(f"{name} must be 0 to {(classes or 0) - 1}, got {wrong[0]}")


def rows_of(name: str, condition: Tensor | None, x: Tensor) -> Tensor:
    """A condition for every row of x: (1, ...) or (B, ...) -> (B, ...)."""
    if condition is None:
        raise ValueError(f"{name}= is needed, of shape (B, ...) or (1, ...)")
    if len(condition) not in (1, len(x)):
        raise ValueError(
            f"{name} must have a batch of 1 or of x, {len(x)}, got shape {tuple(condition.shape)}: bind as many "
            "as there are samples"
        )
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
