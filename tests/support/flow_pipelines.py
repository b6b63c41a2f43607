"""Tiny pipelines of flows with random weights, one of each family that people use, for one condition each."""

from collections.abc import Callable
from functools import cache
from typing import Any

import diffusers
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler
from pipelines import FAMILIES, Family, picture, random, sd3, stir, vae

DYNAMIC = {"use_dynamic_shifting": True, "base_shift": 0.5, "max_shift": 1.15}
HALVES = {"block_out_channels": (4, 4), "norm_num_groups": 2}


def prompts(*names: str, tokens: int = 7, width: int = 16) -> dict[str, Any]:
    """Embeddings of one prompt under these names, and masks under names with "mask"."""
    made = {}
    for i, name in enumerate(names):
        whole = torch.ones(1, tokens, dtype=torch.bool)
        pooled = random(1, 16, seed=5 + i)
        made[name] = whole if "mask" in name else pooled if "pooled" in name else random(1, tokens, width, seed=5 + i)
    return made


PAIR = ("prompt_embeds", "negative_prompt_embeds")
MASKED = ("prompt_embeds", "prompt_attention_mask", "negative_prompt_embeds", "negative_prompt_attention_mask")


def network(kind: Any, **config: Any) -> Any:
    torch.manual_seed(0)
    made = kind(**config).eval()
    stir(made)
    return made


def one(family: Family) -> Family:
    """The same for its first condition alone."""
    family.inputs = {k: v[:1] if isinstance(v, torch.Tensor) else v for k, v in family.inputs.items()}
    return family


WAN = {
    "patch_size": (1, 2, 2),
    "num_attention_heads": 2,
    "attention_head_dim": 12,
    "in_channels": 16,
    "out_channels": 16,
    "text_dim": 16,
    "freq_dim": 16,
    "ffn_dim": 16,
    "num_layers": 1,
    "cross_attn_norm": True,
    "qk_norm": "rms_norm_across_heads",
    "rope_max_seq_len": 32,
}
VIDEO = {"height": 16, "width": 16, "num_frames": 9, "output_type": "latent"}


@cache
def wan_vae() -> Any:
    return network(
        diffusers.AutoencoderKLWan,
        base_dim=3,
        z_dim=16,
        dim_mult=[1, 1, 1, 1],
        num_res_blocks=1,
        temperal_downsample=[False, True, True],
    )


def wan_scheduler() -> Any:
    return UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0)


def wan() -> Family:
    pipe = diffusers.WanPipeline(
        None, None, wan_vae(), wan_scheduler(), network(diffusers.WanTransformer3DModel, **WAN)
    )
    return Family(pipe, prompts(*PAIR) | VIDEO, (16, 3, 2, 2))


def wan_image() -> Family:
    net = network(diffusers.WanTransformer3DModel, **WAN | {"in_channels": 36, "image_dim": None})
    pipe = diffusers.WanImageToVideoPipeline(None, None, wan_vae(), wan_scheduler(), transformer=net)
    return Family(pipe, prompts(*PAIR) | VIDEO | {"image": picture()}, (16, 3, 2, 2))


def wan_vace() -> Family:
    net = network(diffusers.WanVACETransformer3DModel, **WAN, vace_layers=[0], vace_in_channels=96)
    pipe = diffusers.WanVACEPipeline(None, None, wan_vae(), wan_scheduler(), net)
    return Family(pipe, prompts(*PAIR) | VIDEO, (16, 3, 2, 2))


def wan_video() -> Family:
    net = network(diffusers.WanTransformer3DModel, **WAN)
    pipe = diffusers.WanVideoToVideoPipeline(None, None, net, wan_vae(), wan_scheduler())
    given = {k: v for k, v in VIDEO.items() if k != "num_frames"} | {"strength": 0.6}
    return Family(
        pipe, prompts(*PAIR) | given | {"video": [random(9, 3, 16, 16, seed=9).sigmoid()]}, (16, 3, 2, 2), latents=None
    )


