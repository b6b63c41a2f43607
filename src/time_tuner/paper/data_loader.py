"""Images and labels from a data loader, as what a loss is averaged over."""

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import count
from typing import Any

import torch
from torch import Tensor

from ..models.base import Model, for_rows
from ..noise import HELD_OUT, NOISE, SeededNoise, first_seed
from ..tuners.calibration import CalibrationBatch


class LoaderCalibration:
    """Calibration batches from a loader of dicts with `image` (B, ...) and, optionally, `label` (B, ...).

    A short loader is cycled.

    Args:
        loader: the data loader, or any iterable that can be started again.
        bind: `bind(condition, uncond_condition)` gives the model under conditions.
        guided: whether the model is under guidance, so that it and step functions receive the labels.
        encode_fn: takes images to what the network works on.
        uncond_condition: for guidance; one condition, or one for each image of a batch or of the samples.
        device: where images and labels go; None: they stay where they are.
        seed: of the noise.
        samples: the first images that `fixed` and `held_out` may need.
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
        self._uncond, self._device, self._seed, self._samples = uncond_condition, device, seed, samples
        self._stream: Iterator[tuple[Tensor, Any]] = self._batches()
        self._fixed: CalibrationBatch | None = None
        self._sizes = {1, samples}  # that uncond_condition may have
        self._unconditional: dict[int, Any] = {}
        self.iterations = 0  # batches that one ratio needs, for the warning about a short loader

    def _batches(self) -> Iterator[tuple[Tensor, Any]]:
        for cycle in count():
            batches = 0
            for item in self._loader:
                batches += 1
                yield self._prepared(item)
            if not batches:
                raise ValueError("data_loader is empty, or cannot be started again: give a DataLoader or a list")
            if batches < self.iterations and not cycle:
                warnings.warn(
                    f"data_loader has {batches} batches, fewer than the {self.iterations} of one ratio: it is cycled",
                    stacklevel=2,
                )

    def _prepared(self, item: Any) -> tuple[Tensor, Any]:
        if not isinstance(item, Mapping) or "image" not in item:
            kind = f"one with {sorted(item)}" if isinstance(item, Mapping) else type(item).__name__
            raise ValueError(f"data_loader must yield dicts with 'image' and optionally 'label', got {kind}")
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

    def _with_noise(self, x0: Tensor, label: Any, first: int) -> CalibrationBatch:
        noise = SeededNoise(first)(x0)
        if not self._guided:  # neither the model nor a step function receives the labels
            return CalibrationBatch(self._bind(None, None), x0, noise, first)
        unconditional = self._for_images(len(x0))
        return CalibrationBatch(self._bind(label, unconditional), x0, noise, first, label, unconditional)

    def _for_images(self, images: int) -> Any:
        """The unconditional condition for so many images: those of a batch are repeated for the following ones."""
        raw, size = self._uncond, 1
        if hasattr(raw, "__getitem__") and hasattr(raw, "__len__") and not isinstance(raw, str | Mapping):
            size = len(raw) if getattr(raw, "ndim", 1) else 1
        if size not in self._sizes:
            raise ValueError(
                "uncond_condition must be one condition, or one for each image of a batch or of the samples, "
                f"{' or '.join(map(str, sorted(self._sizes)))} in all, got {size}"
            )
        if size in (1, images):
            return raw
        if images not in self._unconditional:  # the same object, whose embedding is kept
            rows = [i % size for i in range(images)]
            several = isinstance(raw, list | tuple)
            self._unconditional[images] = tuple(raw[i] for i in rows) if several else raw[rows]
        return self._unconditional[images]

    def _first(self, samples: int, first: int) -> CalibrationBatch:
        """The loader's first images, with noise from this seed on; their labels are embedded once."""
        if self._fixed is None:
            items: list[tuple[Tensor, Any]] = []
            for item in self._loader:
                items.append(self._prepared(item))
                if sum(len(image) for image, _ in items) >= self._samples:
                    break
            if not items:
                raise ValueError("data_loader is empty: give at least one batch of images")
            images, labels = zip(*items, strict=True)
            x0, joined = torch.cat(images)[: self._samples], _joined(labels, images)
            self._sizes |= {len(images[0]), len(x0)}
            self._fixed = self._with_noise(x0, None if joined is None else joined[: self._samples], 0)
        x0, label = self._fixed.x0[:samples], self._fixed.condition
        model = for_rows(self._fixed.model, torch.arange(len(x0)))
        unconditional = self._for_images(len(x0)) if self._guided else None
        label = None if label is None else label[:samples]
        return CalibrationBatch(model, x0, SeededNoise(first)(x0), first, label, unconditional)

    def fixed(self, samples: int) -> CalibrationBatch:
        """The loader's first images with noise, the same at every call."""
        return self._first(samples, first_seed(self._seed, NOISE))

    def batch(self, i: int) -> CalibrationBatch:
        """The loader's next batch with the noise of iteration i."""
        x0, label = next(self._stream)
        return self._with_noise(x0, label, first_seed(self._seed, NOISE) + (i + 1) * len(x0))

    def held_out(self, samples: int) -> CalibrationBatch:
        """Noise on which nothing is tuned, under the conditions of the loader's first images."""
        return self._first(samples, first_seed(self._seed, HELD_OUT))


def _joined(labels: Sequence[Any], images: Sequence[Tensor]) -> Any:
    """The labels of several batches, one for each image: a tensor, or a tuple of raw conditions such as texts."""
    if labels[0] is None:
        return None
    if isinstance(labels[0], tuple):
        return tuple(label for part in labels for label in part)
    parts = [torch.atleast_1d(torch.as_tensor(part)) for part in labels]
    return torch.cat([part.expand(len(x), *part.shape[1:]) for part, x in zip(parts, images, strict=True)])
