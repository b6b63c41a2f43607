"""Plans in other programs: what each takes of a plan, as values; a warning names what it leaves out.

`time_tuner.diffusers` has those that need diffusers: `to_sigmas`, `to_timesteps`, `sdnext_sampler`.
"""

import warnings
from collections.abc import Callable, Mapping, Sequence
from os import PathLike
from typing import Any

import torch
from torch import Tensor

from ._checks import check_int
from .noise import SeededNoise
from .plans.build import firsts_of, rest
from .plans.plan import Plan
from .plans.rows import Call
from .sampling import advance

__all__ = [
    "cache_dit_mask",
    "k_diffusion_sampler",
    "save_with_tails",
    "sdcpp_arguments",
    "sglang_request",
    "sigma_list",
    "vllm_omni_params",
    "warn_of_loss",
    "webui_scheduler",
]


def sigma_list(plan: Plan, what: str = "sigmas") -> list[float]:
    """The noise levels of the step ends, S + 1 falling numbers: sigma / alpha, or sigma in a rectified flow.

    Args:
        plan: the plan.
        what: the name of the list in the warning.

    Returns:
        The numbers.

    Warns:
        UserWarning: names the parts of the plan that the list leaves out.

    Raises:
        ValueError: the plan starts at alpha = 0, where they are infinite.
    """
    warn_of_loss(plan, what)
    sigmas = plan.schedule.sigma_ratio(plan.step_times)
    if torch.isinf(sigmas).any():
        raise ValueError("sigmas of a plan that starts at alpha = 0 (zero terminal SNR) are infinite: use to_timesteps")
    return [float(sigma) for sigma in sigmas]


def webui_scheduler(plans: Plan | Sequence[Plan]) -> Callable[..., Tensor]:
    """The `function` of a `Scheduler` of Forge, reForge and AUTOMATIC1111: (n, sigma_min, sigma_max, device) to n + 1
    sigmas.

    The number n of steps chooses the plan. The range of sigmas is not used. Samplers, conditioning times and
    corrections are lost: choose a sampler there that calls the network once a step, such as "DPM++ 2M" for dpmpp.

    Args:
        plans: a plan, or several for different numbers of steps.

    Returns:
        The function.

    Warns:
        UserWarning: names the parts of the plans that the list leaves out.

    Raises:
        ValueError: two plans of one number of steps. The function raises it for another number of steps.
    """
    several = [plans] if isinstance(plans, Plan) else list(plans)
    lists = {len(plan.steps): sigma_list(plan) for plan in several}
    if not lists or len(lists) < len(several):
        raise ValueError(f"plans must be for different numbers of steps, got {[len(p.steps) for p in several]}")

    def sigmas(n: int, sigma_min: float, sigma_max: float, device: Any = "cpu") -> Tensor:
        if n not in lists:
            raise ValueError(f"steps must be one of {sorted(lists)}, those of the plans, got {n}")
        return torch.tensor(lists[n], dtype=torch.float32, device=device)

    return sigmas


def sdcpp_arguments(plan: Plan) -> list[str]:
    """The arguments of stable-diffusion.cpp: `--steps S --sigmas s_0,...,s_S`, with the last sigma.

    Its denoisers use the list as it is, without a shift. The sampler, conditioning times and corrections are lost:
    choose `--sampling-method` there.

    Args:
        plan: the plan.

    Returns:
        The four arguments.

    Warns:
        UserWarning: names the parts of the plan that the list leaves out.

    Raises:
        ValueError: the plan starts at alpha = 0, where they are infinite.
    """
    sigmas = sigma_list(plan)
    return ["--steps", str(len(sigmas) - 1), "--sigmas", ",".join(f"{sigma:.6g}" for sigma in sigmas)]


def vllm_omni_params(plan: Plan, shift: float | None = None) -> dict[str, Any]:
    """The fields `num_inference_steps` and `sigmas` of vLLM-Omni's `OmniDiffusionSamplingParams`.

    Its schedulers append the 0 at the end, and apply their own shift to `sigmas`, the dynamic one of an image size
    included: the list holds the sigmas before that shift. Its pipelines have their samplers built in; the sampler,
    conditioning times and corrections of the plan are lost. `extra_args` stays as it is: the models that read sigmas
    there prefer the field.

    Args:
        plan: a plan in a rectified flow that ends at 0.
        shift: what the scheduler there applies; by default the shift of the plan's schedule. 1 for none.

    Returns:
        The two fields.

    Warns:
        UserWarning: names the parts of the plan that the list leaves out.

    Raises:
        ValueError: another plan, or a shift that is not positive.
    """
    sigmas = _before_shift(plan, shift, "vLLM-Omni")
    return {"num_inference_steps": len(sigmas), "sigmas": sigmas}


