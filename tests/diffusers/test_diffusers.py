"""The scheduler and the tuning of pipelines: what goes in and out, what is refused; and the bundled digits, where a
plan tuned in a pipeline is the plan tuned by itself."""

import json
import re
import shutil
import subprocess
import sys
import threading
import warnings
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMPipeline,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EDMEulerScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    UNet2DModel,
)
from helpers import seeded
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from typer.testing import CliRunner

from time_tuner import NoiseScheduleFlow, NoiseScheduleVP, Plan, SeededNoise, load_model, make_plan, sample, tune
from time_tuner.cli import output
from time_tuner.cli.app import app
from time_tuner.diffusers import (
    ClassConditionalPipeline,
    TimeTunerScheduler,
    digits_pipeline,
    to_sigmas,
    to_timesteps,
    tune_pipeline,
)
from time_tuner.diffusers.loading import read_pipeline
from time_tuner.diffusers.model import PipelineModel
from time_tuner.models.checkpointing import CheckpointedModel, kept_bytes
from time_tuner.tuners.joint.loss import TimeGradients, run_each
from time_tuner.tuners.joint.parameters import Parameters
from time_tuner.tuners.joint.tuner import Joint

LABELS = [3, 8]


def network(**options: Any) -> UNet2DModel:
    torch.manual_seed(0)
    return UNet2DModel(
        sample_size=8,
        block_out_channels=(8, 16),
        norm_num_groups=4,
        layers_per_block=1,
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
        **options,
    ).eval()


def tiny() -> DDPMPipeline:
    pipe = DDPMPipeline(network(), DDPMScheduler(clip_sample=False))
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def classes() -> ClassConditionalPipeline:
    """A tiny pipeline that is called as that of the digits is."""
    one_channel = network(in_channels=1, out_channels=1, num_class_embeds=11)
    pipe = ClassConditionalPipeline(one_channel, DDPMScheduler(clip_sample=False))
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def digits() -> ClassConditionalPipeline:
    pipe = digits_pipeline()
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def tuned(digits: ClassConditionalPipeline) -> Plan:
    data = seeded(2, 1, 28, 28, dtype=torch.float32).clamp(-1, 1)
    options: dict[str, Any] = {"data": data, "samples": 2, "guard": False, "tuner": "sequential"}
    return tune_pipeline(digits, 3, class_labels=LABELS, sampler="ddim", guidance_scale=2.0, **options)


# --- tuned on a pipeline, and run in it ---


def test_a_pipeline_gives_the_plan_that_its_network_gives(tuned: Plan) -> None:
    model = load_model("digits", label=LABELS, guidance_scale=2.0)
    data = seeded(2, 1, 28, 28, dtype=torch.float32).clamp(-1, 1)
    untuned = make_plan("ddim", model.schedule, times=tuned.t)
    direct = tune(model, untuned, "sequential", data, samples=2, guard=False)
    assert (tuned.tau - tuned.t[:-1]).abs().max() > 1e-3
    torch.testing.assert_close(tuned.tau, direct.tau, rtol=0, atol=1e-6)


def test_the_picture_from_the_pipeline_is_that_of_sample(digits: ClassConditionalPipeline, tuned: Plan) -> None:
    own, x = digits.scheduler, SeededNoise(3)(torch.empty(2, 1, 28, 28))
    try:
        digits.scheduler = TimeTunerScheduler.from_plan(tuned)
        given: dict[str, Any] = {"guidance_scale": 2.0, "num_inference_steps": 3, "latents": x, "output_type": "latent"}
        drawn = digits(LABELS, **given).images
    finally:
        digits.scheduler = own
    expected = sample(load_model("digits", label=LABELS, guidance_scale=2.0), tuned, x)
    torch.testing.assert_close(drawn, expected, rtol=0, atol=1e-5)


def test_a_plan_knows_what_it_was_made_for(tuned: Plan) -> None:
    made = tuned.provenance
    assert made["prediction_type"] == "epsilon" and made["guidance_scale"] == 2.0 and made["dtype"] == "float32"
    assert made["pipeline"] == "ClassConditionalPipeline" and made["conditions"] == 2
    assert Plan.from_dict(json.loads(json.dumps(tuned.to_dict()))) == tuned


def test_without_prompts_a_pipeline_is_tuned_on_samples_of_its_own() -> None:
    pipe = tiny()
    plan = tune_pipeline(pipe, 3, "sequential", samples=3, batch=2, sampler="ddim")
    assert plan.provenance["distance"]["tuned"] <= plan.provenance["distance"]["untuned"]
    pipe.scheduler = TimeTunerScheduler.from_plan(plan, pipe.scheduler)
    assert np.isfinite(pipe(num_inference_steps=3, output_type="np").images).all()


