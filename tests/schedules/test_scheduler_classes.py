"""Every scheduler class of diffusers, and the configurations of released models: read as the class runs, or refused.

What a class does is measured on it: a network that predicts one data and one noise in every state, which each solver
follows exactly, shows where every step of the class ends.
"""

import json
import logging
import math
import re
import runpy
import sys
from collections.abc import Callable
from inspect import signature
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor

from time_tuner import NoiseScheduleFlow, NoiseScheduleVE, NoiseScheduleVP, schedule_from
from time_tuner.schedules.from_diffusers import _warn, distilled
from time_tuner.schedules.scheduler_classes import MARKS, REFUSED, SCHEDULER_CLASSES
from time_tuner.schedules.scheduler_facts import SchedulerFacts, scheduler_facts
from time_tuner.schedules.verdicts import verdict_of

EXPORTED = {name for name in dir(diffusers) if name.endswith("Scheduler")}
HERE = [
    name
    for name in SCHEDULER_CLASSES
    if hasattr(diffusers, name) and "torchsde" not in getattr(getattr(diffusers, name), "_backends", [])
]
IN_SIGMA = ("EulerDiscrete", "EulerAncestral", "Heun", "LMS", "KDPM2", "EDM")  # their states are x / alpha
CONVERTED = ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", "use_lu_lambdas", "use_flow_sigmas")

SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "num_train_timesteps": 1000}
LDM = {"beta_start": 0.0015, "beta_end": 0.0195, "beta_schedule": "scaled_linear", "num_train_timesteps": 1000}
LINEAR = {"beta_start": 0.0001, "beta_end": 0.02, "beta_schedule": "linear", "num_train_timesteps": 1000}
COSINE = {"beta_schedule": "squaredcos_cap_v2", "num_train_timesteps": 1000}
LEADING = {"steps_offset": 1, "set_alpha_to_one": False, "clip_sample": False, "timestep_spacing": "leading"}
FLUX = {"shift": 3.0, "use_dynamic_shifting": True, "base_shift": 0.5, "max_shift": 1.15, "base_image_seq_len": 256,
        "max_image_seq_len": 4096, "num_train_timesteps": 1000}  # fmt: skip
UNIPC_FLOW = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "num_train_timesteps": 1000}
V = {"prediction_type": "v_prediction"}
EDM = {"sigma_data": 0.5, "sigma_min": 0.002, "sigma_max": 80.0, "num_train_timesteps": 1000}

NO_GRID = {("UnCLIPScheduler", 1), *(("PNDMScheduler", steps) for steps in (1, 2, 3, 4))}