def ltx() -> Family:
    net = network(
        diffusers.LTXVideoTransformer3DModel,
        in_channels=8,
        out_channels=8,
        num_attention_heads=2,
        attention_head_dim=8,
        cross_attention_dim=16,
        num_layers=1,
        caption_channels=16,
    )
    decoder = network(
        diffusers.AutoencoderKLLTXVideo,
        latent_channels=8,
        block_out_channels=(8, 8, 8, 8),
        decoder_block_out_channels=(8, 8, 8, 8),
        layers_per_block=(1, 1, 1, 1, 1),
        decoder_layers_per_block=(1, 1, 1, 1, 1),
        spatio_temporal_scaling=(True, True, False, False),
        decoder_spatio_temporal_scaling=(True, True, False, False),
        patch_size=1,
        patch_size_t=1,
        encoder_causal=True,
        decoder_causal=False,
    )
    own = FlowMatchEulerDiscreteScheduler(**DYNAMIC, shift_terminal=0.1)
    pipe = diffusers.LTXPipeline(own, decoder, None, None, net)
    return Family(pipe, prompts(*MASKED) | VIDEO | {"height": 32, "width": 32}, (192, 8))


def ltx2() -> Family:
    net = network(
        diffusers.LTX2VideoTransformer3DModel,
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=8,
        cross_attention_dim=16,
        audio_in_channels=4,
        audio_out_channels=4,
        audio_num_attention_heads=2,
        audio_attention_head_dim=4,
        audio_cross_attention_dim=8,
        num_layers=1,
        caption_channels=16,
        rope_double_precision=False,
    )
    connectors = network(
        diffusers.pipelines.ltx2.LTX2TextConnectors,
        caption_channels=16,
        text_proj_in_factor=1,
        video_connector_num_attention_heads=2,
        video_connector_attention_head_dim=8,
        video_connector_num_layers=1,
        video_connector_num_learnable_registers=None,
        audio_connector_num_attention_heads=2,
        audio_connector_attention_head_dim=8,
        audio_connector_num_layers=1,
        audio_connector_num_learnable_registers=None,
        connector_rope_base_seq_len=32,
        rope_double_precision=False,
    )
    decoder = network(
        diffusers.AutoencoderKLLTX2Video,
        latent_channels=4,
        block_out_channels=(8,),
        decoder_block_out_channels=(8,),
        layers_per_block=(1,),
        decoder_layers_per_block=(1, 1),
        spatio_temporal_scaling=(True,),
        decoder_spatio_temporal_scaling=(True,),
        decoder_inject_noise=(False, False),
        downsample_type=("spatial",),
        upsample_residual=(False,),
        upsample_factor=(1,),
        patch_size=1,
        patch_size_t=1,
    )
    audio = network(
        diffusers.AutoencoderKLLTX2Audio,
        base_channels=4,
        output_channels=2,
        ch_mult=(1,),
        num_res_blocks=1,
        attn_resolutions=None,
        in_channels=2,
        resolution=32,
        latent_channels=2,
        mel_bins=8,
    )
    own = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, base_shift=0.95, max_shift=2.05)
    pipe = diffusers.LTX2Pipeline(own, decoder, audio, None, None, connectors, net, None)
    given = prompts(*MASKED) | VIDEO | {"height": 32, "width": 32, "num_frames": 5, "frame_rate": 25.0}
    return Family(pipe, given | {"spatio_temporal_guidance_blocks": [0]}, (0, 0))


def cosmos_network(channels: int) -> Any:
    return network(
        diffusers.CosmosTransformer3DModel,
        in_channels=channels,
        out_channels=16,
        num_attention_heads=2,
        attention_head_dim=16,
        num_layers=1,
        mlp_ratio=2,
        text_embed_dim=16,
        adaln_lora_dim=4,
        max_size=(4, 32, 32),
        concat_padding_mask=False,
        extra_pos_embed_type=None,
    )


