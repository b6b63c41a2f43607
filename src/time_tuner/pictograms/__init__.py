"""The bundled colour model, and the pictures that it was trained on."""

from .network import PictogramNetwork
from .pictures import coarse_features, load_pictograms, pictogram_frechet

__all__ = ["PictogramNetwork", "coarse_features", "load_pictograms", "pictogram_frechet"]
