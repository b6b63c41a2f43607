"""A plan's grid as the lists that other schedulers and programs take, and what of the plan is lost on the way."""

import warnings

import torch

from ..plans.plan import Plan


def to_sigmas(plan: Plan) -> list[float]:
    """Where the plan's steps end, as noise levels: for `sigmas=` of a scheduler or a pipeline, for ComfyUI and others.

    S + 1 falling numbers: sigma / alpha where noise preserves variance, sigma in a rectified flow. Warns of what such
    a list cannot hold.
    """
    _warn(plan, "sigmas")
    if plan.schedule.shift is not None:
        _say("schedulers of rectified flows apply their shift to sigmas= too: set it to 1 (set_shift(1.0))")
    sigmas = plan.schedule.sigma_ratio(plan.step_times)
    if torch.isinf(sigmas).any():
        raise ValueError("sigmas of a plan that starts at alpha = 0 (zero terminal SNR) are infinite: use to_timesteps")
    return sigmas.tolist()


def to_timesteps(plan: Plan, rounded: bool = True) -> list[float]:
    """Where the plan's steps begin, as the network's levels: for `timesteps=` of a scheduler or a pipeline.

    S falling numbers; rounded to whole ones if `rounded`, as most schedulers do by themselves. Warns of what such a
    list cannot hold.
    """
    _warn(plan, "timesteps")
    labels = plan.schedule.network_time(plan.step_times[:-1])
    if not rounded:
        return labels.tolist()
    nearest = torch.round(labels)
    if not torch.allclose(labels, nearest, rtol=0, atol=1e-3):
        _say(
            f"timesteps were rounded, by up to {float((labels - nearest).abs().max()):.2g}: most schedulers take "
            "whole ones"
        )
    return nearest.tolist()


def _warn(plan: Plan, what: str) -> None:
    if not torch.equal(plan.tau, plan.t[:-1]):
        _say(f"{what} hold the grid alone: what the network was tuned to be told (tau) is lost; use TimeTunerScheduler")
    if plan.corrections is not None:
        _say(f"{what} hold the grid alone: the plan's corrections are lost; use TimeTunerScheduler")
    _say(f"{what} do not say by which sampler: choose {plan.sampler!r} there")


def _say(text: str) -> None:
    warnings.warn(text, UserWarning, stacklevel=4)
