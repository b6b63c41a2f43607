"""Data to tune on, from folders of pictures and from arrays; samples as arrays."""

import logging
import math
import os
import struct
import tempfile
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ._checks import require
from ._distributed import rank
from ._files import one_line, replacing

PICTURES = (".png", ".jpg", ".jpeg")

SMALL, MOST_COMPRESSED, MOST_ARRAYS = 2**28, 64, 1000
"""The bytes of an array that is read from any .npz file; how many times as large as the file others may be; and the
most arrays of a file."""

UNREADABLE = (zipfile.BadZipFile, zlib.error, EOFError, AttributeError, NotImplementedError, RuntimeError, TypeError,
              OverflowError, SyntaxError, KeyError, IndexError, struct.error, OSError, MemoryError)  # fmt: skip
"""What zipfile and numpy raise for files that are no .npz."""

log = logging.getLogger(__name__)


def load_data(path: str | os.PathLike[str], shape: tuple[int, ...], most: int | None = None) -> Tensor:
    """Samples (n, *shape) in float32 from a folder of pictures or an .npz file. The log has what was taken.

    Pictures are PNG or JPEG files, in subfolders too, converted to gray or RGB as `shape` (1 or 3, H, W) requires and
    scaled to [-1, 1]. All must have one size; with the model's ratio of height to width they are resized. Of an .npz
    the first array of samples of this shape is taken, with channels first, last, or left out where there is one; uint8
    is scaled to [-1, 1], floating-point numbers are kept.

    Args:
        path: the folder or the file.
        shape: of one sample.
        most: the most samples to take, evenly spread over all; all by default.

    Raises:
        ValueError: nothing of this shape is found, pictures have other sizes, or a file cannot be read; names the file.
    """
    path = Path(path)
    if path.is_dir():
        return _load_folder(path, shape, most)
    if not path.exists():
        raise ValueError(f"data {str(path)!r} does not exist: name a folder of pictures or an .npz file")
    if path.suffix.lower() != ".npz":
        raise ValueError(f"data must be a folder of pictures or an .npz file, got {str(path)!r}")
    return _load_npz(path, shape, most)


def is_picture(shape: Sequence[int]) -> bool:
    """Whether samples of this shape are pictures: (1, H, W) or (3, H, W)."""
    return len(shape) == 3 and shape[0] in (1, 3)


def save_arrays(arrays: Mapping[str, Tensor], path: Path) -> None:
    """Write tensors as the arrays of an .npz file; the file appears whole or not at all."""
    values: dict[str, Any] = {name: array.numpy(force=True) for name, array in arrays.items()}
    with replacing(path) as file:
        np.savez(file, **values)


def check_writable(path: Path) -> None:
    """Raise a ValueError, before any work is done, if a file of this name could not be written."""
    if rank():  # of several processes that share work, the first alone writes
        return
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
        raise ValueError(f"data {str(folder)!r} is a folder, but samples of shape {shape} are no pictures: use .npz")
    found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in PICTURES and path.is_file())
    if not found:
        raise ValueError(f"data {str(folder)!r} holds no pictures: put {', '.join(PICTURES)} files there")
    channels, height, width = shape
    sizes: dict[tuple[int, int], Path] = {}
    pictures = []
    for i in _spread(len(found), most):
        size, picture = _read_picture(found[i], channels, (width, height))
        sizes.setdefault(size, found[i])
        pictures.append(picture)
        if len(sizes) > 1 or size[0] * height != size[1] * width:
            listed = ", ".join(f"{str(path)!r} is {w} x {h}" for (w, h), path in sizes.items())
            raise ValueError(
                f"data {str(folder)!r} must hold pictures of one size, in the ratio of {width} x {height}: {listed}"
            )
    resized = "" if sizes.keys() == {(width, height)} else f", resized from {' x '.join(map(str, size))}"
    log.info("data: %d of %d pictures in %s%s", len(pictures), len(found), folder, resized)
    return torch.stack(pictures)


