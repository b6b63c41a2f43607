import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from time_tuner import Plan, load_model, make_plan
from time_tuner.cli import output
from time_tuner.cli.app import app

GAUSSIAN = ("--model", "gaussian")


def printed(*args: Any, code: int = 0) -> Any:
    """What a command prints with --json, which must be one JSON object and nothing else."""
    result = CliRunner().invoke(app, [*map(str, args), "--json"])
    assert result.exit_code == code, result.output
    return json.loads(result.stdout)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_show_prints_the_numbers_of_the_plan(here: Path) -> None:
    plan = Plan.load("digits/joint-5")
    found = printed("show", "digits/joint-5", "--out", "plan.png")
    (one,) = found["plans"]
    assert one["t"] == plan.t.tolist() and one["tau"] == plan.tau.tolist()
    assert one["corrections"] == plan.corrections.tolist()
    assert one["provenance"]["distance"] == plan.provenance["distance"]
    assert one["calls"] == 5 and one["plan"] == "digits/joint-5" and one["verdict"] == output.verdict(plan)
    assert found["picture"] == "plan.png" and Path("plan.png").exists()
    assert printed("show", *GAUSSIAN)["model"] == "gaussian"


@pytest.mark.parametrize("calls", ["3", "3,4"])
def test_tune_prints_the_plans_that_it_writes(here: Path, calls: str) -> None:
    quick = (*GAUSSIAN, "--samples", 16, "--budget", "60calls", "--calls", calls)
    found = printed("tune", *quick, "--dry-run")
    assert [one["calls"] for one in found["estimates"]] == list(map(int, calls.split(",")))
    assert all(one["costs"]["tuning"]["calls"]["most"] == 60 for one in found["estimates"])
    assert not list(here.iterdir())
    found = printed("tune", *quick)
    assert found["out"] == "plan.json"
    for one, plan in zip(found["plans"], Plan.load_several("plan.json"), strict=True):
        assert one["tau"] == plan.tau.tolist()
        assert one["provenance"]["distance"]["tuned"] <= one["provenance"]["distance"]["untuned"]


def test_compare_prints_means_with_their_errors(here: Path) -> None:
    found = printed("compare", *GAUSSIAN, "ddim:5", "ddpm:5", "-n", 500, "--out", "runs.npz")
    ddim, ddpm = found["runs"]
    assert found["samples"] == 500 and found["out"] == "runs.npz"
    assert ddim["evaluations"] == 2500 and ddpm["distance"] is None
    for one in (ddim, ddpm):
        assert abs(one["mean"]["mean"] - one["exact mean"]) < 5 * one["mean"]["error"]
        assert abs(one["std"]["mean"] - one["exact std"]) < 5 * one["std"]["error"]


def test_check_prints_its_verdict_and_exits_by_it(here: Path) -> None:
    plan = make_plan("ddim", load_model("gaussian").schedule, 5, "linspace")
    plan.with_tau((0.5 * plan.tau).clamp(min=0.001)).save("harmful.json")
    found = printed("check", "harmful.json", *GAUSSIAN, code=1)
    assert found["fits"] is False and "does not fit" in found["verdict"]
    assert found["gain"]["mean"] < 0 and len(found["distances"]) > 1


def test_numbers_that_are_not_finite_are_null(capsys: pytest.CaptureFixture[str]) -> None:
    output.report({"bad": [float("nan"), float("inf"), 1.0]})
    assert json.loads(capsys.readouterr().out) == {"bad": [None, None, 1.0]}
