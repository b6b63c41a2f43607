"""The bundled network of pictograms."""

from importlib.resources import as_file, files
from typing import Any

from torch import Tensor, nn
from torch.nn.functional import pixel_shuffle, pixel_unshuffle

SHAPE = (3, 24, 24)
PATCH = 2


class PictogramNetwork(nn.Module):
    """The bundled UNet, v of pictograms (B, 3, 24, 24) at levels (B,).

    Its weights are of diffusers' `UNet2DModel` in float32. It receives each patch of 2 x 2 pixels as 12 channels.
    """

    def __init__(self, unet: Any = None) -> None:
        super().__init__()
        self.unet = _bundled() if unet is None else unet

    def forward(self, x: Tensor, n: Tensor) -> Tensor:
        prediction: Tensor = self.unet(pixel_unshuffle(x, PATCH), n, return_dict=False)[0]
        return pixel_shuffle(prediction, PATCH)


def _bundled() -> Any:
    from diffusers import UNet2DModel

    with as_file(files("time_tuner.pictograms") / "assets") as folder:
        network = UNet2DModel.from_pretrained(folder, local_files_only=True, low_cpu_mem_usage=False)
    return network.float().eval().requires_grad_(False)
