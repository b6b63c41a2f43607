"""What the configuration of a pipeline's scheduler says: noise, what the network predicts, where its steps are."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from inspect import signature
from types import SimpleNamespace
from typing import Any

import diffusers
import numpy as np
import torch
from diffusers.schedulers.scheduling_utils import KarrasDiffusionSchedulers
from torch import Tensor

from ..models import to_data, to_noise
from ..options import whole
from ..plan import Plan, make_plan
from ..samplers import Sampler, sampler_from_dict
from ..sampling import check_schedule
from ..schedules import NoiseSchedule, NoiseScheduleFlow, NoiseScheduleVE, Point, as_times, schedule_from

PREDICTIONS = {"epsilon": "noise", "sample": "x_start", "v_prediction": "v", "flow_prediction": "flow"}
"""What a network predicts: the name in pipelines, and the one in `model_wrapper`."""

KNOWN = (*(kind.name for kind in KarrasDiffusionSchedulers), "FlowMatchEulerDiscreteScheduler")
"""Schedulers whose configurations, and saved pipelines, we take over."""


@dataclass(frozen=True)
class Prediction:
    """What a pipeline hands to its scheduler at every call.

    Attributes:
        kind: a name in `PREDICTIONS`.
        clip: the data that it implies is kept in [-clip, clip]; None for data without bounds (latents).
    """

    kind: str = "epsilon"
    clip: float | None = None

    def __post_init__(self) -> None:
        if self.kind not in PREDICTIONS:
            raise ValueError(f"prediction_type must be one of {', '.join(PREDICTIONS)}, got {self.kind!r}")

    def read(self, unit: str, output: Tensor, x: Tensor, p: Point) -> Tensor:
        """The noise ("eps") or the data ("x0") in the state x (B, C, ...) at point p, in float32 at least.

        A network that learned its variance has 2 C channels in `output`; the second half is left out.
        """
        if x.dim() > 1 and output.shape[1] == 2 * x.shape[1]:
            output = output[:, : x.shape[1]]
        if x.dtype in (torch.float16, torch.bfloat16):
            output, x = output.float(), x.float()
        model_type = PREDICTIONS[self.kind]
        if self.clip is None:
            return (to_data if unit == "x0" else to_noise)(model_type, output, x, p)
        data = to_data(model_type, output, x, p).clamp(-self.clip, self.clip)
        return data if unit == "x0" else (x - p.alpha * data) / p.sigma


def config_of(scheduler: Any) -> dict[str, Any]:
    """The configuration of a scheduler, with the name of its class, or a configuration as it is."""
    if isinstance(scheduler, Mapping):
        return dict(scheduler)
    if not isinstance(getattr(scheduler, "config", None), Mapping):
        raise ValueError(f"config must be a scheduler or its configuration, got {type(scheduler).__name__}")
    return {**scheduler.config, "_class_name": type(scheduler).__name__}


def schedule_of(config: Mapping[str, Any], tokens: int | None = None, mu: float | None = None) -> NoiseSchedule:
    """The noise schedule that a pipeline's network was trained with.

    Args:
        config: of the pipeline's scheduler, which may be ours.
        tokens, mu: the number of patches of an image, or the shift that a pipeline makes of it, where the configuration
            has a shift that depends on it.

    Raises:
        ValueError: nothing is recognised in it, or an option that is not supported.
    """
    if config.get("plans"):
        return Plan.from_dict(config["plans"][0]).schedule
    for option in ("thresholding", "invert_sigmas", "stochastic_sampling"):
        if config.get(option):
            raise ValueError(f"scheduler option {option}=True is not supported: build the scheduler without it")
    if config.get("use_dynamic_shifting") and mu is not None:
        shift = mu if config.get("time_shift_type") == "linear" else math.exp(mu)
        config = {**config, "use_dynamic_shifting": False, "shift": shift}
    schedule = schedule_from(config, tokens)
    if isinstance(schedule, NoiseScheduleVE):
        raise ValueError(
            "the scheduler's configuration is of an EDM pipeline, whose network is preconditioned by the scheduler: "
            "pipelines are driven with betas or as a rectified flow; wrap this network with model_wrapper instead"
        )
    return schedule


def prediction_of(config: Mapping[str, Any]) -> Prediction:
    """The prediction that a pipeline with this scheduler configuration hands over."""
    flow = not config.get("plans") and isinstance(
        schedule_of({**config, "use_dynamic_shifting": False}), NoiseScheduleFlow
    )
    kind = config.get("prediction_type") or ("flow_prediction" if flow else "epsilon")
    return Prediction(kind, float(config.get("clip_sample_range") or 1.0) if config.get("clip_sample") else None)


def check_plan(plan: Plan, config: Mapping[str, Any]) -> None:
    """Raise a ValueError unless the plan was made for a network such as this configuration describes."""
    made_for, is_for = plan.provenance.get("prediction_type"), prediction_of(config).kind
    if made_for not in (None, is_for):
        raise ValueError(
            f"plan was made for prediction_type={made_for!r}, the pipeline's network predicts "
            f"{is_for!r}: tune one for it"
        )
    dynamic = bool(config.get("use_dynamic_shifting"))
    schedule = schedule_of({**config, "use_dynamic_shifting": False})
    if isinstance(plan.schedule, NoiseScheduleFlow) != isinstance(schedule, NoiseScheduleFlow):
        raise ValueError(
            f"plan was made for another family: its noise schedule is {plan.schedule!r}, the pipeline's is {schedule!r}"
        )
    if not dynamic:
        check_schedule(SimpleNamespace(schedule=schedule), plan)  # type: ignore[arg-type]


def own_class(config: Mapping[str, Any]) -> str | None:
    """The name of the scheduler's class, which a configuration tells by itself or by its entries."""
    name = config.get("made_from") or config.get("_class_name")
    if name is not None:
        return str(name)
    entries = {key for key in config if not key.startswith("_")}
    return next((name for name in KNOWN if set(signature(getattr(diffusers, name)).parameters) == entries), None)


