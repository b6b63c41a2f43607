"""The bundled digits as a diffusers pipeline."""

from inspect import signature
from typing import Any

import torch
from diffusers import DDPMScheduler, DiffusionPipeline, ImagePipelineOutput, UNet2DModel
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from .networks import digits_network


class ClassConditionalPipeline(DiffusionPipeline):
    """Pictures of classes, by classifier-free guidance, from a `UNet2DModel` whose last class is "no class".

    Args:
        unet: receives the noise level and the class.
        scheduler: any of diffusers', or `TimeTunerScheduler`.
    """

    model_cpu_offload_seq = "unet"

    def __init__(self, unet: UNet2DModel, scheduler: Any) -> None:
        super().__init__()
        self.register_modules(unet=unet, scheduler=scheduler)

    @torch.no_grad()
    def __call__(
        self,
        class_labels: int | list[int] | None = None,
        batch_size: int = 1,
        guidance_scale: float = 1.0,
        num_inference_steps: int = 50,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: Tensor | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
    ) -> Any:
        """Draw pictures.

        Args:
            class_labels: one for each picture; None for pictures of any class.
            batch_size: the number of pictures where no classes are given.
            guidance_scale: w in eps_u + w (eps_c - eps_u).
            num_inference_steps: of the scheduler.
            generator: of the noise.
            latents: the noise itself, (B, C, H, W).
            output_type: "pil", "np", "pt" (in [0, 1]) or "latent" (in [-1, 1]).
            return_dict: whether to return an `ImagePipelineOutput`, or a tuple.
        """
        config, device = self.unet.config, self._execution_device
        nothing = config.num_class_embeds - 1
        given = [class_labels] if isinstance(class_labels, int) else class_labels
        classes = torch.as_tensor([nothing] * batch_size if given is None else given, device=device)
        if class_labels is None and guidance_scale != 1:
            raise ValueError(f"guidance_scale={guidance_scale} needs class_labels=, the classes to guide to")
        if not ((classes >= 0) & (classes <= nothing)).all():
            raise ValueError(f"class_labels must be 0 to {nothing - 1} ({nothing}: any), got {classes.tolist()}")
        size = (config.sample_size, config.sample_size) if isinstance(config.sample_size, int) else config.sample_size
        shape = (len(classes), config.in_channels, *size)
        if latents is None:
            latents = randn_tensor(shape, generator=generator, device=device, dtype=self.unet.dtype)
        elif latents.shape != shape:
            raise ValueError(f"latents must have shape {shape}, got {tuple(latents.shape)}")
        self.scheduler.set_timesteps(num_inference_steps, device=device)
        x = latents.to(device) * self.scheduler.init_noise_sigma
        for t in self.progress_bar(self.scheduler.timesteps):
            shown = self.scheduler.scale_model_input(x, t)
            if guidance_scale == 1:
                prediction = self.unet(shown, t, class_labels=classes).sample
            else:
                both = torch.cat([torch.full_like(classes, nothing), classes])
                uncond, cond = self.unet(torch.cat([shown, shown]), t, class_labels=both).sample.chunk(2)
                prediction = uncond + guidance_scale * (cond - uncond)
            x = self.scheduler.step(prediction, t, x, **self._step_arguments(generator)).prev_sample
        self.maybe_free_model_hooks()
        images: Any = x if output_type == "latent" else (x / 2 + 0.5).clamp(0, 1)
        if output_type in ("np", "pil"):
            images = images.cpu().permute(0, 2, 3, 1).float().numpy()
        if output_type == "pil":
            images = self.numpy_to_pil(images)
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    def _step_arguments(self, generator: Any) -> dict[str, Any]:
        return {"generator": generator} if "generator" in signature(self.scheduler.step).parameters else {}


def digits_pipeline() -> ClassConditionalPipeline:
    """The bundled network as a pipeline, with the scheduler that it was trained with."""
    return ClassConditionalPipeline(digits_network(), DDPMScheduler(clip_sample=False))