# The scheduler_config.json of released models, each with the class that it names, as far as their entries are known.
RELEASED: dict[str, tuple[str, dict[str, Any]]] = {
    "Stable Diffusion 1.5": ("PNDM", SD | LEADING | {"skip_prk_steps": True, "trained_betas": None}),
    "Stable Diffusion 1.5 inpainting": ("DDIM", SD | LEADING),
    "Stable Diffusion 2.1": ("DDIM", SD | LEADING | V | {"skip_prk_steps": True}),
    "Stable Diffusion 2 inpainting": ("PNDM", SD | LEADING | {"skip_prk_steps": True}),
    "Stable Diffusion x4 upscaler": ("DDIM", LINEAR | LEADING | V),
    "x4 upscaler, low resolution": ("DDPM", LINEAR | {"clip_sample": True, "variance_type": "fixed_small"}),
    "SDXL": ("EulerDiscrete", SD | LEADING | {"interpolation_type": "linear", "prediction_type": "epsilon"}),
    "SDXL, trailing": ("EulerAncestralDiscrete", SD | {"timestep_spacing": "trailing"}),
    "SDXL inpainting": ("EulerDiscrete", SD | LEADING | {"sample_max_value": 1.0, "thresholding": False}),
    "Hotshot-XL": ("EulerDiscrete", SD | LEADING | {"use_karras_sigmas": False}),
    "Kolors": ("EulerDiscrete", SD | {"beta_end": 0.014, "num_train_timesteps": 1100} | LEADING),
    "SVD": ("EulerDiscrete", SD | LEADING | V | {"sigma_min": 0.002, "sigma_max": 700.0,
            "timestep_type": "continuous", "use_karras_sigmas": True}),
    "EDM with v": ("EulerDiscrete", SD | V | {"sigma_min": 0.0485, "sigma_max": 124.9, "timestep_type": "continuous",
                   "use_karras_sigmas": True}),
    "Euler, zero terminal SNR": ("EulerDiscrete", SD | V | {"rescale_betas_zero_snr": True,
                                 "timestep_spacing": "trailing"}),
    "Playground 2.5": ("EDMDPMSolverMultistep", EDM | {"rho": 7.0, "solver_order": 2, "sigma_schedule": "karras"}),
    "Cosmos 1": ("EDMEuler", EDM | {"sigma_schedule": "karras", "final_sigmas_type": "sigma_min"}),
    "CogVideoX-2b": ("CogVideoXDDIM", SD | V | {"snr_shift_scale": 3.0, "rescale_betas_zero_snr": True,
                     "timestep_spacing": "trailing", "clip_sample": False, "set_alpha_to_one": True}),
    "CogVideoX-5b": ("CogVideoXDDIM", SD | V | {"snr_shift_scale": 1.0, "rescale_betas_zero_snr": True,
                     "timestep_spacing": "trailing", "clip_sample": False, "set_alpha_to_one": True}),
    "LCM (SDXL)": ("LCM", SD | {"original_inference_steps": 50, "timestep_scaling": 10.0, "clip_sample": False}),
    "LCM, two keys": ("LCM", {"beta_schedule": "scaled_linear", "original_inference_steps": 50}),
    "LCM, no betas": ("LCM", {"original_inference_steps": 50}),
    "TCD": ("TCD", SD | {"timestep_spacing": "leading"}),
    "DiT": ("DDIM", {"num_train_timesteps": 1000, "beta_schedule": "linear", "clip_sample": False}),
    "LDM celebahq": ("DDIM", LDM | {"clip_sample": False, "trained_betas": None, "_diffusers_version": "0.0.4"}),
    "AudioLDM": ("DDIM", LDM | {"clip_sample": False}),
    "AudioLDM 2": ("DDIM", LDM | LEADING),
    "I2VGen-XL": ("DDIM", COSINE | LEADING | V | {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}),
    "Zero123": ("DDIM", SD | LEADING),
    "Marigold": ("DDIM", SD | LEADING | V),
    "Hunyuan3D paint": ("DDIM", SD | V | {"clip_sample": False, "rescale_betas_zero_snr": True,
                        "timestep_spacing": "trailing"}),
    "DDPM church": ("DDPM", LINEAR | {"clip_sample": True, "variance_type": "fixed_small"}),
    "DDPM without clip_sample": ("DDPM", LINEAR),
    "human motion": ("DDPM", COSINE | V | {"clip_sample": False}),
    "Laplace": ("DDPM", {"beta_schedule": "laplace", "num_train_timesteps": 1000}),
    "DeepFloyd IF": ("DDPM", COSINE | {"thresholding": True, "dynamic_thresholding_ratio": 0.95,
                     "sample_max_value": 1.5, "variance_type": "learned_range"}),
    "Diffusion policy": ("DDIM", COSINE | {"num_train_timesteps": 100, "clip_sample": True}),
    "unCLIP prior": ("UnCLIP", {"clip_sample": True, "clip_sample_range": 5.0, "num_train_timesteps": 1000,
                     "prediction_type": "sample", "variance_type": "fixed_small_log"}),
    "unCLIP decoder": ("UnCLIP", {"clip_sample": True, "num_train_timesteps": 1000, "variance_type": "learned_range"}),
    "Kandinsky 2.2 prior": ("UnCLIP", {"clip_sample": True, "clip_sample_range": 10.0, "num_train_timesteps": 1000,
                            "prediction_type": "sample"}),
    "UniDiffuser": ("DPMSolverMultistep", SD | {"solver_order": 3, "algorithm_type": "dpmsolver++"}),
    "PixArt": ("DPMSolverMultistep", LINEAR | {"solver_order": 2, "algorithm_type": "dpmsolver++"}),
    "Sana": ("DPMSolverMultistep", LINEAR | UNIPC_FLOW | {"flow_shift": 3.0}),
    "Shap-E": ("HeunDiscrete", {"beta_schedule": "exp", "num_train_timesteps": 1024, "prediction_type": "sample",
               "use_karras_sigmas": True, "clip_sample": True}),
    "PNDM, defaults": ("PNDM", {}),
    "Wan 2.1": ("UniPCMultistep", LINEAR | UNIPC_FLOW | {"flow_shift": 3.0, "solver_order": 2}),
    "Wan 2.2": ("UniPCMultistep", LINEAR | UNIPC_FLOW | {"flow_shift": 5.0}),
    "Cosmos 2.5": ("UniPCMultistep", LINEAR | UNIPC_FLOW | {"use_karras_sigmas": True, "sigma_min": 0.01,
                   "sigma_max": 200.0}),
    "FLUX.1-dev": ("FlowMatchEulerDiscrete", FLUX),
    "FLUX.1-schnell": ("FlowMatchEulerDiscrete", FLUX | {"shift": 1.0, "use_dynamic_shifting": False}),
    "Stable Diffusion 3": ("FlowMatchEulerDiscrete", {"num_train_timesteps": 1000, "shift": 3.0}),
    "Stable Diffusion 3.5": ("FlowMatchEulerDiscrete", FLUX),
    "AuraFlow": ("FlowMatchEulerDiscrete", {"num_train_timesteps": 1000, "shift": 1.73}),
    "Qwen-Image": ("FlowMatchEulerDiscrete", FLUX | {"shift": 1.0, "max_shift": 0.9, "max_image_seq_len": 8192,
                   "shift_terminal": 0.02, "time_shift_type": "exponential"}),
    "LTX-Video 0.9.0": ("FlowMatchEulerDiscrete", FLUX | {"shift": 1.0, "base_shift": 0.95, "max_shift": 2.05,
                        "base_image_seq_len": 1024, "shift_terminal": 0.1}),
    "LTX-Video 0.9.7": ("FlowMatchEulerDiscrete", {"num_train_timesteps": 1000, "shift_terminal": 0.1}),
    "Krea 2": ("FlowMatchEulerDiscrete", {"num_train_timesteps": 1000, "shift": 1.0}),
    "Chroma": ("FlowMatchEulerDiscrete", {"num_train_timesteps": 1000, "shift": 1.0, "use_beta_sigmas": True}),
    "ACE-Step": ("FlowMatchEulerDiscrete", {"num_train_timesteps": 1, "shift": 3.0}),
    "Stable Audio 3, distilled": ("FlowMatchEulerDiscrete", {"num_train_timesteps": 1000, "stochastic_sampling": True}),
    "Flow, defaults": ("FlowMatchEulerDiscrete", {}),
    "AnyFlow": ("FlowMapEulerDiscrete", {"num_train_timesteps": 1000, "shift": 5.0}),
    "Karras": ("DPMSolverMultistep", SD | {"use_karras_sigmas": True}),
    "exponential": ("DPMSolverMultistep", SD | {"use_exponential_sigmas": True}),
    "beta": ("DPMSolverMultistep", SD | {"use_beta_sigmas": True}),
    "Lu": ("DPMSolverMultistep", SD | {"use_lu_lambdas": True}),
    "ends at the first level": ("DPMSolverMultistep", SD | {"final_sigmas_type": "sigma_min"}),
    "ends at the first level, Karras": ("DPMSolverMultistep", SD | {"final_sigmas_type": "sigma_min",
                                        "use_karras_sigmas": True}),
    "ends at the first level, Lu": ("DPMSolverMultistep", SD | {"final_sigmas_type": "sigma_min",
                                    "use_lu_lambdas": True}),
    "EDM, ends at the least sigma": ("EDMDPMSolverMultistep", EDM | {"final_sigmas_type": "sigma_min"}),
    "Euler, ends at the least sigma": ("EulerDiscrete", SD | {"final_sigmas_type": "sigma_min"}),
    "singlestep, Karras": ("DPMSolverSinglestep", SD | {"use_karras_sigmas": True}),
    "zero terminal SNR, DPM": ("DPMSolverMultistep", SD | V | {"rescale_betas_zero_snr": True,
                               "timestep_spacing": "trailing"}),
    "zero terminal SNR, UniPC": ("UniPCMultistep", SD | V | {"rescale_betas_zero_snr": True,
                                 "timestep_spacing": "trailing"}),
    "Flow, Karras": ("FlowMatchEulerDiscrete", {"shift": 3.0, "use_karras_sigmas": True}),
    "Flow of 500 levels": ("FlowMatchEulerDiscrete", {"shift": 2.0, "num_train_timesteps": 500}),
    "cosine, clipped lambda": ("DPMSolverMultistep", COSINE | {"lambda_min_clipped": -5.1, "variance_type":
                               "learned_range", "use_karras_sigmas": True}),
    "DEIS, Karras": ("DEISMultistep", SD | {"use_karras_sigmas": True}),
    "DEIS, exponential": ("DEISMultistep", SD | {"use_exponential_sigmas": True}),
    "DEIS, beta": ("DEISMultistep", SD | {"use_beta_sigmas": True}),
    "Euler, log-linear": ("EulerDiscrete", SD | {"interpolation_type": "log_linear"}),
    "Euler, exponential": ("EulerDiscrete", SD | {"use_exponential_sigmas": True, "final_sigmas_type": "sigma_min"}),
    "Euler, its own sigmas": ("EulerDiscrete", SD | {"use_karras_sigmas": True, "sigma_min": 0.03, "sigma_max": 12.0}),
}  # fmt: skip


