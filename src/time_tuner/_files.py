"""Files that are written whole or not at all, and the JSON in them, which people can read."""

import json
import math
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any


def read_json(path: Path) -> Any:
    """The values in a JSON file.

    Raises:
        OSError: it cannot be read.
        ValueError: it is not JSON, or holds NaN or infinity.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError("it is no text") from error
    return json.loads(text, parse_constant=_no_constants)


def write_json(path: Path, values: Mapping[str, Any] | Sequence[Mapping[str, Any]]) -> None:
    """Write one entry a line, so that files can be read and compared; or a list of such objects."""
    text = _object(values) if isinstance(values, Mapping) else "[\n" + ",\n".join(map(_object, values)) + "\n]"
    with replacing(path) as file:
        file.write(f"{text}\n".encode())


@contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """A file to write under a temporary name beside `path`, which it replaces when all went well."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, partial = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".partial")
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(partial, 0o666 & ~umask)  # a temporary file is private
        os.replace(partial, path)
    except BaseException:
        Path(partial).unlink(missing_ok=True)
        raise


def same_numbers(a: Any, b: Any) -> bool:
    """Whether two JSON values are the same but for rounding, which differs between machines."""
    if isinstance(a, float) and isinstance(b, float):
        return math.isclose(a, b, rel_tol=1e-9, abs_tol=1e-9)
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(same_numbers, a, b))
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(same_numbers(a[key], b[key]) for key in a)
    return bool(a == b)


def _object(values: Mapping[str, Any]) -> str:
    return "{\n" + ",\n".join(f"  {json.dumps(key)}: {_entry(value)}" for key, value in values.items()) + "\n}"


def _no_constants(name: str) -> float:
    raise ValueError(f"it holds {name}, which is no number")


def _entry(value: Any) -> str:
    if isinstance(value, Mapping) and value:
        inner = (f"    {json.dumps(k)}: {json.dumps(v, allow_nan=False)}" for k, v in value.items())
        return "{\n" + ",\n".join(inner) + "\n  }"
    if isinstance(value, list) and value and isinstance(value[0], list | dict):
        return "[\n" + ",\n".join(f"    {json.dumps(row, allow_nan=False)}" for row in value) + "\n  ]"
    return json.dumps(value, allow_nan=False)
