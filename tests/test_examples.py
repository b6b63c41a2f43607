"""The examples print true numbers; the code, the commands, the names and the links of the documentation hold."""

import argparse
import ast
import re
import runpy
import shlex
import sys
import tomllib
from contextlib import ExitStack
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
import typer
from clock import run_fast

from time_tuner import (
    SAMPLERS,
    SCHEDULES,
    SPACINGS,
    TUNERS,
    NoiseScheduleFlow,
    NoiseScheduleVP,
    Plan,
    make_plan,
)
from time_tuner.cli.app import app
from time_tuner.models.predictions import PREDICTIONS

ROOT = Path(__file__).parents[1]
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md")), ROOT / "benchmarks" / "README.md"]
PROGRAMS = [path for folder in ("examples", "training") for path in sorted((ROOT / folder).glob("*.py"))]
SHELL = ("", "sh", "bash", "shell", "console")  # the languages of blocks that have command lines
TABLES = (SAMPLERS, SPACINGS, TUNERS, SCHEDULES, PREDICTIONS)


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> Any:
    def run(name: str, *arguments: str) -> dict[str, Any]:
        monkeypatch.setattr(sys, "argv", [name, *arguments])
        return runpy.run_path(str(ROOT / "examples" / name), run_name="__main__")

    return run


# --- the tutorial ---


def moments(kind: str, calls: int, eta: float = 0.0) -> tuple[float, float]:
    """Mean and standard deviation of the tutorial's run on N(5, 2^2), one affine step after the other."""
    alpha_bar = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))[np.linspace(0, 999, calls, dtype=int)]
    mean, variance = 0.0, 1.0
    for i in reversed(range(calls)):
        here, before = alpha_bar[i], alpha_bar[i - 1] if i else 1.0
        beta = 1 - here / before
        # The score is (5 sqrt(alpha_bar) - x) / (3 alpha_bar + 1): a slope in x and a constant.
        slope, constant = -1 / (3 * here + 1), 5 * np.sqrt(here) / (3 * here + 1)
        if kind == "DDPM":
            a, b, added = (1 + beta * slope) / np.sqrt(1 - beta), beta * constant / np.sqrt(1 - beta), beta
        else:
            added = eta**2 * (1 - before) / (1 - here) * beta
            x0 = np.array([1 + (1 - here) * slope, (1 - here) * constant]) / np.sqrt(here)
            eps = -np.sqrt(1 - here) * np.array([slope, constant])
            a, b = np.sqrt(before) * x0 + np.sqrt(1 - before - added) * eps
        mean, variance = a * mean + b, a**2 * variance + (added if i else 0.0)
    return float(mean), float(np.sqrt(variance))


