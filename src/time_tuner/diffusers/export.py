"""A plan's grid as the lists that other schedulers and programs take; a warning names what they leave out."""

import warnings
from collections.abc import Sequence
from typing import Any

import torch

from ..exports import sigma_list, warn_of_loss
from ..plans.plan import Plan
from .scheduler import TimeTunerScheduler

APPEND_ZERO = {"FlowMatchEulerDiscreteScheduler", "FlowMatchLCMScheduler", "UniPCMultistepScheduler"}
"""The classes whose `set_timesteps(sigmas=)` appends the 0 at the end."""


def to_sigmas(plan: Plan, scheduler: Any = None) -> list[float]:
    """The noise levels of the step ends, S + 1 falling numbers: for `sigmas=` of a scheduler or pipeline, for ComfyUI.

    sigma / alpha on a variance-preserving schedule, sigma in a rectified flow.

    Args:
        plan: the plan.
        scheduler: the scheduler that receives them, or a pipeline with it. Those of `APPEND_ZERO` append the 0 at the
            end themselves: for them the last number is left out. UniPCMultistepScheduler takes them as a numpy array.

    Returns:
        The numbers, S + 1, or S where the scheduler appends the 0.

    Warns:
        UserWarning: names the parts of the plan that the list leaves out, and what the scheduler does to it.

    Raises:
        ValueError: the plan starts at alpha = 0, where they are infinite.
    """
    sigmas = sigma_list(plan)
    if plan.schedule.shift is not None:
        _notify("schedulers of rectified flows apply their shift to sigmas= too: set it to 1 (set_shift(1.0))")
    scheduler = getattr(scheduler, "scheduler", scheduler)
    names = {kind.__name__ for kind in type(scheduler).__mro__}
    if appending := names & APPEND_ZERO:
        if sigmas[-1] > 0:
            _notify(f"{min(appending)} ends at sigma = 0, the plan at {sigmas[-1]:.3g}")
        return sigmas[:-1]
    if "EulerDiscreteScheduler" in names and scheduler.config.timestep_spacing != "leading":
        _notify(
            "EulerDiscreteScheduler begins with noise of deviation sigma, and not sqrt(1 + sigma^2), unless its "
            "timestep_spacing is 'leading'"
        )
    return sigmas


def to_timesteps(plan: Plan, rounded: bool = True) -> list[float]:
    """The network times of the step starts, S falling numbers: for `timesteps=` of a scheduler or a pipeline.

    Args:
        plan: the plan.
        rounded: whether they are rounded to whole numbers, which most schedulers do by themselves.

    Returns:
        The numbers.

    Warns:
        UserWarning: names the parts of the plan that the list leaves out.
    """
    warn_of_loss(plan, "timesteps")
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


def sdnext_sampler(plans: Plan | Sequence[Plan], name: str = "Time Tuner") -> dict[str, Any]:
    """A sampler of SD.Next: its `name`, the `constructor` of its scheduler, and the `config` of its settings.

    SD.Next calls the constructor with the prediction type of the model. Nothing of a plan is lost; SD.Next's own
    settings of a grid, such as a shift or a timestep spacing, have no effect, and the number of steps must be a number
    of calls that there is a plan for. SD.Next takes a name that ends in "FlowMatch" for flows; it is added there.

    Args:
        plans: a plan, or several for different numbers of calls.
        name: in the list of samplers there.

    Returns:
        The entries `name`, `constructor` and `config`.

    Raises:
        ValueError: plans of flows beside others.
    """
    several = [plans] if isinstance(plans, Plan) else list(plans)
    flows = {plan.schedule.shift is not None for plan in several}
    if len(flows) != 1:
        raise ValueError("plans must be all of rectified flows, or none of them")
    name = f"{name} FlowMatch" if flows.pop() and not name.endswith("FlowMatch") else name

    def constructor(prediction_type: str = "epsilon") -> TimeTunerScheduler:
        return TimeTunerScheduler.from_plan(several, prediction_type=prediction_type)

    return {"name": name, "constructor": constructor, "config": {}}


def _notify(text: str) -> None:
    warnings.warn(text, UserWarning, stacklevel=3)
