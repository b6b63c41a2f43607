"""A plan's grid as the lists that other schedulers and programs take; a warning names what they leave out."""

import warnings
from typing import Any

import torch

from ..plans.plan import Plan

APPEND_ZERO = {"FlowMatchEulerDiscreteScheduler", "FlowMatchLCMScheduler", "UniPCMultistepScheduler"}
"""The classes whose `set_timesteps(sigmas=)` appends the 0 at the end."""


def to_sigmas(plan: Plan, scheduler: Any = None) -> list[float]:
    """The noise levels of the step ends, S + 1 falling numbers: for `sigmas=` of a scheduler or pipeline, for ComfyUI.

    sigma / alpha on a variance-preserving schedule, sigma in a rectified flow.

    Args:
        plan: the plan.
        scheduler: the scheduler that receives them, or a pipeline with it. Those of `APPEND_ZERO` append the 0 at the
            end themselves: for them the last number is left out. UniPCMultistepScheduler takes them as a numpy array.

    Warns:
        UserWarning: names the parts of the plan that the list leaves out, and what the scheduler does to it.

    Raises:
        ValueError: the plan starts at alpha = 0, where they are infinite.
    """
    _warn(plan, "sigmas")
    if plan.schedule.shift is not None:
        _notify("schedulers of rectified flows apply their shift to sigmas= too: set it to 1 (set_shift(1.0))")
    sigmas = plan.schedule.sigma_ratio(plan.step_times)
    if torch.isinf(sigmas).any():
        raise ValueError("sigmas of a plan that starts at alpha = 0 (zero terminal SNR) are infinite: use to_timesteps")
    scheduler = getattr(scheduler, "scheduler", scheduler)
    names = {kind.__name__ for kind in type(scheduler).__mro__}
    if appending := names & APPEND_ZERO:
        if sigmas[-1] > 0:
            _notify(f"{min(appending)} ends at sigma = 0, the plan at {float(sigmas[-1]):.3g}")
        return sigmas.tolist()[:-1]
    if "EulerDiscreteScheduler" in names and scheduler.config.timestep_spacing != "leading":
        _notify(
            "EulerDiscreteScheduler begins with noise of deviation sigma, and not sqrt(1 + sigma^2), unless its "
            "timestep_spacing is 'leading'"
        )
    return sigmas.tolist()


def to_timesteps(plan: Plan, rounded: bool = True) -> list[float]:
    """The network times of the step starts, S falling numbers: for `timesteps=` of a scheduler or a pipeline.

    Args:
        plan: the plan.
        rounded: whether they are rounded to whole numbers, which most schedulers do by themselves.

    Warns:
        UserWarning: names the parts of the plan that the list leaves out.
    """
    _warn(plan, "timesteps")
    times = plan.schedule.network_time(plan.step_times[:-1])
    if not rounded:
        return times.tolist()
    nearest = torch.round(times)
    if not torch.allclose(times, nearest, rtol=0, atol=1e-3):
        _notify(
            f"timesteps were rounded, by up to {float((times - nearest).abs().max()):.2g}: most schedulers take "
            "whole ones"
        )
    return nearest.tolist()


def _warn(plan: Plan, what: str) -> None:
    if not torch.equal(plan.tau, plan.t[:-1]):
        _notify(f"{what} hold the grid alone: the tuned conditioning times (tau) are lost; use TimeTunerScheduler")
    if plan.corrections is not None:
        _notify(f"{what} hold the grid alone: the plan's corrections are lost; use TimeTunerScheduler")
    if not all(plan.guided):
        _notify(f"{what} hold the grid alone: guidance is at every call there; use TimeTunerScheduler")
    _notify(f"{what} hold the grid alone: the sampler is lost; choose {plan.sampler!r} there")


def _notify(text: str) -> None:
    warnings.warn(text, UserWarning, stacklevel=4)
