"""A pipeline as a model: its network, prompts, guidance and extras, run by the pipeline's own code."""

from collections.abc import Mapping, Sequence
from copy import copy
from functools import cache
from inspect import Parameter, signature
from logging import getLogger
from types import MappingProxyType, TracebackType
from typing import Any

import torch
from torch import Tensor

from .._checks import check_int
from ..models.base import Model
from ..models.fingerprint import network_fingerprint
from ..models.network import check_labels, num_classes
from ..schedules import as_float64
from .config import prediction_of
from .hook import DenoiserHook, state_shape
from .native_grid import GridArguments, own_spacing
from .paused import PausedPipeline, PausingScheduler, grid_arguments, run_to_end
from .refusals import check_pipeline, has_fixed_start

PER_CONDITION = ("prompt", "label", "image", "attention_mask")
"""Words in the names of arguments that hold one entry for each condition."""

MOST_PAUSED = 64
"""The most calls of a pipeline that are paused at the same time, one for each batch of conditions."""

BATCH = 4
"""States in one network call, by default."""


class PipelineModel(Model):
    """A pipeline as a model of the states x (B, ...) of its denoising loop, which are latents in most pipelines.

    Row i is under condition i modulo their number, whatever the batch. While the model is in use the pipeline cannot be
    called: use the model in a `with` block, or call `close`.

    Args:
        pipe: a diffusers pipeline with a scheduler.
        prompts: texts, one for each condition. Instead of them `prompt_embeds=` (n, ...) and what belongs to it, or
            `class_labels=`; None for a pipeline without conditions.
        class_labels: labels, one for each condition.
        batch: the most states in one network call; 1 in a pipeline that takes no more.
        **inputs: of the pipeline's call, such as `guidance_scale=5.0`. A list or a tensor of n entries with "prompt",
            "label", "image" or "attention_mask" in its name has one entry for each condition; a single text is for all
            of them.

    Attributes:
        dtype: of the states in the pipeline.
        prediction: what the pipeline's network predicts.
        undivided: why guidance cannot be left out of the pipeline; None where it can.

    Raises:
        ValueError: a pipeline that cannot be driven, an input that it does not have, or no prompts where it needs them.
    """

    shape: tuple[int, ...]
    max_batch: int
    has_decoder = True
    undivided: str | None

    def __init__(
        self,
        pipe: Any,
        prompts: Sequence[str] | None = None,
        class_labels: Sequence[int] | None = None,
        batch: int = BATCH,
        **inputs: Any,
    ) -> None:
        self.pipe, self.max_batch = pipe, check_int("batch", batch, 1)
        self._parameters = _parameters(pipe)
        conditions = {"prompt": _listed("prompts", prompts), "class_labels": _listed("class_labels", class_labels)}
        self._inputs = inputs | {name: value for name, value in conditions.items() if value is not None}
        self._count = self._count_conditions()
        self.num_conditions = self._count if self._count > 1 else None
        check_pipeline(pipe)
        self.prediction, self.fixed_start = prediction_of(pipe), has_fixed_start(pipe)
        self.spacing = own_spacing(pipe.scheduler, cache(self._grid_arguments))
        self._rows: list[int] | None = None  # of a selected part: its rows in the whole batch
        self._paused: dict[tuple[int, ...], PausedPipeline] = {}
        self._own, self._bar = pipe.scheduler, getattr(pipe, "_progress_bar_config", {})
        self._scheduler = PausingScheduler(pipe)
        pipe.scheduler = self._scheduler
        pipe.set_progress_bar_config(**{**self._bar, "disable": True})
        try:
            self._probe()
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
        """Return the pipeline to its own scheduler."""
        for paused in self._paused.values():
            paused.close()
        if self._scheduler.hook is not None:
            self._scheduler.hook.remove()
        self._paused.clear()
        self.pipe.scheduler = self._own
        self.pipe._progress_bar_config = self._bar

    def __call__(self, x: Tensor, t: Any, tau: Any = None) -> Tensor:
        return self.predict("eps", x, t, tau)

    def x0(self, x: Tensor, t: Any, tau: Any = None) -> Tensor:
        return self.predict("x0", x, t, tau)

    def predict(self, quantity: str, x: Tensor, t: Any, tau: Any = None) -> Tensor:
        return self._predict(quantity, x, t, tau, None)[0]

    def parts(
        self, quantity: str, x: Tensor, t: Any, tau: Any = None, guided: bool = True
    ) -> tuple[Tensor, Tensor | None]:
        if self.undivided is not None:
            raise ValueError(self.undivided)
        return self._predict(quantity, x, t, tau, guided)

    def _predict(self, quantity: str, x: Tensor, t: Any, tau: Any, guided: bool | None) -> tuple[Tensor, Tensor | None]:
        """The prediction after guidance and None, or as of `parts` where `guided` is not None."""
        p = self.schedule.at(t)
        if p.t.dim():
            raise ValueError(f"t must be one time for all samples of a pipeline, got shape {tuple(p.t.shape)}")
        network_time = self.schedule.network_time(t if tau is None else tau)
        predictions, added = list[Tensor](), list[Tensor]()
        for rows, part in self._batches(x):
            paused = self._pause(rows)
            copies = len(paused.first) // len(part)  # some pipelines (DiT) have two of each state under guidance
            output = paused.predict(torch.cat([part] * copies), network_time, p, guided)[: len(part)]
            prediction = self._scheduler.passed_kind.read(quantity, output, part, p)
            if guided is not None:
                assert paused.conditional is not None
                alone = self._scheduler.passed_kind.read(quantity, paused.conditional[: len(part)], part, p)
                added += [prediction - alone] if guided else []
                prediction = alone
            predictions.append(prediction)
        return torch.cat(predictions).to(x), torch.cat(added).to(x) if added else None

    def select(self, rows: Tensor) -> "PipelineModel":
        part = copy(self)
        part._rows = [self._row(i) for i in rows.tolist()]
        part.num_conditions = len(part._rows)
        return part

    def rounded_times(self, tau: Any) -> Tensor:
        tau = as_float64(tau).detach()
        if self._time_dtype is None:
            return tau
        network_time = self.schedule.network_time(tau).float().to(self._time_dtype)
        return as_float64(self.schedule.from_network_time(network_time.double()))

    def decode(self, x: Tensor) -> Tensor:
        """The pictures (B, C, H, W) in [-1, 1] of states x (B, ...) at the end of a run, by the pipeline's own code.

        Costs one network call for each batch, whose prediction is not used.

        Raises:
            ValueError: the pipeline returns no pictures.
        """
        parts = []
        for rows, part in self._batches(x):
            made = run_to_end(self._scheduler, self._inputs_of(rows) | {"output_type": "np"}, part)
            if not hasattr(made, "images"):
                raise ValueError(f"{type(self.pipe).__name__} returns no pictures: write its latents to an .npz file")
            parts.append(torch.as_tensor(made.images).movedim(-1, 1))
        return 2 * torch.cat(parts).float() - 1

    def facts(self) -> dict[str, Any]:
        """The pipeline, its network, and the inputs of its call that are plain values."""
        facts = {
            "pipeline": type(self.pipe).__name__,
            "network": type(network_of(self.pipe)).__name__,
            "prediction_type": self.prediction.kind,
            "conditions": self._count,
            "shape": list(self.shape),
            "dtype": str(self.dtype).removeprefix("torch."),
        }
        own = self._parameters.get("guidance_scale")
        given = self._inputs if own is None or own.default is own.empty else {own.name: own.default} | self._inputs
        plain = {name: value for name, value in given.items() if isinstance(value, bool | int | float | str)}
        return facts | {name: value for name, value in plain.items() if "prompt" not in name}

    def fingerprint(self) -> dict[str, Any]:
        return {**pipeline_fingerprint(self.pipe, self._own), "shape": list(self.shape), **self._usage()}

    def _usage(self) -> dict[str, Any]:
        """The guidance and the kinds of conditions."""
        scale = self.facts().get("guidance_scale")
        kinds = sorted(name for name, value in self._inputs.items() if value is not None and _is_condition(name))
        usage = {} if scale is None else {"guidance_scale": float(scale)}
        return usage | {"conditions": [name.replace("_embeds", "") for name in kinds]}

    def _batches(self, x: Tensor) -> list[tuple[tuple[int, ...], Tensor]]:
        """Batches of the states x, each with the conditions of its rows."""
        numbers = [self._row(i) % self._count for i in range(len(x))]
        firsts = range(0, len(x), self.max_batch)
        return [(tuple(numbers[i : i + self.max_batch]), x[i : i + self.max_batch]) for i in firsts]

    def _row(self, i: int) -> int:
        return i if self._rows is None else self._rows[i]

    def _pause(self, conditions: tuple[int, ...]) -> PausedPipeline:
        if conditions not in self._paused:
            if len(self._paused) >= MOST_PAUSED:
                self._paused.pop(next(iter(self._paused))).close()
            self._paused[conditions] = PausedPipeline(self._scheduler, self._inputs_of(conditions))
        return self._paused[conditions]

    def _grid_arguments(self, steps: int) -> GridArguments:
        """What the pipeline passes to its scheduler in a run of this number of steps."""
        return grid_arguments(self._scheduler, self._inputs_of((0,)), steps)

    def _probe(self) -> None:
        """Find out shape, dtype and device of the states, from predictions for one state at one network time, in all
        calls of a run of the pipeline's loop."""
        dtypes, rows = list[torch.dtype | None](), list[int]()

        def watch(network: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            dtypes.append(_time_dtype(args, kwargs))
            rows.append(state_shape(args, kwargs)[0])

        hook = network_of(self.pipe).register_forward_pre_hook(watch, with_kwargs=True)
        paused = PausedPipeline(self._scheduler, self._inputs_of((0,)))
        try:
            hook.remove()
            self.schedule = self._scheduler.schedule
            self.shape, self.dtype, self.device = tuple(paused.first.shape[1:]), paused.first.dtype, paused.first.device
            self.evaluations = sum(rows)
            self._time_dtype = next((dtype for dtype in dtypes if dtype in (torch.bfloat16, torch.float16)), None)
            with torch.no_grad():
                others = [paused.predict(paused.first, paused.network_time, paused.point) for _ in range(paused.left)]
                self.undivided = self._why_undivided(paused)
        finally:
            hook.remove()
            paused.close()
        if not all(torch.allclose(other, paused.first_output, rtol=1e-3, atol=1e-5) for other in others):
            raise ValueError(
                f"the predictions of {type(self.pipe).__name__} depend on how many calls it has made, not on state and "
                "time alone (control_guidance_start and _end do that): leave that out to tune it"
            )

        if self.max_batch > 1 and (reason := self._refuses_batches()):
            getLogger("time_tuner").warning("%s takes one state at a time: %s", type(self.pipe).__name__, reason)
            self.max_batch = 1

    def _why_undivided(self, paused: PausedPipeline) -> str | None:
        """Why guidance cannot be left out; None where it can, and the conditional prediction is then the same."""
        if self.evaluations == 1:
            return (
                f"{type(self.pipe).__name__} makes one prediction for each state here, without guidance that could be "
                "left out: give guidance_scale= of more than 1 if it takes that, or a number of calls"
            )
        try:
            self._scheduler.hook = DenoiserHook(self.pipe, lambda: self._scheduler.loop.guided)
            found: list[Any] = []
            for guided in (True, False):
                paused.predict(paused.first, paused.network_time, paused.point, guided)
                found.append(paused.conditional)
        except ValueError as error:
            return str(error)
        if torch.allclose(found[0], found[1], rtol=1e-2, atol=1e-3):
            return None
        return (
            f"the network of a {type(self.pipe).__name__} predicts otherwise for a part of its batch: guidance cannot "
            "be left out, give a number of calls"
        )

    def _refuses_batches(self) -> str | None:
        """Why the pipeline takes no two states at a time, as some do that begin at a picture; None if it does."""
        paused: PausedPipeline | None = None
        try:
            paused = PausedPipeline(self._scheduler, self._inputs_of((0, 0)))
            return (
                None if paused.first.shape[1:] == self.shape else f"of two states it makes {tuple(paused.first.shape)}"
            )
        except Exception as error:  # whatever a pipeline or a network raises of a batch
            return f"{type(error).__name__}: {error}".split("\n")[0]
        finally:
            if paused is not None:
                paused.close()

    def _inputs_of(self, conditions: tuple[int, ...]) -> dict[str, Any]:
        """The arguments of the pipeline's call for these conditions."""
        inputs = {name: _for_conditions(name, value, conditions, self._count) for name, value in self._inputs.items()}
        if "batch_size" in self._parameters:
            inputs["batch_size"] = len(conditions)
        if "strength" in self._parameters:  # predictions are made at all times, not only at those of an image
            inputs["strength"] = 1.0
        if "generator" in self._parameters:  # of the first states; the global generator is left alone
            inputs["generator"] = torch.Generator().manual_seed(0)
        return inputs

    def _count_conditions(self) -> int:
        name = type(self.pipe).__name__
        for argument in self._inputs:
            if argument not in self._parameters:
                raise ValueError(f"{name} takes no {argument}=; it takes {', '.join(self._parameters)}")
        leading = [a for a in ("prompt", "prompt_embeds", "class_labels") if self._inputs.get(a) is not None]
        if not leading and "prompt" not in self._parameters:  # a pipeline whose conditions are pictures
            pictures = [self._inputs.get(a) for a in ("image_embeds", "image")]
            return next((len(given) for given in pictures if isinstance(given, list | tuple | Tensor)), 1)
        if not leading:
            needed = [a for a in ("prompt", "class_labels") if a in self._parameters]
            if needed and "batch_size" not in self._parameters:
                what = "prompts= (or prompt_embeds=)" if needed[0] == "prompt" else "class_labels="
                raise ValueError(f"{name} needs {what}: give some of the kind that it will be used with")
            return 1
        counts = {a: len(self._inputs[a]) for a in leading}
        if min(counts.values()) < 1 or len(set(counts.values())) > 1:
            raise ValueError(f"conditions must be as many of each kind, at least one, got {counts}")
        check_labels("class_labels", self._inputs.get("class_labels"), num_classes(network_of(self.pipe)))
        return counts[leading[0]]


def network_of(pipe: Any) -> torch.nn.Module:
    """The denoiser of a pipeline.

    Raises:
        ValueError: it has none.
    """
    for name in ("unet", "transformer"):
        part = getattr(pipe, name, None)
        if isinstance(part, torch.nn.Module):
            return part
    raise ValueError(f"{type(pipe).__name__} has no unet and no transformer: it cannot be driven; use model_wrapper")


def pipeline_fingerprint(pipe: Any, scheduler: Any = None) -> dict[str, Any]:
    """The network of a pipeline, and what its scheduler makes of predictions."""
    prediction = prediction_of(pipe if scheduler is None else scheduler)
    return {
        "network": network_fingerprint(network_of(pipe)),
        "prediction_type": prediction.kind,
        "clip": "none" if prediction.clip is None else f"{prediction.clip:g}",
        "thresholding": "none" if prediction.thresholding is None else str(list(prediction.thresholding)),
        "inverted": prediction.inverted,
    }


def _is_condition(name: str) -> bool:
    return any(word in name for word in PER_CONDITION) and "negative" not in name and "mask" not in name


def _parameters(pipe: Any) -> Mapping[str, Parameter]:
    """The arguments of a pipeline's call, if the pipeline can be driven."""
    name = type(pipe).__name__
    if not hasattr(getattr(pipe, "scheduler", None), "config"):
        raise ValueError(
            f"pipe must be a diffusers pipeline with a scheduler, got {name}: wrap a network with model_wrapper"
        )
    _, *parameters = signature(type(pipe).__call__).parameters.values()
    named = {one.name: one for one in parameters if one.kind is not Parameter.VAR_KEYWORD}
    if "num_inference_steps" not in named:
        raise ValueError(f"{name} has no num_inference_steps: it cannot be driven; wrap its network with model_wrapper")
    network_of(pipe)
    return MappingProxyType(named)


def _listed(name: str, values: Any) -> list[Any] | None:
    if values is None:
        return None
    if isinstance(values, str) or not hasattr(values, "__len__"):
        return [values]
    if not len(values):
        raise ValueError(f"{name} must hold at least one, got none")
    return list(values)


def _time_dtype(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> torch.dtype | None:
    """The dtype of the network time among the arguments of a network."""
    time = kwargs.get("timestep", args[1] if len(args) > 1 else None)
    return time.dtype if isinstance(time, Tensor) else None


def _for_conditions(name: str, value: Any, conditions: tuple[int, ...], count: int) -> Any:
    """An argument of a pipeline's call, of `count` conditions in all, for some of them."""
    if not any(word in name for word in PER_CONDITION):
        return value
    if isinstance(value, str) and "prompt" in name:
        return [value] * len(conditions)
    if not isinstance(value, list | tuple | Tensor) or len(value) != count:
        return value
    return value[list(conditions)] if isinstance(value, Tensor) else [value[i] for i in conditions]
