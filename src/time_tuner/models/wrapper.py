"""Any network as a model: prediction type, guidance, conditions and the unit of time are settled here."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from .._checks import choose
from ..schedules import NoiseSchedule, as_schedule
from .base import Model
from .guidance import ClassifierFreeGuidance, ClassifierGuidance
from .network import TIME_DTYPES, NetworkModel, check_labels, num_classes
from .predictions import PREDICTIONS

GUIDANCE_TYPES = ("uncond", "classifier", "classifier-free")


class model_wrapper(Model):  # noqa: N801 - the published name, called like a function
    """A network, discrete or continuous in time, as a model in continuous time.

    The result is called `model_fn(x, t, tau=None, condition=None, uncond_condition=None)`: the noise in x (B, ...) at
    the solver's time t, where the network receives tau (t when None). `model_fn.bind(condition, uncond_condition)`
    gives the `Model` under these conditions, which samplers and tuners take. Where sigma exceeds 200 alpha they call
    its `x0`, so that a prediction of the data, of v or of a flow loses nothing there, and runs may start at alpha = 0.

    Args:
        model: the network, called `model(x, time, [condition], **model_kwargs)` with the network time (B,) in float32:
            `noise_schedule.network_time(t)`, for a discrete schedule the level n = t N - 1, which falls between two
            levels when t does. It returns a tensor, an object whose `sample` is one, or a tuple that begins with one.
            Of a network with learned variance, which returns (B, 2 C, ...) for x (B, C, ...) of three or more
            dimensions, the first C channels are used, the mean.
        noise_schedule: the schedule that the network was trained with.
        model_type: what the network predicts, a name in `PREDICTIONS`: "noise", "x_start" (the data), "v"
            (alpha eps - sigma x0), "score", "flow" (the velocity eps - x0), or, on a `NoiseScheduleVE`, "edm" or
            "edm_v", see `EDM`: c_noise is that of tau; c_in, c_skip and c_out are those of the solver's t.
        model_kwargs: given to the network at every call, whatever the samples of the batch. What belongs to a sample is
            a condition.
        guidance_type: "uncond": the network is called without a condition. "classifier": see `ClassifierGuidance`.
            "classifier-free": see `ClassifierFreeGuidance`.
        guidance_scale: w.
        classifier_fn: called `classifier_fn(x, time, condition, **classifier_kwargs)`, gives log p(c | x), (B,).
        classifier_kwargs: given to the classifier at every call.
        cond_process_fn: embeds a raw condition, once for each `bind`.
        time_dtype: how the network receives its time: "float32"; "int" for networks that take whole levels alone, to
            which times are rounded, and on which they are tuned; "bfloat16" or "float16" where a pipeline casts the
            time to that dtype (bfloat16 holds only every fourth of the levels from 512 to 1024). `rounded_times` gives
            the times that are left.
        shape: of one sample, for those who draw samples of a model without data or noise at hand.

    Raises:
        ValueError: names the argument, what was got and the way out.
    """

    def __init__(
        self,
        model: Callable[..., Any],
        noise_schedule: NoiseSchedule,
        model_type: str = "noise",
        model_kwargs: Mapping[str, Any] | None = None,
        guidance_type: str = "uncond",
        guidance_scale: float = 1.0,
        classifier_fn: Callable[..., Tensor] | None = None,
        classifier_kwargs: Mapping[str, Any] | None = None,
        cond_process_fn: Callable[[Any], Any] | None = None,
        time_dtype: str = "float32",
        shape: tuple[int, ...] | None = None,
    ) -> None:
        if not callable(model):
            raise ValueError(f"model must be a network, called model(x, time), got {model!r}")
        noise_schedule = as_schedule("noise_schedule", noise_schedule)
        choose("model_type", model_type, PREDICTIONS)
        choose("guidance_type", guidance_type, GUIDANCE_TYPES)
        choose("time_dtype", time_dtype, TIME_DTYPES)
        if guidance_type == "classifier" and classifier_fn is None:
            raise ValueError(
                "guidance_type='classifier' needs classifier_fn=, which returns log p(c | x) of shape (B,)"
            )
        try:
            prediction = PREDICTIONS[model_type].on(noise_schedule)
        except ValueError as error:
            raise ValueError(f"model_type={model_type!r} {error}") from None
        self.schedule = noise_schedule
        self.shape = None if shape is None else tuple(shape)
        self.guidance_type, self.guidance_scale, self.time_dtype = guidance_type, float(guidance_scale), time_dtype
        kwargs = dict(model_kwargs or {})
        self._network = NetworkModel(model, noise_schedule, prediction, kwargs, time_dtype, self.shape)
        self.whole_levels = self._network.whole_levels
        self._classifier: Any = classifier_fn and partial(classifier_fn, **(classifier_kwargs or {}))
        self._process = cond_process_fn
        self._recent: list[tuple[Any, int | None, Tensor | None]] = []

    def predict(
        self, quantity: str, x: Tensor, t: Any, tau: Any = None, condition: Any = None, uncond_condition: Any = None
    ) -> Tensor:
        return self._bound(condition, uncond_condition).predict(quantity, x, t, tau)

    def __call__(
        self, x: Tensor, t: Any, tau: Any = None, condition: Any = None, uncond_condition: Any = None
    ) -> Tensor:
        return self.predict("eps", x, t, tau, condition, uncond_condition)

    def x0(self, x: Tensor, t: Any, tau: Any = None, condition: Any = None, uncond_condition: Any = None) -> Tensor:
        return self.predict("x0", x, t, tau, condition, uncond_condition)

    def rounded_times(self, tau: Any) -> Tensor:
        return self._network.rounded_times(tau)

    def bind(self, condition: Any = None, uncond_condition: Any = None) -> Model:
        """The model under these conditions.

        Args:
            condition: (B, ...), or (1, ...) for one that all samples share; or a `DataLoader` of them, or of dicts that
                hold them as `label`, which is read to its end, in its order.
            uncond_condition: the condition of the unconditional prediction, as `condition`.

        Returns:
            The model.

        Raises:
            ValueError: a condition is missing that the guidance needs, or given without guidance; or a label is none
                of the network's classes, where their number is known.
        """
        if self.guidance_type == "uncond" and not (condition is None and uncond_condition is None):
            raise ValueError(
                "condition= has no effect with guidance_type='uncond': give guidance_type='classifier-free' to "
                "model_wrapper, where guidance_scale=1 gives the network the condition alone"
            )
        return self._bound(condition, uncond_condition, check=True)

    def _bound(self, condition: Any, uncond_condition: Any, check: bool = False) -> Model:
        """As `bind`. Without guidance the conditions are ignored, as in the published code, and labels are looked at
        on demand only: on a GPU that waits for the device."""
        if self.guidance_type == "uncond":
            return self._network
        if condition is None:
            raise ValueError(f"guidance_type={self.guidance_type!r} needs condition=, of shape (B, ...) or (1, ...)")
        if self.guidance_type == "classifier-free" and self.guidance_scale != 1 and uncond_condition is None:
            raise ValueError("guidance_type='classifier-free' needs uncond_condition= unless guidance_scale is 1")
        network = self._network.with_condition(self._embedded("condition", condition))
        unconditional = self._embedded("uncond_condition", uncond_condition)
        if check and self.guidance_type == "classifier-free":
            classes = num_classes(network.network)
            check_labels("condition", network.condition, classes)
            check_labels("uncond_condition", unconditional, classes)
        if self.guidance_type == "classifier":
            return ClassifierGuidance(network, self._classifier, self.guidance_scale)
        if self.guidance_scale == 1:
            return network
        assert unconditional is not None
        return ClassifierFreeGuidance(network, unconditional, self.guidance_scale)

    def _embedded(self, name: str, raw: Any) -> Tensor | None:
        """A raw condition after `cond_process_fn`, which is not repeated for an object that was just given."""
        if isinstance(raw, DataLoader):
            parts = [self._embedded(name, _of_batch(name, batch)) for batch in raw]
            found = [part for part in parts if part is not None]
            if not found or len(found) < len(parts):
                raise ValueError(f"{name}= must be a data loader of conditions, got one with nothing in it")
            return torch.cat(found)
        if raw is None or self._process is None:
            return _condition(raw)
        if not isinstance(raw, Tensor | str | tuple | int | float):  # it may have been written to since
            return _condition(self._process(raw))
        version = raw._version if isinstance(raw, Tensor) and not raw.is_inference() else None
        same = [entry for entry in self._recent if entry[0] is raw and entry[1] == version]
        entry = same[0] if same else (raw, version, _condition(self._process(raw)))
        # Three are kept: the conditions of tuning and of the guard, and the unconditional one.
        self._recent = [entry, *(other for other in self._recent if other is not entry)][:3]
        return entry[2]


def _of_batch(name: str, batch: Any) -> Any:
    """The conditions in a batch of a data loader."""
    several = isinstance(batch, list | tuple) and any(isinstance(part, Tensor) for part in batch)
    if several and len(batch) == 1:  # of a data set of tensors
        return batch[0]
    if several or (isinstance(batch, Mapping) and "label" not in batch):
        got = f"dicts with {', '.join(map(str, batch))}" if isinstance(batch, Mapping) else f"{len(batch)} tensors each"
        raise ValueError(
            f"{name}= must be a data loader of conditions, or of dicts with 'label', got one of {got}: a "
            "collate_fn of the loader can choose"
        )
    return batch["label"] if isinstance(batch, Mapping) else batch


def _condition(value: Any) -> Tensor | None:
    if value is None:
        return None
    tensor = torch.as_tensor(value)
    return tensor[None] if tensor.dim() == 0 else tensor
