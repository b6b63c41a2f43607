"""A pipeline as `eps(x, t, tau)`: its network, prompts, guidance and extras as they run, by its own code."""

from collections.abc import Mapping, Sequence
from copy import copy
from inspect import Parameter, signature
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from .._checks import check_int
from ..models.base import Model
from ..schedules import as_float64
from .config import config_of, prediction_of, schedule_of
from .paused import PausedPipeline, PausingScheduler

DEALT = ("prompt", "label", "image")
"""Words in the names of arguments that hold one entry for each condition."""

MOST_HELD = 64
"""Calls of a pipeline that stand still at the same time, one for each batch of conditions."""


class PipelineModel(Model):
    """`eps(x, t, tau=None)` of a pipeline, with `.x0`, for states x (B, ...) of its denoising loop (latents).

    Row i is under condition i modulo their number, whatever the batch. While it exists the pipeline is not its own:
    use it in a `with` block.

    Args:
        pipe: a diffusers pipeline with a scheduler.
        prompts: texts, one for each condition; instead of them `prompt_embeds=` (n, ...) and what goes with it, or
            `class_labels=`; None where the pipeline takes nothing of the kind.
        class_labels: labels, one for each condition.
        batch: how many states its network sees at a time.
        **inputs: of the pipeline's call, as `guidance_scale=5.0`. Lists and tensors of n entries among them whose names
            have "prompt", "label" or "image" in them go with the conditions.

    Attributes:
        schedule, shape, device, dtype: of its states.
        prediction: what it hands to its scheduler.

    Raises:
        ValueError: a pipeline that cannot be driven, or no prompts where it needs them; says which part and what to do.
    """

    shape: tuple[int, ...]

    def __init__(
        self,
        pipe: Any,
        prompts: Sequence[str] | None = None,
        class_labels: Sequence[int] | None = None,
        batch: int = 4,
        **inputs: Any,
    ) -> None:
        self.pipe, self.batch = pipe, check_int("batch", batch, 1)
        self._takes = _parameters(pipe)
        given = {"prompt": _listed("prompts", prompts), "class_labels": _listed("class_labels", class_labels)}
        self._inputs = inputs | {name: value for name, value in given.items() if value is not None}
        self.conditions = self._count()
        self.num_conditions = self.conditions if self.conditions > 1 else None
        config = config_of(pipe.scheduler)
        self.prediction = prediction_of(config)
        self._rows: list[int] | None = None  # which rows of the whole these are, where it is a part
        self._paused: dict[tuple[int, ...], PausedPipeline] = {}
        self._own, self._bar = pipe.scheduler, getattr(pipe, "_progress_bar_config", {})
        self._scheduler = PausingScheduler(pipe)
        pipe.scheduler = self._scheduler
        pipe.set_progress_bar_config(**{**self._bar, "disable": True})
        try:
            self._look(config)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> "PipelineModel":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give the pipeline back as it was."""
        for paused in self._paused.values():
            paused.close()
        self._paused.clear()
        self.pipe.scheduler = self._own
        self.pipe._progress_bar_config = self._bar

    def __call__(self, x: Tensor, t: Any, tau: Any = None) -> Tensor:
        """The noise in x (B, ...)."""
        return self.predict("eps", x, t, tau)

    def x0(self, x: Tensor, t: Any, tau: Any = None) -> Tensor:
        """The data in x (B, ...)."""
        return self.predict("x0", x, t, tau)

    def select(self, rows: Tensor) -> "PipelineModel":
        """The same for some rows (n,) of the batch, each under the condition that it has there."""
        part = copy(self)
        part._rows = [self._row(i) for i in rows.tolist()]
        part.num_conditions = len(part._rows)
        return part

    def rounded_times(self, tau: Any) -> Tensor:
        """The times that the network really hears when it is told `tau`: rounded, where the pipeline rounds them."""
        tau = as_float64(tau).detach()
        if self._rounds is None:
            return tau
        label = self.schedule.network_time(tau).float().to(self._rounds)
        return as_float64(self.schedule.from_network_time(label.double()))

    def facts(self) -> dict[str, Any]:
        """What a plan should say of the pipeline that it was made for; plain values."""
        network = _network(self.pipe)
        facts = {
            "pipeline": type(self.pipe).__name__,
            "network": type(network).__name__,
            "prediction_type": self.prediction.kind,
            "conditions": self.conditions,
            "shape": list(self.shape),
            "dtype": str(self.dtype).removeprefix("torch."),
        }
        plain = {name: value for name, value in self._inputs.items() if isinstance(value, bool | int | float | str)}
        return facts | {name: value for name, value in plain.items() if "prompt" not in name}

    def predict(self, quantity: str, x: Tensor, t: Any, tau: Any = None) -> Tensor:
        p = self.schedule.at(t)
        if p.t.dim():
            raise ValueError(f"t must be one time for all samples of a pipeline, got shape {tuple(p.t.shape)}")
        label = self.schedule.network_time(t if tau is None else tau)
        parts = [
            self.prediction.read(quantity, self._said(first, x[first : first + self.batch], label), part, p)
            for first, part in ((i, x[i : i + self.batch]) for i in range(0, len(x), self.batch))
        ]
        return torch.cat(parts).to(x)

    def _said(self, first: int, x: Tensor, label: Tensor) -> Tensor:
        """What the pipeline says of rows `first`, ... of a batch."""
        paused = self._hold(tuple(self._row(first + i) % self.conditions for i in range(len(x))))
        copies = len(paused.first) // len(x)  # some pipelines (DiT) keep two of each state under guidance
        return paused.predict(torch.cat([x] * copies), label)[: len(x)]

    def _row(self, i: int) -> int:
        return i if self._rows is None else self._rows[i]

    def _hold(self, conditions: tuple[int, ...]) -> PausedPipeline:
        if conditions not in self._paused:
            if len(self._paused) == MOST_HELD:
                self._paused.pop(next(iter(self._paused))).close()
            self._paused[conditions] = PausedPipeline(self._scheduler, self._inputs_of(conditions))
        return self._paused[conditions]

    def _look(self, config: Mapping[str, Any]) -> None:
        """Learn what the pipeline is like from two calls of its network, in the same state and told the same."""
        dtypes: list[torch.dtype | None] = []
        network = _network(self.pipe)
        hook = network.register_forward_pre_hook(
            lambda _, args, kw: dtypes.append(_time_dtype(args, kw)), with_kwargs=True
        )
        paused = PausedPipeline(self._scheduler, self._inputs_of((0,)), iterations=2)
        try:
            hook.remove()
            self.schedule = schedule_of(config, mu=self._scheduler.mu)
            self.shape, self.dtype, self.device = tuple(paused.first.shape[1:]), paused.first.dtype, paused.first.device
            self._rounds = next((dtype for dtype in dtypes if dtype in (torch.bfloat16, torch.float16)), None)
            with torch.no_grad():
                again = paused.predict(paused.first, paused.label)
        finally:
            hook.remove()
            paused.close()
        if not torch.allclose(again, paused.first_said, rtol=1e-3, atol=1e-5):
            raise ValueError(
                f"what {type(self.pipe).__name__} predicts depends on how many calls it has made, not on state and "
                "time alone (control_guidance_start and _end do that): leave that out to tune it"
            )

    def _inputs_of(self, conditions: tuple[int, ...]) -> dict[str, Any]:
        """The arguments of the pipeline's call for these conditions."""
        inputs = {name: _dealt(value, conditions, self.conditions, name) for name, value in self._inputs.items()}
        if "batch_size" in self._takes:
            inputs["batch_size"] = len(conditions)
        if "strength" in self._takes:  # questions are asked at all times, not only at those of an image to start from
            inputs["strength"] = 1.0
        if "generator" in self._takes:  # of the states that it begins with: the global one is left alone
            inputs["generator"] = torch.Generator().manual_seed(0)
        return inputs

    def _count(self) -> int:
        """The number of conditions."""
        name = type(self.pipe).__name__
        for argument in self._inputs:
            if argument not in self._takes:
                raise ValueError(f"{name} takes no {argument}=; it takes {', '.join(self._takes)}")
        leading = [a for a in ("prompt", "prompt_embeds", "class_labels") if self._inputs.get(a) is not None]
        if not leading:
            needed = [a for a in ("prompt", "class_labels") if a in self._takes]
            if needed and "batch_size" not in self._takes:
                what = "prompts= (or prompt_embeds=)" if needed[0] == "prompt" else "class_labels="
                raise ValueError(f"{name} needs {what}: give some of the kind that it will be used with")
            return 1
        counts = {a: len(self._inputs[a]) for a in leading}
        if min(counts.values()) < 1 or len(set(counts.values())) > 1:
            raise ValueError(f"conditions must be as many of each kind, at least one, got {counts}")
        return counts[leading[0]]


