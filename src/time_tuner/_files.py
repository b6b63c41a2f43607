"""Files that are replaced whole or not at all, and JSON that people can read."""

import io
import json
import math
import os
import re
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from itertools import accumulate
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

from ._distributed import rank

DEEPEST = 64
"""The most lists and objects inside one another in a JSON file."""

MOST_LISTS = 2**20
"""The most lists and objects in a JSON file: each takes 64 bytes, and 2 in the file."""

LONGEST = 500
"""The most characters of an error that a file is refused with: a file may hold any text."""

PARTIAL = ".partial"
"""The end of the name of a temporary file."""

STALE = 3600.0
"""The seconds after which the temporary file of a process that was killed is removed."""

Check = Callable[[dict[str, tuple[int, ...]], dict[str, str]], None]
"""Raises a ValueError for shapes by their names, and metadata, of a safetensors file that is not wanted."""


def read_json(path: Path, most_bytes: int = -1) -> Any:
    """The values in a JSON file.

    Args:
        path: the file.
        most_bytes: the most bytes that it may have; any number by default.

    Raises:
        OSError: it cannot be read.
        ValueError: it is too large, too deeply nested or of too many lists, is not JSON in UTF-8, has NaN or infinity,
            or has two entries of one name in an object.
    """
    with open(path, "rb") as file:
        content = file.read(most_bytes + 1 if most_bytes >= 0 else -1)
    return parse_json(content, most_bytes)


def parse_json(content: bytes, most_bytes: int = -1) -> Any:
    """The values of JSON of at most so many bytes, any number by default; a ValueError as of `read_json`."""
    text = _decoded(content, most_bytes)
    if text.count("[") + text.count("{") > MOST_LISTS:
        raise ValueError(f"it has more than {MOST_LISTS} lists and objects")
    if _depth(text) > DEEPEST:  # json.loads recurses
        raise ValueError(f"it has more than {DEEPEST} lists and objects inside one another")
    return json.loads(text, parse_constant=_finite, parse_float=_finite, object_pairs_hook=_object_of)


def read_text(path: Path, most_bytes: int) -> str:
    """The text of a file of at most so many bytes.

    Raises:
        OSError: it cannot be read.
        ValueError: it is larger, or is not text in UTF-8; names the file.
    """
    with open(path, "rb") as file:
        content = file.read(most_bytes + 1)
    try:
        return _decoded(content, most_bytes)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _decoded(content: bytes, most_bytes: int) -> str:
    if 0 <= most_bytes < len(content):
        raise ValueError(f"it has more than {most_bytes} bytes")
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError("it is not text in UTF-8") from error


def write_json(path: Path, values: Mapping[str, Any] | Sequence[Mapping[str, Any]]) -> None:
    """Write an object, or a list of objects, with one entry a line, so that files can be read and compared."""
    text = _object(values) if isinstance(values, Mapping) else "[\n" + ",\n".join(map(_object, values)) + "\n]"
    with replacing(path) as file:
        file.write(f"{text}\n".encode())


def read_tensors(path: Path, check: Check) -> tuple[dict[str, "Tensor"], dict[str, str]]:
    """The tensors of a safetensors file by their names, and its metadata.

    Args:
        path: the file.
        check: called with the shapes and the metadata, before anything is allocated.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no safetensors file, or `check` refuses it.
    """
    from safetensors import SafetensorError, safe_open

    with open(path, "rb"):  # an OSError that names the file
        pass
    try:
        with safe_open(str(path), framework="pt") as file:
            metadata, names = dict(file.metadata() or {}), list(file.keys())
            check({name: tuple(file.get_slice(name).get_shape()) for name in names}, metadata)
            return {name: file.get_tensor(name) for name in names}, metadata
    except (SafetensorError, OSError, KeyError, AttributeError, RuntimeError) as error:
        raise ValueError(f"it is no safetensors file ({one_line(error)})") from None


def write_tensors(path: Path, tensors: Mapping[str, "Tensor"], metadata: Mapping[str, str]) -> None:
    """Write tensors and metadata as a safetensors file, which appears whole or not at all."""
    from safetensors.torch import save

    content = save({name: value.contiguous() for name, value in tensors.items()}, dict(metadata))
    with replacing(path) as file:
        file.write(content)


def one_line(error: BaseException) -> str:
    """The message of an error in one line of at most `LONGEST` characters."""
    text = " ".join(str(error).split())
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 30]} ... ({len(text)} characters)"


@contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """A file to write under a temporary name in the folder of `path`, which it replaces if nothing was raised. Of
    several processes that share work the first alone writes.

    Raises:
        OSError: the file cannot be written; names `path`.
    """
    if rank():
        yield io.BytesIO()
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    partial, before = "", f".{path.name}."
    try:
        _remove_stale(path.parent, before)
        handle, partial = tempfile.mkstemp(dir=path.parent, prefix=before, suffix=PARTIAL)
        with os.fdopen(handle, "wb") as file:
            yield file
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(partial, 0o666 & ~umask)  # a temporary file is private
        os.replace(partial, path)
    except BaseException as error:
        if partial:
            Path(partial).unlink(missing_ok=True)
        # The error of a full disk names no file, and others the temporary one.
        if (
            isinstance(error, OSError)
            and error.errno is not None
            and (not partial or error.filename in (None, partial))
        ):
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise


def _remove_stale(folder: Path, before: str) -> None:
    """Remove the temporary files that killed processes have left, but none that another process may be writing."""
    for name in os.listdir(folder):
        if name.startswith(before) and name.endswith(PARTIAL):
            path = folder / name
            with suppress(OSError):
                if time.time() - path.stat().st_mtime > STALE:
                    path.unlink()


def same_numbers(a: Any, b: Any) -> bool:
    """Whether two JSON values are the same but for rounding, which differs between machines."""
    if isinstance(a, float) and isinstance(b, float):
        return math.isclose(a, b, rel_tol=1e-9, abs_tol=1e-9)
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(same_numbers, a, b))
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(same_numbers(a[key], b[key]) for key in a)
    return bool(a == b)


def _depth(text: str) -> int:
    """The most brackets of JSON that are open at once, those in strings left out."""
    outside = "".join(text.replace("\\\\", "").replace('\\"', "").split('"')[::2])
    return max(accumulate(1 if bracket in "[{" else -1 for bracket in re.findall(r"[][{}]", outside)), default=0)


def _finite(number: str) -> float:
    value = float(number)
    if not math.isfinite(value):
        raise ValueError(f"it holds {number[:40]}, which is no number")
    return value


def _object_of(entries: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(entries)
    if len(values) < len(entries):
        (twice, _), *_ = Counter(name for name, _ in entries).most_common(1)
        raise ValueError(f"it has the entry {twice!r} twice")
    return values


def _object(values: Mapping[str, Any]) -> str:
    return "{\n" + ",\n".join(f"  {json.dumps(key)}: {_entry(value)}" for key, value in values.items()) + "\n}"


def _entry(value: Any) -> str:
    if isinstance(value, Mapping) and value:
        inner = (f"    {json.dumps(k)}: {json.dumps(v, allow_nan=False)}" for k, v in value.items())
        return "{\n" + ",\n".join(inner) + "\n  }"
    if isinstance(value, list) and value and isinstance(value[0], list | dict):
        return "[\n" + ",\n".join(f"    {json.dumps(row, allow_nan=False)}" for row in value) + "\n  ]"
    return json.dumps(value, allow_nan=False)
