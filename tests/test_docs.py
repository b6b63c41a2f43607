"""The site: its reference is complete, its tables are those of the code, its pictures are described."""

import re
import runpy
from pathlib import Path
from typing import Any

import pytest
import typer

from time_tuner.cli.app import app
from time_tuner.cli.options import MODEL_OPTIONS

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
REFERENCE = runpy.run_path(str(DOCS / "hooks" / "reference.py"))
TABLES = runpy.run_path(str(DOCS / "hooks" / "tables.py"))


def name_of(page: Path) -> str:
    return page.relative_to(DOCS).as_posix()


# --- the reference ---


def test_every_public_name_is_in_the_reference_with_its_arguments_and_its_result() -> None:
    assert REFERENCE["missing"]() == []


def undescribed(x: int, y: int) -> int:
    """Something.

    Args:
        x: a number.
    """
    return x + y


def test_what_a_docstring_lacks_is_found() -> None:
    found = list(REFERENCE["faults"]("f", undescribed))
    assert found == ["the docstring of f does not describe the argument y", "the docstring of f has no Returns"]
    assert list(REFERENCE["faults"]("g", lambda x: x)) == ["g has no docstring"]


@pytest.mark.parametrize("page", [page for page in PAGES if TABLES["MADE"].search(page.read_text())], ids=name_of)
def test_tables_are_those_of_the_code(page: Path) -> None:
    assert TABLES["filled"](page.read_text()) == page.read_text(), "python docs/hooks/tables.py writes it anew"


def test_the_facts_of_samplers_are_true() -> None:
    rows = {row[0]: row for row in TABLES["of_samplers"]()}
    assert rows["`heun`"][4:] == ("2", "no", "2")
    assert rows["`ddim`"][4:] == ("1", "if `eta` > 0", "1")
    assert rows["`dpm`"][4:] == ("`order`", "no", "`order`")
    assert rows["`ddpm`"][2:4] == ("[Ho et al.](https://arxiv.org/abs/2006.11239)", "2020")


# --- the command line ---


def flags_of(text: str) -> set[str]:
    """The options in the first column of the tables of a text."""
    cells = re.findall(r"^\| (`-.*?) \|", text, re.M)
    return {flag for cell in cells for flag in re.findall(r"`(--?[\w-]+)`", cell)}


def test_the_page_of_the_command_line_has_every_command_and_every_option() -> None:
    group: Any = typer.main.get_command(app)
    page = (DOCS / "reference" / "command-line.md").read_text()
    sections = dict(re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", page, re.M | re.S))
    model = flags_of(sections["Options of the model"])
    assert model == {f"--{name.replace('_', '-')}" for name in MODEL_OPTIONS} | {"--seed"}
    for name, command in group.commands.items():
        options = [p for p in command.params if p.param_type_name == "option" and p.name != "help"]
        named = flags_of(sections[name]) | model | set(re.findall(r"`(--?[\w-]+)", sections[name]))
        lacking = [option.opts for option in options if not named & set(option.opts)]
        assert not lacking, f"options of {name} that the page lacks"
        unknown = flags_of(sections[name]) - {flag for option in options for flag in option.opts}
        assert not unknown, f"options of {name} that do not exist"
