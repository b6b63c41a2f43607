"""The tables of the documentation that are made from the JSON of benchmarks are what that JSON says."""

import json
import re
import runpy
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))
RECORD = runpy.run_path(str(ROOT / "benchmarks" / "record.py"))
sys.path.pop(0)
RESULTS = sorted((ROOT / "benchmarks" / "results").glob("*.json"))
MADE = [page for page in RECORD["PAGES"] if RECORD["TABLE"].search(page.read_text())]


@pytest.mark.parametrize("page", MADE, ids=lambda page: page.name)
def test_a_page_agrees_with_its_json(page: Path) -> None:
    assert RECORD["filled"](page.read_text()) == page.read_text(), "python benchmarks/record.py writes it anew"


def test_a_changed_number_is_noticed() -> None:
    page = ROOT / "docs" / "results.md"
    start = RECORD["TABLE"].search(page.read_text()).start(3)
    text = page.read_text()
    digit = next(i for i in range(start, len(text)) if text[i].isdecimal())
    changed = text[:digit] + str((int(text[digit]) + 1) % 10) + text[digit + 1 :]
    assert RECORD["filled"](changed) == text


@pytest.mark.parametrize("page", [ROOT / "README.md", ROOT / "docs" / "results.md"], ids=lambda page: page.name)
def test_every_table_of_figures_is_made_from_json(page: Path) -> None:
    text = RECORD["TABLE"].sub("", page.read_text())
    headers = re.findall(r"^(\|.*)\n\|[-| ]+\|$", text, re.M)
    assert [one for one in headers if not one.startswith("| column | networks |")] == [], "that one has settings"
    assert not re.search(r"\b\d+\.\d{3}\b", text), "a measured figure stands in its JSON, as a note"


def test_cells_are_marked_with_the_commit_that_printed_them() -> None:
    marked = {file.stem for file in RESULTS if "measured" in json.loads(file.read_text())}
    assert marked >= set(RECORD["CELLS"]), "rows of numbers need a function"
    page = (ROOT / "docs" / "results.md").read_text()
    assert page.count("Printed at commit ") == len(marked)


def test_rows_of_seeds_become_their_mean_and_their_worst() -> None:
    rows = [{"problem": "p", "calls": 3, "distance": {"untuned": 2.0, "tuned": tuned, "error": 0.5},
             "frechet": {"untuned": 1.0, "tuned": 0.5, "teacher": 0.1}} for tuned in (0.5, 2.4, 2.6)]  # fmt: skip
    found = ["| p | 3 | 2.000 | 1.833 (2.600) | 1 of 3 | 1.000 | 0.500 | 0.100 |"]
    assert RECORD["of_best"](rows).splitlines()[2:] == found


def test_ratios_of_spacings_are_to_the_best_of_the_same_run() -> None:
    distances = {"ddim:5": {"a": 1.0, "b": 2.0}, "ddim:8": {"a": 3.0, "b": 2.0}, "unipc:5": {"a": 4.0}}
    rows = [{"network": "n", "run": run, "spacing": spacing, "distance": value}
            for run, of in distances.items() for spacing, value in of.items()]  # fmt: skip
    assert RECORD["of_spacings"](rows).splitlines()[2:] == [
        "| `a` | **1.50** (1.25) | **1.00** (1.00) |",
        "| `b` | 2.00 (1.50) | - |",
    ]


@pytest.mark.parametrize("file", RESULTS, ids=lambda file: file.stem)
def test_results_have_their_command_and_environment_and_a_table(file: Path) -> None:
    kept: dict[str, Any] = json.loads(file.read_text())
    program, script, *_ = kept["command"].split()
    assert program == "python" and (ROOT / script).exists()
    if "measured" in kept:
        assert re.fullmatch(r"[0-9a-f]{7,}", kept["measured"]) and {"date"} == kept["environment"].keys()
    else:
        assert {"date", "torch", "python", "threads"} <= kept["environment"].keys()
    assert kept["rows"] and all(row.keys() == kept["rows"][0].keys() for row in kept["rows"] if "measured" in kept)
    names = [name for name, (of, _) in RECORD["TABLES"].items() if of == file.stem]
    pages = "".join(page.read_text() for page in MADE)
    assert names and all(f"<!-- table: {name} -->" in pages for name in names)


def test_rows_come_back_from_a_file(tmp_path: Path) -> None:
    rows = [{"problem": "a", "value": 0.1}, {"problem": "b", "value": 1e-9}]
    RECORD["write"](tmp_path / "rows.json", rows)
    assert RECORD["read"](tmp_path / "rows.json") == rows
    assert RECORD["read"](tmp_path / "none.json") == RECORD["read"](None) == []