def test_a_pipeline_is_tuned_to_an_end_above_0_and_ends_there() -> None:
    pipe = tiny()
    plan = tune_pipeline(pipe, 3, "sequential", samples=2, batch=2, end=0.1)
    assert float(plan.t[-1]) == 0.1
    pipe.scheduler = TimeTunerScheduler.from_plan(plan, pipe.scheduler)
    seen: list[torch.Tensor] = []
    step = pipe.scheduler.step

    def kept(*args: Any, **more: Any) -> Any:
        seen.append(step(*args, **more)[0])
        return (seen[-1],) if more.get("return_dict") is False else type("Output", (), {"prev_sample": seen[-1]})

    pipe.scheduler.step = kept
    pipe(num_inference_steps=3, output_type="np", batch_size=1, generator=torch.Generator().manual_seed(0))
    with PipelineModel(tiny(), batch=1) as model:
        shape = (1, *model.shape)
        x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        torch.testing.assert_close(seen[-1], sample(model, plan, plan.initial_state(x)), rtol=0, atol=1e-4)


def test_no_condition_is_left_out(digits: ClassConditionalPipeline) -> None:
    with pytest.raises(ValueError, match="samples must be at least as many as the model has conditions, 4, got 2"):
        tune_pipeline(digits, 3, class_labels=[1, 2, 3, 4], samples=2)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"pairs": 16}, r"pairs is an option of the tuner: give tuner=Joint\(pairs=\.\.\.\)"),
        ({"prompt": "a cat"}, "prompt= of a pipeline is prompts= of tune_pipeline"),
        ({"num_inference_steps": 4}, "num_inference_steps= of a pipeline is calls= of tune_pipeline"),
        ({"tuner": "jiont"}, "tuner must be one of .*did you mean 'joint'"),
    ],
    ids=str,
)
def test_names_of_other_places_are_answered_with_the_right_one(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tune_pipeline(tiny(), **given)


def test_a_pipeline_is_tuned_again_after_its_scheduler_was_replaced_by_a_plan() -> None:
    pipe = tiny()
    for made in (TimeTunerScheduler.from_plan, TimeTunerScheduler.from_plan):
        plan = tune_pipeline(pipe, 3, "sequential", samples=2, batch=2, sampler="ddim", guard=False)
        assert plan.provenance["spacing"]
        pipe.scheduler = made(plan)  # whose own grid is not known any more
    pipe = tiny()
    pipe.scheduler = TimeTunerScheduler.from_plan(plan, pipe)
    again = tune_pipeline(pipe, 3, "sequential", samples=2, batch=2, sampler="ddim", guard=False)
    assert "own" in again.provenance["spacing"]


class Live(TorchDispatchMode):
    """The most bytes that tensors made meanwhile had at once."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        before = {a.untyped_storage().data_ptr() for a in tree_leaves((args, kwargs)) if isinstance(a, torch.Tensor)}
        for tensor in tree_leaves(made):
            if isinstance(tensor, torch.Tensor) and tensor.untyped_storage().data_ptr() not in before:
                storage = tensor.untyped_storage()
                self.now += storage.nbytes()
                weakref.finalize(storage, self.freed, storage.nbytes())
        self.peak = max(self.peak, self.now)
        return made

    def freed(self, size: int) -> None:
        self.now -= size


def peak(network: torch.nn.Module, action: Callable[[], Any]) -> int:
    """The most bytes while it runs, those of the network's calls in other threads included."""
    live, forward = Live(), network.forward

    def counted(*args: Any, **kwargs: Any) -> Any:
        with live:
            return forward(*args, **kwargs)

    network.forward = counted  # type: ignore[method-assign]
    try:
        with live:
            action()
    finally:
        del network.forward
    return live.peak


def test_tuning_needs_little_more_memory_than_drawing(digits: ClassConditionalPipeline) -> None:
    labels, data = [3, 8, 1, 2], torch.zeros(4, 1, 28, 28)
    drawing = peak(digits.unet, lambda: digits(labels, num_inference_steps=2, output_type="latent"))
    more = peak(digits.unet, lambda: digits(labels * 2, num_inference_steps=2, output_type="latent"))
    options: dict[str, Any] = {"data": data, "samples": 4, "batch": 4, "guard": False, "tuner": "sequential"}
    tuning = peak(digits.unet, lambda: tune_pipeline(digits, 2, class_labels=labels, sampler="ddim", **options))
    assert more > 1.8 * drawing  # it is what is measured
    assert tuning <= 1.1 * drawing


def test_checkpoints_keep_one_call_of_a_pipeline_at_a_time() -> None:
    """The network runs in another thread, whose activations are counted and computed again all the same."""

    def kept(calls: int, through: Callable[[Any], Any]) -> int:
        plan = make_plan("ddim", model.schedule, calls, "quadratic")
        parameters, x = Parameters(plan), SeededNoise(3)(torch.empty(2, *model.shape))
        _, numbers, _ = parameters.linear(torch.zeros(len(parameters), dtype=torch.float64))
        times = TimeGradients(differences=("tau",))
        return kept_bytes(lambda: run_each(through(model), plan, x, numbers, parameters.pairs, times)[0])

    with PipelineModel(tiny()) as model:
        few, many = (kept(calls, lambda eps: eps) for calls in (2, 6))
        assert many > 2 * few > 10**5
        assert kept(6, CheckpointedModel) < 0.2 * many


def test_checkpoints_change_nothing_in_a_pipeline() -> None:
    how: dict[str, Any] = {"pairs": 8, "iterations": 1, "candidates": 1}
    plans = [
        tune_pipeline(tiny(), 3, Joint(**how, checkpoint_steps=again), samples=2, guard=False)
        for again in (False, True)
    ]
    assert plans[0].corrections is not None and plans[1].corrections is not None
    torch.testing.assert_close(plans[0].t, plans[1].t, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(plans[0].corrections, plans[1].corrections, rtol=1e-3, atol=1e-5)
    cost = [plan.provenance["cost"]["tuning"]["calls"] for plan in plans]
    assert cost[1] > cost[0]  # what is computed again


# --- the scheduler ---


def config(**changes: Any) -> Any:
    return DDIMScheduler(clip_sample=False, **changes)


def run(scheduler: Any, x: torch.Tensor, calls: int, **options: Any) -> torch.Tensor:
    """The loop of any pipeline, on a network that predicts half of its input and a little of its time."""
    scheduler.set_timesteps(calls)
    for t in scheduler.timesteps:
        output = 0.5 * x.tanh() + 1e-4 * t
        x = scheduler.step(output.to(x.dtype), t, x, **options).prev_sample
    return x


@pytest.mark.parametrize("kind", ["epsilon", "sample", "v_prediction"])
def test_every_prediction_type_is_read_as_the_stock_scheduler_reads_it(kind: str) -> None:
    x = seeded(2, 3, 4, 4, dtype=torch.float32)
    own = config(prediction_type=kind)
    ours = TimeTunerScheduler.from_config(own, sampler="ddim", calls=10)
    torch.testing.assert_close(run(ours, x, 10), run(own, x, 10), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_the_predicted_data_is_clipped_as_there(kind: str) -> None:
    x = 2 * seeded(2, 3, 4, 4, dtype=torch.float32)
    own = DDIMScheduler(clip_sample=True, clip_sample_range=0.5, prediction_type=kind)
    ours = TimeTunerScheduler.from_config(own, sampler="ddim", calls=10)
    expected = run(own, x, 10, use_clipped_model_output=True)
    torch.testing.assert_close(run(ours, x, 10), expected, rtol=1e-4, atol=1e-4)
    assert (run(config(prediction_type=kind), x, 10) - expected).abs().max() > 0.1


@pytest.mark.parametrize(
    ("own", "sampler", "options"),
    [
        (DPMSolverMultistepScheduler(), "dpmpp", {"order": 2}),
        (DPMSolverMultistepScheduler(use_karras_sigmas=True), "dpmpp", {"order": 2}),
        (DPMSolverMultistepScheduler(solver_order=3, timestep_spacing="trailing"), "dpmpp", {"order": 3}),
        (DPMSolverMultistepScheduler(final_sigmas_type="sigma_min"), "dpmpp", {"order": 2}),
        (config(timestep_spacing="trailing"), "ddim", {}),
        (config(steps_offset=1, set_alpha_to_one=False), "ddim", {}),
    ],
    ids=["2M", "karras", "3M", "sigma-min", "trailing", "leading"],
)
def test_its_grid_is_that_of_the_pipelines_own_scheduler(own: Any, sampler: str, options: dict[str, Any]) -> None:
    x = seeded(2, 3, 4, 4, dtype=torch.float32)
    ours = TimeTunerScheduler.from_config(own, sampler=sampler, calls=10, **options)
    torch.testing.assert_close(run(ours, x, 10), run(own, x, 10), rtol=2e-3, atol=2e-3)


def test_generators_of_each_sample_do_not_mind_the_batch() -> None:
    ours = TimeTunerScheduler.from_config(config(), sampler="ddpm", calls=6)
    x = seeded(3, 3, 4, 4, dtype=torch.float32)

    def generators(*seeds: int) -> list[torch.Generator]:
        return [torch.Generator().manual_seed(s) for s in seeds]

    together = run(ours, x, 6, generator=generators(1, 2, 3))
    torch.testing.assert_close(run(ours, x[1:2], 6, generator=generators(2)), together[1:2])
    torch.testing.assert_close(run(ours, x[1:2], 6, generator=generators(2)[0]), together[1:2])
    assert not torch.allclose(run(ours, x[1:2], 6, generator=generators(4)), together[1:2])


def test_noise_is_added_at_the_solvers_time_and_not_at_the_conditioning_time() -> None:
    made = TimeTunerScheduler.from_config(config(), sampler="ddim", calls=5).plan
    plan = made.with_ratios([0.8] * 5)
    ours = TimeTunerScheduler.from_plan(plan)
    x, noise = seeded(2, 1, 2, 2), seeded(2, 1, 2, 2, seed=1)

    def at(k: int) -> torch.Tensor:
        return plan.alpha[k] * x + plan.sigma[k] * noise

    ours.set_timesteps(5)
    torch.testing.assert_close(ours.add_noise(x, noise, ours.timesteps[2:3]), at(2), rtol=1e-5, atol=1e-6)
    between = ours.add_noise(x, noise, torch.tensor([123.0]))  # of no call
    p = plan.schedule.at(0.124)
    torch.testing.assert_close(between, p.alpha * x + p.sigma * noise, rtol=1e-5, atol=1e-6)
    ours.set_begin_index(1)
    torch.testing.assert_close(ours.add_noise(x, noise, ours.timesteps[3:4]), at(3), rtol=1e-5, atol=1e-6)
    ours.step(x, ours.timesteps[1], x)
    torch.testing.assert_close(ours.add_noise(x, noise, ours.timesteps[2:3]), at(2), rtol=1e-5, atol=1e-6)


def test_half_precision_goes_in_and_comes_out_and_is_rounded_only_there() -> None:
    ours = TimeTunerScheduler.from_config(config(prediction_type="v_prediction"), sampler="ddim", calls=2)
    x, output = (seeded(2, 3, 4, 4, seed=i, dtype=torch.bfloat16) for i in (0, 1))
    half = ours.step(output, ours.timesteps[0], x)
    ours.set_timesteps(2)
    full = ours.step(output.float(), ours.timesteps[0], x.float())
    assert torch.equal(half.prev_sample, full.prev_sample.bfloat16())
    assert torch.equal(half.pred_original_sample, full.pred_original_sample.bfloat16())


def test_the_predicted_data_is_the_end_of_a_step_to_the_end() -> None:
    for kind in ("epsilon", "v_prediction"):
        own = config(prediction_type=kind, timestep_spacing="trailing")
        ours = TimeTunerScheduler.from_config(own, sampler="ddim", calls=1)
        x, output = seeded(2, 3, 4, 4), seeded(2, 3, 4, 4, seed=1)
        previous, data = ours.step(output, ours.timesteps[0], x, return_dict=False)
        torch.testing.assert_close(data, previous)


def test_the_second_half_of_a_learned_variance_is_left_out() -> None:
    ours = TimeTunerScheduler.from_config(config(), calls=2)
    x, output = seeded(2, 3, 4, 4), seeded(2, 6, 4, 4, seed=1)
    first = ours.step(output, ours.timesteps[0], x).prev_sample
    ours.set_timesteps(2)
    assert torch.equal(ours.step(output[:, :3], ours.timesteps[0], x).prev_sample, first)


def test_diffusers_own_schedulers_take_its_configuration_back() -> None:
    own = config(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, prediction_type="v_prediction")
    ours = TimeTunerScheduler.from_config(own, calls=4)
    for made in (ours, TimeTunerScheduler.from_plan(ours.plan)):
        back = EulerDiscreteScheduler.from_config(made.config)
        torch.testing.assert_close(back.alphas_cumprod, own.alphas_cumprod, rtol=1e-4, atol=1e-6)
        assert back.config.prediction_type == "v_prediction"
    again = TimeTunerScheduler.from_config(ours.config, sampler="heun", calls=5)  # and it takes its own
    assert again.plan.schedule.to_dict() == ours.plan.schedule.to_dict()
    assert again.plan.t[-1] == 0 and len(again.plan.steps) == 3


def test_a_configuration_is_the_plan_as_it_is_in_a_plan_file(tmp_path: Path, tuned: Plan) -> None:
    TimeTunerScheduler.from_plan(tuned).save_pretrained(tmp_path)
    tuned.save(tmp_path / "plan.json")
    paused = json.loads((tmp_path / "scheduler_config.json").read_text())
    assert paused["plans"] == [json.loads((tmp_path / "plan.json").read_text())]
    assert TimeTunerScheduler.from_pretrained(tmp_path).plan == tuned


def test_the_default_sigmas_of_pipelines_of_flows_choose_a_plan() -> None:
    plans = [make_plan("ddim", NoiseScheduleFlow(3.0), calls, "quadratic") for calls in (4, 6)]
    ours = TimeTunerScheduler.from_plan(plans, FlowMatchEulerDiscreteScheduler(shift=3.0))
    ours.set_timesteps(sigmas=np.linspace(1, 1 / 6, 6), mu=0.7)
    assert ours.plan == plans[1]
    with pytest.raises(ValueError, match=r"sigmas= cannot be chosen: a plan has its own grid"):
        ours.set_timesteps(sigmas=[1.0, 0.7, 0.3, 0.1])


def test_an_untuned_scheduler_runs_the_sigmas_that_it_is_passed() -> None:
    own = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    ours = TimeTunerScheduler.from_config(own, calls=4, sampler="ddim", tokens=1024)
    for mu in (0.5, 1.1):
        own.set_timesteps(sigmas=[1.0, 0.7, 0.3, 0.1], mu=mu)
        ours.set_timesteps(sigmas=[1.0, 0.7, 0.3, 0.1], mu=mu)
        torch.testing.assert_close(ours.sigmas, own.sigmas)
        torch.testing.assert_close(ours.timesteps, own.timesteps)


# --- what is refused ---


def refused(match: str) -> Any:
    return pytest.raises(ValueError, match=match)


def test_a_number_of_calls_without_a_plan_is_refused_with_those_there_are() -> None:
    ours = TimeTunerScheduler.from_config(config(), calls=[4, 8])
    with refused(r"number of calls that there is a plan for, \[4, 8\], got 50"):
        ours.set_timesteps(50)
    x = seeded(1, 1, 2, 2)
    run(ours, x, 4)
    with refused("after the last of 4 calls: call set_timesteps first"):
        ours.step(x, 0, x)
    with refused("eta must be 0 in the pipeline, got 1.0: it is an option of the sampler"):
        ours.step(x, 0, x, eta=1.0)


def test_plans_are_given_by_the_path_of_their_file(discrete: NoiseScheduleVP, tmp_path: Path) -> None:
    plans = [make_plan("ddim", discrete, calls) for calls in (4, 8)]
    plans[0].save(tmp_path / "plan.json")
    Plan.save_several(plans, tmp_path / "plans.json")
    assert TimeTunerScheduler.from_plan(tmp_path / "plan.json").plans == {4: plans[0]}
    assert TimeTunerScheduler.from_plan(str(tmp_path / "plans.json")).plans == {4: plans[0], 8: plans[1]}
    with pytest.raises(OSError, match=r"there is no file '.*none\.json'"):
        TimeTunerScheduler.from_plan(tmp_path / "none.json")


def test_a_plan_for_another_network_is_refused(discrete: NoiseScheduleVP) -> None:
    plan = make_plan("ddim", discrete, 4)
    with refused("made for prediction_type='v_prediction', the pipeline's network predicts 'epsilon'"):
        TimeTunerScheduler.from_plan(plan.with_provenance(prediction_type="v_prediction"), config())
    with refused("made for another noise schedule"):
        TimeTunerScheduler.from_plan(plan, config(beta_schedule="scaled_linear"))
    with refused("made for another family"):
        TimeTunerScheduler.from_plan(plan, FlowMatchEulerDiscreteScheduler(shift=3.0))
    with refused(
        r"driven with discrete betas or as a rectified flow, got NoiseScheduleVP\('linear'\): make the plan on"
    ):
        TimeTunerScheduler.from_plan(make_plan("ddim", NoiseScheduleVP("linear"), 4))
    with refused("one for each number of calls"):
        TimeTunerScheduler.from_plan([plan, plan])
    with refused("at least one plan"):
        TimeTunerScheduler.from_plan([])


def test_options_of_schedulers_that_are_not_supported_are_named() -> None:
    with refused("pipelines with stochastic_sampling=True cannot be driven"):
        TimeTunerScheduler.from_config(FlowMatchEulerDiscreteScheduler(stochastic_sampling=True), calls=4)
    with refused("prediction_type of a network with EDM's preconditioning must be one of epsilon, v_prediction"):
        TimeTunerScheduler.from_config(EDMEulerScheduler(prediction_type="sample"), calls=4)
    with refused("IPNDMScheduler is for networks that receive 2 / pi arctan"):  # Dance Diffusion
        TimeTunerScheduler.from_config({"_class_name": "IPNDMScheduler"}, calls=4)
    with refused("calls= is needed"):
        TimeTunerScheduler.from_config(config())
    with refused("calls=1 with spacing=that of the pipeline's own scheduler: the run would begin at t = 0.001"):
        TimeTunerScheduler.from_config(config(), calls=1)
    with refused("sampler 'ddim' has no option 'order'"):
        TimeTunerScheduler.from_config(config(), sampler="ddim", calls=4, order=2)
    with refused("prediction_type must be one of"):
        TimeTunerScheduler.from_config(config(prediction_type="noise"), calls=4)
    with refused("use_dynamic_shifting needs tokens="):
        TimeTunerScheduler.from_config(FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True), calls=4)
    with refused("config has no _class_name, and the entries of no class"):
        TimeTunerScheduler.from_config({"beta_start": 1e-4, "beta_end": 0.02, "beta_schedule": "linear"}, calls=4)


def test_pipelines_that_cannot_be_driven_are_refused_with_the_part_and_a_remedy() -> None:
    pipe = tiny()
    with refused("must be a diffusers pipeline with a scheduler, got Linear"):
        tune_pipeline(torch.nn.Linear(1, 1), 4)
    with refused(r"DDPMPipeline takes no prompt=; it takes batch_size"):
        tune_pipeline(pipe, 4, prompts=["a cat"])
    with refused("batch must be a whole number"):
        tune_pipeline(pipe, 4, batch=0)
    with refused("class_labels must hold at least one"):
        tune_pipeline(digits_pipeline(), 4, class_labels=[])

    class Silent(DDPMPipeline):
        def __call__(self, num_inference_steps: int = 5) -> None:
            """CalibrationBatch nothing."""

    with refused("Silent ended without calling scheduler.step"):
        tune_pipeline(Silent(pipe.unet, pipe.scheduler), 4)

    class Fails(DDPMPipeline):
        def __call__(self, num_inference_steps: int = 5) -> None:
            raise RuntimeError("out of ink")

    with pytest.raises(RuntimeError, match="out of ink"):
        tune_pipeline(Fails(pipe.unet, pipe.scheduler), 4)

    class NeedsPrompt(DDPMPipeline):
        def __call__(self, prompt: str, num_inference_steps: int = 5) -> None:
            """Never called."""

    with refused(r"NeedsPrompt needs prompts= \(or prompt_embeds=\)"):
        tune_pipeline(NeedsPrompt(pipe.unet, pipe.scheduler), 4)


# --- for other programs ---


def test_a_list_of_sigmas_gives_the_same_run_where_schedulers_take_one(discrete: NoiseScheduleVP) -> None:
    x = seeded(2, 3, 4, 4, dtype=torch.float32)
    plan = make_plan("ddim", discrete, 6, spacing="trailing")
    with pytest.warns(UserWarning, match=r"the sampler is lost; choose DDIM"):
        sigmas = to_sigmas(plan)
    euler = EulerDiscreteScheduler()
    euler.set_timesteps(sigmas=sigmas)
    ours = TimeTunerScheduler.from_plan(plan)
    ours.set_timesteps(6)
    state, theirs = x, x * (1 + sigmas[0] ** 2) ** 0.5
    for t, s in zip(ours.timesteps, euler.timesteps, strict=True):
        assert float(t) == pytest.approx(float(s), abs=0.05)
        state = ours.step(state.tanh(), t, state).prev_sample
        theirs = euler.step(euler.scale_model_input(theirs, s).tanh(), s, theirs).prev_sample
    torch.testing.assert_close(theirs, state, rtol=1e-3, atol=1e-3)


def test_lists_name_what_they_lose(discrete: NoiseScheduleVP, recwarn: pytest.WarningsRecorder) -> None:
    plan = make_plan("ddim", discrete, 4, spacing="quadratic")
    tuned = plan.with_tau(0.9 * plan.tau).with_corrections(torch.zeros(4, 4))
    levels = to_timesteps(tuned)
    messages = " ".join(str(warning.message) for warning in recwarn.list)
    for what in (r"\(tau\) are lost", "corrections are lost", "were rounded, by up to 0", "sampler is lost"):
        assert re.search(what, messages), what
    assert levels == [round(level) for level in levels]
    assert to_timesteps(tuned, rounded=False) == pytest.approx((1000 * plan.t[:-1] - 1).tolist())


# --- the command line ---


def command(*arguments: Any) -> str:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    return result.output


@pytest.fixture(scope="module")
def folder(classes: ClassConditionalPipeline, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("saved") / "pipeline"
    classes.save_pretrained(path)
    return path


def test_the_facts_of_a_saved_pipeline_are_shown(folder: Path) -> None:
    shown = command("show", "--model", folder)
    for what in (
        "pipeline +ClassConditionalPipeline",
        "prediction type +epsilon",
        "scheduler +DDPMScheduler",
        "N=1000",
    ):
        assert re.search(what, shown), what


def test_samples_of_a_tuned_saved_pipeline_are_its_own_pictures(
    classes: ClassConditionalPipeline, folder: Path, tmp_path: Path
) -> None:
    plan, out = tmp_path / "plan.json", tmp_path / "drawn.npz"
    saved = ("--model", folder, "--label", "1,2")
    how = ("--method", "joint(pairs=8)", "--calls", 2, "--samples", 2, "--budget", "60calls")
    command("tune", *saved, *how, "--out", plan)
    made = Plan.load(plan).provenance
    assert made["model"] == str(folder) and made["pipeline"] == "ClassConditionalPipeline" and made["label"] == [1, 2]
    command("sample", *saved, "--plan", plan, "-n", 3, "--seed", 5, "--out", out)
    pictures = np.load(out)["pictures"]
    classes.scheduler, own = TimeTunerScheduler.from_plan(Plan.load(plan)), classes.scheduler
    try:
        generators = [torch.Generator().manual_seed(5 + i) for i in range(3)]
        expected = classes([1, 2, 1], num_inference_steps=2, generator=generators, output_type="pt").images
    finally:
        classes.scheduler = own
    np.testing.assert_allclose(pictures, 2 * expected.numpy() - 1, atol=1e-5)


def test_every_command_takes_a_saved_pipeline(folder: Path, tmp_path: Path) -> None:
    """Untuned samples, a comparison, several numbers of calls, a dry run, data, and a run that is continued."""
    saved = ("--model", folder, "--label", "1,2")
    command("sample", *saved, "--calls", 2, "-n", 2, "--out", tmp_path / "x.png")
    command("sample", *saved, "--calls", 2, "-n", 4, "--out", tmp_path / "x.npz")
    how = ("--samples", 4, "--method", "sequential", "--calls", "2,3")
    assert "3 calls" in command("tune", *saved, *how, "--dry-run")
    data = ("--data", tmp_path / "x.npz")
    command("tune", "--model", folder, "--label", 1, *how, *data, "--budget", "40calls", "--out", tmp_path / "p.json")
    assert [len(plan) for plan in Plan.load_several(tmp_path / "p.json")] == [2, 3]
    compared = command("compare", *saved, "ddim:2", f"{tmp_path / 'p.json'}:3", "-n", 2, "--out", tmp_path / "c.png")
    assert "ddim:2" in compared and "p.json:3" in compared
    assert (tmp_path / "c.png").exists()


def test_an_interrupted_run_on_a_saved_pipeline_continues(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    how = ("tune", "--model", folder, "--label", 3, "--calls", 3, "--samples", 2, "--method", "sequential", "--out")
    tuning = output.Bar.tuning

    def interrupt(self: output.Bar, progress: Any) -> None:
        tuning(self, progress)
        if progress.step == 1:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(output.Bar, "tuning", interrupt)
        stopped = CliRunner().invoke(app, [str(argument) for argument in (*how, tmp_path / "a.json")])
    assert stopped.exit_code == 130 and "the same command continues" in stopped.stderr
    command(*how, tmp_path / "a.json")
    command(*how, tmp_path / "b.json")
    torch.testing.assert_close(Plan.load(tmp_path / "a.json").tau, Plan.load(tmp_path / "b.json").tau)


def test_a_guidance_scale_of_one_is_honoured(classes: ClassConditionalPipeline, folder: Path, tmp_path: Path) -> None:
    def drawn(*guidance: Any) -> np.ndarray:
        command(
            "sample", "--model", folder, "--label", 3, "--calls", 2, "-n", 1, *guidance, "--out", tmp_path / "x.npz"
        )
        with np.load(tmp_path / "x.npz") as arrays:
            return arrays["samples"]

    with PipelineModel(classes, class_labels=[3], guidance_scale=5.0) as model:
        assert model.facts()["guidance_scale"] == 5.0
    assert np.array_equal(drawn("--guidance-scale", 1), drawn())  # the default of this pipeline
    assert np.abs(drawn("--guidance-scale", 5) - drawn()).max() > 0.01


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["show"], "give either PLAN, a plan file, or --model"),
        (["show", "--model", "{empty}"], "is a folder without model_index.json"),
        (["sample", "--model", "{empty}"], "is a folder without model_index.json"),
        (["sample", "--model", "{saved}", "--label", "11"], "class_labels must be 0 to 10, got 11"),
        (["sample", "--model", "{saved}", "--prompt", "a"], "takes no prompt="),
        (["sample", "--model", "{saved}", "--height", "64"], "takes no height="),
        (["sample", "--model", "{saved}", "--dtype", "float15"], "did you mean 'float16'"),
        (["sample", "--model", "{saved}", "--device", "nowhere"], "device must be"),
        (["sample", "--model", "{saved}", "--guidance-scale", "2"], "guidance_scale=2.0 needs class_labels="),
    ],
)
def test_bad_commands_are_one_line(arguments: list[str], message: str, folder: Path, tmp_path: Path) -> None:
    result = CliRunner().invoke(app, [argument.format(empty=tmp_path, saved=folder) for argument in arguments])
    assert result.exit_code == 2
    assert message in result.stderr and result.stderr.count("\n") == 1


def test_a_plan_of_another_kind_of_pipeline_is_noticed(
    digits: ClassConditionalPipeline, tuned: Plan, tmp_path: Path
) -> None:
    with (
        pytest.warns(UserWarning, match="tuned for another model: architecture"),
        pytest.warns(UserWarning, match="tuned for a ClassConditionalPipeline, and is used in a DDPMPipeline"),
    ):
        TimeTunerScheduler.from_plan(tuned, tiny())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        TimeTunerScheduler.from_plan(tuned, digits_pipeline())
    tuned.with_provenance(pipeline="FluxPipeline").save(tmp_path / "plan.json")
    digits.save_pretrained(tmp_path / "digits")
    how = ["--model", str(tmp_path / "digits")]
    how += ["--plan", str(tmp_path / "plan.json"), "-n", "1", "--out", str(tmp_path / "x.npz")]
    how += ["--label", "3", "--guidance-scale", "2"]
    noted = CliRunner().invoke(app, ["sample", *how])
    assert noted.exit_code == 0 and "tuned for a FluxPipeline" in noted.stderr


def test_a_missing_package_of_a_pipeline_is_named(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = tmp_path / "pipeline"
    shutil.copytree(folder, copy)
    index = json.loads((copy / "model_index.json").read_text())
    (copy / "model_index.json").write_text(json.dumps(index | {"text_encoder": ["transformers", "CLIPTextModel"]}))
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ValueError, match=r"package transformers is missing: pip install 'time-tuner\[diffusers\]'"):
        load_model(str(copy))


def test_a_saved_pipeline_loads_once_time_tuner_is_imported_and_nothing_is_printed(
    folder: Path, tmp_path: Path
) -> None:
    pipe = tiny()
    pipe.scheduler = TimeTunerScheduler.from_config(pipe, calls=4)
    pipe.save_pretrained(tmp_path)
    code = f"""
import time_tuner
from diffusers import DiffusionPipeline
from diffusers.utils import logging

logging.disable_progress_bar()
print(len(DiffusionPipeline.from_pretrained({str(tmp_path)!r}, low_cpu_mem_usage=False).scheduler.plan))
logging.enable_progress_bar()
print(time_tuner.load_model({str(folder)!r}).shape)
"""
    made = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert made.stdout == "4\n(1, 8, 8)\n" and made.stderr == ""


def test_an_offloaded_pipeline_is_not_moved(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    to: list[torch.device] = []
    monkeypatch.setattr(ClassConditionalPipeline, "enable_model_cpu_offload", lambda self, device: to.append(device))
    pipe = read_pipeline(str(folder), device="meta", offload=True)
    assert to == [torch.device("meta")] and pipe.unet.device == torch.device("cpu")
    refused = CliRunner().invoke(app, ["sample", "--model", str(folder), "--offload", "--device", "cpu"])
    assert refused.exit_code == 2 and "offload is for a pipeline on an accelerator" in refused.stderr


def test_two_pipelines_are_paused_at_once() -> None:
    ends: list[torch.Tensor] = []

    def alternate() -> None:
        with PipelineModel(tiny(), batch=1) as one, PipelineModel(tiny(), batch=1) as other:
            x = seeded(1, *one.shape, dtype=torch.float32)
            ends.extend(model(x, t) for t in (0.9, 0.5) for model in (one, other))

    thread = threading.Thread(target=alternate, daemon=True)
    thread.start()
    thread.join(60)
    assert not thread.is_alive() and len(ends) == 4
    assert torch.equal(ends[0], ends[1]) and torch.equal(ends[2], ends[3])
