"""The grid that a pipeline's own scheduler would use."""

import math
from collections.abc import Mapping
from inspect import signature
from typing import Any

import diffusers
import numpy as np
import torch
from diffusers.schedulers.scheduling_utils import KarrasDiffusionSchedulers
from torch import Tensor

from .._checks import check_int
from ..plans.build import make_plan
from ..plans.plan import Plan
from ..samplers import Sampler, sampler_of
from ..schedules import NoiseSchedule, NoiseScheduleFlow, as_float64
from .config import prediction_of

KNOWN = (*(kind.name for kind in KarrasDiffusionSchedulers), "FlowMatchEulerDiscreteScheduler")
"""Schedulers whose configurations, and saved pipelines, we take over."""


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
        times = torch.cat([schedule.from_network_time(labels), torch.tensor([end], dtype=torch.float64)])
    else:
        times = _times_at(_distinct(sigmas), schedule)
        if len(times) == len(labels) + 1:  # single precision put the levels off by a little
            near = (schedule.network_time(times[:-1]) - labels).abs() < 0.01
            times[:-1] = torch.where(near, schedule.from_network_time(labels), times[:-1])
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
    sampler = sampler_of(sampler, **options)
    kind = prediction_of(config).kind
    if spacing is not None:
        plan = make_plan(sampler, schedule, calls, spacing)
    else:
        calls = check_int("calls", calls, 1)
        to_zero = bool(own_times(config, schedule, 2)[-1] == 0)
        steps = len(sampler.steps(calls, to_zero))
        plan = make_plan(sampler, schedule, calls, times=own_times(config, schedule, steps))
    return plan.with_provenance(prediction_type=kind, spacing=spacing or "the pipeline's own")


def _times_at(sigmas: Tensor, schedule: NoiseSchedule) -> Tensor:
    """The times of diffusers' sigmas: sigma / alpha where noise preserves variance, sigma in a flow."""
    if isinstance(schedule, NoiseScheduleFlow):
        return schedule.from_network_time(schedule.scale * sigmas)
    return torch.where(sigmas > 0, schedule.inverse_lambda(-torch.log(sigmas.clamp(min=1e-12))).double(), 0.0)


def _distinct(values: Any) -> Tensor:
    """Falling, without what is there twice."""
    return as_float64(values).unique().flip(0)
