"""Pipelines that pass sigmas or a shift of their own to their scheduler: the untuned plan has the grid that they run.

Pipelines of flows that noise pictures or read sigmas: they run plans, and are tuned."""

from typing import Any

import diffusers
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler
from torch import Tensor

pytest.importorskip("transformers", reason="the text encoders of most pipelines; in the dev extra")

import pipelines
from pipelines import FAMILIES, random

from time_tuner import make_plan
from time_tuner.diffusers import PipelineModel, TimeTunerScheduler, tune_pipeline


def one(inputs: dict[str, Any]) -> dict[str, Any]:
    """The inputs for the first condition alone."""
    return {name: value[:1] if isinstance(value, Tensor) else value for name, value in inputs.items()}


def flux(**scheduler: Any) -> tuple[Any, dict[str, Any]]:
    family = FAMILIES["flux"]()
    family.pipe.scheduler = FlowMatchEulerDiscreteScheduler(**scheduler)
    family.pipe.set_progress_bar_config(disable=True)
    return family.pipe, one(family.inputs)


def flux2() -> tuple[Any, dict[str, Any]]:
    torch.manual_seed(0)
    network = diffusers.Flux2Transformer2DModel(
        patch_size=1,
        in_channels=4,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=16,
        timestep_guidance_channels=256,
        axes_dims_rope=(4, 4, 4, 4),
    ).eval()
    vae = diffusers.AutoencoderKLFlux2(
        sample_size=32,
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",),
        up_block_types=("UpDecoderBlock2D",),
        block_out_channels=(4,),
        layers_per_block=1,
        latent_channels=1,
        norm_num_groups=1,
        use_quant_conv=False,
        use_post_quant_conv=False,
    ).eval()
    own = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, shift=3.0)
    pipe = diffusers.Flux2Pipeline(own, vae, None, None, network)
    pipe.set_progress_bar_config(disable=True)
    given = {"prompt_embeds": random(1, 7, 16), "height": 32, "width": 32, "output_type": "latent"}
    return pipe, given


CASES = {
    "schnell": lambda: flux(shift=1.0),
    "dev": lambda: flux(use_dynamic_shifting=True, shift=3.0),
    "flux2": flux2,
    "sd3": lambda: (FAMILIES["sd3"]().pipe, one(FAMILIES["sd3"]().inputs)),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("calls", [4, 9])
def test_the_untuned_grid_is_the_one_that_the_pipeline_runs(name: str, calls: int) -> None:
    pipe, given = CASES[name]()
    with torch.no_grad():
        pipe(**given, num_inference_steps=calls)
    expected = pipe.scheduler.sigmas.double()
    with PipelineModel(pipe, **given) as eps:
        plan = make_plan("ddim", eps.schedule, calls, eps.spacing)
    torch.testing.assert_close(plan.sigma, expected.cpu(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["schnell", "sd3"])
@pytest.mark.parametrize("calls", [4, 9])
def test_the_grid_of_a_scheduler_for_a_pipeline_is_the_one_that_the_pipeline_runs(name: str, calls: int) -> None:
    """Flux passes even sigmas from 1 to 1/n to its scheduler, Stable Diffusion 3 passes none."""
    pipe, given = CASES[name]()
    with torch.no_grad():
        pipe(**given, num_inference_steps=calls)
    made = TimeTunerScheduler.from_config(pipe, calls=calls, sampler="ddim")
    torch.testing.assert_close(made.sigmas, pipe.scheduler.sigmas.cpu(), rtol=1e-4, atol=1e-6)


def test_without_a_pipeline_flows_have_the_grid_that_most_pipelines_pass() -> None:
    own = FlowMatchEulerDiscreteScheduler(shift=1.0)
    plan = TimeTunerScheduler.from_config(own, calls=4, sampler="ddim").plan
    torch.testing.assert_close(plan.sigma, torch.tensor([1, 0.75, 0.5, 0.25, 0], dtype=torch.float64))


def wan() -> tuple[Any, dict[str, Any]]:
    torch.manual_seed(0)
    network = diffusers.WanTransformer3DModel(
        patch_size=(1, 2, 2),
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=16,
        out_channels=16,
        text_dim=16,
        freq_dim=16,
        ffn_dim=16,
        num_layers=1,
        cross_attn_norm=True,
        qk_norm="rms_norm_across_heads",
        rope_max_seq_len=32,
    ).eval()
    vae = diffusers.AutoencoderKLWan(
        base_dim=3, z_dim=16, dim_mult=[1, 1, 1, 1], num_res_blocks=1, temperal_downsample=[False, True, True]
    ).eval()
    own = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0)
    pipe = diffusers.WanPipeline(None, None, vae, own, network)
    pipe.set_progress_bar_config(disable=True)
    embeds = {"prompt_embeds": random(1, 7, 16), "negative_prompt_embeds": random(1, 7, 16, seed=1)}
    return pipe, embeds | {"height": 16, "width": 16, "num_frames": 9, "output_type": "latent"}


def from_pictures(kind: type[Any], family: str) -> tuple[Any, dict[str, Any]]:
    made = FAMILIES[family]()
    pipelines.vae().register_to_config(shift_factor=0.0)
    pipe = kind.from_pipe(made.pipe)
    pipe.set_progress_bar_config(disable=True)
    given = one(made.inputs) | {"image": pipelines.picture(), "strength": 0.5}
    return pipe, given | ({"mask_image": torch.ones(1, 1, 16, 16)} if "Inpaint" in kind.__name__ else {})


FLOWS = {
    "wan": wan,
    "sd3-img2img": lambda: from_pictures(diffusers.StableDiffusion3Img2ImgPipeline, "sd3"),
    "flux-img2img": lambda: from_pictures(diffusers.FluxImg2ImgPipeline, "flux"),
    "flux-inpaint": lambda: from_pictures(diffusers.FluxInpaintPipeline, "flux"),
}


@pytest.mark.parametrize("name", FLOWS)
def test_pipelines_of_flows_run_plans_as_their_own_scheduler_and_are_tuned(name: str) -> None:
    pipe, given = FLOWS[name]()
    own = pipe.scheduler

    def run() -> Tensor:
        with torch.no_grad():
            return torch.as_tensor(pipe(**given, num_inference_steps=4, generator=torch.Generator().manual_seed(0))[0])

    expected = run()
    with PipelineModel(pipe, **given) as eps:
        sampler = "unipc" if name == "wan" else "ddim"
        plan = make_plan(sampler, eps.schedule, 4, eps.spacing)
    pipe.scheduler = TimeTunerScheduler.from_plan(plan, pipe)
    made = run()
    near = 2e-2 if name == "wan" else 2e-3  # UniPC there cuts network times to whole numbers
    torch.testing.assert_close(made, expected, rtol=0, atol=near * float(expected.abs().max()))
    pipe.scheduler = own
    if name == "flux-inpaint":
        return  # it changes states between calls, which tuning refuses
    tuned = tune_pipeline(pipe, 3, "sequential", samples=2, batch=1, guard=False, sampler="ddim", **given)
    pipe.scheduler = TimeTunerScheduler.from_plan([plan, tuned], pipe)
    assert run().isfinite().all()
