"""What other programs receive of a plan is what they take, and gives the plan's grid there."""

import dataclasses
import inspect
import math
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from helpers import seeded
from peers import fields_of, folder_of, k_diffusion_sampling, load_file
from torch import Tensor

from time_tuner import NoiseScheduleFlow, NoiseScheduleVE, NoiseScheduleVP, Plan, make_plan, named_betas, sample
from time_tuner.diffusers import TimeTunerScheduler, sdnext_sampler
from time_tuner.exports import (
    cache_dit_mask,
    k_diffusion_sampler,
    save_with_tails,
    sdcpp_arguments,
    sglang_request,
    vllm_omni_params,
    webui_scheduler,
)
from time_tuner.plans.build import rest

VP = NoiseScheduleVP(betas=named_betas("scaled_linear", 1000))
FLOW = NoiseScheduleFlow(shift=3.0)


def quietly(export: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    with warnings.catch_warnings(action="ignore"):
        return export(*args, **kwargs)


def tuned(plan: Plan) -> Plan:
    calls = len(plan)
    ratios = 1 + 0.03 * torch.sin(1 + torch.arange(calls, dtype=torch.float64))
    return plan.with_ratios(ratios).with_corrections((0.1 * seeded(calls, calls, seed=1)).tril(-1))


def sigmas_of(plan: Plan) -> Tensor:
    return plan.schedule.sigma_ratio(plan.step_times)


@pytest.mark.parametrize("export", [webui_scheduler, sdcpp_arguments, vllm_omni_params, sglang_request])
def test_lists_name_what_they_leave_out(export: Callable[..., Any]) -> None:
    plan = make_plan("dpmpp", FLOW, 4, end=0.0)
    with pytest.warns(UserWarning, match="the sampler is lost; choose DPMSolverPP") as warned:
        export(plan)
    assert len(warned) == 1
    with pytest.warns(UserWarning, match="hold the grid alone") as warned:
        export(tuned(plan))
    assert [word for word in ("tau", "corrections", "sampler") if any(word in str(w.message) for w in warned)] == [
        "tau",
        "corrections",
        "sampler",
    ]


def test_guidance_at_some_calls_is_among_what_is_lost() -> None:
    plan = make_plan("dpmpp", FLOW, 4, end=0.0, guided=2)
    for export in (webui_scheduler, sdcpp_arguments, vllm_omni_params, sglang_request):
        with pytest.warns(UserWarning) as warned:  # noqa: PT030 - several
            export(plan)
        assert any("guidance at some calls" in str(w.message) for w in warned)
    with pytest.raises(ValueError, match="one prediction for each call"):
        k_diffusion_sampler(make_plan("ddim", VP, 4, guided=2))


# --- Forge, reForge, AUTOMATIC1111 ---


@dataclasses.dataclass
class WebuiScheduler:
    """The entry of the list of schedulers there, as its fields are documented."""

    name: str
    label: str
    function: Any
    default_rho: float = -1
    need_inner_model: bool = False
    aliases: Any = None


@pytest.mark.parametrize("schedule", [VP, FLOW, NoiseScheduleVE()], ids=["vp", "flow", "ve"])
def test_webui_receives_the_sigmas_of_the_number_of_steps(schedule: Any) -> None:
    plans = [make_plan("dpmpp", schedule, calls) for calls in (4, 8)]
    entry = WebuiScheduler("time_tuner", "Time Tuner", quietly(webui_scheduler, plans))
    for plan in plans:
        sigmas = entry.function(n=len(plan), sigma_min=0.03, sigma_max=14.6, device="cpu")
        assert sigmas.dtype is torch.float32 and sigmas.shape == (len(plan) + 1,)
        assert torch.allclose(sigmas.double(), sigmas_of(plan), rtol=1e-6)
    with pytest.raises(ValueError, match=r"steps must be one of \[4, 8\].*got 6"):
        entry.function(n=6, sigma_min=0.03, sigma_max=14.6, device="cpu")
    with pytest.raises(ValueError, match="different numbers of steps"):
        quietly(webui_scheduler, [plans[0], plans[0]])


def test_webui_counts_steps_and_not_calls() -> None:
    heun = make_plan("heun", VP, 6, "uniform")
    assert len(quietly(webui_scheduler, heun)(3, 0.03, 14.6)) == 4


# --- SD.Next ---


@pytest.mark.parametrize(("schedule", "kind"), [(VP, "v_prediction"), (FLOW, "flow_prediction")], ids=["vp", "flow"])
def test_sdnext_makes_a_scheduler_of_the_whole_plan(schedule: Any, kind: str) -> None:
    """SD.Next calls the constructor with those of its settings that are in its signature."""
    plan = tuned(make_plan("unipc", schedule, 5))
    entry = sdnext_sampler(plan)
    assert entry["name"].endswith(" FlowMatch") is (kind == "flow_prediction")
    settings = {"num_train_timesteps": 1000, "beta_start": 1e-4, "prediction_type": kind, "shift": 3, **entry["config"]}
    taken = inspect.signature(entry["constructor"], follow_wrapped=True).parameters
    scheduler = entry["constructor"](**{key: value for key, value in settings.items() if key in taken})
    assert isinstance(scheduler, TimeTunerScheduler)
    assert scheduler.config.prediction_type == kind
    scheduler.set_timesteps(5)
    assert scheduler.plan == plan
    assert {"sigmas", "timesteps"} <= inspect.signature(scheduler.set_timesteps).parameters.keys()
    assert hasattr(scheduler, "scale_noise")


def test_sdnext_takes_flows_and_others_apart() -> None:
    with pytest.raises(ValueError, match="all of rectified flows"):
        sdnext_sampler([make_plan("ddim", VP, 4), make_plan("ddim", FLOW, 5)])


# --- stable-diffusion.cpp ---


@pytest.mark.parametrize("schedule", [VP, FLOW], ids=["vp", "flow"])
def test_sdcpp_receives_all_sigmas_as_text(schedule: Any) -> None:
    plan = make_plan("ddim", schedule, 5)
    steps, count, sigmas, text = quietly(sdcpp_arguments, plan)
    assert (steps, count, sigmas) == ("--steps", "5", "--sigmas")
    assert torch.allclose(torch.tensor([float(s) for s in text.split(",")]).double(), sigmas_of(plan), rtol=1e-5)


def test_infinite_sigmas_are_refused() -> None:
    zero = make_plan("ddim", NoiseScheduleVP(alphas_cumprod=[0.9, 0.5, 0.2, 0.0]), 3, "trailing")
    for export in (sdcpp_arguments, webui_scheduler):
        with pytest.raises(ValueError, match="zero terminal SNR"):
            quietly(export, zero)


# --- vLLM-Omni, SGLang: the shift is applied again ---


def test_flows_arrive_after_the_shift_of_diffusers() -> None:
    plan = make_plan("ddim", FLOW, 5, end=0.0)
    for export in (vllm_omni_params, lambda plan, **o: sglang_request(plan, **o)["diffusers_kwargs"]):
        scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
        scheduler.set_timesteps(sigmas=quietly(export, plan)["sigmas"])
        assert torch.allclose(scheduler.sigmas.double(), plan.sigma, atol=1e-6)
        dynamic = diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
        dynamic.set_timesteps(sigmas=quietly(export, plan, shift=math.exp(0.8))["sigmas"], mu=0.8)
        assert torch.allclose(dynamic.sigmas.double(), plan.sigma, atol=1e-6)
        without = quietly(export, plan, shift=1.0)["sigmas"]
        assert np.allclose(without, plan.sigma[:-1])


def test_flows_that_end_elsewhere_and_other_plans_are_refused() -> None:
    with pytest.raises(ValueError, match=r"ends at sigma = 0, the plan at .*end=0\.0"):
        vllm_omni_params(make_plan("ddim", FLOW, 5, end=0.1))
    with pytest.raises(ValueError, match="rectified flow"):
        vllm_omni_params(make_plan("ddim", VP, 5))
    with pytest.raises(ValueError, match="shift must be positive"):
        vllm_omni_params(make_plan("ddim", FLOW, 5, end=0.0), shift=0.0)


def test_vllm_omni_has_the_fields_and_its_scheduler_gives_the_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    folder = folder_of("vllm_omni")
    plan = make_plan("ddim", FLOW, 5, end=0.0)
    given = quietly(vllm_omni_params, plan)
    assert given.keys() <= fields_of(folder / "inputs" / "data.py", "OmniDiffusionSamplingParams")
    file = folder / "diffusion" / "models" / "schedulers" / "scheduling_flow_match_euler_discrete.py"
    scheduler = load_file(monkeypatch, file, "vllm_omni_scheduler").FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.set_timesteps(sigmas=given["sigmas"])
    assert torch.allclose(scheduler.sigmas.double(), plan.sigma, atol=1e-6)


@pytest.mark.parametrize("schedule", [VP, FLOW], ids=["vp", "flow"])
def test_sglang_has_the_fields(schedule: Any) -> None:
    folder = folder_of("sglang") / "multimodal_gen"
    given = quietly(sglang_request, make_plan("ddim", schedule, 5, end=0.0))
    openai = folder / "runtime" / "entrypoints" / "openai" / "protocol.py"
    for name in ("ImageGenerationsRequest", "VideoGenerationsRequest"):
        assert given.keys() <= fields_of(openai, name)
    pipeline = (folder / "runtime" / "pipelines" / "diffusers_pipeline.py").read_text()
    assert "kwargs.update(diffusers_kwargs)" in pipeline


def test_sglang_passes_timesteps_of_other_plans() -> None:
    plan = make_plan("ddim", VP, 5, "leading")
    given = quietly(sglang_request, plan)
    scheduler = diffusers.DPMSolverMultistepScheduler(beta_schedule="scaled_linear")
    scheduler.set_timesteps(timesteps=given["diffusers_kwargs"]["timesteps"])
    assert scheduler.timesteps.tolist() == plan.schedule.network_time(plan.t[:-1]).round().tolist()
    assert given["num_inference_steps"] == 5


# --- k-diffusion ---


def denoiser(x: Tensor, sigma: Tensor, **extra: Any) -> Tensor:
    s = sigma.reshape(-1, *[1] * (x.dim() - 1))
    return torch.tanh(x / (1 + s**2).sqrt() + extra.get("shift", 0.0)) * 0.9


def own_eps(plan: Plan) -> Callable[..., Tensor]:
    def eps(x: Tensor, t: Any, tau: Any) -> Tensor:
        p = plan.schedule.at(t)
        return (x - p.alpha * denoiser(x / p.alpha, (p.sigma / p.alpha).expand(len(x)))) / p.sigma

    return eps


@pytest.mark.parametrize("schedule", [VP, NoiseScheduleVE()], ids=["vp", "ve"])
@pytest.mark.parametrize("sampler", ["ddim", "ddpm", "heun", "dpmpp(order=3)", "unipc"])
def test_k_diffusion_function_runs_the_rows(sampler: str, schedule: Any) -> None:
    plan = make_plan(sampler, schedule, 7 if sampler == "heun" else 6, "logsnr", end=0.0)
    plan = plan.with_corrections((0.1 * seeded(len(plan), len(plan))).tril(-1))
    noise, draws = seeded(2, 3, 4), [seeded(2, 3, 4, seed=k) for k in range(len(plan))]
    first, second = iter(draws), iter(draws)
    run = k_diffusion_sampler(plan)
    x = noise * float(plan.point(0).scale / plan.alpha[0])
    got = run(denoiser, x, plan.sigma / plan.alpha, noise_sampler=lambda *_: next(first))
    expected = sample(own_eps(plan), plan, plan.initial_state(noise), lambda x: next(second)) / plan.alpha[-1]
    assert torch.allclose(got, expected, atol=1e-9)


def test_k_diffusion_function_has_the_signature_and_the_results_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = k_diffusion_sampling(monkeypatch)
    for name, sampler in (
        ("sample_euler", "ddim"),
        ("sample_dpmpp_2m", "dpmpp"),
        ("sample_euler_ancestral", "ddim(eta=1.0)"),
    ):
        plan = make_plan(sampler, VP, 6, "logsnr", end=0.0)
        own, other = k_diffusion_sampler(plan), getattr(theirs, name)
        shared = list(inspect.signature(theirs.sample_euler_ancestral).parameters)[:6]
        assert [p for p in inspect.signature(own).parameters if p != "noise_sampler"] == shared
        x, sigmas = seeded(2, 3, 4) * 14.6, plan.sigma / plan.alpha
        seen: list[Any] = []
        options: dict[str, Any] = {"extra_args": {"shift": 0.2}, "disable": True}
        if name == "sample_euler_ancestral":
            options["noise_sampler"] = lambda sigma, following: seeded(2, 3, 4, seed=int(1000 * float(following)))
        got = own(denoiser, x, sigmas, callback=seen.append, **options)
        expected = other(denoiser, x, sigmas, **options)
        assert torch.allclose(got, expected, atol=1e-6), name
        assert [one["i"] for one in seen] == list(range(6))


def test_k_diffusion_function_refuses_what_it_cannot_run() -> None:
    plan = make_plan("ddim", VP, 4)
    with pytest.raises(ValueError, match="sigmas must be those of the plan"):
        k_diffusion_sampler(plan)(denoiser, seeded(1, 2), torch.linspace(14, 0, 5))
    with pytest.raises(ValueError, match="k-diffusion has states"):
        k_diffusion_sampler(make_plan("ddim", FLOW, 4))
    with pytest.warns(UserWarning, match=r"conditioning times \(tau\) are lost"):
        k_diffusion_sampler(tuned(plan))


# --- cache-dit ---


def test_cache_dit_mask_leaves_out_the_nearest_calls() -> None:
    plan = make_plan("dpmpp", VP, times=[1, 0.8, 0.79, 0.5, 0.3, 0.29, 0.1, 0.001])
    assert cache_dit_mask(plan, 2) == {"num_inference_steps": 7, "steps_computation_mask": [1, 1, 0, 1, 1, 0, 1]}
    assert cache_dit_mask(plan, 0)["steps_computation_mask"] == [1] * 7
    with pytest.raises(ValueError, match="cached must be at most"):
        cache_dit_mask(plan, 6)
    with pytest.raises(ValueError, match="several calls in one"):
        cache_dit_mask(make_plan("heun", VP, 6, "uniform"), 1)


@pytest.mark.parametrize("calls", [3, 8, 25])
@pytest.mark.parametrize("schedule", [VP, FLOW], ids=["vp", "flow"])
def test_cache_dit_mask_keeps_the_first_and_the_last_call_and_no_two_cached_in_a_row(schedule: Any, calls: int) -> None:
    plan = make_plan("dpmpp", schedule, calls)
    mask = cache_dit_mask(plan, calls // 3)["steps_computation_mask"]
    assert len(mask) == calls and mask.count(0) == calls // 3
    assert mask[0] == mask[-1] == 1 and "00" not in "".join(map(str, mask))


def test_cache_dit_has_the_fields() -> None:
    file = folder_of("cache_dit") / "caching" / "cache_contexts" / "cache_config.py"
    assert cache_dit_mask(make_plan("dpmpp", VP, 8), 2).keys() <= fields_of(file, "BasicCacheConfig")


# --- runs that begin later ---


def test_tails_are_the_rest_of_a_plan(tmp_path: Path) -> None:
    plan = tuned(make_plan("heun", VP, 6, "uniform"))
    save_with_tails(plan, tmp_path / "plan.json")
    plans = Plan.load_several(tmp_path / "plan.json")
    assert plans == [rest(plan, 4), rest(plan, 2), plan]


def test_tails_keep_the_guidance_of_their_calls(tmp_path: Path) -> None:
    reuse = torch.zeros(4, 4, dtype=torch.float64)
    reuse[3, :2] = 0.3
    plan = make_plan("ddim", VP, 4).with_guidance([True, True, True, False], reuse)
    save_with_tails(plan, tmp_path / "plan.json")
    tail = Plan.load(tmp_path / "plan.json", calls=3)
    assert tail.guided == (True, True, False)
    assert tail.reuse is not None and tail.reuse.tolist() == [[0, 0, 0], [0, 0, 0], [0.3, 0, 0]]
