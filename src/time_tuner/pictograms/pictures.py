"""The pictograms that the bundled network was trained on, and the Frechet distance to them."""

import io
from functools import cache
from importlib.resources import files

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from ..metrics import Moments, frechet_between
from ..metrics._tensors import finite, shape
from .network import SHAPE

COARSE = 8  # pixels of a side


def load_pictograms() -> Tensor:
    """The pictograms that the bundled network was trained on, (n, 3, 24, 24) in [-1, 1], each also mirrored.

    They are Microsoft's Fluent Emoji (flat), under the MIT licence: see `pictograms/assets/LICENSE`.
    """
    content = (files("time_tuner.pictograms") / "assets" / "pictures.npz").read_bytes()
    with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
        pictures = torch.from_numpy(arrays["pictures"]).permute(0, 3, 1, 2).float() / 127.5 - 1
    return torch.cat([pictures, pictures.flip(3)])


def coarse_features(pictures: Tensor) -> Tensor:
    """Colours and shapes: pictures (B, C, H, W) averaged to 8 x 8 pixels, (B, 64 C).

    Raises:
        ValueError: no pictures of at least 8 x 8 pixels.
    """
    if pictures.dim() != 4 or min(pictures.shape[2:]) < COARSE:
        raise ValueError(f"pictures must be (B, C, H, W) of at least {COARSE} x {COARSE}, got {shape(pictures)}")
    return adaptive_avg_pool2d(pictures, COARSE).flatten(1)


def pictogram_frechet(pictures: Tensor) -> float:
    """Frechet distance of pictures (B, 3, 24, 24) in [-1, 1] to the pictograms that the network was trained on, in
    `coarse_features`.

    Raises:
        ValueError: another shape, fewer than two pictures, or values that are not finite.
    """
    if tuple(pictures.shape[1:]) != SHAPE:
        raise ValueError(f"pictures must have shape (B, 3, 24, 24), got {shape(pictures)}")
    return frechet_between(coarse_features(finite("pictures", pictures)), _moments())


@cache
def _moments() -> Moments:
    return Moments.of(coarse_features(load_pictograms().double()))
