"""Metrics of digits: the Frechet distance in the features of the bundled classifier, and its accuracy."""

from functools import cache
from typing import Any

import torch
from torch import Tensor

from ..metrics import frechet_distance, moments
from ..metrics._tensors import finite, shape
from .classifier import DigitClassifier, check_images, load_classifier, read_asset

_BATCH = 500


def digit_frechet(images: Tensor) -> float:
    """Frechet distance of images (B, 1, 28, 28) in [-1, 1] to the 10,000 test digits of MNIST, in classifier features.

    The features are those of `load_classifier`, the statistics of the test digits come with the library. Values outside
    [-1, 1] are taken as they are.

    Raises:
        ValueError: a wrong shape or type, fewer than two images, or values that are not finite.
    """
    if len(images) < 2:
        raise ValueError(f"images must hold at least two, better thousands, got shape {shape(images)}")
    classifier, mean, covariance = _digits()
    return frechet_distance(*moments(_batched(classifier.features, images)), mean, covariance)


def digit_accuracy(images: Tensor, labels: Any) -> float:
    """The share of images (B, 1, 28, 28) in [-1, 1] that `load_classifier` classifies as the digits `labels`, (B,).

    Raises:
        ValueError: a wrong shape or type, no images, or images that are not finite.
    """
    labels = torch.as_tensor(labels, device="cpu")
    if labels.shape != images.shape[:1] or not len(labels):
        raise ValueError(f"labels must be (B,), one for each of the images {shape(images)}, got {shape(labels)}")
    return float((_batched(_digits()[0], images).argmax(1) == labels).double().mean())


@cache
def _digits() -> tuple[DigitClassifier, Tensor, Tensor]:
    reference = read_asset("mnist-test-features.safetensors")
    return load_classifier(), reference["mean"], reference["covariance"]


@torch.no_grad()
def _batched(network: Any, images: Tensor) -> Tensor:
    """`network` of the images, a batch at a time, on the CPU in float32."""
    check_images(images)
    return torch.cat([network(finite("images", part, torch.float32)) for part in images.split(_BATCH)])
