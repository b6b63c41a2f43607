"""Packages of other programs, whose files the exports are compared with; none of them is imported whole.

`make contracts` downloads them into a folder without their dependencies, and names it in TIME_TUNER_PEERS.
"""

import ast
import os
import sys
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest


def folder_of(package: str) -> Path:
    """Where a package lies; the test is skipped if it is not there."""
    given = os.environ.get("TIME_TUNER_PEERS")
    if given and (Path(given) / package).is_dir():
        return Path(given) / package
    found = find_spec(package)
    if found is None or not found.submodule_search_locations:
        pytest.skip(f"{package} is not installed: make contracts")
    return Path(next(iter(found.submodule_search_locations)))


def load_file(monkeypatch: Any, file: Path, name: str) -> Any:
    """The module of one file."""
    spec = spec_from_file_location(name, file)
    assert spec is not None and spec.loader is not None
    module = module_from_spec(spec)
    monkeypatch.setitem(sys.modules, name, module)
    spec.loader.exec_module(module)
    return module


def fields_of(file: Path, name: str) -> set[str]:
    """The annotated fields of a class in a file."""
    (found,) = (n for n in ast.walk(ast.parse(file.read_text())) if isinstance(n, ast.ClassDef) and n.name == name)
    return {n.target.id for n in found.body if isinstance(n, ast.AnnAssign) and isinstance(n.target, ast.Name)}


def k_diffusion_sampling(monkeypatch: Any) -> Any:
    """k-diffusion's samplers, without the rest of that package."""
    folder = folder_of("k_diffusion")
    parent, utils = ModuleType("k_diffusion"), ModuleType("k_diffusion.utils")
    vars(utils).update(append_dims=lambda x, dims: x.reshape(*x.shape, *[1] * (dims - x.dim())))
    vars(parent).update(__path__=[str(folder)], utils=utils)
    others = {name: ModuleType(name) for name in ("torchdiffeq", "torchsde")}
    vars(others["torchdiffeq"]).update(odeint=None)
    for name, module in {"k_diffusion": parent, "k_diffusion.utils": utils, **others}.items():
        monkeypatch.setitem(sys.modules, name, module)
    return load_file(monkeypatch, folder / "sampling.py", "k_diffusion.sampling")
