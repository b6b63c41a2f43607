"""The notebooks run, and the site shows what their present code has printed and drawn."""

import ast
import base64
import json
import re
import runpy
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).parents[1]
NOTEBOOKS = runpy.run_path(str(ROOT / "docs" / "hooks" / "notebooks.py"))
SOURCES = NOTEBOOKS["sources"]()
SMALL: dict[str, dict[str, int]] = {
    "own_network": {"STEPS": 10, "PAIRS": 16, "ITERATIONS": 1, "MEASURED": 8},
    "pipeline": {"PAIRS": 8, "ITERATIONS": 1},
    "published": {"IMAGES": 10, "MEASURED": 10, "PAIRS": 10, "ITERATIONS": 1, "JUDGED": 10},
    "tutorial": {"SAMPLES": 100, "PAIRS": 16, "ITERATIONS": 1},
}
"""Sizes in which a notebook runs in a few seconds."""

name_of = Path.stem.fget  # type: ignore[attr-defined]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder, and pictures that no window shows."""
    pyplot = pytest.importorskip("matplotlib.pyplot")
    pyplot.switch_backend("agg")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def small_digits(monkeypatch: pytest.MonkeyPatch) -> None:
    """The pipeline of digits with an untrained network of few weights."""
    diffusers = pytest.importorskip("diffusers")
    import time_tuner.digits.pipeline

    def network() -> Any:
        blocks = {"down_block_types": ("DownBlock2D",), "up_block_types": ("UpBlock2D",), "block_out_channels": (8,)}
        with torch.random.fork_rng():
            torch.manual_seed(0)
            unet = diffusers.UNet2DModel(28, 1, 1, layers_per_block=1, norm_num_groups=2, num_class_embeds=11, **blocks)
        return unet.eval().requires_grad_(False)

    monkeypatch.setattr(time_tuner.digits.pipeline, "digits_network", network)


def test_every_notebook_has_small_sizes() -> None:
    assert [path.stem for path in SOURCES] == sorted(SMALL)


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
@pytest.mark.filterwarnings("ignore:the tuned timesteps are the optimum:UserWarning")  # of so few images
@pytest.mark.usefixtures("place", "small_digits")
def test_a_notebook_runs(path: Path) -> None:
    NOTEBOOKS["run"](path, SMALL[path.stem])


@pytest.mark.slow
@pytest.mark.parametrize("path", SOURCES, ids=name_of)
@pytest.mark.usefixtures("place")
def test_a_notebook_runs_in_full(path: Path) -> None:
    NOTEBOOKS["run"](path)


def test_code_that_fails_is_an_error_in_its_line(place: Path) -> None:
    source = place / "wrong.py"
    source.write_text("# %% [markdown]\n# # A title\n\n# %%\nx = 1\n\n# %%\ny = x + z\n")
    with pytest.raises(NameError, match="z") as caught:
        NOTEBOOKS["run"](source)
    assert caught.traceback[-1].path == source and caught.traceback[-1].lineno == 7


def test_a_parameter_that_a_notebook_does_not_have_is_refused(place: Path) -> None:
    source = place / "sizes.py"
    source.write_text('# %% tags=["parameters"]\nSAMPLES = 100\n\n# %%\nfound = 2 * SAMPLES\n')
    assert NOTEBOOKS["run"](source, {"SAMPLES": 3})["found"] == 6
    with pytest.raises(ValueError, match=r"parameters must be some of sizes.py, got PAIRS"):
        NOTEBOOKS["run"](source, {"PAIRS": 3})


# --- the outputs that are kept ---


def kept(path: Path) -> list[dict[str, Any]]:
    cells: list[dict[str, Any]] = json.loads(path.with_suffix(".ipynb").read_text())["cells"]
    return cells


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_the_outputs_are_those_of_the_present_source(path: Path) -> None:
    now = [(cell.kind, cell.text) for cell in NOTEBOOKS["cells"](path)]
    then = [(cell["cell_type"], "".join(cell["source"])) for cell in kept(path)]
    assert then == now, "make notebooks executes it anew"
    code = [cell for cell in kept(path) if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_the_outputs_are_for_readers(path: Path) -> None:
    """No errors or warnings, no texts such as <Figure>; small files."""
    for cell in kept(path):
        for output in cell.get("outputs", []):
            assert output["output_type"] in ("stream", "display_data", "execute_result")
            assert output.get("name") != "stderr", output["text"]
            data = output.get("data", {})
            assert "image/png" in data or not data, f"{data} is the text of an object: print it, or assign it"
    assert path.with_suffix(".ipynb").stat().st_size < 300_000


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_every_figure_has_a_caption(path: Path) -> None:
    page = NOTEBOOKS["page"](path.with_suffix(".ipynb"))
    figures = re.findall(r"^!\[(.*)\]\((.*)\)\n\n(.*)", page, re.M)
    assert [name for _, name, _ in figures] == list(NOTEBOOKS["pictures"](path.with_suffix(".ipynb")))
    assert len(figures) >= 3
    for number, (description, name, below) in enumerate(figures, start=1):
        assert len(description) > 40, f"{name} has no caption"
        assert below.startswith(f"*Figure {number}. ")


def test_a_page_has_the_text_the_code_and_the_outputs(place: Path) -> None:
    picture = base64.b64encode(b"PNG").decode()
    cells = [
        {"cell_type": "markdown", "source": ["# A title\n", "\n", "The beginning."]},
        {"cell_type": "code", "source": ["print(1)"], "outputs": [{"output_type": "stream", "text": ["1\n"]}]},
        {"cell_type": "code", "source": "draw()", "outputs": [{"data": {"image/png": picture, "text/plain": "<F>"}}]},
        {"cell_type": "markdown", "source": ["*Figure 1. A line.*\n", "\n", "The end."]},
    ]
    path = place / "made.ipynb"
    path.write_text(json.dumps({"cells": cells}))
    assert NOTEBOOKS["pictures"](path) == {"made-1.png": b"PNG"}
    assert NOTEBOOKS["page"](path) == (
        "# A title\n\n[Download this notebook](files/made.ipynb), or read its [source](made.py).\n\nThe beginning.\n\n"
        "```python\nprint(1)\n```\n\n``` { .text .no-copy .output }\n1\n```\n\n"
        "```python\ndraw()\n```\n\n![Figure 1. A line.](made-1.png)\n\n*Figure 1. A line.*\n\nThe end.\n"
    )


# --- words and links ---


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_notebooks_use_the_terms_of_the_glossary(path: Path) -> None:
    others = r"\b(told|said|heard|asked|taught|lesson|valley|handed over|hands over|is worth|was worth|goes on)\b"
    assert not re.findall(others, path.read_text(), re.I)


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_every_link_of_a_notebook_leads_somewhere(path: Path) -> None:
    texts = [cell.text for cell in NOTEBOOKS["cells"](path) if cell.kind == "markdown"]
    for target in re.findall(r"\]\(([^)#\s]+)", "\n".join(texts)):
        assert target.startswith("http") or (path.parent / target).exists(), f"{target} does not exist"


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_a_source_is_a_module_whose_imports_come_first(path: Path) -> None:
    """One cell has all imports, so that a reader sees what is needed."""
    first, *others = [ast.parse(cell.text) for cell in NOTEBOOKS["cells"](path) if cell.kind == "code"]
    assert any(isinstance(node, ast.Import | ast.ImportFrom) for node in first.body)
    assert not [node for cell in others for node in ast.walk(cell) if isinstance(node, ast.Import | ast.ImportFrom)]