def _parameters(pipe: Any) -> list[str]:
    """The names of the arguments of a pipeline's call, if it is one that can be driven."""
    name = type(pipe).__name__
    if not hasattr(getattr(pipe, "scheduler", None), "config"):
        raise ValueError(
            f"pipe must be a diffusers pipeline with a scheduler, got {name}: wrap a network with model_wrapper"
        )
    takes = [p.name for p in signature(type(pipe).__call__).parameters.values() if p.kind is not Parameter.VAR_KEYWORD][
        1:
    ]
    if "num_inference_steps" not in takes:
        raise ValueError(f"{name} has no num_inference_steps: it cannot be driven; wrap its network with model_wrapper")
    _network(pipe)
    return takes


def _network(pipe: Any) -> torch.nn.Module:
    """The pipeline's denoiser."""
    for name in ("unet", "transformer"):
        part = getattr(pipe, name, None)
        if isinstance(part, torch.nn.Module):
            return part
    raise ValueError(f"{type(pipe).__name__} has no unet and no transformer: it cannot be driven; use model_wrapper")


def _listed(name: str, values: Any) -> list[Any] | None:
    if values is None:
        return None
    if isinstance(values, str) or not hasattr(values, "__len__"):
        return [values]
    if not len(values):
        raise ValueError(f"{name} must hold at least one, got none")
    return list(values)


def _time_dtype(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> torch.dtype | None:
    told = kwargs.get("timestep", args[1] if len(args) > 1 else None)
    return told.dtype if isinstance(told, Tensor) else None


def _dealt(value: Any, conditions: tuple[int, ...], count: int, name: str) -> Any:
    """An argument of a pipeline's call for some of the conditions."""
    if not any(word in name for word in DEALT) or not isinstance(value, list | tuple | Tensor) or len(value) != count:
        return value
    if isinstance(value, Tensor):
        return value[list(conditions)]
    return [value[i] for i in conditions]
