"""Images and labels from a data loader, as what a loss is averaged over."""

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from ..models.base import Model, for_rows
from ..noise import HELD_OUT, NOISE, SeededNoise, first_seed
from ..tuners.calibration import CalibrationBatch


class LoaderCalibration:
    """CalibrationBatch from a loader of dicts with `image` (B, ...) and, optionally, `label` (B, ...); a short one is cycled.

    Args:
        loader: the data loader, or any iterable that can be started again.
        bind: `bind(condition, uncond_condition)` gives the model under conditions.
        guided: whether the model is under guidance, so that it and step functions receive the labels.
        encode_fn: takes images to what the network works on.
        uncond_condition: for guidance.
        device: where images and labels go; None: they stay where they are.
        seed: of the noise.
        samples: how many of the first images `fixed` and `held_out` may ask for.
    """

    def __init__(
        self,
        loader: Iterable[Mapping[str, Any]],
        bind: Callable[[Any, Any], Model],
        guided: bool,
        encode_fn: Callable[[Tensor], Tensor] | None = None,
        uncond_condition: Any = None,
        device: torch.device | str | None = None,
        seed: int = 0,
        samples: int = 256,
    ) -> None:
        self._loader, self._bind, self._guided, self._encode_fn = loader, bind, guided, encode_fn
        self._uncond, self._device, self._seed = uncond_condition, device, seed
        self._stream: Iterator[tuple[Tensor, Any]] = self._batches()
        self._samples = samples
        self._fixed: CalibrationBatch | None = None
        self.iterations = 0  # batches that one ratio needs, for the word about a short loader

    def _batches(self) -> Iterator[tuple[Tensor, Any]]:
        told = False
        while True:
            count = 0
            for item in self._loader:
                count += 1
                yield self._prepared(item)
            if not count:
                raise ValueError("data_loader is empty, or cannot be started again: give a DataLoader or a list")
            if count < self.iterations and not told:
                told = True
                warnings.warn(
                    f"data_loader has {count} batches, fewer than the {self.iterations} of one ratio: it is cycled",
                    stacklevel=2,
                )

    def _prepared(self, item: Any) -> tuple[Tensor, Any]:
        if not isinstance(item, Mapping) or "image" not in item:
            raise ValueError(f"data_loader must yield dicts with 'image' and optionally 'label', got {_kind(item)}")
        image = torch.as_tensor(item["image"])
        if not torch.isfinite(image).all():
            raise ValueError("data_loader yields an image with NaN or infinity in it")
        label = item.get("label")
        if self._device is not None:
            image = image.to(self._device)
            label = label.to(self._device) if isinstance(label, Tensor) else label
        if self._encode_fn is not None:
            with torch.no_grad():
                image = self._encode_fn(image)
        # A tuple cannot be written to, so that its embedding can be kept.
        return image if image.is_floating_point() else image.float(), tuple(label) if isinstance(label, list) else label

    def _draws(self, x0: Tensor, label: Any, first: int) -> CalibrationBatch:
        # Without guidance the labels of the data are of no concern to the model, nor to a step function.
        model = self._bind(label, self._uncond) if self._guided else self._bind(None, None)
        return CalibrationBatch(model, x0, SeededNoise(first)(x0), first, label if self._guided else None)

    def _first(self, samples: int, first: int) -> CalibrationBatch:
        """The loader's first images, with noise from this seed on; their labels are embedded once, for all that ask."""
        if self._fixed is None:
            images: list[Tensor] = []
            labels: list[Any] = []
            for item in self._loader:
                image, label = self._prepared(item)
                images.append(image)
                labels.append(label)
                if sum(map(len, images)) >= self._samples:
                    break
            if not images:
                raise ValueError("data_loader is empty: give at least one batch of images")
            x0, joined = torch.cat(images)[: self._samples], _joined(labels, images)
            self._fixed = self._draws(x0, None if joined is None else joined[: self._samples], 0)
        x0, label = self._fixed.x0[:samples], self._fixed.condition
        model = for_rows(self._fixed.model, torch.arange(len(x0)))
        return CalibrationBatch(model, x0, SeededNoise(first)(x0), first, None if label is None else label[:samples])

    def fixed(self, samples: int) -> CalibrationBatch:
        """The loader's first images with noise, the same at every call."""
        return self._first(samples, first_seed(self._seed, NOISE))

    def batch(self, i: int) -> CalibrationBatch:
        """The loader's next batch with the noise of iteration i."""
        x0, label = next(self._stream)
        return self._draws(x0, label, first_seed(self._seed, NOISE) + (i + 1) * len(x0))

    def held_out(self, samples: int) -> CalibrationBatch:
        """Noise that is not tuned on, under the conditions of the loader's first images."""
        return self._first(samples, first_seed(self._seed, HELD_OUT))


def _joined(labels: list[Any], images: list[Tensor]) -> Any:
    """The labels of several batches, one for each image: a tensor, or a tuple of raw conditions such as texts."""
    if labels[0] is None:
        return None
    if isinstance(labels[0], tuple):
        return tuple(label for part in labels for label in part)
    parts = [torch.atleast_1d(torch.as_tensor(part)) for part in labels]
    return torch.cat([part.expand(len(x), *part.shape[1:]) for part, x in zip(parts, images, strict=True)])


def _kind(item: Any) -> str:
    return f"one with {sorted(item)}" if isinstance(item, Mapping) else type(item).__name__
