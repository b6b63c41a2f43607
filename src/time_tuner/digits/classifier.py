"""The two bundled MNIST classifiers: one of clean digits, for metrics, one of noisy digits, for classifier guidance.

Both are the same small convolutional network. They are read from half-precision weights that come with the library and
run in float32.
"""

from collections.abc import Sequence
from importlib.resources import files
from typing import TypeVar

import torch
from torch import Tensor, nn

__all__ = ["DigitClassifier", "NoisyDigitClassifier", "load_classifier", "load_noisy_classifier"]

FEATURES = 64
LEVELS = 1000  # noise levels of linear betas 1e-4 .. 0.02, as in the bundled diffusion model

_WIDTHS = (16, 32, 48, 64, FEATURES)
_STRIDES = (1, 2, 1, 2, 1)
_FREQUENCIES = 16

Network = TypeVar("Network", bound=nn.Module)


class DigitClassifier(nn.Module):
    """Which digit a clean image (B, 1, 28, 28) in [-1, 1] shows: logits (B, 10), and the 64 features below them."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = _layers()
        self.head = nn.Linear(FEATURES, 10)

    def features(self, x: Tensor) -> Tensor:
        """The last layer averaged over the image, (B, 64): what a Frechet distance of digits compares."""
        check_images(x)
        for layer in self.layers:
            x = layer(x)
        return x.mean((2, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x))  # type: ignore[no-any-return]


class NoisyDigitClassifier(nn.Module):
    r"""Which digit x_n = sqrt(abar_n) x_0 + sqrt(1 - abar_n) eps shows at a noise level n in [0, 999]: logits (B, 10).

    abar_n = prod_{i <= n} (1 - beta_i) with 1000 linear betas 1e-4 .. 0.02, between whole levels linear in its log; n
    is one number for all images or (B,), whole or not. Each layer is scaled and shifted by an embedding of n.
    """

    def __init__(self) -> None:
        super().__init__()
        self.layers = _layers()
        self.head = nn.Linear(FEATURES, 10)
        self.level = nn.Sequential(
            nn.Linear(2 * _FREQUENCIES, FEATURES), nn.SiLU(), nn.Linear(FEATURES, 2 * sum(_WIDTHS))
        )

    def forward(self, x: Tensor, n: Tensor | float) -> Tensor:
        check_images(x)
        n = torch.as_tensor(n, dtype=x.dtype, device=x.device)
        if n.shape not in ((), (len(x),)):
            raise ValueError(f"n must be one noise level or (B,) = ({len(x)},) of them, got shape {tuple(n.shape)}")
        embedded = self.level(waves(n.expand(len(x)), 1.7, _FREQUENCIES))[..., None, None]
        modulations = embedded.split([2 * width for width in _WIDTHS], 1)
        for layer, modulation in zip(self.layers, modulations, strict=True):
            x = layer(x, *modulation.chunk(2, 1))
        return self.head(x.mean((2, 3)))  # type: ignore[no-any-return]

    def log_prob(self, x: Tensor, n: Tensor | float, labels: Tensor | Sequence[int]) -> Tensor:
        """log p(label | x, n), (B,), whose gradient in x guides a sampler to digits `labels`, (B,) in 0 .. 9.

        From Dhariwal & Nichol, 2021, https://arxiv.org/abs/2105.05233.
        """
        labels = torch.as_tensor(labels, device=x.device)
        if labels.shape != (len(x),):
            raise ValueError(f"labels must have shape ({len(x)},), one for each image, got {tuple(labels.shape)}")
        if not ((labels >= 0) & (labels <= 9)).all():
            raise ValueError(f"labels must be digits 0 to 9, got {labels.tolist()}")
        return self(x, n).log_softmax(1).gather(1, labels.long()[:, None])[:, 0]  # type: ignore[no-any-return]


def load_classifier() -> DigitClassifier:
    """The bundled classifier of clean digits, a new copy: on the CPU, in float32, in eval mode, frozen."""
    return filled(DigitClassifier(), "classifier.safetensors")


def load_noisy_classifier() -> NoisyDigitClassifier:
    """The bundled classifier of noisy digits, a new copy: on the CPU, in float32, in eval mode, frozen."""
    return filled(NoisyDigitClassifier(), "noisy-classifier.safetensors")


def read_asset(name: str) -> dict[str, Tensor]:
    """The tensors of a safetensors file that comes with the library."""
    from safetensors.torch import load

    return load((files("time_tuner.digits") / "assets" / name).read_bytes())


def check_images(x: Tensor) -> None:
    """Raises ValueError unless x is (B, 1, 28, 28) and floating point."""
    if x.shape[1:] != (1, 28, 28):
        raise ValueError(f"images must have shape (B, 1, 28, 28), got {tuple(x.shape)}; x[:, None] adds a channel")
    if not x.is_floating_point():
        raise ValueError(f"images must be floating point in [-1, 1], got {x.dtype}; for 0 .. 255 pass x / 127.5 - 1")


def filled(model: Network, name: str) -> Network:
    """The model with the weights of a file that comes with the library, in its own float32, in eval mode, frozen."""
    model.load_state_dict(read_asset(name))
    return model.eval().requires_grad_(False)


class _Layer(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.norm = nn.GroupNorm(8, outputs)

    def forward(self, x: Tensor, scale: Tensor | float = 0.0, shift: Tensor | float = 0.0) -> Tensor:
        return nn.functional.silu(self.norm(self.conv(x)) * (1 + scale) + shift)


def _layers() -> nn.ModuleList:
    return nn.ModuleList(_Layer(*shape) for shape in zip((1, *_WIDTHS[:-1]), _WIDTHS, _STRIDES, strict=True))


def waves(n: Tensor, fastest: float, count: int) -> Tensor:
    """(B,) -> (B, 2 count): sines and cosines of n / 1000, slow enough to be smooth between whole levels."""
    angles = n[:, None] / LEVELS * torch.logspace(0, fastest, count, dtype=n.dtype, device=n.device)
    return torch.cat([angles.sin(), angles.cos()], 1)
