"""Distances between pictures for `Joint(distance=)`: of the features of a network, of EfficientNet-Lite0, and LPIPS.

Pictures are (B, C, H, W) in [-1, 1]. Of latents they are decoded: `lambda x, y: distance(decode(x), decode(y))`.
"""

import math
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .._checks import accepts, check_int, choose, require
from .._dtypes import squared_norms
from ..metrics.features import PERCEPTUAL, load_efficientnet, prepared
from .joint.loss import Distance

AT_ONCE = 32  # pictures in a call of the network
FLOOR = 1e-8  # added under a root: it has a gradient where two pictures are equal
STAGES = (0, 2, 4, 10, 15)  # the last blocks of EfficientNet-Lite0 at 112, 56, 28, 14 and 7 pixels
LEAST_LPIPS = 64  # pixels that the networks of LPIPS need

LPIPS_FILES = {
    "alex": "alexnet-owt-7be5be79.pth",
    "vgg": "vgg16-397923af.pth",
    "squeeze": "squeezenet1_1-b8a52dc0.pth",
}
"""The files of torchvision's weights for the networks of LPIPS."""


def features(network: Callable[[Tensor], Any], size: int | None = None, channels: int | None = None) -> Distance:
    """The distance of the features f of a network: the root of the mean square of f(x) - f(y), for each pair.

    Of several features, the mean squares are added under the root. As in the default distance of `Joint`, the root
    keeps few far pairs from outweighing many near ones.

    Args:
        network: a torch module in eval mode, or a function, of pictures (B, C, H, W) in [-1, 1]; returns features
            (B, ...), or a list of them. Pictures are moved to the dtype and the device of its weights.
        size: to which pictures are resized, (size, size); None for the size that they have.
        channels: of the network; grey pictures have their channel repeated.

    Returns:
        The distance: a function of two batches of pictures that returns one number for each pair, (B,).

    Raises:
        ValueError: no function of pictures, or a network in training mode; in the distance, pictures or features of
            another shape.
    """
    if not accepts(network, 1):
        raise ValueError(f"network must be a function of pictures (B, C, H, W), got {network!r}")
    size = None if size is None else check_int("size", size, 1)
    channels = None if channels is None else check_int("channels", channels, 1)
    if isinstance(network, nn.Module) and any(module.training for module in network.modules()):
        raise ValueError("network must be in eval mode, where a picture has the same features in every batch: eval()")

    def of(pictures: Tensor) -> list[Tensor]:
        made = network(prepared(pictures, network, channels, size))
        found = [made] if isinstance(made, Tensor) else list(made) if isinstance(made, Sequence) else []
        if not found or any(not isinstance(one, Tensor) or one.shape[:1] != pictures.shape[:1] for one in found):
            got = [tuple(one.shape) if isinstance(one, Tensor) else type(one).__name__ for one in found or [made]]
            raise ValueError(f"network must return features (B, ...) of {len(pictures)} pictures, got {got}")
        return found

    def distance(x: Tensor, y: Tensor) -> Tensor:
        def one_call(x: Tensor, y: Tensor) -> Tensor:
            squares = [squared_norms(a - b) / a[0].numel() for a, b in zip(of(x), of(y), strict=True)]
            total = torch.stack(squares).sum(0)
            return (total + FLOOR).sqrt() - math.sqrt(FLOOR)

        return _in_parts(one_call, x, y)

    return distance


def efficientnet_distance(size: int = 224) -> Distance:
    """The distance of the features of EfficientNet-Lite0 (Tan & Le, 2019, https://arxiv.org/abs/1905.11946), trained on
    ImageNet, at its five sizes; each place of a feature map has norm 1 (Zhang et al., 2018, as in LPIPS).

    Args:
        size: to which pictures are resized, at least 32; the network was trained at 224.

    Returns:
        The distance: a function of two batches of pictures that returns one number for each pair, (B,).

    Raises:
        ValueError: the extra "perceptual" is not installed. Nothing is downloaded: the weights are a package.
    """
    size, network = check_int("size", size, 32), load_efficientnet()
    return features(_Stages(network).eval(), size, 3)


def lpips_distance(net: str = "alex") -> Distance:
    """LPIPS (Zhang et al., 2018, https://arxiv.org/abs/1801.03924) by the package lpips; pictures of less than 64
    pixels are enlarged.

    Args:
        net: "alex", "vgg" or "squeeze".

    Returns:
        The distance: a function of two batches of pictures that returns one number for each pair, (B,).

    Raises:
        ValueError: the extra "perceptual" is not installed, or torchvision's weights of the network are not on disk;
            nothing is downloaded.
    """
    choose("net", net, LPIPS_FILES)
    require("lpips", PERCEPTUAL)
    file = Path(torch.hub.get_dir()) / "checkpoints" / LPIPS_FILES[net]
    if not file.is_file():
        raise ValueError(
            f"the weights of net={net!r} are not on disk, and nothing is downloaded: put torchvision's {file.name} "
            f"into {file.parent}, or take efficientnet_distance(), whose weights are a package"
        )
    import lpips

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="torchvision")  # lpips asks it for weights by an older argument
        network = lpips.LPIPS(net=net, verbose=False).eval().requires_grad_(False)

    def distance(x: Tensor, y: Tensor) -> Tensor:
        return _in_parts(lambda a, b: network(_lpips_input(a), _lpips_input(b)).flatten(), x, y)

    def _lpips_input(pictures: Tensor) -> Tensor:
        small = pictures.dim() == 4 and min(pictures.shape[2:]) < LEAST_LPIPS
        return prepared(pictures, network, 3, LEAST_LPIPS if small else None)

    return distance


class _Stages(nn.Module):
    """The features of EfficientNet at five sizes, each with norm 1 over the channels."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network

    def forward(self, pictures: Tensor) -> list[Tensor]:
        network, found = self.network, list[Tensor]()
        x = network._swish(network._bn0(network._conv_stem(pictures)))
        for i, block in enumerate(network._blocks):
            x = block(x)
            if i in STAGES:
                found.append(x / (x.square().sum(1, keepdim=True) + FLOOR).sqrt() * x.shape[1] ** 0.5)
        return found


def _in_parts(distance: Distance, x: Tensor, y: Tensor) -> Tensor:
    """The distance of every pair, (B,), a part of the batch at a time."""
    if x.shape != y.shape:
        raise ValueError(f"distance takes two batches of one shape, got {tuple(x.shape)} and {tuple(y.shape)}")
    return torch.cat([distance(a, b) for a, b in zip(x.split(AT_ONCE), y.split(AT_ONCE), strict=True)])
