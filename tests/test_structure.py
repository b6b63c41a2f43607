"""What holds for the code as a whole: which package knows what, and what importing it loads."""

import ast
import subprocess
import sys
from pathlib import Path

import time_tuner

PACKAGE = Path(time_tuner.__file__).parent


def class_checks(tree: ast.AST) -> set[str]:
    """The names in the second argument of every isinstance and issubclass, and of every class pattern."""
    named: list[ast.AST] = []
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Name)
            and node.func.id in ("isinstance", "issubclass")
        ):
            named += [part for argument in node.args[1:] for part in ast.walk(argument)]
        elif isinstance(node, ast.MatchClass):
            named.append(node.cls)
    return {part.id for part in named if isinstance(part, ast.Name)} | {
        part.attr for part in named if isinstance(part, ast.Attribute)
    }


def test_schedules_answer_for_themselves() -> None:
    """No code outside `schedules/` tests which class a schedule has: a new one is a class and an entry in the table."""
    outside = [path for path in PACKAGE.rglob("*.py") if path.parent != PACKAGE / "schedules"]
    assert len(outside) > 50
    found = {
        f"{path.relative_to(PACKAGE)}: {name}"
        for path in outside
        for name in class_checks(ast.parse(path.read_text()))
        if name.startswith("NoiseSchedule")
    }
    assert not found


def test_class_checks_are_found() -> None:
    code = """
isinstance(s, A)
isinstance(s, (int, module.B))
issubclass(s, C | D)
match s:
    case E():
        f(F)
"""
    assert class_checks(ast.parse(code)) == {"A", "int", "module", "B", "C", "D", "E"}


HEAVY = ("scipy", "safetensors", "tqdm", "diffusers", "transformers", "matplotlib", "typer", "rich", "PIL")


def loaded(imports: str) -> set[str]:
    """Those of the heavy packages that a fresh interpreter has after these imports."""
    code = f"import sys, {imports}; print(*(name for name in {HEAVY} if name in sys.modules))"
    return set(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split())


def test_importing_the_library_loads_of_all_dependencies_torch_and_numpy_alone() -> None:
    """torch itself imports tqdm, where it is installed."""
    assert loaded("time_tuner") == loaded("torch, numpy") <= {"tqdm"}