def sglang_request(plan: Plan, shift: float | None = None) -> dict[str, Any]:
    """The fields `num_inference_steps` and `diffusers_kwargs` of a request to SGLang diffusion (OpenAI's image and
    video interface, with its diffusers backend), which passes the latter to the pipeline's call.

    They hold `sigmas` for a rectified flow, before the shift that the pipeline's scheduler applies, and `timesteps` for
    other plans. The sampler, conditioning times and corrections are lost. They are kept where SGLang loads a pipeline
    that was saved with a `TimeTunerScheduler`: `num_inference_steps` alone is needed then.

    Args:
        plan: the plan.
        shift: what the scheduler there applies, in a rectified flow; by default the shift of the plan's schedule.

    Returns:
        The two fields.

    Warns:
        UserWarning: names the parts of the plan that the lists leave out.

    Raises:
        ValueError: a flow's plan that does not end at 0, or a shift that is not positive.
    """
    if plan.schedule.shift is not None:
        values = {"sigmas": _before_shift(plan, shift, "the scheduler of the pipeline")}
    else:
        warn_of_loss(plan, "timesteps")
        values = {"timesteps": [float(n) for n in plan.schedule.network_time(plan.step_times[:-1]).round()]}
    return {"num_inference_steps": len(plan.steps), "diffusers_kwargs": values}


def k_diffusion_sampler(plan: Plan) -> Callable[..., Tensor]:
    """The plan as a sampler function of k-diffusion: (model, x, sigmas, extra_args, callback, disable, noise_sampler).

    `model(x, sigma, **extra_args)` predicts the data in the state x, which is x / alpha of the plan. The whole
    arithmetic of the plan is kept; its conditioning times are lost, since the model derives its time from sigma.
    `sigmas` must be `(plan.sigma / plan.alpha)`, K + 1 numbers. `noise_sampler(sigma, sigma_next)` draws noise, as
    those of k-diffusion do; by default the noise has a seed of its own.

    Args:
        plan: the plan.

    Returns:
        The sampler function.

    Warns:
        UserWarning: the plan has tuned conditioning times.

    Raises:
        ValueError: a plan in a rectified flow, one that starts at alpha = 0, or one without guidance at some calls.
            The function raises it for other sigmas.
    """
    if plan.schedule.shift is not None or plan.alpha[0] == 0:
        raise ValueError("k-diffusion has states x_0 + sigma eps: give a plan on another schedule, with alpha above 0")
    if not torch.equal(plan.tau, plan.t[:-1]):
        _notify("k-diffusion derives the time from sigma: the tuned conditioning times (tau) are lost")
    if not all(plan.guided):
        raise ValueError("k-diffusion has one prediction for each call: give a plan with guidance at all of them")
    own = plan.sigma / plan.alpha

    @torch.no_grad()
    def sample_plan(
        model: Callable[..., Tensor],
        x: Tensor,
        sigmas: Any,
        extra_args: Mapping[str, Any] | None = None,
        callback: Callable[[dict[str, Any]], None] | None = None,
        disable: bool | None = None,
        noise_sampler: Callable[[Tensor, Tensor], Tensor] | None = None,
    ) -> Tensor:
        given = torch.as_tensor(sigmas, dtype=torch.float64, device="cpu")
        if given.shape != own.shape or not torch.allclose(given, own, rtol=1e-4, atol=0):
            raise ValueError(f"sigmas must be those of the plan, {own.tolist()}, got {given.tolist()}")
        draw, past = SeededNoise(range(len(x))), tuple[Call, ...]()
        x = x * float(plan.alpha[0])
        for k in range(len(plan)):
            p, state = plan.point(k), x / float(plan.alpha[k])
            x0 = model(state, x.new_full((len(x),), float(own[k])), **(extra_args or {}))
            if callback is not None:
                callback({"x": state, "i": k, "sigma": sigmas[k], "sigma_hat": sigmas[k], "denoised": x0})
            prediction = x0 if plan.rows[k].predicts == "x0" else (x - float(p.alpha) * x0) / float(p.sigma)
            noise = draw if noise_sampler is None else _between(noise_sampler, sigmas[k], sigmas[k + 1])
            x, past = advance(plan, k, past, x, prediction, noise)
        return x / float(plan.alpha[-1])

    return sample_plan


