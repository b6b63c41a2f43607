"""Pipelines of EDM's noise that compute the data or the noise themselves (Cosmos), or whose network receives
2 / pi arctan(sigma) (Stable Audio): they run plans as our own loop does, with other conditioning times too."""

from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch

pytest.importorskip("transformers", reason="the text encoders of most pipelines; in the dev extra")

from edm_pipelines import EDM_FAMILIES, CosineDPMSolverMultistepScheduler
from pipelines import Family, random

from time_tuner import NoiseScheduleVE, make_plan, sample, schedule_from
from time_tuner.diffusers import PipelineModel, TimeTunerScheduler

pytestmark = pytest.mark.filterwarnings("ignore:.*weight_norm")  # AutoencoderOobleck


def made(name: str) -> Family:
    family = EDM_FAMILIES[name]()
    family.pipe.set_progress_bar_config(disable=True)
    return family


def conditions(family: Family) -> dict[str, Any]:
    return {name: value for name, value in family.inputs.items() if name != "output_type"}


def close(a: torch.Tensor, b: torch.Tensor, near: float = 1e-4) -> None:
    assert float((a - b).norm() / b.norm()) < near


@pytest.mark.parametrize(("name", "sampler"), [(name, ("dpmpp", "heun")[i % 2]) for i, name in enumerate(EDM_FAMILIES)])
def test_a_pipeline_runs_a_plan_as_our_own_loop_does(name: str, sampler: str) -> None:
    family, calls = made(name), 4 if sampler == "heun" else 5
    x = random(1, *family.shape)
    # That of Cosmos 1 noises its picture anew at every call.
    noise = {"augment_sigma": 0.0} if name == "cosmos1-video" else {}
    with PipelineModel(family.pipe, **conditions(family), **noise) as model, torch.no_grad():
        plan = make_plan(sampler, model.schedule, calls)
        plan = plan.with_ratios(torch.linspace(0.99, 0.9, calls))
        # Cosmos begins with noise of sigma_max, and not sqrt(1 + sigma_max^2).
        expected = sample(model, plan, plan.t[0] * x if name.startswith("cosmos") else plan.initial_state(x))
    family.pipe.scheduler = TimeTunerScheduler.from_plan(plan, family.pipe)
    last = family.run(calls, x, generator=torch.Generator().manual_seed(0), **noise)
    # sigma = time / (1 - time) of a time in single precision differs in the sixth digit, which the networks amplify.
    close(last.double(), (expected[:, :, 0] if name == "cosmos2" else expected).double(), near=5e-4)