def own_times(config: Mapping[str, Any], schedule: NoiseSchedule, steps: int) -> Tensor:
    """The steps + 1 times, float64, at which the pipeline's own scheduler would end its steps.

    Raises:
        ValueError: that scheduler is not known, or has another number of steps.
    """
    name = own_class(config)
    kind = getattr(diffusers, str(name), None)
    if kind is None or not hasattr(kind, "set_timesteps"):
        raise ValueError(
            f"the configuration does not tell the grid of the pipeline's own scheduler, got the class {name!r}: give "
            "spacing=, or the scheduler itself instead of its configuration"
        )
    own = kind.from_config({key: value for key, value in config.items() if key not in ("plans", "made_from")})
    if config.get("use_dynamic_shifting"):
        shift = schedule.shift if isinstance(schedule, NoiseScheduleFlow) else 1.0
        mu = shift if config.get("time_shift_type") == "linear" else math.log(shift)
        own.set_timesteps(sigmas=np.linspace(1.0, 1 / steps, steps), mu=mu)
    else:
        own.set_timesteps(steps)
    labels = _distinct(own.timesteps)
    sigmas = getattr(own, "sigmas", None)
    if sigmas is None:  # DDPM, DDIM, PNDM: the last step leads to alpha = 1, or to the first level
        end = 0.0 if config.get("set_alpha_to_one", name == "DDPMScheduler") else schedule.t_min
        times = torch.cat([schedule.time_of(labels), torch.tensor([end], dtype=torch.float64)])
    else:
        times = _times_at(_distinct(sigmas), schedule)
        if len(times) == len(labels) + 1:  # single precision put the levels off by a little
            near = (schedule.label(times[:-1]) - labels).abs() < 0.01
            times[:-1] = torch.where(near, schedule.time_of(labels), times[:-1])
    if len(times) != steps + 1:
        raise ValueError(f"{name} has {len(times) - 1} steps where {steps} were asked for: give spacing=")
    return torch.where(times > 0, times.clamp(schedule.t_min, schedule.T), times)


def untuned(
    config: Mapping[str, Any],
    schedule: NoiseSchedule,
    sampler: Sampler | str,
    calls: int,
    spacing: str | None = None,
    **options: Any,
) -> Plan:
    """An untuned plan on the grid of the pipeline's own scheduler, or by a spacing."""
    if isinstance(sampler, str):
        sampler = sampler_from_dict({"name": sampler, **options})
    elif options:
        raise ValueError(f"options of a sampler go with its name, got {sampler!r} and {', '.join(options)}")
    kind = prediction_of(config).kind
    if spacing is not None:
        plan = make_plan(sampler, schedule, calls, spacing)
    else:
        calls = whole("calls", calls, 1)
        to_zero = bool(own_times(config, schedule, 2)[-1] == 0)
        steps = len(sampler.steps(calls, to_zero))
        plan = make_plan(sampler, schedule, calls, times=own_times(config, schedule, steps))
    return plan.with_provenance(prediction_type=kind, spacing=spacing or "the pipeline's own")


def _times_at(sigmas: Tensor, schedule: NoiseSchedule) -> Tensor:
    """The times of diffusers' sigmas: sigma / alpha where noise preserves variance, sigma in a flow."""
    if isinstance(schedule, NoiseScheduleFlow):
        return schedule.time_of(schedule.scale * sigmas)
    return torch.where(sigmas > 0, schedule.inverse_lambda(-torch.log(sigmas.clamp(min=1e-12))).double(), 0.0)


def _distinct(values: Any) -> Tensor:
    """Falling, without what is there twice."""
    return as_times(values).unique().flip(0)
