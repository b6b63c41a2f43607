import importlib.metadata
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner, Result

from time_tuner.cli import doctor
from time_tuner.cli.app import app
from time_tuner.cli.threads import best_threads
from time_tuner.tuners.budget import Speed


def call(*args: str) -> Result:
    return CliRunner().invoke(app, ["doctor", *args])


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the slower network, and without timing."""
    monkeypatch.setattr(doctor, "MODELS", ("latent-digits",))
    monkeypatch.setattr(doctor, "speeds_by_threads", lambda model, plan, samples: {1: Speed(0.0, 1e-3)})


@pytest.mark.usefixtures("quick")
def test_an_installation_that_works_is_found_to_work() -> None:
    result = call("--json")
    found = json.loads(result.output)
    assert result.exit_code == 0 and found["works"]
    assert found["versions"]["torch"] == importlib.metadata.version("torch")
    assert found["extras"]["diffusers"]["diffusers"] == importlib.metadata.version("diffusers")
    assert {"samples of gaussian", "samples of latent-digits", "current folder"} <= found["checks"].keys()
    assert call().exit_code == 0


@pytest.mark.usefixtures("quick")
def test_a_sampler_that_is_wrong_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    draw = doctor.draw
    monkeypatch.setattr(doctor, "draw", lambda *args: 0.5 * draw(*args))
    result = call("--json")
    checks = json.loads(result.output)["checks"]
    assert result.exit_code == 1 and not checks["samples of gaussian"]["works"]
    monkeypatch.setattr(doctor, "draw", lambda *args: torch.randn_like(draw(*args)))
    checks = json.loads(call("--json").output)["checks"]
    assert not checks["samples of latent-digits"]["works"]


@pytest.mark.usefixtures("quick")
def test_a_missing_extra_is_named_with_the_line_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    version = importlib.metadata.version

    def without(package: str) -> str:
        if package == "matplotlib":
            raise importlib.metadata.PackageNotFoundError(package)
        return "0.1" if package == "diffusers" else version(package)

    monkeypatch.setattr(importlib.metadata, "version", without)
    result = call()
    text = " ".join(result.output.split())
    assert "missing: matplotlib; pip install 'time-tuner[plots]'" in text
    assert "missing: diffusers; pip install 'time-tuner[diffusers]'" in text, "an old version is missing, too"
    assert result.exit_code == 0, "an extra may be missing"


@pytest.mark.usefixtures("quick")
def test_a_folder_that_cannot_be_written_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "file"))
    result = call("--json")
    assert result.exit_code == 1
    assert not json.loads(result.output)["checks"]["cache of torch"]["works"]


def test_a_device_that_is_not_there_is_an_error() -> None:
    result = call("--device", "nowhere")
    assert result.exit_code == 2 and "device must be" in result.stderr


@pytest.mark.parametrize(("one", "two", "chosen"), [(1.0, 0.6, 2), (1.0, 1.2, 2), (1.0, 3.0, 1)])
def test_one_thread_is_chosen_where_several_are_slower(one: float, two: float, chosen: int) -> None:
    assert best_threads({1: Speed(0, one), 2: Speed(0, two)}) == chosen


def test_it_runs_without_diffusers(monkeypatch: pytest.MonkeyPatch, quick: Any) -> None:
    monkeypatch.setattr(doctor, "MODELS", ("latent-digits", "digits"))
    monkeypatch.setitem(sys.modules, "diffusers", None)
    monkeypatch.setattr(doctor, "_version", lambda package, least: None if package == "diffusers" else "1")
    assert "samples of digits" not in json.loads(call("--json").output)["checks"]