class Probe:
    """Runs a scheduler with a network that predicts one data and one noise, and measures where each call leads.

    Three channels hold the parts of the data, of the noise and of drawn noise in the state. The measure is sigma /
    alpha, or sigma in a flow.
    """

    def __init__(
        self, facts: SchedulerFacts, scheduler: Any, monkeypatch: pytest.MonkeyPatch, size: float = 1.0
    ) -> None:
        self.facts, self.scheduler, self.flow = facts, scheduler, facts.schedule.shift is not None
        if hasattr(scheduler, "set_begin_index"):
            scheduler.set_begin_index(0)
        if facts.class_name == "SASolverScheduler":
            scheduler.tau_func = lambda t: 0  # without noise: its corrector needs the noise of the step before
        self.in_sigma = facts.class_name.startswith(IN_SIGMA)
        self.data, self.noise, drawn = (torch.eye(3)[i][None, :, None].expand(1, 3, 4) for i in range(3))
        self.data = size * self.data
        module = sys.modules[type(scheduler).__module__]
        if hasattr(module, "randn_tensor"):
            monkeypatch.setattr(module, "randn_tensor", lambda shape, **_: drawn.clone())

    def alpha_sigma(self, ratio: float) -> tuple[float, float]:
        angle = math.atan(ratio)
        return (1 - ratio, ratio) if self.flow else (0.0 if ratio == math.inf else math.cos(angle), math.sin(angle))

    def state(self, ratio: float) -> Tensor:
        alpha, sigma = (1.0, ratio) if self.in_sigma else self.alpha_sigma(ratio)
        return alpha * self.data + sigma * self.noise

    def predicted(self, ratio: float, x: Tensor) -> Tensor:
        alpha, sigma = self.alpha_sigma(ratio)
        if (deviation := self.facts.schedule.sigma_data) and self.facts.class_name.startswith("EDM"):
            size = math.hypot(deviation, ratio)
            return (self.data - deviation**2 / size**2 * x) * size / (ratio * deviation)
        return {
            "epsilon": self.noise,
            "sample": self.data,
            "v_prediction": alpha * self.noise - sigma * self.data,
            "flow_prediction": self.noise - self.data,
        }[self.facts.prediction_type]

    def step(self, k: int, ratio: float) -> list[float]:
        """The parts of data, noise and drawn noise after call k of the scheduler, from the state at `ratio`."""
        scheduler, x = self.scheduler, self.state(ratio)
        t, name = scheduler.timesteps[k], self.facts.class_name
        if hasattr(scheduler, "scale_model_input"):
            scheduler.scale_model_input(x, t)
        prediction = self.predicted(ratio, x)
        if name == "CogVideoXDPMScheduler":
            return scheduler.step(prediction, None, t, None, x)[0][0, :, 0].tolist()
        options: dict[str, Any] = {}
        if name == "UnCLIPScheduler" and k + 1 < len(scheduler.timesteps):
            options = {"prev_timestep": scheduler.timesteps[k + 1]}  # as its pipelines do
        return scheduler.step(prediction, t, x, **options).prev_sample[0, :, 0].tolist()

    def run(self, ratio: float) -> list[float]:
        """The measure at the beginning, `ratio`, and after each call."""
        ratios = [ratio]
        for k in range(len(self.scheduler.timesteps)):
            data, noise, drawn = self.step(k, ratios[-1])
            ratios.append(math.hypot(noise, drawn) / (1.0 if self.flow else data))
        return ratios


