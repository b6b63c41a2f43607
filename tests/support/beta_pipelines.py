"""Tiny pipelines of betas and of EDM with random weights, one of each family that people use, for one condition."""

from collections.abc import Callable
from typing import Any

import diffusers
import torch
from diffusers import DDIMScheduler, DDPMScheduler
from flow_pipelines import IMAGE, PAIR, VIDEO, network, one, prompts
from pipelines import BETAS, FAMILIES, Family, clip, picture, random, tokenizer, unet, vae

BLOCKS = {
    "sample_size": 8,
    "block_out_channels": (8, 16),
    "norm_num_groups": 4,
    "layers_per_block": 1,
}


def sd15() -> Family:
    made = one(FAMILIES["sd"]())
    made.inputs = {k: v for k, v in made.inputs.items() if k != "prompt"} | prompts(*PAIR, tokens=16)
    made.pipe.scheduler = diffusers.PNDMScheduler(**BETAS, skip_prk_steps=True, set_alpha_to_one=False, steps_offset=1)
    return made


def playground() -> Family:
    made = one(FAMILIES["sdxl"]())
    made.pipe.scheduler = diffusers.EDMDPMSolverMultistepScheduler(
        sigma_min=0.002, sigma_max=80.0, sigma_data=0.5, solver_order=2
    )
    made.pipe.vae.register_to_config(latents_mean=None, latents_std=None)
    return made


def sdxl_image() -> Family:
    made = one(FAMILIES["sdxl"]())
    made.pipe = diffusers.StableDiffusionXLImg2ImgPipeline(**made.pipe.components)
    keep = {k: v for k, v in made.inputs.items() if k not in ("height", "width")}
    return Family(made.pipe, keep | {"image": picture(), "strength": 0.6}, made.shape, latents=None)


def animatediff(free_init: bool = False) -> Family:
    adapter = network(
        diffusers.MotionAdapter,
        block_out_channels=(8, 16),
        motion_layers_per_block=1,
        motion_norm_num_groups=2,
        motion_num_attention_heads=2,
        use_motion_mid_block=False,
    )
    spacing = "leading" if free_init else "linspace"  # see `first_order` in the test; FreeInit adds noise as DDIM does
    own = DDIMScheduler(beta_schedule="linear", steps_offset=1, clip_sample=False, timestep_spacing=spacing)
    pipe = diffusers.AnimateDiffPipeline(vae(), clip(), tokenizer(), unet(), adapter, own)
    if free_init:
        pipe.enable_free_init(num_iters=2, use_fast_sampling=False)
    given = {"guidance_scale": 3.0, "height": 16, "width": 16, "num_frames": 2, "output_type": "latent"}
    return Family(pipe, prompts(*PAIR, tokens=16) | given, (4, 2, 8, 8))


def cogvideox(kind: Any = diffusers.CogVideoXDDIMScheduler) -> Family:
    net = network(
        diffusers.CogVideoXTransformer3DModel,
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=4,
        out_channels=4,
        time_embed_dim=4,
        text_embed_dim=16,
        num_layers=1,
        sample_width=2,
        sample_height=2,
        sample_frames=9,
        patch_size=1,
        max_text_seq_length=7,
    )
    decoder = network(
        diffusers.AutoencoderKLCogVideoX,
        block_out_channels=(8, 8, 8, 8),
        latent_channels=4,
        layers_per_block=1,
        norm_num_groups=2,
    )
    own = kind(
        snr_shift_scale=3.0,
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
        clip_sample=False,
    )
    pipe = diffusers.CogVideoXPipeline(None, None, decoder, net, own)
    return Family(pipe, prompts(*PAIR) | VIDEO, (3, 4, 2, 2))


