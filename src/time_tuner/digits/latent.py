"""The bundled latent diffusion model of digits: a small autoencoder, and a network that works on its latents.

Images (B, 1, 28, 28) become latents (B, 4, 7, 7) of unit variance; the network predicts the noise in those, under an
embedding of the label. As in latent diffusion (Rombach et al., 2022, https://arxiv.org/abs/2112.10752), encoder,
embedding, network and decoder are four things, each called on its own.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..schedules import NoiseScheduleVP
from .classifier import check_images, filled, waves
from .networks import NULL_LABEL, linear_betas

__all__ = ["AutoEncoder", "LatentDigits", "LatentNetwork", "load_latent_digits"]

CHANNELS, SIZE = 4, 7
CONDITION = 64  # numbers in the embedding of a label

_WIDTH = 64
_BLOCKS = 4
_EMBEDDED = 128  # numbers of the embedded time and condition that a block receives
_FREQUENCIES = 32


class AutoEncoder(nn.Module):
    """Images (B, 1, 28, 28) in [-1, 1] to latents (B, 4, 7, 7) and back; over the digits, each channel of the latents
    has mean 0 and variance 1."""

    mean: Tensor
    std: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Conv2d(1, 24, 4, 2, padding=1), _Block(24),
            nn.Conv2d(24, 48, 4, 2, padding=1), _Block(48),
            _normed(48), nn.Conv2d(48, CHANNELS, 1),
        )  # fmt: skip
        self.decoder = nn.Sequential(
            nn.Conv2d(CHANNELS, _WIDTH, 3, padding=1), _Block(_WIDTH),
            _normed(_WIDTH), nn.Conv2d(_WIDTH, 4 * 32, 3, padding=1), nn.PixelShuffle(2), _Block(32),
            _normed(32), nn.Conv2d(32, 4 * 16, 3, padding=1), nn.PixelShuffle(2),
            _normed(16), nn.Conv2d(16, 1, 3, padding=1),
        )  # fmt: skip
        self.register_buffer("mean", torch.zeros(CHANNELS, 1, 1))
        self.register_buffer("std", torch.ones(CHANNELS, 1, 1))

    def encode(self, images: Tensor) -> Tensor:
        check_images(images)
        latents: Tensor = (self.encoder(images) - self.mean) / self.std
        return latents

    def decode(self, latents: Tensor) -> Tensor:
        images: Tensor = torch.tanh(self.decoder(latents * self.std + self.mean))
        return images


class LatentNetwork(nn.Module):
    """The noise in latents x (B, 4, 7, 7) at the level n (B,), which may fall between two levels, given a condition
    (B, 64)."""

    def __init__(self) -> None:
        super().__init__()
        self.time = nn.Linear(2 * _FREQUENCIES, _EMBEDDED)
        self.condition = nn.Linear(CONDITION, _EMBEDDED)
        self.embedding = nn.Sequential(nn.SiLU(), nn.Linear(_EMBEDDED, _EMBEDDED), nn.SiLU())
        self.inlet = nn.Conv2d(CHANNELS, _WIDTH, 3, padding=1)
        self.blocks = nn.ModuleList(_Block(_WIDTH, _EMBEDDED) for _ in range(_BLOCKS))
        self.across = nn.ModuleList(_Across(_WIDTH) for _ in range(_BLOCKS))
        self.outlet = nn.Sequential(_normed(_WIDTH), nn.Conv2d(_WIDTH, CHANNELS, 3, padding=1))
        self.share = nn.Linear(_EMBEDDED, CHANNELS)  # of x that is noise, almost all of it where there is much

    def forward(self, x: Tensor, n: Tensor, cond: Tensor) -> Tensor:
        embedded = self.embedding(self.time(waves(n, 2, _FREQUENCIES)) + self.condition(cond))
        h = self.inlet(x)
        for block, across in zip(self.blocks, self.across, strict=True):
            h = block(across(h), embedded)
        noise: Tensor = self.share(embedded)[..., None, None] * x + self.outlet(h)
        return noise


class LatentDigits(nn.Module):
    """The whole model.

    Attributes:
        network: `network(x, n, cond)`, the noise in latents.
        schedule: the noise schedule of the network.
        shape: of the latents of one image.
    """

    shape = (CHANNELS, SIZE, SIZE)

    def __init__(self) -> None:
        super().__init__()
        self.autoencoder = AutoEncoder()
        self.network = LatentNetwork()
        self.labels = nn.Embedding(NULL_LABEL + 1, CONDITION)
        self.schedule = NoiseScheduleVP(betas=linear_betas())

    def embed(self, labels: int | Sequence[int] | Tensor) -> Tensor:
        """The embedding (B, 64) of labels (B,), 0 to 9, or 10 for "no label"; one label makes a batch of 1.

        Raises:
            ValueError: labels of another kind.
        """
        given = torch.as_tensor(labels, device=self.labels.weight.device)
        if given.is_floating_point() or given.dim() > 1 or not ((given >= 0) & (given <= NULL_LABEL)).all():
            raise ValueError(f"labels must be digits 0 to 9, or {NULL_LABEL} for no label, got {labels!r}")
        embedded: Tensor = self.labels(given.reshape(-1).long())
        return embedded

    def encode(self, images: Tensor) -> Tensor:
        """Latents (B, 4, 7, 7) of images (B, 1, 28, 28) in [-1, 1]."""
        return self.autoencoder.encode(images)

    def decode(self, latents: Tensor) -> Tensor:
        """Images (B, 1, 28, 28) in [-1, 1] of latents (B, 4, 7, 7)."""
        return self.autoencoder.decode(latents)


def load_latent_digits() -> LatentDigits:
    """The bundled latent model, a new copy: on the CPU, in float32, in eval mode, frozen."""
    return filled(LatentDigits(), "latent/model.safetensors")


class _Block(nn.Module):
    """Two convolutions beside the identity; the embedded time and condition scale and shift the middle."""

    def __init__(self, width: int, embedded: int = 0) -> None:
        super().__init__()
        self.first = nn.Sequential(_normed(width), nn.Conv2d(width, width, 3, padding=1))
        self.norm = nn.GroupNorm(8, width)
        self.modulation = nn.Linear(embedded, 2 * width) if embedded else None
        self.second = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor, embedded: Tensor | None = None) -> Tensor:
        h = self.norm(self.first(x))
        if self.modulation is not None:
            scale, shift = self.modulation(embedded)[..., None, None].chunk(2, 1)
            h = h * (1 + scale) + shift
        added: Tensor = self.second(nn.functional.silu(h))
        return x + added


class _Across(nn.Module):
    """A linear map between the 7 x 7 places, beside the identity."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = _normed(width)
        self.places = nn.Linear(SIZE * SIZE, SIZE * SIZE)

    def forward(self, x: Tensor) -> Tensor:
        mixed: Tensor = self.places(self.norm(x).flatten(2)).view_as(x)
        return x + mixed


def _normed(width: int) -> Any:
    return nn.Sequential(nn.GroupNorm(8, width), nn.SiLU())
