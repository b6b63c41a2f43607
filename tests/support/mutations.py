"""Mutated files: JSON values and bytes of valid ones, changed in ways that strangers and broken disks change them."""

import copy
import json
import os
import resource
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

LARGEST = 1e308
EXAMPLES = int(os.environ.get("TIME_TUNER_FUZZ", "0"))
"""Of every kind of plan file together; 0 for the short version, of the suite. `make fuzz` sets it."""

SECONDS, BYTES = 20, 2**31
"""The most that reading one file may take: beyond is a hang, and a huge allocation."""

HOSTILE: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 3, 0.5, -0.5, 1e-9, 1e-300, 1e300, -1e300, 2**31, 2**63, -(2**63), 2**64, 10**18,
    10**30, 10**400, float("nan"), float("inf"), "", "x", "nan", "float64", "ddim", "vp", "\0", "\ud800", "a" * 10_000,
    "é\n\r\u2028", "__class__", "../../etc/passwd", [], {}, [[]], [None], [1, 2, 3], ["a"], [1e999], [[1.0]], {"a": 1},
    {"name": "ddim"}, {"name": "ve"}, {"format": "time-tuner plan"}, [0.5] * 1000, [[0.0] * 30] * 30, [[[[[[1]]]]]],
)  # fmt: skip
"""Values that replace others."""

KINDS = ("replace", "delete", "rename", "repeat", "copy", "scale", "nudge")

Change = tuple[int, str, int, float]

changes = st.lists(
    st.tuples(
        st.integers(0, 2**20), st.sampled_from(KINDS), st.integers(0, len(HOSTILE) - 1), st.floats(-3, 3, width=16)
    ),
    min_size=1,
    max_size=3,
)
"""What is changed in a JSON value: where, how, by which value, by what factor."""

byte_changes = st.lists(
    st.tuples(st.integers(0, 2**20), st.sampled_from(("set", "flip", "cut", "insert", "drop")), st.integers(0, 255)),
    min_size=1,
    max_size=4,
)
"""What is changed in bytes: where, how, by which byte."""


def mutated(value: Any, made: list[Change]) -> Any:
    """A JSON value, or that of a text, with these changes."""
    value = json.loads(value) if isinstance(value, str) else copy.deepcopy(value)
    for where, kind, other, factor in made:
        places = list(_places(value))
        if not places:
            return HOSTILE[other]
        holder, key = places[where % len(places)]
        old = holder[key]
        if kind == "delete":
            del holder[key]
        elif kind == "rename" and isinstance(holder, dict):
            holder[f"{key}x"] = holder.pop(key)
        elif kind == "repeat":
            holder[key] = old * (2 + where % 5) if isinstance(old, list | str) else [old, old]
        elif kind == "copy":
            source, name = places[(where // 7) % len(places)]
            holder[key] = copy.deepcopy(source[name])
        elif kind in ("scale", "nudge") and isinstance(old, int | float) and not isinstance(old, bool):
            number = max(-LARGEST, min(LARGEST, old))  # a whole number may be larger than any float
            holder[key] = number * factor if kind == "scale" else number + factor
        else:
            holder[key] = copy.deepcopy(HOSTILE[other])
    return value


def mutated_bytes(content: bytes, made: list[tuple[int, str, int]]) -> bytes:
    """Bytes with these changes."""
    changed = bytearray(content)
    for where, kind, byte in made:
        if not changed:
            changed += bytes([byte])
        i = where % len(changed)
        if kind == "set":
            changed[i] = byte
        elif kind == "flip":
            changed[i] ^= 1 << byte % 8
        elif kind == "cut":
            del changed[i:]
        elif kind == "insert":
            changed[i:i] = bytes([byte]) * (1 + where % 9)
        else:
            del changed[i : i + 1 + byte % 40]
    return bytes(changed)


def text_of(value: Any) -> bytes:
    """JSON of values that may be no JSON, such as NaN; lone surrogates are escaped."""
    return json.dumps(value).encode()


def read_or_refused(read: Callable[[], Any], name: str) -> Any:
    """What is read, or None where the file is refused in one line that names it.

    Anything else fails: another error, a message of several lines, one without the name, a hang, or a huge allocation.
    """
    try:
        with bounded():
            return read()
    except (ValueError, OSError) as error:
        if type(error) not in (ValueError, OSError, FileNotFoundError, IsADirectoryError):
            raise AssertionError(f"{type(error).__name__} in place of a ValueError: {error}") from error
        text = str(error)
        assert name in text, f"the message does not name {name}: {text[:500]}"
        assert len(text.splitlines()) == 1, f"the message has several lines: {text[:500]}"
        assert len(text) < 3000, f"the message has {len(text)} characters: {text[:500]}"
        return None


@contextmanager
def bounded() -> Iterator[None]:
    """The block may take `SECONDS` and `BYTES` more memory than there are at its beginning."""

    def late(*_: Any) -> None:
        raise AssertionError(f"it took more than {SECONDS} s of the processor")

    limits = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before = signal.signal(signal.SIGPROF, late)
    signal.setitimer(signal.ITIMER_PROF, SECONDS)  # which does not count the time of others on a busy machine
    resource.setrlimit(resource.RLIMIT_AS, (used + BYTES, limits[1]))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)
        resource.setrlimit(resource.RLIMIT_AS, limits)


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every entry of every list and object, as its holder and its key; no more than 30 of a list."""
    if isinstance(value, dict):
        for key in list(value):
            yield value, key
            yield from _places(value[key])
    elif isinstance(value, list):
        for i in range(min(len(value), 30)):
            yield value, i
            yield from _places(value[i])
