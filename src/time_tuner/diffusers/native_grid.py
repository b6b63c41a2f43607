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

from .._checks import check_int
from ..plans.build import make_plan
from ..plans.grid import check_noise
from ..plans.plan import Plan
from ..samplers import Sampler, sampler_of
from ..schedules import NoiseSchedule, as_float64
from .config import prediction_of

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


def untuned(
    config: Mapping[str, Any],
    schedule: NoiseSchedule,
    sampler: Sampler | str,
    calls: int,
    spacing: str | None = None,
    **options: Any,
) -> Plan:
    """An untuned plan for a pipeline.

    Args:
        config: of the pipeline's scheduler.
        schedule: the noise schedule of its network.
        sampler: a sampler, or the text of one.
        calls: the number of network calls.
        spacing: a spacing as `make_plan` takes it. By default the grid is that of the pipeline's own scheduler; of a
            scheduler of this library that was made from a plan alone, the default of the schedule.
        **options: of the sampler, if that is a name.
    """
    sampler = sampler_of(sampler, **options)
    no_own_grid = config.get("plans") and own_class(config) not in KNOWN
    if spacing is not None or no_own_grid:
        plan = make_plan(sampler, schedule, calls, spacing)
    else:
        calls = check_int("calls", calls, 1)
        to_zero = bool(own_times(config, schedule, 2)[-1] == 0)
        steps = len(sampler.steps(calls, to_zero))
        times = own_times(config, schedule, steps)
        try:
            check_noise(times, schedule)
        except ValueError as error:
            raise ValueError(f"calls={calls} on the grid of the pipeline's own scheduler: {error} (spacing=)") from None
        plan = make_plan(sampler, schedule, calls, times=times)
    grid = spacing or ("default" if no_own_grid else "the pipeline's own")
    return plan.with_provenance(prediction_type=prediction_of(config).kind, spacing=grid)


def _distinct(values: Any) -> Tensor:
    """The values without repetitions, falling."""
    return as_float64(values).unique().flip(0)