def scheduler_of(name: str, entries: dict[str, Any] | None = None) -> Any:
    return getattr(diffusers, name).from_config(entries or {})


def released(name: str) -> tuple[str, dict[str, Any]]:
    kind, entries = RELEASED[name]
    return f"{kind}Scheduler", entries


def facts_of(config: Any) -> SchedulerFacts:
    return scheduler_facts(config, tokens=4096)


def set_steps(scheduler: Any, facts: SchedulerFacts, steps: int, sigmas: str = "pipeline") -> None:
    """Set the steps of a scheduler as pipelines do."""
    mu = {"mu": math.log(facts.schedule.shift or 1.0)} if scheduler.config.get("use_dynamic_shifting") else {}
    if sigmas == "pipeline" and facts.class_name in ("FlowMatchEulerDiscreteScheduler", "FlowMatchLCMScheduler"):
        scheduler.set_timesteps(sigmas=[1 - i / steps for i in range(steps)], **mu)
    else:
        scheduler.set_timesteps(steps, **mu)


def check_schedule(scheduler: Any) -> None:
    """The schedule has the alphas of the scheduler at every level, and its network receives the scheduler's times."""
    facts = facts_of(scheduler)
    schedule = facts.schedule
    if isinstance(schedule, NoiseScheduleVP):
        theirs = scheduler.alphas_cumprod.double().sqrt()
        alpha = schedule.at(torch.arange(1, len(theirs) + 1, dtype=torch.float64) / len(theirs)).alpha
        no_data = bool(alpha[-1] == 0)  # where solvers in sigma / alpha have 2^-24 for alpha^2, since 1 / 0 is infinite
        torch.testing.assert_close(
            alpha[: -1 if no_data else None], theirs[: -1 if no_data else None], rtol=0, atol=1e-5
        )
        assert facts.levels == len(theirs) == scheduler.config.num_train_timesteps
        assert not no_data or theirs[-1] <= 2**-12
        assert schedule.network_time(1.0) == len(theirs) - 1
    else:
        set_steps(scheduler, facts, 5)
        sigmas = scheduler.sigmas[: len(scheduler.timesteps)].double()
        receives = schedule.network_time(schedule.from_sigma_ratio(sigmas))
        whole = not scheduler.timesteps.is_floating_point()  # solvers of betas cut the fraction off, also in flows
        theirs = scheduler.timesteps.double()
        torch.testing.assert_close(receives, theirs, rtol=1e-5, atol=1.01 if whole else 1e-5)
        assert isinstance(schedule, NoiseScheduleFlow) or abs(schedule.T / float(sigmas[0]) - 1) < 1e-6


def check_grid(make: Callable[[], Any], steps: int, monkeypatch: pytest.MonkeyPatch, sigmas: str = "pipeline") -> None:
    """The times of the facts are where the class's own steps begin and end, and its network receives the same there."""
    facts, scheduler = facts_of(make()), make()
    schedule = facts.schedule
    set_steps(scheduler, facts, steps, sigmas)
    received = [float(t) for t in scheduler.timesteps]
    if hasattr(scheduler, "sigmas"):
        begin = float(scheduler.sigmas[0])
    else:
        begin = float(schedule.sigma_ratio(schedule.from_network_time(received[0])))
    if facts.class_name == "PiflowScheduler":  # whose network predicts a policy
        ratios = scheduler.sigmas.tolist()
    else:
        ratios = Probe(facts, scheduler, monkeypatch).run(begin)
    still = abs(ratios[-1] - ratios[-2]) <= 1e-4 * ratios[-2] and received[-1] not in received[:-1]
    if still and schedule.shift is not None:
        with pytest.raises(ValueError, match="its last step has no length, and leaves noise of sigma"):
            facts.times(steps, sigmas)
        return
    if still and steps == 1:
        return
    times = facts.times(steps - still, sigmas)
    assert times.dtype == torch.float64 and len(times) == steps - still + 1 and (times.diff() < 0).all()
    assert facts.calls(steps - still, sigmas) == len(received)
    assert (times[-1] == 0) == facts.ends_at_zero
    # In classes with several calls in a step the ends of steps are some of the states, in others all of them.
    firsts = [k for k, r in enumerate(ratios) if not k or r < (1 - 1e-4) * ratios[k - 1]]
    several = facts.class_name.startswith(("KDPM2", "PNDM"))
    assert several or len(firsts) == len(times)
    converted = any(scheduler.config.get(name) for name in CONVERTED) and not scheduler.timesteps.is_floating_point()
    rel = 0.03 if facts.class_name.startswith("KDPM2Ancestral") else 1e-3  # by the rounding of a difference of squares
    for n, (t, sigma) in enumerate(zip(times, schedule.sigma_ratio(times).tolist(), strict=True)):
        if sigma == math.inf and hasattr(scheduler, "sigmas"):
            sigma = 4096.0  # which solvers in sigma / alpha have at alpha = 0
        while several and ratios[firsts[0]] > 1.001 * sigma + 2e-5:
            firsts.pop(0)
        k = firsts.pop(0)
        assert ratios[k] == pytest.approx(sigma, rel=rel, abs=2e-5 + 1e-7 * min(begin, 1e5))
        if n < len(times) - 1 and schedule.levels and scheduler.config.get("interpolation_type") != "log_linear":
            # Solvers cut the fraction of converted sigmas' levels off, and read levels between two otherwise.
            assert received[k] == pytest.approx(float(schedule.network_time(t)), abs=1.01 if converted else 0.1)


