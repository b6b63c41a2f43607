"""Data to tune on, from folders of images and from arrays, and samples as arrays."""

import os
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ._files import replacing

if TYPE_CHECKING:
    from PIL.Image import Image

IMAGES = (".png", ".jpg", ".jpeg")


def load_data(path: str | os.PathLike[str], shape: tuple[int, ...], most: int | None = None) -> Tensor:
    """Samples (n, *shape) in float32 from a folder of images or an npz file.

    Images are PNG or JPEG files, in subfolders too, made gray or RGB and resized as `shape` (1 or 3, H, W) says and
    scaled to [-1, 1]. Of an npz the first array that holds samples of this shape is taken, channels first or last, or
    left out where there is one: uint8 is scaled to [-1, 1], floating-point numbers are kept.

    Args:
        path: the folder or the file.
        shape: of one sample.
        most: take no more than this many, spread evenly over what there is.

    Raises:
        ValueError: nothing of this shape there, or what is there cannot be read; names the file.
    """
    path = Path(path)
    if path.is_dir():
        return _load_folder(path, shape, most)
    if not path.exists():
        raise ValueError(f"data {str(path)!r} does not exist: name a folder of images or an .npz file")
    if path.suffix.lower() != ".npz":
        raise ValueError(f"data must be a folder of images or an .npz file, got {str(path)!r}")
    return _load_npz(path, shape, most)


def is_picture(shape: Sequence[int]) -> bool:
    """Whether samples of this shape can be looked at: (1, H, W) or (3, H, W)."""
    return len(shape) == 3 and shape[0] in (1, 3)


def save_samples(samples: Tensor, path: Path) -> None:
    """Write samples as the array `samples` of an npz file; the file appears whole or not at all."""
    with replacing(path) as file:
        np.savez(file, samples=samples.numpy(force=True))


def check_writable(path: Path) -> None:
    """Raise a ValueError, before any work is done, if a file of this name could not be written."""
    if path.is_dir():
        raise ValueError(f"{str(path)!r} is a folder: name a file")
    folder = path.parent
    while not folder.exists():
        folder = folder.parent
    try:
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise ValueError(f"{str(path)!r} cannot be written ({error.strerror}): name another place") from None


def _load_folder(folder: Path, shape: tuple[int, ...], most: int | None) -> Tensor:
    if not is_picture(shape):
        raise ValueError(
            f"data {str(folder)!r} is a folder, but the model's samples, {shape}, are no pictures: use .npz"
        )
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in IMAGES and path.is_file())
    if not paths:
        raise ValueError(f"data {str(folder)!r} holds no images: put {', '.join(IMAGES)} files there")
    chosen = [paths[i] for i in _spread(len(paths), most)]
    return torch.stack([_load_image(path, shape) for path in chosen])


def _load_image(path: Path, shape: tuple[int, ...]) -> Tensor:
    from PIL import Image

    channels, height, width = shape
    try:
        with Image.open(path) as opened:
            image = _eight_bit(opened).convert("L" if channels == 1 else "RGB")
            image = image.resize((width, height), Image.Resampling.LANCZOS)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"data: {str(path)!r} cannot be read as an image: {error}") from None
    pixels = torch.from_numpy(np.array(image)).view(height, width, channels)
    return pixels.permute(2, 0, 1).float() / 127.5 - 1


def _eight_bit(image: "Image") -> "Image":
    """A 16-bit image in 8 bits; others as they are."""
    from PIL import Image

    if not image.mode.startswith("I"):
        return image
    return Image.fromarray((np.asarray(image).astype(np.float64) / 257).clip(0, 255).round().astype(np.uint8))


def _load_npz(path: Path, shape: tuple[int, ...], most: int | None) -> Tensor:
    found: list[str] = []
    try:
        with np.load(path, allow_pickle=False) as arrays:
            for name in arrays.files:
                array = _fitting(arrays[name], shape)
                if array is not None:
                    return _scaled(path, name, array[_spread(len(array), most)], shape)
                found.append(f"{name} {arrays[name].shape}")
    except (zipfile.BadZipFile, EOFError, AttributeError) as error:
        raise ValueError(f"data: {str(path)!r} cannot be read as an npz file: {error}") from None
    except ValueError as error:
        raise ValueError(f"data: {str(path)!r}: {error}") from None
    wanted = "(" + ", ".join(["n", *map(str, shape)]) + ")"
    raise ValueError(f"data {str(path)!r} holds no array of shape {wanted}, only {', '.join(found) or 'nothing'}")


def _fitting(array: Any, shape: tuple[int, ...]) -> Any:
    """The array as (n, *shape), or None."""
    if not array.ndim or not len(array):
        return None
    if array.shape[1:] == shape:
        return array
    if shape[0] == 1 and array.shape[1:] == shape[1:]:  # one channel, left out
        return array[:, None]
    if len(shape) == 3 and array.shape[1:] == (*shape[1:], shape[0]):  # channels last
        return np.moveaxis(array, -1, 1)
    return None


def _scaled(path: Path, name: str, array: Any, shape: tuple[int, ...]) -> Tensor:
    if array.dtype == np.uint8:
        return torch.from_numpy(np.ascontiguousarray(array)).float() / 127.5 - 1
    if not np.issubdtype(array.dtype, np.floating):
        raise ValueError(f"array {name!r} must be uint8 in 0 .. 255 or floating point, got {array.dtype}")
    samples = torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32))
    if is_picture(shape) and float(samples.abs().max()) > 2:
        low, high = float(samples.min()), float(samples.max())
        raise ValueError(f"array {name!r} must be images in [-1, 1] (or uint8), got values in [{low:.4g}, {high:.4g}]")
    return samples


def _spread(count: int, most: int | None) -> list[int]:
    """Up to `most` of `count` indices, evenly spread."""
    if most is None or most >= count:
        return list(range(count))
    return [i * count // most for i in range(most)]
