"""The notebooks: python docs/hooks/notebooks.py [NAME ...] executes them; the site shows what was executed.

With `--text` only the text of the notebooks is written, beside the outputs of the same code.

`docs/notebooks/NAME.py` is the source, in the percent format of jupytext: edit this file. `NAME.ipynb` is the same
notebook with its outputs, which Jupyter opens. The cell with the tag "parameters" has sizes, which tests make smaller.
"""

import base64
import io
import json
import os
import re
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parents[1] / "notebooks"
SECONDS = 600  # the longest that a cell may take
KERNEL = {"name": "python3", "display_name": "Python 3", "language": "python"}


@dataclass(frozen=True)
class Cell:
    """A cell of a notebook: its kind, "code" or "markdown", its text, its tags, and the line of its first line."""

    kind: str
    text: str
    tags: tuple[str, ...] = ()
    line: int = 1


def sources() -> list[Path]:
    """The sources of all notebooks."""
    return sorted(FOLDER.glob("*.py"))


def cells(path: Path) -> list[Cell]:
    """The cells of a source in the percent format."""
    text = path.read_text()
    found, heads = [], list(re.finditer(r"^# %%(.*)\n", text, re.M))
    for head, following in zip(heads, [*heads[1:], None], strict=True):
        body = text[head.end() : following.start() if following else None].strip("\n")
        kind = "markdown" if "[markdown]" in head[1] else "code"
        if kind == "markdown":
            body = re.sub(r"^# ?", "", body, flags=re.M)
        tags = re.search(r"tags=(\[.*?\])", head[1])
        line = text.count("\n", 0, head.end()) + 1
        found.append(Cell(kind, body, tuple(json.loads(tags[1])) if tags else (), line))
    return found


