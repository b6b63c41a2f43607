"""The public names of the library, and what their reference lacks."""

import inspect
import re
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

MODULES = (
    "time_tuner",
    "time_tuner.tuners",
    "time_tuner.tuners.grids",
    "time_tuner.models",
    "time_tuner.models.predictions",
    "time_tuner.plans",
    "time_tuner.plans.sharing",
    "time_tuner.sampling",
    "time_tuner.samplers",
    "time_tuner.schedules",
    "time_tuner.spacings",
    "time_tuner.diffusers",
    "time_tuner.metrics",
    "time_tuner.evaluation",
    "time_tuner.exports",
    "time_tuner.testing",
)
"""The modules whose `__all__` are the public names."""

PAGES = Path(__file__).resolve().parents[1] / "reference" / "api"


def public() -> dict[str, Any]:
    """The public names with their modules, and what they name."""
    return {f"{module}.{name}": getattr(import_module(module), name)
            for module in MODULES for name in import_module(module).__all__}  # fmt: skip


def documented() -> list[str]:
    """The names that the pages of the reference show."""
    pages = [page.read_text() for page in sorted(PAGES.glob("*.md"))]
    return [name for page in pages for name in re.findall(r"^::: (\S+)$", page, re.M)]


def resolved(name: str) -> Any:
    """What a full name names."""
    module, _, last = name.rpartition(".")
    return getattr(import_module(module), last)


def arguments(call: Any) -> list[str]:
    """The names of the arguments of a function or of the constructor of a class."""
    return [name for name in inspect.signature(call).parameters if name not in ("self", "cls") and name[0] != "_"]


def sections(text: str | None) -> dict[str, str]:
    """The sections of a docstring, such as `Args`, with their texts."""
    parts = re.split(r"^(Args|Attributes|Returns|Yields|Warns|Raises):\n", inspect.cleandoc(text or ""), flags=re.M)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def faults(name: str, found: Any) -> Iterator[str]:
    """What the docstring of a public name lacks."""
    if isinstance(found, ModuleType) or not (inspect.isclass(found) or inspect.isroutine(found)):
        return  # a module or a value: the text below a value is no docstring at run time
    text = inspect.getdoc(found) or ""
    if not text or (inspect.isclass(found) and found.__doc__ is None):
        yield f"{name} has no docstring"
        return
    parts = sections(text)
    kinds = [kind for kind in inspect.getmro(found) if kind.__doc__] if inspect.isclass(found) else [found]
    known = [sections(kind.__doc__) for kind in kinds]
    named = "".join(part.get("Args", "") + part.get("Attributes", "") for part in known)
    for argument in arguments(found):
        if not re.search(rf"^ {{4}}\*{{0,2}}{argument}:", named, re.M):
            yield f"the docstring of {name} does not describe the argument {argument}"
    if not inspect.isclass(found):
        returns = inspect.signature(found).return_annotation not in (None, "None")
        if returns and arguments(found) and not {"Returns", "Yields"} & parts.keys():
            yield f"the docstring of {name} has no Returns"
    if inspect.isclass(found):
        own = {member: value for member, value in vars(found).items() if not member.startswith("_")}
        for member, value in own.items():
            described = inspect.isfunction(value) or isinstance(value, property)
            if described and not inspect.getdoc(getattr(found, member)):
                yield f"{name}.{member} has no docstring"


def missing() -> list[str]:
    """Sentences that name the public names which the reference lacks, and what docstrings lack."""
    shown = {id(resolved(name)) for name in documented()}
    names = public()
    lacks = [f"{name} is on no page of docs/reference/api" for name, found in names.items()
             if id(found) not in shown and not isinstance(found, ModuleType)]  # fmt: skip
    seen: set[int] = set()
    for name, found in names.items():
        if id(found) not in seen:
            seen.add(id(found))
            lacks += faults(name, found)
    return lacks