def test_every_exported_class_is_known() -> None:
    assert not SCHEDULER_CLASSES.keys() & REFUSED.keys()
    assert not EXPORTED - SCHEDULER_CLASSES.keys() - REFUSED.keys()
    if diffusers.__version__ >= "0.42":  # older versions lack the newest classes
        assert not SCHEDULER_CLASSES.keys() - EXPORTED


def test_the_page_has_the_table_that_the_command_prints(capsys: pytest.CaptureFixture[str]) -> None:
    sys.modules.pop("time_tuner.schedules.verdicts")
    runpy.run_module("time_tuner.schedules.verdicts", run_name="__main__")
    printed = capsys.readouterr().out
    page = Path(__file__).parents[2] / "docs" / "reference" / "schedules.md"
    assert f"\n\n{printed}\n## " in page.read_text(encoding="utf-8")
    assert printed.count("\n| `") == len(SCHEDULER_CLASSES) + len(REFUSED)


@pytest.mark.parametrize("name", [*HERE, *REFUSED])
def test_the_verdict_on_a_class_is_what_is_done_with_it(name: str) -> None:
    verdict, reason = verdict_of(name)
    if verdict == "refused":
        with pytest.raises(ValueError, match=re.escape(reason)):
            schedule_from({"_class_name": name})
        return
    facts = facts_of(scheduler_of(name))
    assert bool(facts.distilled) == ("warning" in verdict)
    driven = True
    try:
        facts.schedule.scheduler_config()
        facts.times(8)
    except ValueError:
        driven = False
    assert driven == (verdict != "noise alone")


# --- what a class makes of its defaults, and of the files of released models ---


@pytest.mark.parametrize("name", HERE)
def test_the_schedule_of_a_class_is_its_own(name: str) -> None:
    scheduler = scheduler_of(name)
    check_schedule(scheduler)
    by_name, by_entries = {"_class_name": name}, {**scheduler.config, "_class_name": name}
    assert schedule_from(scheduler) == schedule_from(by_name) == schedule_from(by_entries)
    assert facts_of(scheduler) == facts_of(by_name) == facts_of(by_entries)


@pytest.mark.parametrize("name", RELEASED)
def test_the_schedule_of_a_released_model_is_its_own(name: str) -> None:
    kind, entries = released(name)
    scheduler, file = scheduler_of(kind, entries), json.loads(json.dumps(entries | {"_class_name": kind}))
    check_schedule(scheduler)
    assert schedule_from(file, tokens=4096) == schedule_from(scheduler, tokens=4096)
    assert facts_of(file) == facts_of(scheduler)