def run(path: Path, parameters: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The names of a notebook after its code ran in this process, with other values of its parameters.

    Raises:
        ValueError: a parameter that the notebook does not have.
        Exception: that of the notebook's code, with the line of the source.
    """
    names: dict[str, Any] = {"__name__": "notebook"}
    for cell in cells(path):
        if cell.kind == "code":
            exec(compile("\n" * (cell.line - 1) + cell.text, str(path), "exec"), names)
        if "parameters" in cell.tags:
            if unknown := set(parameters or {}) - names.keys():
                raise ValueError(f"parameters must be some of {path.name}, got {', '.join(sorted(unknown))}")
            names.update(parameters or {})
    return names


def execute(path: Path) -> None:
    """Write the notebook of a source with its outputs."""
    from nbclient import NotebookClient

    notebook = _notebook(path)
    with tempfile.TemporaryDirectory() as folder:  # for what the notebook writes
        where = {"metadata": {"path": folder}}
        NotebookClient(notebook, timeout=SECONDS, record_timing=False, coalesce_streams=True, resources=where).execute()
    for output in (output for cell in notebook.cells for output in cell.get("outputs", [])):
        if "image/png" in output.get("data", {}):
            output.data["image/png"] = base64.b64encode(_smaller(base64.b64decode(output.data["image/png"]))).decode()
    _write(notebook, path)


def retext(path: Path) -> None:
    """Write the text of a source into its executed notebook, which keeps the outputs of the same code.

    Raises:
        ValueError: the code of the source is not that which was executed.
    """
    from nbformat import from_dict

    notebook = _notebook(path)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    done = [cell for cell in executed(path.with_suffix(".ipynb")) if cell["cell_type"] == "code"]
    if [cell.source for cell in code] != ["".join(cell["source"]) for cell in done]:
        raise ValueError(f"the code of {path.name} has changed: execute it, {Path(__file__).name} {path.stem}")
    for new, old in zip(code, done, strict=True):
        new.update(outputs=from_dict(old["outputs"]), execution_count=old["execution_count"])
    _write(notebook, path)


def _notebook(path: Path) -> Any:
    """The notebook of a source, without outputs."""
    from nbformat import v4

    made = []
    for number, cell in enumerate(cells(path)):
        new = v4.new_code_cell if cell.kind == "code" else v4.new_markdown_cell
        made.append(new(cell.text, id=f"cell-{number}", metadata={"tags": list(cell.tags)} if cell.tags else {}))
    return v4.new_notebook(cells=made)


def _write(notebook: Any, path: Path) -> None:
    import nbformat

    notebook.metadata = {"kernelspec": KERNEL, "language_info": {"name": "python"}}
    nbformat.write(notebook, path.with_suffix(".ipynb"))


def _smaller(png: bytes) -> bytes:
    """A picture with a palette of 64 colours, which has a quarter of the size."""
    from PIL import Image

    file = io.BytesIO()
    Image.open(io.BytesIO(png)).convert("RGB").quantize(64).save(file, "png", optimize=True)
    return file.getvalue()


def executed(path: Path) -> list[dict[str, Any]]:
    """The cells of an executed notebook, as the file has them."""
    found: list[dict[str, Any]] = json.loads(path.read_text())["cells"]
    return found


def pictures(path: Path) -> dict[str, bytes]:
    """The pictures of an executed notebook, PNG, by the names of their files."""
    shown = [output["data"]["image/png"] for cell in executed(path) for output in cell.get("outputs", [])
             if "image/png" in output.get("data", {})]  # fmt: skip
    return {f"{path.stem}-{number}.png": base64.b64decode(data) for number, data in enumerate(shown, start=1)}


def caption(cell: Mapping[str, Any] | None) -> str:
    """The caption of a picture: the first paragraph of the Markdown cell below it, if it is in italics."""
    text = "".join(cell["source"]) if cell and cell["cell_type"] == "markdown" else ""
    found = re.match(r"\*([^*]+)\*(\n\n|$)", text)
    return " ".join(found[1].split()) if found else ""


def page(path: Path) -> str:
    """An executed notebook as a page in Markdown."""
    parts: list[str] = []
    names, every = iter(pictures(path)), executed(path)
    for cell, below in zip(every, [*every[1:], None], strict=True):
        text = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(text)
            continue
        parts.append(f"```python\n{text}\n```")
        for output in cell["outputs"]:
            data = output.get("data", {})
            if "image/png" in data:
                parts.append(f"![{caption(below)}]({next(names)})")
            elif printed := "".join(output.get("text", data.get("text/plain", ""))).rstrip():
                parts.append(f"``` {{ .text .no-copy .output }}\n{printed}\n```")
    title, *rest = parts
    source = f"[Download this notebook](files/{path.name}), or read its [source]({path.stem}.py)."
    heading, _, first = title.partition("\n")
    return "\n\n".join([heading, source, first.strip(), *rest]) + "\n"


# --- the hooks of the site ---


def on_files(files: Any, config: Any) -> Any:
    """Make pages of the notebooks, and add their pictures and the files to download."""
    from mkdocs.structure.files import File

    class NotebookFile(File):
        def is_documentation_page(self) -> bool:
            return True

    for file in [file for file in files if file.src_uri.endswith(".ipynb")]:
        path = Path(file.abs_src_path)
        files.remove(file)
        files.append(NotebookFile(file.src_uri, config.docs_dir, config.site_dir, config.use_directory_urls))
        below = Path(file.src_uri).parent
        files.append(File.generated(config, str(below / "files" / path.name), abs_src_path=str(path)))
        for name, content in pictures(path).items():
            files.append(File.generated(config, str(below / name), content=content))
    return files


def on_page_read_source(page: Any, config: Any) -> str | None:
    """The text of a page that is a notebook."""
    path = Path(page.file.abs_src_path or "")
    return globals()["page"](path) if path.suffix == ".ipynb" else None


def main(arguments: list[str]) -> None:
    """Execute notebooks, or only write their text; all of them, or those that are named."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # the same numbers on every machine
    os.environ["PYTHONWARNINGS"] = "ignore:IProgress"  # of tqdm, which misses widgets
    write = retext if "--text" in arguments else execute
    names = [argument for argument in arguments if argument != "--text"]
    for path in [FOLDER / f"{name}.py" for name in names] or sources():
        write(path)
        print(f"{path.with_suffix('.ipynb')} is written")


if __name__ == "__main__":
    main(sys.argv[1:])
