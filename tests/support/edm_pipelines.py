"""Tiny pipelines of EDM's noise whose loops or networks are their own, with random weights, for one condition each."""

from collections.abc import Callable
from functools import cache
from typing import Any

import diffusers
import torch
from flow_pipelines import PAIR, VIDEO, NoChecker, cosmos_network, network, prompts, wan_vae
from pipelines import Family, picture

FRAMES = VIDEO | {"fps": 8}


class CosineDPMSolverMultistepScheduler(diffusers.EDMDPMSolverMultistepScheduler):
    """That of Stable Audio without its noise: the same sigmas; the network receives 2 / pi arctan(sigma)."""

    def precondition_noise(self, sigma: Any) -> Any:
        return sigma.atan() / torch.pi * 2


@cache
def cosmos_vae() -> Any:
    return network(
        diffusers.AutoencoderKLCosmos,
        latent_channels=16,
        encoder_block_out_channels=(4, 4, 4, 4),
        decode_block_out_channels=(4, 4, 4, 4),
        attention_resolutions=(8,),
        resolution=16,
        num_layers=1,
    )


def cosmos1(video: bool = False) -> Family:
    own = diffusers.EDMEulerScheduler(sigma_min=0.002, sigma_max=80.0, sigma_data=0.5, final_sigmas_type="sigma_min")
    kind = diffusers.CosmosVideoToWorldPipeline if video else diffusers.CosmosTextToWorldPipeline
    pipe = kind(None, None, cosmos_network(17 if video else 16), cosmos_vae(), own, safety_checker=NoChecker())
    return Family(pipe, prompts(*PAIR) | FRAMES | ({"image": picture()} if video else {}), (16, 2, 2, 2))


def cosmos2(video: bool = False) -> Family:
    own = diffusers.FlowMatchEulerDiscreteScheduler(use_karras_sigmas=True)
    kind = diffusers.Cosmos2VideoToWorldPipeline if video else diffusers.Cosmos2TextToImagePipeline
    pipe = kind(None, None, cosmos_network(17 if video else 16), wan_vae(), own, safety_checker=NoChecker())
    if video:
        return Family(pipe, prompts(*PAIR) | FRAMES | {"image": picture()}, (16, 3, 2, 2))
    return Family(pipe, prompts(*PAIR) | {"height": 16, "width": 16, "output_type": "latent"}, (16, 1, 2, 2))


def stable_audio() -> Family:
    net = network(
        diffusers.StableAudioDiTModel,
        sample_size=8,
        in_channels=4,
        out_channels=4,
        num_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        num_key_value_attention_heads=2,
        cross_attention_dim=16,
        time_proj_dim=8,
        global_states_input_dim=32,
        cross_attention_input_dim=16,
    )
    decoder = network(
        diffusers.AutoencoderOobleck,
        encoder_hidden_size=4,
        downsampling_ratios=[1, 2],
        channel_multiples=[1, 1],
        decoder_channels=4,
        decoder_input_channels=4,
        audio_channels=2,
        sampling_rate=16,
    )
    projection = network(
        diffusers.StableAudioProjectionModel, text_encoder_dim=16, conditioning_dim=16, min_value=0, max_value=32
    )
    own = CosineDPMSolverMultistepScheduler(
        sigma_min=0.3,
        sigma_max=500.0,
        sigma_data=1.0,
        sigma_schedule="exponential",
        prediction_type="v_prediction",
        solver_order=2,
    )
    pipe = diffusers.StableAudioPipeline(decoder, None, projection, None, net, own)
    masks = ("prompt_embeds", "attention_mask", "negative_prompt_embeds", "negative_attention_mask")
    return Family(pipe, prompts(*masks) | {"audio_end_in_s": 1.0, "output_type": "latent"}, (4, 8))


EDM_FAMILIES: dict[str, Callable[[], Family]] = {
    "cosmos1": cosmos1,
    "cosmos1-video": lambda: cosmos1(True),
    "cosmos2": cosmos2,
    "cosmos2-video": lambda: cosmos2(True),
    "stable-audio": stable_audio,
}
