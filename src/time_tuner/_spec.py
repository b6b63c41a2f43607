"""One grammar for samplers, spacings, tuners and runs.

    name(option=value, ...)                       a sampler, a spacing or a tuner
    name(option=value, ...):calls@name(...)       a run: a sampler, the network calls, a spacing

A value is a number, a quoted text, a bare name (which is that text), true, false, none, or a tuple or list of values.
The text is parsed, never executed.
"""

import ast
import math
import re
import warnings
from collections.abc import Callable, Collection, Mapping
from inspect import signature
from typing import Any, TypeVar

from ._checks import check_options, choose

LONGEST = 1000
CONSTANTS = {"true": True, "false": False, "none": None}

T = TypeVar("T")
Entry = TypeVar("Entry", bound=Callable[..., Any])


def parse_call(text: str) -> tuple[str, dict[str, Any]]:
    """The name and the options of `name(option=value, ...)`; a name alone has no options.

    Raises:
        ValueError: the text has another form.
    """
    try:
        return _call(text)
    except (SyntaxError, ValueError, OverflowError, RecursionError, MemoryError):
        raise ValueError(
            f"{_quoted(text)} must be written name(option=value, ...), with numbers, names and 'quoted text' as values"
        ) from None


def parse_run(text: str) -> tuple[str, int, str | None]:
    """The text of the sampler, the number of calls, and the text of the spacing, if any, of
    `sampler(option=value, ...):calls@spacing(option=value, ...)`.

    Raises:
        ValueError: the text has another form; one line that quotes it.
    """
    match = re.fullmatch(r"(.+):([0-9]{1,9})(?:@(.+))?", text.strip(), re.DOTALL) if len(text) <= LONGEST else None
    if match is None:
        raise ValueError(f"a run is written sampler[(option=value, ...)]:calls[@spacing], got {_quoted(text)}")
    return match[1], int(match[2]), match[3]


def entry_of(
    kind: str, table: Mapping[str, Entry], name: Any, options: Collection[str], fixed: Collection[str] = ()
) -> Entry:
    """The entry of a table by its name, which takes these options: a dataclass, or a function whose parameters are
    options but for the fixed ones. `kind` is what messages call it.

    Raises:
        ValueError: an unknown name or option; the message names the known ones, and the one that is spelled alike.
    """
    entry = table[choose(kind, name, table)]
    known = [parameter for parameter in signature(entry).parameters if parameter not in fixed]
    check_options(f"{kind} {name!r}", options, known)
    return entry


def build(kind: str, table: Mapping[str, Callable[..., T]], name: Any, options: Mapping[str, Any]) -> T:
    """What the entry of a table makes of these options, see `entry_of`."""
    return entry_of(kind, table, name, options)(**options)


def _call(text: str) -> tuple[str, dict[str, Any]]:
    text = text.strip()
    if len(text) > LONGEST:
        raise ValueError
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # of escapes that Python does not know
        node = ast.parse(text, mode="eval").body
    if ast.get_source_segment(text, node) != text:  # a comment, or parentheses around it
        raise ValueError
    if isinstance(node, ast.Name):
        return node.id, {}
    if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name) or node.args:
        raise ValueError
    options = {keyword.arg: _value(keyword.value) for keyword in node.keywords if keyword.arg is not None}
    if len(options) < len(node.keywords):  # an option that is given twice, or **options
        raise ValueError
    return node.func.id, options


def _value(node: ast.expr) -> Any:
    match node:
        case ast.Constant(value=bool() | str() | None as value):
            return value
        case ast.Constant(value=int() | float() as value) if math.isfinite(value):
            return value
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant() as number) if type(number.value) in (int, float):
            return -_value(number)
        case ast.Name(id=name):
            return CONSTANTS.get(name, name)
        case ast.Tuple(elts=elements):
            return tuple(map(_value, elements))
        case ast.List(elts=elements):
            return list(map(_value, elements))
    raise ValueError


def _quoted(text: str) -> str:
    return repr(text) if len(text) <= LONGEST else f"{text[:40]!r}... of {len(text)} characters"
