"""The features that samples are compared in, by name: one table."""

from collections.abc import Callable

from torch import Tensor

from .._checks import accepts, choose
from ..digits.classifier import load_classifier
from ..loading import imported
from ..metrics import efficientnet_features, inception_features
from ..pictograms.pictures import coarse_features

PIXELS = "pixels"


def pixels(pictures: Tensor) -> Tensor:
    """The numbers of a picture, (B, D)."""
    return pictures.flatten(1)


FEATURES: dict[str, Callable[[], Callable[[Tensor], Tensor]]] = {
    PIXELS: lambda: pixels,
    "digits": lambda: load_classifier().features,
    "pictograms": lambda: coarse_features,
    "efficientnet": efficientnet_features,
    "inception": inception_features,
}
"""What makes the features of a name: of pixels, of the bundled classifier, of 8 x 8 pixels, of EfficientNet-Lite0, and
of Inception."""


def features_of(features: str | Callable[[Tensor], Tensor]) -> tuple[str, Callable[[Tensor], Tensor]]:
    """The name and the function of features: a name in `FEATURES`, package.module:function, or a function itself.

    Raises:
        ValueError: an unknown name, no function of pictures, or features whose network is not installed.
    """
    if isinstance(features, str):
        name = features
        found = imported("features", name) if ":" in name else FEATURES[choose("features", name, FEATURES)]()
    else:
        kind = features if hasattr(features, "__qualname__") else type(features)
        name, found = f"{kind.__module__}:{kind.__qualname__}", features
    if not accepts(found, 1):
        raise ValueError(f"features must be a function of pictures (B, C, H, W), got {features!r}")
    return name, found