def cache_dit_mask(plan: Plan, cached: int) -> dict[str, Any]:
    """The fields `num_inference_steps` and `steps_computation_mask` of cache-dit's `DBCacheConfig`.

    The mask has 1 for a call that is computed, 0 for one that is taken from the cache.

    The calls are cached whose conditioning time is nearest to that of the call before, by the angle
    arctan(sigma / alpha); never the first or the last call, and no two in a row. The plan itself keeps its calls, and
    runs in a pipeline by `TimeTunerScheduler`; measure what the cache changes. A plan of few calls gains little.

    Args:
        plan: the plan, with one call in each step.
        cached: the number of calls to cache.

    Returns:
        The two fields.

    Raises:
        ValueError: several calls in a step, or more calls to cache than fit.
    """
    if max(plan.steps) > 1:
        raise ValueError(
            f"cache-dit counts steps, and {plan.sampler!r} makes several calls in one: take a multistep one"
        )
    angle = plan.schedule.at(plan.tau).angle
    gaps, calls = (angle[:-1] - angle[1:]).abs(), len(plan)
    mask = [1] * calls
    for k in (gaps[: calls - 2].argsort() + 1).tolist():
        if mask.count(0) < check_int("cached", cached, 0) and mask[k - 1] and mask[k + 1]:
            mask[k] = 0
    if mask.count(0) < cached:
        raise ValueError(f"cached must be at most {mask.count(0)} in this plan of {calls} calls, got {cached}")
    return {"num_inference_steps": calls, "steps_computation_mask": mask}


def save_with_tails(plan: Plan, path: str | PathLike[str]) -> None:
    """Write a plan, and the rest of its run from each later step on, into one file.

    The ComfyUI node needs them for runs from an image: the rows of a run that begins later are others.

    Args:
        plan: the plan.
        path: the file to write.
    """
    Plan.save_several([plan, *(rest(plan, first) for first in firsts_of(plan)[1:])], path)


def warn_of_loss(plan: Plan, what: str) -> None:
    """Warn of the parts of a plan that its grid alone, as `what`, leaves out.

    Args:
        plan: the plan.
        what: what is written of it, for the message.
    """
    if not torch.equal(plan.tau, plan.t[:-1]):
        _notify(f"{what} hold the grid alone: the tuned conditioning times (tau) are lost; use TimeTunerScheduler")
    if plan.corrections is not None:
        _notify(f"{what} hold the grid alone: the plan's corrections are lost; use TimeTunerScheduler")
    if not all(plan.guided):
        _notify(f"{what} hold the grid alone: guidance at some calls, and its reuse at the others, are lost")
    _notify(f"{what} hold the grid alone: the sampler is lost; choose {plan.sampler!r} there")


def _before_shift(plan: Plan, shift: float | None, program: str) -> list[float]:
    """The sigmas of the step starts before a shift is applied to them."""
    own = plan.schedule.shift
    if own is None:
        raise ValueError(f"plan must be one in a rectified flow, got a plan on {plan.schedule!r}")
    if plan.sigma[-1] > 0:
        raise ValueError(f"{program} ends at sigma = 0, the plan at {float(plan.sigma[-1]):.3g}: make one with end=0.0")
    shift = own if shift is None else float(shift)
    if not shift > 0:
        raise ValueError(f"shift must be positive, got {shift}")
    warn_of_loss(plan, "sigmas")
    sigmas = plan.schedule.at(plan.step_times[:-1]).sigma
    return [float(sigma) for sigma in sigmas / (shift - (shift - 1) * sigmas)]


def _between(
    noise_sampler: Callable[[Tensor, Tensor], Tensor], sigma: Any, following: Any
) -> Callable[[Tensor], Tensor]:
    return lambda x: noise_sampler(sigma, following)


def _notify(text: str) -> None:
    warnings.warn(text, UserWarning, stacklevel=4)