def _read_picture(path: Path, channels: int, target: tuple[int, int]) -> tuple[tuple[int, int], Tensor]:
    """The size of a picture, (width, height), and its pixels in the size `target`, (channels, H, W) in [-1, 1]."""
    require("PIL", "plots")
    from PIL import Image

    try:
        with Image.open(path) as opened:
            size = opened.size
            image: Image.Image = opened
            if image.mode.startswith("I"):  # 16 bits, which Pillow would cut off at 255
                image = Image.fromarray((np.asarray(image) / 257.0).clip(0, 255).round().astype(np.uint8))
            image = image.convert("L" if channels == 1 else "RGB").resize(target, Image.Resampling.LANCZOS)
    except Exception as error:  # decoders of damaged files raise anything
        raise ValueError(f"data: {str(path)!r} cannot be read as a picture: {one_line(error)}") from None
    pixels = torch.from_numpy(np.array(image)).view(*target[::-1], channels)
    return size, pixels.permute(2, 0, 1).float() / 127.5 - 1


def _load_npz(path: Path, shape: tuple[int, ...], most: int | None) -> Tensor:
    found: list[str] = []
    try:
        _check_sizes(path)
        with np.load(path, allow_pickle=False) as arrays:
            for name in arrays.files:
                array = _fitting(arrays[name], shape)
                if array is not None:
                    chosen = _spread(len(array), most)
                    log.info("data: %d of %d samples in array %r of %s", len(chosen), len(array), name, path)
                    return _scaled(name, array[chosen], shape)
                found.append(f"{name} {arrays[name].shape}")
    except UNREADABLE as error:
        raise ValueError(f"data: {str(path)!r} cannot be read as an .npz file: {one_line(error)}") from None
    except ValueError as error:
        raise ValueError(f"data: {str(path)!r}: {one_line(error)}") from None
    wanted = "(" + ", ".join(["n", *map(str, shape)]) + ")"
    raise ValueError(f"data {str(path)!r} holds no array of shape {wanted}, only {', '.join(found) or 'nothing'}")


def _check_sizes(path: Path) -> None:
    """Raise a ValueError, before anything is allocated, if an array of an .npz file would be much larger than the file,
    or has another size than its header says."""
    most = max(SMALL, MOST_COMPRESSED * path.stat().st_size)
    with zipfile.ZipFile(path) as archive:
        if len(archive.infolist()) > MOST_ARRAYS:
            raise ValueError(f"it has more than {MOST_ARRAYS} arrays")
        for member in archive.infolist():
            if member.file_size > most:
                raise ValueError(f"array {member.filename!r} would have {member.file_size} bytes, more than {most}")
            if not member.filename.endswith(".npy"):
                continue
            with archive.open(member) as file:
                version = np.lib.format.read_magic(file)
                read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
                shape, _, dtype = read(file)
            if dtype.hasobject:
                raise ValueError(f"array {member.filename!r} has Python objects, which are read by allow_pickle alone")
            if math.prod(shape) * dtype.itemsize > member.file_size:
                raise ValueError(f"array {member.filename!r} of shape {shape} and {dtype} is not in the file")


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


def _scaled(name: str, array: Any, shape: tuple[int, ...]) -> Tensor:
    if array.dtype == np.uint8:
        return torch.from_numpy(np.ascontiguousarray(array)).float() / 127.5 - 1
    if not np.issubdtype(array.dtype, np.floating):
        raise ValueError(f"array {name!r} must be uint8 in 0 .. 255 or floating point, got {array.dtype}")
    samples = torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32))
    low, high = float(samples.min()), float(samples.max())
    if is_picture(shape) and low >= 0 and high > 2:  # pixels; samples that overshoot are negative somewhere
        raise ValueError(
            f"array {name!r} must be pictures in [-1, 1] (or uint8), got values in [{low:.4g}, {high:.4g}]"
        )
    return samples


def _spread(count: int, most: int | None) -> list[int]:
    """Up to `most` of `count` indices, evenly spread."""
    if most is None or most >= count:
        return list(range(count))
    return [i * count // most for i in range(most)]