@pytest.mark.parametrize("name", ["cosmos1", "cosmos2", "cosmos2-video"])
def test_what_a_pipeline_decodes_is_that_of_its_own_scheduler(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    family = made(name)
    monkeypatch.setattr(type(family.pipe.safety_checker), "check_video_safety", lambda self, x: x, raising=False)
    own, given = family.pipe.scheduler, {"output_type": "np"}
    ends = []
    for calls in (5, 4):  # the last call of its own leads nowhere
        ends.append(family.run(calls, generator=torch.Generator().manual_seed(0), **given))
        family.pipe.scheduler = TimeTunerScheduler.from_config(own, calls=4, sampler="ddim")
    close(ends[1], ends[0])


def test_a_plan_that_starts_below_the_noise_of_the_pipeline_is_refused() -> None:
    family = made("cosmos2")
    plan = make_plan("ddim", schedule_from(family.pipe.scheduler), times=[40.0, 5.0, 0.1])
    with pytest.raises(ValueError, match="must start at sigma = 80 in a Cosmos2TextToImagePipeline"):
        TimeTunerScheduler.from_plan(plan, family.pipe)


def test_the_scheduler_of_cosmos_2_is_read_from_its_configuration_too() -> None:
    own = made("cosmos2").pipe.scheduler
    expected = NoiseScheduleVE(0.002, 80.0, None, "flow")
    entries = dict(own.config)
    assert schedule_from(own) == schedule_from(entries) == expected
    assert schedule_from(entries | {"_class_name": type(own).__name__}) == expected
    with pytest.raises(ValueError, match="is the scheduler of Cosmos 2, whose sigmas run"):
        schedule_from(entries | {"_class_name": type(own).__name__, "use_karras_sigmas": False})


@pytest.mark.parametrize("sampler", ["ddim", "dpmpp"])
def test_a_call_whose_data_alone_was_read_may_be_made_again(sampler: str) -> None:
    own = diffusers.EDMEulerScheduler()
    plain, twice = (TimeTunerScheduler.from_config(own, calls=4, sampler=sampler) for _ in range(2))
    x, y = random(2, 3), random(2, 3)
    for i, t in enumerate(plain.timesteps):
        output = random(2, 3, seed=i)
        data = twice.step(torch.cat([output] * 2), t, torch.cat([y] * 2)).pred_original_sample
        twice._step_index -= 1
        y = twice.step(output, t, y, pred_original_sample=data[:2]).prev_sample
        x = plain.step(output, t, x).prev_sample
        torch.testing.assert_close(y, x)


def test_a_state_that_was_not_read_counts_at_the_next_call() -> None:
    own = diffusers.EDMEulerScheduler()
    read, unread = (TimeTunerScheduler.from_config(own, calls=4, sampler="dpmpp") for _ in range(2))
    x = random(2, 3)
    for i, t in enumerate(read.timesteps):
        ends = [scheduler.step(random(2, 3, seed=i), t, x) for scheduler in (read, unread)]
        _ = ends[0].prev_sample
    torch.testing.assert_close(ends[1].prev_sample, ends[0].prev_sample)


def test_a_call_that_counts_already_is_not_made_again_by_a_sampler_that_remembers_it() -> None:
    scheduler = TimeTunerScheduler.from_config(diffusers.EDMEulerScheduler(), calls=4, sampler="dpmpp")
    x, t = random(2, 3), scheduler.timesteps[0]
    _ = scheduler.step(x, t, x).prev_sample
    scheduler._step_index -= 1
    with pytest.raises(ValueError, match="was made already"):
        scheduler.step(x, t, x)


def test_stable_audio_is_read_without_the_package_of_its_noise(tmp_path: Path) -> None:
    own = made("stable-audio").pipe.scheduler
    entries = {key: value for key, value in own.config.items() if not key.startswith("_")}
    entries["_class_name"] = CosineDPMSolverMultistepScheduler.__name__
    expected = NoiseScheduleVE(0.3, 500.0, 1.0, "arctan")
    assert schedule_from(own) == schedule_from(entries) == expected
    scheduler = TimeTunerScheduler.from_config(entries, calls=6, sampler="ddim")
    own.set_timesteps(6)
    torch.testing.assert_close(scheduler.timesteps, own.timesteps)
    torch.testing.assert_close(scheduler.sigmas, own.sigmas, rtol=1e-4, atol=1e-6)


def test_a_plan_of_a_network_that_receives_another_time_is_refused() -> None:
    plan = make_plan("ddim", NoiseScheduleVE(0.3, 500.0, 1.0), 4)
    with pytest.raises(ValueError, match="a network that receives log, the pipeline's network receives arctan"):
        TimeTunerScheduler.from_plan(plan, made("stable-audio").pipe)
    plan = make_plan("ddim", NoiseScheduleVE(0.002, 80.0, 1.0), 4)
    with pytest.raises(ValueError, match=r"made for sigma_data=1.0, the pipeline's network has sigma_data=0.5"):
        TimeTunerScheduler.from_plan(plan, made("cosmos1").pipe)


@pytest.mark.parametrize("network_input", ["log", "sigma", "arctan", "flow"])
def test_the_network_time_has_an_inverse(network_input: str) -> None:
    schedule = NoiseScheduleVE(0.002, 500.0, None, network_input)
    t = torch.logspace(-2.6, 2.69, 20, dtype=torch.float64)
    torch.testing.assert_close(schedule.from_network_time(schedule.network_time(t)), t)
