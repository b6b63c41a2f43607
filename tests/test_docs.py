"""The site: its reference is complete, its tables are those of the code, its pictures are described."""

import re
import runpy
import sys
from collections.abc import Iterator
from importlib import import_module
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
PICTURE = re.compile(r"^!\[([^\]]*)\]\(([^)]+)\)(.*)$", re.M)


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
    common = set(re.findall(r"`(--?[\w-]+)", page.partition("\n## ")[0]))  # of several commands
    assert model == {f"--{name.replace('_', '-')}" for name in MODEL_OPTIONS} | {"--seed"}
    for name, command in group.commands.items():
        options = [p for p in command.params if p.param_type_name == "option" and p.name != "help"]
        named = common | model | set(re.findall(r"`(--?[\w-]+)", sections[name]))
        lacking = [option.opts for option in options if not named & set(option.opts)]
        assert not lacking, f"options of {name} that the page lacks"
        unknown = flags_of(sections[name]) - {flag for option in options for flag in option.opts}
        assert not unknown, f"options of {name} that do not exist"


# --- pictures ---


@pytest.mark.parametrize("page", [page for page in PAGES if "![" in page.read_text()], ids=name_of)
def test_every_picture_has_a_description_and_a_caption(page: Path) -> None:
    text = page.read_text()
    assert len(PICTURE.findall(text)) == text.count("![")
    for found in PICTURE.finditer(text):
        description, target, rest = found.groups()
        assert len(description) > 40 and not rest, f"{target} has no description"
        below = re.match(r"\n\n\*[^*](.|\n(?!\n)){20,}?\*\n", text[found.end() :])
        above = re.search(r"[^\n]{20,}:\n\n$", text[: found.start()])  # a sentence that leads to it
        assert below or above, f"{target} has no caption"


def texts_of(svg: str) -> list[str]:
    """The words and numbers in a drawing."""
    return re.findall(r"<text[^>]*>([^<]*)</text>", svg)


@pytest.fixture(scope="module")
def drawings() -> Iterator[tuple[dict[str, Any], Any]]:
    """The functions that draw, by the name of the picture, and the function that makes SVG of a figure."""
    pytest.importorskip("matplotlib")
    sys.path.insert(0, str(DOCS / "drawings"))
    try:
        yield runpy.run_path(str(DOCS / "drawings" / "pictures.py"))["PICTURES"], import_module("style").svg
    finally:
        sys.path.remove(str(DOCS / "drawings"))


def test_every_drawing_is_on_a_page(drawings: tuple[dict[str, Any], Any]) -> None:
    shown = {Path(target).stem for page in PAGES for _, target, _ in PICTURE.findall(page.read_text())}
    assert {path.stem for path in (DOCS / "images").glob("*.svg")} == set(drawings[0]) <= shown


@pytest.mark.parametrize(
    "name", ["two-times", "plan-table", "guidance", "spacings", "untuned-exact", "untuned-network"]
)
def test_a_drawing_is_that_of_the_code(name: str, drawings: tuple[dict[str, Any], Any]) -> None:
    pictures, svg = drawings
    kept = (DOCS / "images" / f"{name}.svg").read_text()
    assert texts_of(svg(pictures[name]())) == texts_of(kept) != [], "make drawings draws it anew"


# --- links out of docs/ ---


def test_links_to_files_of_the_repository_lead_to_their_pages() -> None:
    site = runpy.run_path(str(DOCS / "hooks" / "site.py"))
    text = (
        "[a](../../examples/tutorial.py), [b](../quickstart.md#next), `[c](../../README.md)` and [d](https://x.org/y)"
    )
    made = "[a](../repository/examples/tutorial.py.md), [b](../quickstart.md#next), `[c](../../README.md)` and [d](https://x.org/y)"
    assert site["relinked"](text, "how-to/export.md") == made
    assert site["relinked"]("[a](docs/extending.md)", "../CONTRIBUTING.md") == "[a](../extending.md)"
    assert site["content"]("examples/run_plan.py").startswith("# examples/run_plan.py\n\n````python\n")
