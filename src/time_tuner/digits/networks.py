"""The bundled pixel network of digits."""

from importlib.resources import as_file, files
from typing import Any

import torch
from torch import Tensor, nn

NULL_LABEL = 10  # the digits networks' "no label"


def linear_betas() -> Tensor:
    """The 1000 levels of DDPM, which every bundled network was trained with."""
    return torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)


def digits_network() -> Any:
    """The bundled UNet, a diffusers `UNet2DModel` in float32; its eleventh class is "no label".

    Channels lie last in memory, which makes its convolutions a fifth faster on a CPU.
    """
    from diffusers import UNet2DModel

    with as_file(files("time_tuner.digits") / "assets" / "digits") as folder:
        network = UNet2DModel.from_pretrained(folder, local_files_only=True, low_cpu_mem_usage=False)
    return network.to(memory_format=torch.channels_last).eval().requires_grad_(False)


class PixelNetwork(nn.Module):
    """The bundled UNet, called with images (B, 1, 28, 28), levels (B,) and labels (B,)."""

    num_classes = NULL_LABEL + 1

    def __init__(self) -> None:
        super().__init__()
        self.unet = digits_network()

    def forward(self, x: Tensor, n: Tensor, labels: Tensor) -> Tensor:
        prediction: Tensor = self.unet(x, n, class_labels=labels).sample
        return prediction
