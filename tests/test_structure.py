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


def unsafe(code: str) -> set[str]:
    """What of this code unpickles, evaluates text, starts programs or runs code of strangers."""
    found = set[str]()
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] + [getattr(node, "module", None) or ""]
            found |= {"pickle"} if {"pickle", "dill", "joblib", "shelve", "marshal", "subprocess"} & {*names} else set()
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            safe = [word.arg for word in node.keywords if isinstance(word.value, ast.Constant) and word.value.value]
            if name in ("eval", "exec", "compile", "os.system", "os.popen", "pickle.loads", "pickle.load"):
                found.add(name)
            if name.endswith(("torch.load", "load_state_dict_from_url")) and "weights_only" not in safe:
                found.add(name)
            if name == "np.load" and not any(word.arg == "allow_pickle" for word in node.keywords):
                found.add(name)
            if "trust_remote_code" in safe or "allow_pickle" in safe:
                found.add("remote code or pickles")
    return found


def test_no_file_is_unpickled_and_no_text_is_evaluated() -> None:
    found = {
        str(path.relative_to(PACKAGE)): names for path in PACKAGE.rglob("*.py") if (names := unsafe(path.read_text()))
    }
    assert not found
    loads = [path.name for path in PACKAGE.rglob("*.py") if "torch.load(" in path.read_text()]
    assert loads == ["features.py"], "the weights of an installed package alone, with weights_only=True"


def test_unsafe_code_is_found() -> None:
    loads = ("torch.load(f)", "torch.load(f, weights_only=False)", "np.load(f)", "np.load(f, allow_pickle=True)")
    for code in ("import pickle", "from marshal import loads", "eval('1')", *loads, "f(trust_remote_code=True)"):
        assert unsafe(code), code
    assert not unsafe("network.eval(); torch.load(f, weights_only=True); np.load(f, allow_pickle=False); ast.parse(t)")
