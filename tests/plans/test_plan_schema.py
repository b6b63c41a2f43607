"""The JSON schema of plan files and the validator for front ends accept what the library writes, and nothing else."""

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from time_tuner import (
    SAMPLERS,
    SCHEDULES,
    NoiseScheduleFlow,
    NoiseScheduleVE,
    NoiseScheduleVP,
    Plan,
    make_plan,
)
from time_tuner.plans import plan_schema
from time_tuner.plans.plan import ENTRIES, NEEDED
from time_tuner.plans.rows import ENTRIES as TENSORS

ROOT = Path(__file__).parents[2]
BUNDLED = sorted((ROOT / "src" / "time_tuner" / "digits" / "assets" / "plans").rglob("*.json"))
VALIDATOR = ROOT / "integrations" / "javascript" / "validate-plan.mjs"
SCHEDULE_KINDS = [
    NoiseScheduleVP(betas=[0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8]),
    NoiseScheduleVP(alphas_cumprod=[0.9, 0.7, 0.5, 0.4, 0.3, 0.2, 0.1, 0.0]),
    NoiseScheduleVP("linear"),
    NoiseScheduleVP("cosine"),
    NoiseScheduleVE(),
    NoiseScheduleVE(sigma_data=None, network_input="flow"),
    NoiseScheduleFlow(shift=3.0, network_input="t"),
]


def plans() -> list[Any]:
    """A plan of every sampler, and one on every kind of schedule, as a file holds them."""
    made = [make_plan(name, NoiseScheduleVP("linear"), 6).to_dict() for name in SAMPLERS]
    made += [make_plan("dpmpp", schedule, 4).to_dict() for schedule in SCHEDULE_KINDS]
    guided = make_plan("dpmpp", NoiseScheduleFlow(), 4, guided=2)
    made += [guided.to_dict(), guided.with_guidance(2, reuse_of(4)).to_dict()]
    return json.loads(json.dumps(made))


def reuse_of(calls: int) -> Any:
    """Weights with which the calls after the second reuse the guidance of the first two."""
    reuse = torch.zeros(calls, calls, dtype=torch.float64)
    reuse[2:, :2] = 0.3
    return reuse


def changed(path: list[Any], value: Any) -> Callable[[Any], None]:
    def change(plan: Any) -> None:
        *inner, last = path
        for key in inner:
            plan = plan[key]
        plan[last] = value

    return change


WRONG: dict[str, Callable[[Any], None]] = {
    "another format": changed(["format"], "plan"),
    "a newer version": changed(["version"], 2),
    "no calls": changed(["calls"], 0),
    "calls as text": changed(["calls"], "5"),
    "an unknown entry": changed(["note"], "mine"),
    "no tau": lambda plan: plan.pop("tau"),
    "a text among the times": changed(["t", 0], "0.8"),
    "a negative sigma": changed(["sigma", 1], -0.1),
    "tau of 0": changed(["tau", 0], 0),
    "a sampler without a name": changed(["sampler"], {"eta": 0.0}),
    "an unknown schedule": changed(["schedule"], {"name": "magic"}),
    "corrections that are no matrix": changed(["corrections"], [0.0]),
    "a row without a next state": changed(["rows", 0], {}),
    "an unknown tensor": changed(["rows", 0, "next_state", 0, 0], "y"),
    "a term of a call to come": changed(["rows", 0, "next_state", 0, 1], -1),
    "a term without a weight": lambda plan: plan["rows"][0]["next_state"][0].pop(),
    "an unknown prediction": changed(["rows", 0, "predicts"], "v"),
    "guidance at a number": changed(["guided"], [1, 1, 1, 0, 0]),
    "reuse that is no matrix": changed(["reuse"], [0.0]),
}
BEYOND_A_SCHEMA: dict[str, Callable[[Any], None]] = {
    "a time too many": lambda plan: plan["t"].append(0.0),
    "rising times": lambda plan: plan["t"].reverse(),
    "corrections on the diagonal": changed(["corrections", 0, 0], 1.0),
    "a row too few": lambda plan: plan["rows"].pop(),
    "a term from before the run": changed(["rows", 0, "next_state", 0, 1], 1),
    "a corrected state that no row makes": changed(["rows", 0, "next_state", 0, 0], "c"),
    "too few flags": lambda plan: plan["guided"].pop(),
    "reuse on the diagonal": changed(["reuse", 3, 3], 1.0),
    "a row with guidance that is left out": lambda plan: plan["rows"][4].pop("guidance"),
    "a row without guidance that has it": changed(["rows", 0, "guidance"], []),
    "reuse of a call without guidance": changed(["rows", 4, "guidance", 0, 1], 1),
    "reuse of another kind": changed(["rows", 4, "guidance", 0, 0], "eps"),
}


