"""The grid of a pipeline's own scheduler."""

import math
from collections.abc import Mapping
from inspect import signature
from typing import Any

import diffusers
import numpy as np
import torch
from diffusers.schedulers.scheduling_utils import KarrasDiffusionSchedulers
from torch import Tensor

from ..schedules import NoiseSchedule, as_float64

KNOWN = (*(kind.name for kind in KarrasDiffusionSchedulers), "FlowMatchEulerDiscreteScheduler")
"""The schedulers whose configurations, and saved pipelines, `TimeTunerScheduler` accepts."""


def own_class(config: Mapping[str, Any]) -> str | None:
    """The name of the scheduler's class, from a configuration or from the names of its entries; None if unknown."""
    name = config.get("made_from") or config.get("_class_name")
    if name is not None:
        return str(name)
    entries = {key for key in config if not key.startswith("_")}
    return next((name for name in KNOWN if set(signature(getattr(diffusers, name)).parameters) == entries), None)


def own_times(config: Mapping[str, Any], schedule: NoiseSchedule, steps: int) -> Tensor:
    """The step ends of the pipeline's own scheduler, float64 (steps + 1,).

    Raises:
        ValueError: the scheduler is not known, or makes another number of steps.
    """
    name = own_class(config)
    kind = getattr(diffusers, str(name), None)
    if kind is None or not hasattr(kind, "set_timesteps"):
        raise ValueError(
            f"config does not determine the grid of the pipeline's own scheduler, got the class {name!r}: give "
            "spacing=, or the scheduler itself instead of its configuration"
        )
    own = kind.from_config({key: value for key, value in config.items() if key not in ("plans", "made_from")})
    if config.get("use_dynamic_shifting"):
        shift = schedule.shift or 1.0
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
        times = schedule.from_sigma_ratio(_distinct(sigmas))
        if len(times) == len(labels) + 1:  # single precision put the levels off by a little
            near = (schedule.network_time(times[:-1]) - labels).abs() < 0.01
            times[:-1] = torch.where(near, schedule.from_network_time(labels), times[:-1])
    if len(times) != steps + 1:
        raise ValueError(f"{name} makes {len(times) - 1} steps for {steps} calls: give spacing=")
    return torch.where(times > 0, times.clamp(schedule.t_min, schedule.T), times)


class OwnGrid:
    """The grid of a pipeline's own scheduler, as a spacing.

    Args:
        config: of the pipeline's scheduler.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        self.config = config

    def __call__(self, schedule: NoiseSchedule, steps: int) -> Tensor:
        return own_times(self.config, schedule, steps)

    def __repr__(self) -> str:
        return "the pipeline's own"


def own_spacing(config: Mapping[str, Any]) -> OwnGrid | None:
    """The grid of a pipeline's own scheduler; None if that is one of this library, made from a plan alone."""
    return None if config.get("plans") and own_class(config) not in KNOWN else OwnGrid(config)


def _distinct(values: Any) -> Tensor:
    """The values without repetitions, falling."""
    return as_float64(values).unique().flip(0)