@pytest.mark.parametrize("steps", [1, 2, 4, 5, 10, 20])
@pytest.mark.parametrize("name", [name for name in HERE if not SCHEDULER_CLASSES[name].no_grid])
def test_the_grid_of_a_class_is_its_own(name: str, steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    if (name, steps) not in NO_GRID:
        check_grid(lambda: scheduler_of(name), steps, monkeypatch)


@pytest.mark.parametrize("steps", [1, 4, 10])
@pytest.mark.parametrize("name", RELEASED)
def test_the_grid_of_a_released_model_is_its_own(name: str, steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    kind, entries = released(name)
    if "learned" in str(entries.get("variance_type")):  # the network of this test predicts no variance
        entries = entries | {"variance_type": "fixed_small" if kind == "DDPMScheduler" else "fixed_small_log"}
    if (kind, steps) not in NO_GRID and not (steps == 1 and entries.get("shift_terminal")):
        check_grid(lambda: scheduler_of(kind, entries), steps, monkeypatch)


@pytest.mark.parametrize("name", ["FLUX.1-dev", "Stable Diffusion 3", "Qwen-Image", "Chroma", "LTX-Video 0.9.7"])
@pytest.mark.parametrize("steps", [2, 4, 9])
def test_the_grid_of_a_flow_without_sigmas_of_the_pipeline_is_its_own(
    name: str, steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind, entries = released(name)
    check_grid(lambda: scheduler_of(kind, entries), steps, monkeypatch, sigmas="class")


@pytest.mark.parametrize("entry", CONVERTED[:-1])
@pytest.mark.parametrize("name", [name for name in HERE if SCHEDULER_CLASSES[name].noise == "betas"])
def test_sigmas_between_the_levels_are_those_of_the_class(name: str, entry: str) -> None:
    """They are not moved to the rounded timesteps of the class."""
    if entry not in signature(getattr(diffusers, name)).parameters or SCHEDULER_CLASSES[name].no_grid:
        return
    scheduler = scheduler_of(name, SD | {entry: True})
    facts = facts_of(scheduler)
    scheduler.set_timesteps(20)
    theirs = scheduler.sigmas.double().unique().flip(0)
    ours = facts.schedule.sigma_ratio(facts.times(len(theirs) - 1))
    torch.testing.assert_close(ours, theirs, rtol=2e-5, atol=1e-7)


def test_steps_between_the_levels_of_ddim_end_where_it_ends() -> None:
    """DDIM goes down by N // n levels: 7 trailing steps of 142 of 1000 levels end at level 0, not at alpha = 1."""
    facts = scheduler_facts({"_class_name": "DDIMScheduler", "timestep_spacing": "trailing"})
    assert facts.times(7)[-1] == 0.001 and facts.times(8)[-1] == 0
    scheduler = diffusers.DDIMScheduler(timestep_spacing="trailing", clip_sample=False)
    scheduler.set_timesteps(7)
    end = (
        scheduler.step(torch.ones(1, 1), 142, torch.zeros(1, 1)).prev_sample
        - scheduler.step(torch.zeros(1, 1), 142, torch.zeros(1, 1)).prev_sample
    )  # the part of the noise, whose data is -sigma / alpha of it
    p, q = (facts.schedule.at(t) for t in (0.143, 0.001))
    assert float(end) == pytest.approx(float(q.sigma - q.alpha * p.sigma / p.alpha), rel=1e-4)


@pytest.mark.parametrize(
    ("name", "entries", "steps", "reason"),
    [
        ("UnCLIP", {}, 1, "1 step: ZeroDivisionError"),
        ("PNDM", {}, 3, r"3 steps: with skip_prk_steps=False it makes n \+ 9 calls in n steps, n = 4 or more"),
        ("FlowMatchEulerDiscrete", {"shift_terminal": 0.1}, 1, "1 step: shift_terminal stretches the sigmas"),
        ("EulerDiscrete", SD | {"use_karras_sigmas": True, "sigma_max": 29.2}, 8,
         "8 steps: it has sigma = 29.2, where its network was trained at 0.02917 to 14.61"),
        ("EulerDiscrete", SD | {"use_karras_sigmas": True, "sigma_max": 16.0}, 8, "it has sigma = 16, where"),
        ("EulerDiscrete", SD | {"use_karras_sigmas": True, "sigma_min": 0.02}, 8, "it has sigma = 0.02, where"),
        ("DPMSolverMultistep", UNIPC_FLOW | {"use_karras_sigmas": True}, 4, "it has sigma = 157.4, where .* 0 to 1"),
        ("DEISMultistep", UNIPC_FLOW, 4, r"its last step has no length, and leaves noise of sigma = 0.2498"),
        ("UniPCMultistep", UNIPC_FLOW | {"final_sigmas_type": "sigma_min"}, 4, "its last step has no length"),
        ("FlowMatchEulerDiscrete", {"num_train_timesteps": 1}, 4, "it has 1 steps where 4 were set"),
        ("DDIM", {}, 1001, "ValueError: `num_inference_steps`: 1001 cannot be larger"),
        ("DDIMInverse", {}, 4, "it runs from data to noise"),
        ("DPMSolverMultistepInverse", {}, 4, "it runs from data to noise"),
        ("RePaint", {}, 4, "it jumps between data and noise"),
    ],
)  # fmt: skip
def test_why_a_class_has_no_grid_is_named(name: str, entries: dict[str, Any], steps: int, reason: str) -> None:
    sigmas = "class" if "num_train_timesteps" in entries and name.startswith("FlowMatch") else "pipeline"
    with pytest.raises(ValueError, match=f"{name}Scheduler has no grid of .*{reason}.*; choose a spacing") as raised:
        facts_of(scheduler_of(f"{name}Scheduler", entries)).times(steps, sigmas)
    assert "\n" not in str(raised.value)


def test_a_sigma_of_three_digits_is_the_least_of_the_network() -> None:
    facts = facts_of(scheduler_of("EulerDiscreteScheduler", SD | {"use_karras_sigmas": True, "sigma_min": 0.029}))
    assert facts.times(8)[-2] == facts.schedule.t_min


def test_sigmas_of_a_pipeline_are_taken() -> None:
    """FLUX.1-schnell: its pipeline passes 1, 0.75, 0.5, 0.25; the scheduler by itself has 1, 0.667, 0.334, 0.001."""
    facts = scheduler_facts({"_class_name": "FlowMatchEulerDiscreteScheduler"})
    assert facts.times(4).tolist() == pytest.approx([1, 0.75, 0.5, 0.25, 0])
    assert facts.times(4, "class").tolist() == pytest.approx([1, 0.667, 0.334, 0.001, 0])
    assert facts.times(3, [1.0, 0.9, 0.2]).tolist() == pytest.approx([1, 0.9, 0.2, 0])
    with pytest.raises(ValueError, match="has no grid of 2 steps: its set_timesteps takes no sigmas"):
        scheduler_facts({"_class_name": "DDIMScheduler"}).times(2, [1.0, 0.5])


@pytest.mark.parametrize("kind", ["DPMSolverMultistep", "DPMSolverSinglestep", "UniPCMultistep"])
def test_a_dynamic_shift_is_that_of_the_image_under_every_solver(kind: str) -> None:
    scheduler = scheduler_of(f"{kind}Scheduler", FLUX | UNIPC_FLOW)
    facts = scheduler_facts(scheduler, tokens=4096)
    assert facts.schedule.shift == pytest.approx(math.exp(1.15))
    assert facts == scheduler_facts(scheduler, mu=1.15)
    even = scheduler_of(f"{kind}Scheduler", UNIPC_FLOW)  # of shift 1
    torch.testing.assert_close(facts.times(6), facts_of(even).times(6), rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match=r"use_dynamic_shifting needs tokens=.*or mu="):
        schedule_from(scheduler)


def test_a_class_that_ignores_a_dynamic_shift_has_its_static_one() -> None:
    scheduler = scheduler_of("FlowMatchHeunDiscreteScheduler", FLUX)
    assert scheduler.config["use_dynamic_shifting"] and schedule_from(scheduler) == NoiseScheduleFlow(3.0)


def test_a_shift_that_was_set_later_is_read_from_the_scheduler() -> None:
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.set_shift(5.0)
    assert schedule_from(scheduler) == NoiseScheduleFlow(5.0)
    scheduler.set_timesteps(sigmas=[1.0, 0.5])
    torch.testing.assert_close(
        facts_of(scheduler).schedule.sigma_ratio(facts_of(scheduler).times(2)), scheduler.sigmas.double()
    )


def test_alphas_are_those_of_the_scheduler_where_they_differ_from_its_betas() -> None:
    scheduler = diffusers.DDIMScheduler(**SD)
    assert schedule_from(scheduler) == schedule_from(SD)  # in float64, where the scheduler has float32
    scheduler.alphas_cumprod = scheduler.alphas_cumprod**2
    check_schedule(scheduler)


# --- bounds of the data ---


def bounded(name: str, entries: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> float:
    """What the last step of a scheduler makes of predicted data of 3."""
    scheduler = scheduler_of(name, entries)
    facts = facts_of(scheduler)
    scheduler.set_timesteps(5)
    received = float(scheduler.timesteps[-1])
    probe = Probe(facts, scheduler, monkeypatch, size=3.0)
    if hasattr(scheduler, "set_begin_index"):
        scheduler._begin_index = None
    ratio = float(facts.schedule.sigma_ratio(facts.schedule.from_network_time(received)))
    return probe.step(len(scheduler.timesteps) - 1, ratio)[0]


BOUNDING = [
    name
    for name in HERE
    if {"clip_sample", "thresholding"} & signature(getattr(diffusers, name)).parameters.keys()
    and SCHEDULER_CLASSES[name].noise == "betas"
    and not SCHEDULER_CLASSES[name].no_grid  # which take another kind of step
]


@pytest.mark.parametrize("name", BOUNDING)
def test_data_are_bounded_as_the_class_bounds_them(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    free, clip = {"clip_sample": False}, {"clip_sample": True, "clip_sample_range": 0.5}
    threshold = {"thresholding": True, "dynamic_thresholding_ratio": 0.9, "sample_max_value": 2.0}
    for entries in (free, clip, free | threshold, clip | threshold):
        facts = facts_of(scheduler_of(name, entries))
        expected = 3.0
        if facts.clip is not None:
            assert facts.clip == 0.5 and facts.thresholding is None
            expected = 0.5
        if facts.thresholding is not None:
            assert facts.thresholding == (0.9, 2.0)
            expected = 1.0  # clipped to 2 and divided by it
        assert bounded(name, entries, monkeypatch) == pytest.approx(expected, rel=0.05)


@pytest.mark.parametrize(
    ("name", "entries", "clip"),
    [
        ("DDPMScheduler", {}, 1.0),
        ("DDIMScheduler", {}, 1.0),
        ("RePaintScheduler", {}, 1.0),
        ("UnCLIPScheduler", {"clip_sample_range": 5.0}, 5.0),
        ("LCMScheduler", {}, None),
        ("EulerDiscreteScheduler", {"clip_sample": True}, None),
        ("CogVideoXDDIMScheduler", {"clip_sample": True}, None),
    ],
)
def test_clipping_is_that_of_the_class(name: str, entries: dict[str, Any], clip: float | None) -> None:
    assert scheduler_facts(entries | {"_class_name": name}).clip == clip


# --- what is refused, and what is warned of ---

REQUIRED = {
    "AmusedScheduler": {"mask_token_id": 5},
    "VQDiffusionScheduler": {"num_vec_classes": 8},
    "RFD4ProteinaScheduler": {"schedule_mode": "log", "noise_mode": "tan", "tsr_k": 1.0, "tsr_sigma": 1.0},
}


@pytest.mark.parametrize("name", REFUSED)
def test_other_models_are_refused_by_name(name: str) -> None:
    with pytest.raises(ValueError, match=f"^{name} (is for|runs in)"):
        schedule_from({"_class_name": name})
    with pytest.raises(ValueError, match=f"^{name} (is for|runs in)"):
        scheduler_facts({"_class_name": name})
    if name in EXPORTED and "torchsde" not in getattr(getattr(diffusers, name), "_backends", []):
        with pytest.raises(ValueError, match=f"^{name} (is for|runs in)"):
            schedule_from(getattr(diffusers, name)(**REQUIRED.get(name, {})))


def test_a_class_that_nobody_knows_is_refused_by_name() -> None:
    class Strange(diffusers.SchedulerMixin):
        config = SD

    class Mine(diffusers.DDIMScheduler):
        """What derives from a class of diffusers is read as that."""

    for config in (Strange(), SD | {"_class_name": "Strange"}):
        with pytest.raises(ValueError, match="the scheduler class 'Strange' is not known: give the schedule"):
            schedule_from(config)
    assert schedule_from(Mine(**SD)) == schedule_from(SD)
    assert facts_of(Mine(**SD)).class_name == "DDIMScheduler"


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            {"_class_name": "DDPMScheduler", "beta_schedule": "cubic"},
            "diffusers makes no DDPMScheduler of this .*cubic",
        ),
        ({"_class_name": "FlowMatchEulerDiscreteScheduler", "invert_sigmas": True}, "receives 1 - sigma"),
        (
            {"_class_name": "UniPCMultistepScheduler", "prediction_type": "flow_prediction"},
            "needs use_flow_sigmas=True",
        ),
        ({"_class_name": "DPMSolverSDEScheduler"}, "diffusers makes no DPMSolverSDEScheduler .*torchsde"),
    ],
)
def test_what_a_class_does_not_take_is_named_in_one_line(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as raised:
        schedule_from(config)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("name", HERE)
def test_models_that_were_distilled_are_recognised(name: str) -> None:
    expected = ("LCM", "TCD", "FlowMatchLCM", "FlowMap", "Piflow")
    assert bool(distilled(scheduler_of(name))) == bool(facts_of({"_class_name": name}).distilled)
    assert bool(distilled({"_class_name": name})) == name.startswith(expected)


def test_a_distilled_model_is_warned_of_once(caplog: pytest.LogCaptureFixture) -> None:
    _warn.cache_clear()
    with caplog.at_level(logging.WARNING, "time_tuner"):
        for _ in range(3):
            schedule_from(diffusers.LCMScheduler())
            schedule_from(diffusers.DDIMScheduler())
    (record,) = caplog.records
    assert "LCMScheduler is for latent consistency models" in record.message
    assert distilled(diffusers.FlowMatchEulerDiscreteScheduler(stochastic_sampling=True))
    assert distilled([0.9, 0.5]) is None


# --- configurations without a class, or without diffusers ---


@pytest.mark.parametrize("name", HERE)
def test_all_entries_of_a_class_have_its_noise_without_its_name(name: str) -> None:
    scheduler = scheduler_of(name)
    entries = {key: value for key, value in scheduler.config.items() if not key.startswith("_")}
    if name == "LTXEulerAncestralRFScheduler":  # has no entry of noise
        with pytest.raises(ValueError, match="config has neither"):
            schedule_from(entries)
    else:
        assert schedule_from(entries) == schedule_from(scheduler)


@pytest.mark.parametrize("name", [name for name in sorted(EXPORTED & REFUSED.keys()) if name not in REQUIRED])
def test_all_entries_of_a_refused_class_are_refused_without_its_name(name: str) -> None:
    if "torchsde" not in getattr(getattr(diffusers, name), "_backends", []):
        config = getattr(diffusers, name)().config
        with pytest.raises(ValueError):  # noqa: PT011 - by the name that entries give away, or for want of entries
            schedule_from({key: value for key, value in config.items() if not key.startswith("_")})
    assert set(MARKS.values()) <= SCHEDULER_CLASSES.keys() | REFUSED.keys()


@pytest.mark.parametrize(
    ("config", "lacks"),
    [
        ({"beta_schedule": "scaled_linear"}, "beta_start"),
        ({"beta_schedule": "scaled_linear", "beta_start": 0.001}, "beta_end"),
        ({"beta_start": 0.001, "beta_end": 0.02}, "beta_schedule"),
        ({"sigma_data": 0.5}, "sigma_min"),
        ({"shift": 3.0}, "num_train_timesteps"),
    ],
)
def test_entries_whose_default_depends_on_the_class_are_required(config: dict[str, Any], lacks: str) -> None:
    with pytest.raises(ValueError, match=f"config lacks {lacks}, whose default depends on the scheduler's class: give"):
        schedule_from(config)


def test_a_configuration_whose_class_is_open_has_no_facts() -> None:
    facts = scheduler_facts(dict(diffusers.DDPMScheduler().config))
    assert facts == scheduler_facts(diffusers.DDPMScheduler())
    for config, message in (
        (dict(diffusers.LCMScheduler().config), "the entries of LCMScheduler, TCDScheduler alike"),
        (SD, "the entries of no class"),
    ):
        with pytest.raises(ValueError, match=f"config has no _class_name, and {message}: give the scheduler itself"):
            scheduler_facts(config)
    with pytest.raises(ValueError, match="config must be a scheduler or its configuration, got list"):
        scheduler_facts([0.9, 0.5])


def test_entries_are_read_without_diffusers_where_they_suffice(monkeypatch: pytest.MonkeyPatch) -> None:
    scheduler = diffusers.DDIMScheduler(**SD)
    full = scheduler_of("CogVideoXDDIMScheduler", dict(RELEASED["CogVideoX-2b"][1]))
    expected = schedule_from(full)
    monkeypatch.setitem(sys.modules, "diffusers", None)
    assert schedule_from(scheduler) == schedule_from(SD | {"_class_name": "DDIMScheduler"}) == schedule_from(SD)
    assert schedule_from({**full.config, "_class_name": "CogVideoXDDIMScheduler"}) == expected
    for config, lacks in (
        ({"_class_name": "LCMScheduler", "beta_schedule": "scaled_linear"}, "beta_start"),
        (SD | {"_class_name": "CogVideoXDDIMScheduler"}, "snr_shift_scale"),
    ):
        with pytest.raises(ValueError, match=f"config lacks {lacks}, .*: install diffusers"):
            schedule_from(config)
    with pytest.raises(ValueError, match=r"^SCMScheduler is for consistency models"):
        schedule_from({"_class_name": "SCMScheduler"})
    with pytest.raises(ValueError, match="is read from diffusers: install it"):
        scheduler_facts(SD | {"_class_name": "DDIMScheduler"})


def test_the_levels_of_continuous_noise_are_none() -> None:
    facts = scheduler_facts({"_class_name": "EDMEulerScheduler"})
    assert facts.levels is None and facts.schedule == NoiseScheduleVE(0.002, 80.0, 0.5)
