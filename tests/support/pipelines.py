"""Tiny pipelines with random weights, one of each family, built from configurations alone."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import diffusers
import torch
from diffusers import DDIMScheduler, DDPMScheduler, FlowMatchEulerDiscreteScheduler

BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
LATENT_BETAS = BETAS | {"clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1}


@dataclass
class Family:
    """A pipeline, what its call takes for two pictures (guidance, prompts, ...), and the shape of its states."""

    pipe: Any
    inputs: dict[str, Any]
    shape: tuple[int, ...]
    latents: str | None = "latents"  # the argument for the first state, if there is one

    def run(self, calls: int, x: torch.Tensor | None = None, **inputs: Any) -> torch.Tensor:
        """The states at the end of a run of the pipeline, from the state x where it takes one."""
        given = {} if x is None or self.latents is None else {self.latents: x}
        arguments = self.inputs | given | {"num_inference_steps": calls} | inputs
        with torch.no_grad():
            return torch.as_tensor(self.pipe(**arguments)[0])


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@cache
def unet2d(channels: int = 3) -> Any:
    torch.manual_seed(0)
    return diffusers.UNet2DModel(
        sample_size=8,
        in_channels=channels,
        out_channels=channels,
        block_out_channels=(8, 16),
        norm_num_groups=4,
        attention_head_dim=4,
        layers_per_block=1,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    ).eval()


@cache
def unet(channels: int = 4, cross: int = 16, **options: Any) -> Any:
    torch.manual_seed(0)
    return diffusers.UNet2DConditionModel(
        sample_size=8,
        in_channels=channels,
        out_channels=4,
        block_out_channels=(8, 16),
        norm_num_groups=4,
        attention_head_dim=4,
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=cross,
        **options,
    ).eval()


@cache
def vae(channels: int = 4) -> Any:
    torch.manual_seed(1)
    return diffusers.AutoencoderKL(
        block_out_channels=(8, 8),
        norm_num_groups=4,
        latent_channels=channels,
        shift_factor=0.0,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
    ).eval()


@cache
def clip(projection: bool = False) -> Any:
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    torch.manual_seed(2)
    config = CLIPTextConfig(
        vocab_size=64,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=16,
        projection_dim=16,
        bos_token_id=62,
        eos_token_id=63,
        pad_token_id=63,
    )
    return (CLIPTextModelWithProjection if projection else CLIPTextModel)(config).eval()


@cache
def tokenizer() -> Any:
    """Letters, each alone and at the end of a word."""
    from transformers import CLIPTokenizer

    letters = [chr(ord("a") + i) for i in range(26)]
    words = [*letters, *(letter + "</w>" for letter in letters)]
    vocabulary = {word: i for i, word in enumerate(words)} | {"<|startoftext|>": 62, "<|endoftext|>": 63}
    folder = Path(mkdtemp())
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return CLIPTokenizer.from_pretrained(str(folder), model_max_length=16)


def stable_diffusion(kind: type[Any], network: Any, **scheduler: Any) -> Any:
    parts = {"vae": vae(), "text_encoder": clip(), "tokenizer": tokenizer(), "unet": network}
    nothing = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    return kind(**parts, scheduler=DDIMScheduler(**LATENT_BETAS | scheduler), **nothing)


PROMPTS = {"prompt": ["a red cat", "b"], "guidance_scale": 3.0, "height": 16, "width": 16, "output_type": "latent"}


def embeds(tokens: int = 7, width: int = 16, seed: int = 5, **names: str) -> dict[str, torch.Tensor]:
    """Embeddings of two prompts under these argument names: "tokens" (2, tokens, width) or "pooled" (2, 16)."""
    shapes = {"tokens": (2, tokens, width), "pooled": (2, 16)}
    return {name: random(*shapes[kind], seed=seed + i) for i, (name, kind) in enumerate(names.items())}


def ddpm() -> Family:
    pipe = diffusers.DDPMPipeline(unet2d(), DDPMScheduler(clip_sample=False))
    return Family(pipe, {"batch_size": 2, "output_type": "pt"}, (3, 8, 8), latents=None)


def ddim() -> Family:
    pipe = diffusers.DDIMPipeline(unet2d(), DDIMScheduler(clip_sample=False))
    return Family(pipe, {"batch_size": 2, "output_type": "pt"}, (3, 8, 8), latents=None)


def sd() -> Family:
    return Family(stable_diffusion(diffusers.StableDiffusionPipeline, unet()), PROMPTS, (4, 8, 8))


def sd_v() -> Family:
    pipe = stable_diffusion(diffusers.StableDiffusionPipeline, unet(), prediction_type="v_prediction")
    return Family(pipe, PROMPTS, (4, 8, 8))


def sd_zero_snr() -> Family:
    changes = {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    pipe = stable_diffusion(diffusers.StableDiffusionPipeline, unet(), **changes)
    return Family(pipe, PROMPTS | {"guidance_rescale": 0.7}, (4, 8, 8))


def sdxl() -> Family:
    network = unet(
        addition_embed_type="text_time",
        addition_time_embed_dim=4,
        projection_class_embeddings_input_dim=6 * 4 + 16,
        transformer_layers_per_block=(1, 1),
        use_linear_projection=True,
    )
    scheduler = diffusers.EulerDiscreteScheduler(**BETAS, steps_offset=1, timestep_spacing="leading")
    nothing = dict.fromkeys(("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"))
    pipe = diffusers.StableDiffusionXLPipeline(vae(), **nothing, unet=network, scheduler=scheduler)
    given = embeds(
        prompt_embeds="tokens",
        negative_prompt_embeds="tokens",
        pooled_prompt_embeds="pooled",
        negative_pooled_prompt_embeds="pooled",
    )
    return Family(pipe, given | {k: v for k, v in PROMPTS.items() if k != "prompt"}, (4, 8, 8))


def sd3(channels: int = 4) -> Family:
    torch.manual_seed(0)
    network = diffusers.SD3Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=channels,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=16,
        caption_projection_dim=16,
        pooled_projection_dim=16,
        out_channels=channels,
        pos_embed_max_size=8,
    ).eval()
    stir(network)
    nothing = {f"{part}{i}": None for part in ("text_encoder", "tokenizer") for i in ("", "_2", "_3")}
    pipe = diffusers.StableDiffusion3Pipeline(
        network, FlowMatchEulerDiscreteScheduler(shift=3.0), vae(channels), **nothing
    )
    given = embeds(
        prompt_embeds="tokens",
        negative_prompt_embeds="tokens",
        pooled_prompt_embeds="pooled",
        negative_pooled_prompt_embeds="pooled",
    )
    return Family(pipe, given | {k: v for k, v in PROMPTS.items() if k != "prompt"}, (channels, 8, 8))


def flux() -> Family:
    torch.manual_seed(0)
    network = diffusers.FluxTransformer2DModel(
        patch_size=1,
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=16,
        pooled_projection_dim=16,
        guidance_embeds=True,
        axes_dims_rope=(2, 2, 4),
    ).eval()
    stir(network)
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True)
    nothing = {f"{part}{i}": None for part in ("text_encoder", "tokenizer") for i in ("", "_2")}
    pipe = diffusers.FluxPipeline(scheduler, vae(), **nothing, transformer=network)
    given = embeds(prompt_embeds="tokens", pooled_prompt_embeds="pooled")
    return Family(pipe, given | {k: v for k, v in PROMPTS.items() if k != "prompt"}, (16, 16))


def ldm() -> Family:
    torch.manual_seed(3)
    from diffusers.pipelines.latent_diffusion.pipeline_latent_diffusion import LDMBertConfig, LDMBertModel

    config = LDMBertConfig(
        vocab_size=64,
        max_position_embeddings=77,
        encoder_layers=1,
        encoder_ffn_dim=16,
        encoder_attention_heads=2,
        d_model=16,
        head_dim=8,
    )
    bert = LDMBertModel(config).eval()
    scheduler = DDIMScheduler(**LATENT_BETAS)
    pipe = diffusers.LDMTextToImagePipeline(vae(), bert, tokenizer(), unet(), scheduler)
    return Family(pipe, PROMPTS | {"height": 64, "width": 64, "output_type": "pt"}, (4, 8, 8))


def picture() -> torch.Tensor:
    return random(1, 3, 16, 16, seed=9).sigmoid()


def img2img() -> Family:
    pipe = stable_diffusion(diffusers.StableDiffusionImg2ImgPipeline, unet())
    given = {k: v for k, v in PROMPTS.items() if k not in ("height", "width")}
    return Family(pipe, given | {"image": picture().repeat(2, 1, 1, 1), "strength": 0.6}, (4, 8, 8), latents=None)


def inpaint(channels: int = 9) -> Family:
    pipe = stable_diffusion(diffusers.StableDiffusionInpaintPipeline, unet(channels))
    mask = torch.zeros(1, 1, 16, 16)
    mask[..., :8] = 1
    given = {"image": picture(), "mask_image": mask, "strength": 1.0}
    if channels == 9:  # the encoder would draw them anew
        given["masked_image_latents"] = random(1, 4, 8, 8, seed=8)
    return Family(pipe, PROMPTS | given, (4, 8, 8))


def controlnet() -> Family:
    torch.manual_seed(4)
    control = diffusers.ControlNetModel.from_unet(
        unet(), conditioning_channels=3, conditioning_embedding_out_channels=(8, 8)
    )
    stir(control)
    parts = {
        "vae": vae(),
        "text_encoder": clip(),
        "tokenizer": tokenizer(),
        "unet": unet(),
        "controlnet": control.eval(),
    }
    nothing = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    pipe = diffusers.StableDiffusionControlNetPipeline(**parts, scheduler=DDIMScheduler(**LATENT_BETAS), **nothing)
    return Family(pipe, PROMPTS | {"image": picture()}, (4, 8, 8))


def dit() -> Family:
    torch.manual_seed(0)
    network = diffusers.DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        out_channels=8,
        num_layers=2,
        sample_size=8,
        patch_size=2,
        num_embeds_ada_norm=1000,
    ).eval()
    stir(network)
    pipe = diffusers.DiTPipeline(network, vae(), DDIMScheduler(clip_sample=False))
    return Family(pipe, {"class_labels": [1, 7], "guidance_scale": 3.0, "output_type": "pt"}, (4, 8, 8), latents=None)


def pixart() -> Family:
    torch.manual_seed(0)
    network = diffusers.PixArtTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        out_channels=8,
        num_layers=2,
        sample_size=8,
        patch_size=2,
        cross_attention_dim=16,
        caption_channels=16,
        use_additional_conditions=False,
    ).eval()
    stir(network)
    pipe = diffusers.PixArtAlphaPipeline(None, None, vae(), network, diffusers.DPMSolverMultistepScheduler(**BETAS))
    given = embeds(prompt_embeds="tokens", negative_prompt_embeds="tokens")
    masks = {"prompt_attention_mask": torch.ones(2, 7), "negative_prompt_attention_mask": torch.ones(2, 7)}
    rest = {"negative_prompt": None, "use_resolution_binning": False}
    return Family(pipe, given | masks | rest | {k: v for k, v in PROMPTS.items() if k != "prompt"}, (4, 8, 8))


def stir(network: torch.nn.Module) -> None:
    """Random weights where a network is built to predict zero at first."""
    with torch.no_grad():
        for i, weight in enumerate(network.parameters()):
            if not weight.any():
                weight.copy_(0.1 * random(*weight.shape, seed=i))


FAMILIES: dict[str, Callable[[], Family]] = {
    "ddpm": ddpm,
    "ddim": ddim,
    "sd": sd,
    "sd-v": sd_v,
    "sd-zero-snr": sd_zero_snr,
    "sdxl": sdxl,
    "sd3": sd3,
    "flux": flux,
    "ldm": ldm,
    "img2img": img2img,
    "inpaint": inpaint,
    "controlnet": controlnet,
    "dit": dit,
    "pixart": pixart,
}
