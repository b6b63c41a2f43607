import re
import shlex
import subprocess
import sys
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from time_tuner import SAMPLERS, TUNERS
from time_tuner.cli import options
from time_tuner.cli.app import app
from time_tuner.cli.help import EXIT_CODES, GROUPS

COMMAND: Any = typer.main.get_command(app)
NAMES = list(COMMAND.commands)


def help_of(*words: str) -> str:
    result = CliRunner().invoke(app, [*words, "--help"])
    assert result.exit_code == 0
    return result.output


def examples_of(name: str) -> list[str]:
    """The lines of a command's examples, without their remarks."""
    lines = COMMAND.commands[name].epilog.splitlines()
    return [line.partition("  #")[0].strip() for line in lines if line.strip().startswith("time-tuner ")]


@pytest.mark.parametrize(("name", "line"), [(name, line) for name in NAMES for line in examples_of(name)])
def test_examples_of_the_help_are_understood(name: str, line: str) -> None:
    _, called, *arguments = shlex.split(line)
    assert called == name
    COMMAND.commands[name].make_context(name, arguments)


@pytest.mark.parametrize("name", NAMES)
def test_every_command_has_a_line_examples_and_groups(name: str) -> None:
    text = help_of(name)
    assert examples_of(name) and "Examples:" in text
    for line in examples_of(name):
        assert line in text, "a line that is typed is not broken"
    assert f"  {name} " in help_of(), "the command is in the list"
    headings = re.findall(r"^(\w[\w ]*):$", text, re.M)
    assert set(headings) <= {*GROUPS, "Examples"}
    known = [heading for heading in headings if heading in GROUPS]
    assert known == sorted(known, key=GROUPS.index)
    assert "x>=" not in text and "<=x" not in text


def test_options_stand_in_their_group() -> None:
    text = help_of("tune")
    sections = dict(re.findall(r"^(\w[\w ]*):\n((?:  .*\n|\n(?=  ))+)", text, re.M))
    assert "--budget" in sections["Tuning"] and "--calls" in sections["Plan"] and "--out" in sections["Output"]
    assert "--prompt " in sections["Pipelines"] and "--label" in sections["Model"]


def test_exit_codes_are_in_the_help() -> None:
    text = help_of()
    for code, meaning in EXIT_CODES.items():
        assert re.search(rf"^  {code}\s+{re.escape(meaning)}$", text, re.M)


@pytest.mark.parametrize(
    ("name", "flag", "incomplete", "expected"),
    [
        ("tune", "sampler", "uni", ["unipc"]),
        ("tune", "method", "", list(TUNERS)),
        ("sample", "sampler", "", list(SAMPLERS)),
        ("tune", "model", "lat", ["latent-digits"]),
        ("show", "plan", "digits/j", ["digits/joint-10", "digits/joint-5"]),
    ],
)
def test_values_are_completed(name: str, flag: str, incomplete: str, expected: list[str]) -> None:
    command = COMMAND.commands[name]
    (parameter,) = [each for each in command.params if each.name == flag]
    context = command.make_context(name, [], resilient_parsing=True)
    assert [item.value for item in parameter.shell_complete(context, incomplete)] == expected


def test_plan_files_of_the_folder_are_completed(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "plan.json").touch()
    (tmp_path / "plans").mkdir()
    assert options.plan_files("pl") == ["plan.json", "plans/"]


def test_a_script_completes_the_command_in_a_shell() -> None:
    given = {"_TIME_TUNER_COMPLETE": "complete_bash", "COMP_WORDS": "time-tuner tu", "COMP_CWORD": "1"}
    code = "from time_tuner.cli import main; main()"
    made = subprocess.run([sys.executable, "-c", code], env={**__import__("os").environ, **given}, capture_output=True)
    assert made.stdout.split() == [b"tune"]