def kandinsky22() -> Family:
    net = network(
        diffusers.UNet2DConditionModel,
        **BLOCKS | {"attention_head_dim": 4},
        in_channels=4,
        out_channels=8,
        down_block_types=("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
        up_block_types=("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
        mid_block_type="UNetMidBlock2DSimpleCrossAttn",
        addition_embed_type="image",
        addition_embed_type_num_heads=2,
        encoder_hid_dim=16,
        encoder_hid_dim_type="image_proj",
        cross_attention_dim=16,
        resnet_time_scale_shift="scale_shift",
        class_embed_type=None,
    )
    movq = network(
        diffusers.VQModel,
        block_out_channels=(32, 32),
        down_block_types=("DownEncoderBlock2D", "AttnDownEncoderBlock2D"),
        up_block_types=("AttnUpDecoderBlock2D", "UpDecoderBlock2D"),
        latent_channels=4,
        norm_num_groups=4,
        norm_type="spatial",
        num_vq_embeddings=12,
        vq_embed_dim=4,
    )
    own = DDPMScheduler(
        **BETAS,
        clip_sample=True,
        clip_sample_range=2.0,
        variance_type="learned_range",
        thresholding=False,
    )
    pipe = diffusers.KandinskyV22Pipeline(net, own, movq)
    given = {"image_embeds": random(1, 16, seed=5), "negative_image_embeds": random(1, 16, seed=6)}
    return Family(pipe, given | IMAGE, (4, 8, 8))


def latte() -> Family:
    net = network(
        diffusers.LatteTransformer3DModel,
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        out_channels=8,
        cross_attention_dim=16,
        sample_size=8,
        patch_size=2,
        norm_type="ada_norm_single",
        norm_elementwise_affine=False,
        caption_channels=16,
        num_embeds_ada_norm=1000,
        video_length=2,
        attention_bias=True,
        activation_fn="gelu-approximate",
    )
    own = DDIMScheduler(beta_schedule="linear", clip_sample=False)
    pipe = diffusers.LattePipeline(None, None, vae(), net, own)
    given = {"negative_prompt": None, "video_length": 2, "clean_caption": False, "mask_feature": False}
    return Family(pipe, prompts(*PAIR) | IMAGE | given, (4, 2, 8, 8))


def svd() -> Family:
    from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModelWithProjection

    net = network(
        diffusers.UNetSpatioTemporalConditionModel,
        sample_size=8,
        block_out_channels=(32, 32),
        layers_per_block=1,
        in_channels=8,
        out_channels=4,
        down_block_types=("CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"),
        up_block_types=("UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"),
        cross_attention_dim=16,
        num_attention_heads=4,
        projection_class_embeddings_input_dim=12,
        addition_time_embed_dim=4,
    )
    decoder = network(
        diffusers.AutoencoderKLTemporalDecoder,
        block_out_channels=(32, 32),
        down_block_types=("DownEncoderBlock2D",) * 2,
        latent_channels=4,
    )
    torch.manual_seed(2)
    vision = CLIPVisionConfig(
        hidden_size=16,
        projection_dim=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=16,
        intermediate_size=16,
        patch_size=8,
    )
    encoder = CLIPVisionModelWithProjection(vision).eval()
    own = diffusers.EulerDiscreteScheduler(
        **BETAS,
        prediction_type="v_prediction",
        sigma_max=700.0,
        sigma_min=0.002,
        timestep_type="continuous",
        timestep_spacing="leading",
        use_karras_sigmas=True,
        interpolation_type="linear",
        steps_offset=1,
    )
    processor = CLIPImageProcessor(crop_size=16, size=16)
    pipe = diffusers.StableVideoDiffusionPipeline(decoder, encoder, net, own, processor)
    given = {"image": picture(), "num_frames": 2, "height": 16, "width": 16, "output_type": "latent"}
    return Family(pipe, given, (2, 4, 8, 8))


def deepfloyd() -> Family:
    net = network(
        diffusers.UNet2DConditionModel,
        **BLOCKS | {"attention_head_dim": 4},
        in_channels=3,
        out_channels=6,
        down_block_types=("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
        up_block_types=("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
        mid_block_type="UNetMidBlock2DSimpleCrossAttn",
        addition_embed_type="text",
        addition_embed_type_num_heads=2,
        encoder_hid_dim=16,
        cross_attention_dim=16,
        resnet_time_scale_shift="scale_shift",
    )
    own = DDPMScheduler(
        beta_schedule="squaredcos_cap_v2",
        thresholding=True,
        dynamic_thresholding_ratio=0.95,
        sample_max_value=1.5,
        variance_type="learned_range",
    )
    pipe = diffusers.IFPipeline(None, None, net, own, None, None, None, requires_safety_checker=False)
    return Family(pipe, prompts(*PAIR) | {"output_type": "pt"}, (3, 8, 8), latents=None)


def pixart_sigma() -> Family:
    made = one(FAMILIES["pixart"]())
    made.pipe = diffusers.PixArtSigmaPipeline(**made.pipe.components)
    made.inputs |= {"clean_caption": False}
    return made


BETAS_FAMILIES: dict[str, Callable[[], Family]] = {
    "sd15": sd15,
    "sdxl": lambda: one(FAMILIES["sdxl"]()),
    "sdxl-img2img": sdxl_image,
    "playground": playground,
    "animatediff": animatediff,
    "free-init": lambda: animatediff(True),
    "cogvideox": cogvideox,
    "cogvideox-dpm": lambda: cogvideox(diffusers.CogVideoXDPMScheduler),
    "kandinsky2.2": kandinsky22,
    "latte": latte,
    "svd": svd,
    "deepfloyd": deepfloyd,
    "pixart": pixart_sigma,
}