def tuned() -> Any:
    """A plan with corrections and with guidance at its first calls, which later calls reuse."""
    plan = Plan.load("digits/joint-5")
    reuse = torch.zeros(5, 5, dtype=torch.float64)
    reuse[3:, :3] = 0.3
    return json.loads(json.dumps(plan.with_guidance(3, reuse).to_dict()))


@pytest.fixture(scope="module")
def schema() -> Any:
    jsonschema = pytest.importorskip("jsonschema", reason="jsonschema is a dependency of developers")
    jsonschema.Draft202012Validator.check_schema(plan_schema())
    return jsonschema.Draft202012Validator(plan_schema())


def test_schema_accepts_every_plan_that_the_library_writes(schema: Any) -> None:
    assert len(BUNDLED) >= 8
    for file in BUNDLED:
        schema.validate(json.loads(file.read_text()))
    for plan in plans():
        schema.validate(plan)
    schema.validate(plans())  # a file of several


@pytest.mark.parametrize("wrong", WRONG)
def test_schema_refuses_a_changed_plan(schema: Any, wrong: str) -> None:
    plan = tuned()
    WRONG[wrong](plan)
    assert not schema.is_valid(plan)
    assert not schema.is_valid([plan])


@pytest.mark.parametrize("wrong", [*WRONG, *BEYOND_A_SCHEMA])
def test_the_library_refuses_a_changed_plan(wrong: str) -> None:
    plan = tuned()
    (WRONG | BEYOND_A_SCHEMA)[wrong](plan)
    with pytest.raises((ValueError, TypeError, KeyError)):
        Plan.from_dict(plan)


def test_schema_has_the_entries_of_the_library() -> None:
    plan = plan_schema()["$defs"]["plan"]
    assert set(plan["properties"]) == set(ENTRIES)
    assert set(plan["required"]) == {"format", "version", *NEEDED}
    assert set(SCHEDULES) <= plan_schema()["$defs"].keys()
    terms = plan_schema()["$defs"]["terms"]["items"]["prefixItems"]
    assert set(terms[0]["enum"]) == set(TENSORS)


def run_validator(file: Path) -> tuple[int, str]:
    node = shutil.which("node")
    if node is None:
        pytest.skip("node is not installed")
    done = subprocess.run([node, str(VALIDATOR), str(file)], capture_output=True, text=True, timeout=60)
    return done.returncode, done.stderr


def test_validator_in_javascript_accepts_plans_of_the_library(tmp_path: Path) -> None:
    for file in BUNDLED:
        assert run_validator(file) == (0, "")
    several = tmp_path / "several.json"
    one_each = {plan["calls"]: plan for plan in plans()}
    several.write_text(json.dumps(list(one_each.values())))
    assert run_validator(several) == (0, "")
    for i, plan in enumerate(plans()):
        file = tmp_path / f"{i}.json"
        file.write_text(json.dumps(plan))
        assert run_validator(file) == (0, "")


def test_validator_in_javascript_refuses_changed_plans(tmp_path: Path) -> None:
    for wrong, change in (WRONG | BEYOND_A_SCHEMA).items():
        plan = tuned()
        change(plan)
        file = tmp_path / "plan.json"
        file.write_text(json.dumps(plan))
        code, errors = run_validator(file)
        assert code == 1 and errors.startswith("error: "), wrong


@pytest.mark.parametrize("text", ["", "[]", "{", "null", "[1]", '{"format": "time-tuner plan", "version": 1}'])
def test_validator_in_javascript_refuses_other_files(tmp_path: Path, text: str) -> None:
    file = tmp_path / "plan.json"
    file.write_text(text)
    assert run_validator(file)[0] == 1


def test_validator_in_javascript_refuses_two_plans_of_one_length(tmp_path: Path) -> None:
    file = tmp_path / "plan.json"
    file.write_text(json.dumps([tuned(), tuned()]))
    code, errors = run_validator(file)
    assert code == 1 and "same number of calls" in errors