class NoChecker(diffusers.ModelMixin, diffusers.ConfigMixin):
    """In the place of the safety checker, which is another package."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))


def cosmos25() -> Family:
    own = UniPCMultistepScheduler(
        prediction_type="flow_prediction",
        use_flow_sigmas=True,
        use_karras_sigmas=True,
        sigma_max=200.0,
        sigma_min=0.01,
    )
    pipe = diffusers.Cosmos2_5_PredictBasePipeline(
        None, None, cosmos_network(17), wan_vae(), own, safety_checker=NoChecker()
    )
    return Family(pipe, prompts(*PAIR) | VIDEO, (16, 3, 2, 2))


def cogview4() -> Family:
    net = network(
        diffusers.CogView4Transformer2DModel,
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        text_embed_dim=16,
        time_embed_dim=8,
        condition_dim=4,
        rope_axes_dim=(4, 4),
    )
    own = FlowMatchEulerDiscreteScheduler(
        use_dynamic_shifting=True, base_shift=0.25, max_shift=0.75, base_image_seq_len=256, time_shift_type="linear"
    )
    pipe = diffusers.CogView4Pipeline(None, None, vae(), net, own)
    return Family(pipe, prompts(*PAIR, tokens=16) | IMAGE, (4, 8, 8))


IMAGE = {"height": 16, "width": 16, "output_type": "latent"}


def glm_image() -> Family:
    net = network(
        diffusers.GlmImageTransformer2DModel,
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        text_embed_dim=16,
        time_embed_dim=8,
        condition_dim=4,
        prior_vq_quantizer_codebook_size=16,
    )
    own = FlowMatchEulerDiscreteScheduler(
        use_dynamic_shifting=True, base_shift=0.25, max_shift=0.75, base_image_seq_len=256, time_shift_type="linear"
    )
    pipe = diffusers.GlmImagePipeline(None, None, None, None, vae(), net, own)
    given = {"prior_token_ids": torch.arange(16).view(1, 16) % 16}
    return Family(pipe, prompts(*PAIR, tokens=16) | IMAGE | given, (4, 8, 8))


@cache
def qwen_vae() -> Any:
    return network(
        diffusers.AutoencoderKLQwenImage,
        base_dim=4,
        z_dim=4,
        dim_mult=[1, 2],
        num_res_blocks=1,
        temperal_downsample=[False],
        latents_mean=[0.0] * 4,
        latents_std=[1.0] * 4,
    )


QWEN = ("prompt_embeds", "prompt_embeds_mask", "negative_prompt_embeds", "negative_prompt_embeds_mask")


def qwen(kind: str = "QwenImagePipeline", **more: Any) -> Family:
    net = network(
        diffusers.QwenImageTransformer2DModel,
        patch_size=2,
        in_channels=16,
        out_channels=4,
        num_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=16,
        axes_dims_rope=(4, 4, 8),
    )
    own = FlowMatchEulerDiscreteScheduler(
        use_dynamic_shifting=True, base_shift=0.5, max_shift=0.9, max_image_seq_len=8192, shift_terminal=0.02
    )
    nothing = {"processor": None} if "Edit" in kind else {}
    pipe = getattr(diffusers, kind)(own, qwen_vae(), None, None, transformer=net, **nothing)
    return Family(pipe, prompts(*QWEN) | IMAGE | {"true_cfg_scale": 2.0} | more, (16, 16))


def photo() -> Any:
    """A picture as PIL has it, for a pipeline that takes no tensors and enlarges pictures to a million pixels."""
    from diffusers.pipelines.qwenimage import pipeline_qwenimage_edit
    from PIL import Image

    pipeline_qwenimage_edit.calculate_dimensions = lambda area, ratio: (16, 16, None)  # which takes minutes
    return Image.fromarray((255 * picture()[0].movedim(0, -1)).byte().numpy())


def half() -> torch.Tensor:
    """A mask of the left half of a picture."""
    mask = torch.zeros(1, 1, 16, 16)
    mask[..., :8] = 1
    return mask


def from_pictures(kind: str, family: str, strength: float = 0.6) -> Family:
    """A family that begins at a picture."""
    made = one(sd3(16) if family == "sd3-16" else FAMILIES[family]())
    made.pipe = getattr(diffusers, kind).from_pipe(made.pipe)
    made.inputs |= {"image": picture(), "strength": strength} | ({"mask_image": half()} if "Inpaint" in kind else {})
    made.latents = None
    return made


def schnell() -> Family:
    made = one(FAMILIES["flux"]())
    made.pipe.scheduler = FlowMatchEulerDiscreteScheduler(shift=1.0)
    return made


def flux2() -> Family:
    net = network(
        diffusers.Flux2Transformer2DModel,
        in_channels=4,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=16,
        axes_dims_rope=(4, 4, 4, 4),
    )
    decoder = network(
        diffusers.AutoencoderKLFlux2,
        sample_size=32,
        down_block_types=("DownEncoderBlock2D",),
        up_block_types=("UpDecoderBlock2D",),
        block_out_channels=(4,),
        layers_per_block=1,
        latent_channels=1,
        norm_num_groups=1,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )
    own = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, shift=3.0)
    pipe = diffusers.Flux2Pipeline(own, decoder, None, None, net)
    return Family(pipe, prompts("prompt_embeds") | IMAGE | {"height": 8, "width": 8}, (4, 4, 4))


def z_image() -> Family:
    net = network(
        diffusers.ZImageTransformer2DModel,
        in_channels=4,
        dim=16,
        n_layers=1,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=16,
        axes_dims=[4, 2, 2],
        axes_lens=[64, 32, 32],
    )
    own = FlowMatchEulerDiscreteScheduler(shift=3.0)
    pipe = diffusers.ZImagePipeline(own, vae(), None, None, net)
    given = {"prompt_embeds": [random(7, 16, seed=5)], "negative_prompt_embeds": [random(7, 16, seed=6)]}
    return Family(pipe, given | IMAGE, (4, 8, 8))


def chroma() -> Family:
    net = network(
        diffusers.ChromaTransformer2DModel,
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=16,
        axes_dims_rope=(2, 2, 4),
        approximator_num_channels=8,
        approximator_hidden_dim=8,
        approximator_layers=1,
    )
    pipe = diffusers.ChromaPipeline(FlowMatchEulerDiscreteScheduler(**DYNAMIC), vae(), None, None, net)
    return Family(pipe, prompts(*MASKED) | IMAGE, (16, 16))


def hunyuan_video() -> Family:
    net = network(
        diffusers.HunyuanVideoTransformer3DModel,
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=8,
        num_layers=1,
        num_single_layers=1,
        num_refiner_layers=1,
        patch_size=1,
        patch_size_t=1,
        text_embed_dim=16,
        pooled_projection_dim=16,
        rope_axes_dim=(2, 2, 4),
    )
    decoder = network(
        diffusers.AutoencoderKLHunyuanVideo,
        latent_channels=4,
        down_block_types=("HunyuanVideoDownBlock3D",) * 4,
        up_block_types=("HunyuanVideoUpBlock3D",) * 4,
        block_out_channels=(8, 8, 8, 8),
        layers_per_block=1,
        norm_num_groups=4,
    )
    own = FlowMatchEulerDiscreteScheduler(shift=7.0)
    pipe = diffusers.HunyuanVideoPipeline(None, None, net, decoder, own, None, None)
    given = prompts("prompt_embeds", "pooled_prompt_embeds", "prompt_attention_mask")
    return Family(pipe, given | VIDEO, (4, 3, 2, 2))


def mochi() -> Family:
    net = network(
        diffusers.MochiTransformer3DModel,
        patch_size=2,
        num_attention_heads=2,
        attention_head_dim=8,
        num_layers=2,
        pooled_projection_dim=16,
        in_channels=4,
        qk_norm="rms_norm",
        text_embed_dim=16,
        time_embed_dim=4,
        max_sequence_length=16,
    )
    decoder = network(
        diffusers.AutoencoderKLMochi,
        latent_channels=4,
        out_channels=3,
        encoder_block_out_channels=(32, 32, 32, 32),
        decoder_block_out_channels=(32, 32, 32, 32),
        layers_per_block=(1, 1, 1, 1, 1),
        latents_mean=[0.0] * 4,
        latents_std=[1.0] * 4,
    )
    own = FlowMatchEulerDiscreteScheduler(invert_sigmas=True)
    pipe = diffusers.MochiPipeline(own, decoder, None, None, net)
    return Family(pipe, prompts(*MASKED) | VIDEO, (4, 2, 2, 2))


def lumina2() -> Family:
    net = network(
        diffusers.Lumina2Transformer2DModel,
        sample_size=8,
        patch_size=2,
        in_channels=4,
        hidden_size=24,
        num_layers=1,
        num_refiner_layers=1,
        num_attention_heads=3,
        num_kv_heads=1,
        multiple_of=16,
        axes_dim_rope=(4, 2, 2),
        axes_lens=(128, 64, 64),
        cap_feat_dim=16,
    )
    pipe = diffusers.Lumina2Pipeline(net, FlowMatchEulerDiscreteScheduler(shift=6.0), vae(), None, None)
    return Family(pipe, prompts(*MASKED) | IMAGE, (4, 8, 8))


def aura_flow() -> Family:
    net = network(
        diffusers.AuraFlowTransformer2DModel,
        sample_size=8,
        patch_size=2,
        in_channels=4,
        num_mmdit_layers=1,
        num_single_dit_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=16,
        caption_projection_dim=16,
        out_channels=4,
        pos_embed_max_size=64,
    )
    pipe = diffusers.AuraFlowPipeline(None, None, vae(), net, FlowMatchEulerDiscreteScheduler(shift=1.73))
    return Family(pipe, prompts(*MASKED) | IMAGE, (4, 8, 8))


def sana() -> Family:
    net = network(
        diffusers.SanaTransformer2DModel,
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=8,
        num_layers=1,
        num_cross_attention_heads=2,
        cross_attention_head_dim=8,
        cross_attention_dim=16,
        caption_channels=16,
        sample_size=8,
        patch_size=1,
    )
    own = diffusers.DPMSolverMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0)
    decoder = network(
        diffusers.AutoencoderDC,
        latent_channels=4,
        attention_head_dim=2,
        encoder_block_types=("ResBlock", "ResBlock"),
        decoder_block_types=("ResBlock", "ResBlock"),
        encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
        encoder_layers_per_block=(1, 1),
        decoder_layers_per_block=(1, 1),
        encoder_qkv_multiscales=((), ()),
        decoder_qkv_multiscales=((), ()),
        scaling_factor=0.4,
    )
    pipe = diffusers.SanaPipeline(None, None, decoder, net, own)
    rest = {"negative_prompt": None, "use_resolution_binning": False, "complex_human_instruction": None}
    return Family(pipe, prompts(*MASKED) | IMAGE | rest | {"height": 32, "width": 32}, (4, 16, 16))


FLOWS: dict[str, Callable[[], Family]] = {
    "wan": wan,
    "wan-image": wan_image,
    "wan-vace": wan_vace,
    "wan-video": wan_video,
    "ltx": ltx,
    "ltx2": ltx2,
    "cosmos2.5": cosmos25,
    "cogview4": cogview4,
    "glm-image": glm_image,
    "qwen": qwen,
    "qwen-edit": lambda: qwen("QwenImageEditPipeline", image=photo()),
    "qwen-img2img": lambda: qwen("QwenImageImg2ImgPipeline", image=picture(), strength=0.6),
    "qwen-inpaint": lambda: qwen("QwenImageInpaintPipeline", image=picture(), mask_image=half(), strength=0.6),
    "sd3": lambda: one(FAMILIES["sd3"]()),
    "sd3-img2img": lambda: from_pictures("StableDiffusion3Img2ImgPipeline", "sd3"),
    "sd3-inpaint": lambda: from_pictures("StableDiffusion3InpaintPipeline", "sd3-16"),
    "flux": lambda: one(FAMILIES["flux"]()),
    "flux-img2img": lambda: from_pictures("FluxImg2ImgPipeline", "flux"),
    "flux-inpaint": lambda: from_pictures("FluxInpaintPipeline", "flux"),
    "schnell": schnell,
    "flux2": flux2,
    "z-image": z_image,
    "chroma": chroma,
    "hunyuan-video": hunyuan_video,
    "mochi": mochi,
    "lumina2": lumina2,
    "aura-flow": aura_flow,
    "sana": sana,
}