def test_the_tutorial_prints_true_moments(
    example: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    example("tutorial.py", "--samples", "4000")
    assert not list(tmp_path.iterdir()), "it draws no picture unless one is named"
    printed = capsys.readouterr().out
    rows = re.findall(r"^(D.{26})\s+(\d+)\s+([\d.]+)\s+([\d.]+)\s+([\d.]+)\s+([\d.]+)$", printed, re.M)
    expected = {("DDPM", calls): moments("DDPM", calls) for calls in (1000, 100, 10)}
    expected |= {(f"DDIM, eta = {eta}", 10): moments("DDIM", 10, eta) for eta in (0, 0.25, 0.5, 0.75, 1)}
    expected["DDPM, smaller variance", 10] = moments("DDIM", 10, 1.0)  # the same run
    found = {(name.strip(), int(calls)): tuple(map(float, figures)) for name, calls, *figures in rows}
    assert len(found) == 11 and expected.keys() < found.keys()
    for name, (sampled_mean, sampled_std, mean, std) in found.items():
        if name in expected:
            assert (mean, std) == pytest.approx(expected[name], abs=6e-6)
        assert abs(sampled_mean - mean) < 4 * std / 4000**0.5 + 5e-4
        assert abs(sampled_std - std) < 4 * std / 8000**0.5 + 5e-4
    judged, untuned = found["DDIM, tuned with the guard", 10], found["DDIM, eta = 0", 10]
    assert abs(judged[3] - 2) < abs(untuned[3] - 2) < abs(found["DDIM, tuned as published", 10][3] - 2)
    assert not [gap for gap in re.findall(r"to (\d+e[+-]\d+)", printed) if float(gap) > 1e-12]
    assert len(re.findall(r"to \d+e-\d+", printed)) == 3


def test_the_tutorial_draws_a_picture_if_one_is_named(
    example: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    example("tutorial.py", "--samples", "100", "--picture", "drawn.png")
    assert [path.name for path in tmp_path.iterdir()] == ["drawn.png"]
    assert (tmp_path / "drawn.png").read_bytes().startswith(b"\x89PNG")


# --- the others ---


def test_step_functions_are_tuned(example: Any, capsys: pytest.CaptureFixture[str]) -> None:
    example("step_functions.py")
    printed = capsys.readouterr().out
    rows = dict(re.findall(r"^(ddim_step_fn|euler|dpm_solver_2)\s+([\d. ]+)$", printed, re.M))
    assert rows["euler"] == rows["ddim_step_fn"] != rows["dpm_solver_2"]
    for row in rows.values():
        before, after, *ratios = map(float, row.split())
        assert after < before and len(ratios) == 4 and ratios[-1] == 1


def test_a_network_of_ones_own_is_tuned_saved_and_sampled(
    example: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "plan.json"
    names = example("own_model.py", str(path))
    printed = capsys.readouterr().out
    plan = Plan.load(path)
    assert plan.tuned and plan.provenance["distance"]["tuned"] < plan.provenance["distance"]["untuned"]
    assert f"{path} holds the same plan in {path.stat().st_size} bytes: True" in printed
    off = [float(number) for number in re.findall(r"distance of samples to the spiral: ([\d.]+)", printed)]
    assert len(off) == 2 and off[1] < off[0] < 0.05
    # The network predicts the data: at the least noise its prediction is the point itself.
    points = names["spiral"][::50]
    torch.testing.assert_close(names["network"](points, torch.zeros(len(points))), points, rtol=0, atol=0.02)


def test_a_plan_file_runs_with_numpy_alone(example: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    schedule = NoiseScheduleVP(betas=torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64))
    plans = [make_plan("ddim", schedule, calls, "linspace") for calls in (4, 10)]
    plans[1].save(tmp_path / "plan.json")
    Plan.save_several(plans, tmp_path / "plans.json")
    for arguments in (["plan.json"], ["plan.json", "10"], ["plans.json", "10"]):
        np.random.seed(0)
        example("run_plan.py", str(tmp_path / arguments[0]), *arguments[1:])
        mean, std = re.match(r"10 calls: mean ([\d.]+), standard deviation ([\d.]+)", capsys.readouterr().out).groups()
        assert abs(float(mean) - 4.94627) < 4 * 1.69161 / 100 and abs(float(std) - 1.69161) < 4 * 1.69161 / 141


def test_what_is_no_plan_for_numpy_is_one_line(example: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    schedule = NoiseScheduleVP(betas=torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64))
    plans = [make_plan("ddim", schedule, calls) for calls in (4, 5)]
    Plan.save_several(plans, "plans.json")
    make_plan("ddim", NoiseScheduleVP("linear"), 4).save("linear.json")
    make_plan("ddim", NoiseScheduleFlow(), 4).save("flow.json")
    for name, content in (("text", "x"), ("empty", ""), ("number", "5"), ("list", "[1]"), ("deep", "[" * 100_000)):
        Path(f"{name}.json").write_text(content)
    for arguments, message in (
        ([], r"usage: run_plan.py plan.json \[calls\]"),
        (["plans.json", "five"], r"usage: run_plan.py plan.json \[calls\]"),
        (["plans.json", "4", "5"], r"usage: run_plan.py plan.json \[calls\]"),
        (["plans.json"], "error: plans.json has plans for calls = 4, 5, got calls=None: give one of these numbers"),
        (["plans.json", "6"], "error: plans.json has plans for calls = 4, 5, got calls=6: give one of these numbers"),
        (["linear.json"], "error: this example needs a schedule with betas: .*"),
        (["flow.json"], "error: this example needs a schedule with betas: .*"),
        (["none.json"], "error: .*none.json'"),
        (["number.json"], "error: number.json is not a plan file"),
        (["list.json"], "error: list.json is not a plan file"),
        *(([f"{name}.json"], "error: .*") for name in ("text", "empty", "deep")),
    ):
        with pytest.raises(SystemExit) as caught:
            example("run_plan.py", *arguments)
        assert re.fullmatch(message, str(caught.value)), arguments
    names = runpy.run_path(str(ROOT / "examples" / "run_plan.py"))
    with pytest.raises(ValueError, match=r"x0= is needed: at t = 1.0 this plan uses the predicted data"):
        names["run"](names["load"]("flow.json"), lambda x, t, tau: x, np.ones(3))


# --- documentation ---


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def blocks_of(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.M | re.S)


def commands_of(program: str) -> list[str]:
    """The lines of all pages, and of the docstrings of programs, that call a program: in blocks, and in the text where
    they have arguments. A name in capitals stands for what the reader has."""
    lines = [line for page in PAGES for kind in SHELL for block in blocks_of(page, kind) for line in block.splitlines()]
    for page in PAGES:
        text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.M | re.S)
        lines += [" ".join(code.split()) for code in re.findall(r"`([^`]+)`", text)]
    for script in PROGRAMS:
        lines += [line.strip() for line in (ast.get_docstring(ast.parse(script.read_text())) or "").splitlines()]
    found = {line.partition("  #")[0].strip().removeprefix("$ ") for line in lines}
    left_open = re.compile(r"\b[A-Z]{3,}\b| \[|\.\.\.")
    return sorted(line for line in found if line.startswith(f"{program} ") and not left_open.search(line))


@pytest.fixture
def tables() -> Any:
    """The tables of the library, from which the entries of a page are removed after it."""
    with ExitStack() as stack:
        for table in TABLES:
            stack.enter_context(patch.dict(table))
        yield


@pytest.mark.parametrize("page", [page for page in PAGES if blocks_of(page, "python")], ids=name_of)
@pytest.mark.filterwarnings("ignore:the tuned timesteps are the optimum:UserWarning")
@pytest.mark.usefixtures("tables", "short_runs")
def test_code_of_the_documentation_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run_fast(monkeypatch, 40)  # the pages have budgets of up to 30 seconds
    with torch.random.fork_rng():
        torch.manual_seed(0)
        exec(compile("\n".join(blocks_of(page, "python")), page.name, "exec"), {"__name__": "page"})


@pytest.mark.parametrize("line", commands_of("time-tuner"))
def test_commands_of_the_documentation_are_understood(line: str) -> None:
    _, name, *arguments = shlex.split(line)
    command: Any = typer.main.get_command(app)
    one = command if name.startswith("-") else command.commands[name]
    if arguments:  # without any it is the name of the command
        one.make_context(name, arguments)


@pytest.mark.parametrize("line", commands_of("python"))
@pytest.mark.usefixtures("tables")
def test_programs_of_the_documentation_take_their_arguments(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    class ParsedError(Exception):
        pass

    def parse_args(parser: argparse.ArgumentParser) -> None:
        parse(parser)
        raise ParsedError

    _, script, *arguments = shlex.split(line)
    if script == "-m":
        assert find_spec(arguments[0])
        return
    parse, path = argparse.ArgumentParser.parse_args, ROOT / script
    assert path.exists()
    if re.search(r"ArgumentParser|\bparser\(", path.read_text()):
        monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_args)
        monkeypatch.setattr(sys, "argv", [script, *arguments])
        monkeypatch.syspath_prepend(str(path.parent))
        with pytest.raises(ParsedError):
            runpy.run_path(str(path), run_name="__main__")
    else:
        assert not arguments


@pytest.mark.parametrize("line", commands_of("pip"))
def test_extras_of_the_documentation_exist(line: str) -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert shlex.split(line)[1] == "install"
    for names in re.findall(r"(?:\.|time-tuner)\[([\w,]+)\]", line):
        assert set(names.split(",")) <= extras.keys()


@pytest.mark.parametrize("line", commands_of("make"))
def test_targets_of_the_documentation_exist(line: str) -> None:
    assert re.search(rf"^{line.split()[1]}:", (ROOT / "Makefile").read_text(), re.M)


@pytest.mark.parametrize(
    ("page", "table"),
    [("samplers", SAMPLERS), ("spacings", SPACINGS), ("tuners", TUNERS), ("schedules", PREDICTIONS)],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_every_entry_of_a_table_is_in_the_reference(page: str, table: dict[str, Any]) -> None:
    text = (ROOT / "docs" / "reference" / f"{page}.md").read_text()
    assert not [name for name in table if f"`{name}`" not in text and f'`"{name}"`' not in text]


def anchors_of(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.M)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_link_of_the_documentation_leads_somewhere(page: Path) -> None:
    prose = re.sub(r"<!--.*?-->|```.*?```|`[^`]*`", "", page.read_text(), flags=re.S)
    for target, anchor in re.findall(r"\]\(([^)#\s]*)(?:#([^)\s]+))?\)", prose):
        if not target.startswith("http"):
            file = page.parent / target if target else page
            assert file.exists(), f"{target} does not exist"
            assert not anchor or anchor in anchors_of(file), f"{target} has no heading {anchor}"


@pytest.mark.parametrize("page", [*PAGES, *sorted((ROOT / "examples").glob("*.py"))], ids=name_of)
def test_pages_use_the_terms_of_the_glossary(page: Path) -> None:
    others = r"\b(told|said|heard|asked|taught|lesson|valley|handed over|hands over|is worth|was worth|goes on)\b"
    assert not re.findall(others, page.read_text(), re.I)


# --- the features of the tutorial and of the paper's README ---


@cache
def functions_of(path: Path) -> set[str]:
    return {node.name for node in ast.parse(path.read_text()).body if isinstance(node, ast.FunctionDef)}


FEATURES = ROOT / "tests" / "features.md"


def test_every_feature_names_tests_that_exist() -> None:
    lines = FEATURES.read_text().splitlines()
    rows = [line for line in lines if line.startswith("| ") and not line.endswith("| test |")]
    assert len(rows) > 40
    for row in rows:
        named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", row)
        assert named, f"no test is named in {row!r}"
        for path, test in named:
            assert test.startswith("test_") and test in functions_of(ROOT / path), f"{path}::{test} does not exist"


def test_every_program_and_every_defect_is_a_feature() -> None:
    page = FEATURES.read_text()
    for name in ("test_published_programs.py", "test_published_defects.py"):
        for test in functions_of(ROOT / "tests" / "paper" / name):
            assert not test.startswith("test_") or test in page or "cuda" in test, f"{test} is in no row"
