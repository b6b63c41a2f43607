"""Models: everything that predicts the noise in a state, `eps(x, t, tau)`."""

from .exact import ConditionalMixture, Gaussian, Mixture
from .thresholding import clipped, dynamically_thresholded
from .wrapper import model_wrapper

__all__ = ["ConditionalMixture", "Gaussian", "Mixture", "clipped", "dynamically_thresholded", "model_wrapper"]
