"""Plans that travel: to and from the Hugging Face Hub, a folder, a URL, and the metadata of a safetensors file.

A plan is numbers and names; reading one executes nothing, and every size is bounded.
"""

import json
import os
import re
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit
from urllib.request import urlopen

from .._checks import require
from .._files import parse_json, read_json, replacing

if TYPE_CHECKING:
    from .plan import Plan

__all__ = ["write_folder"]

FILE, PICTURE, CARD = "plan.json", "plan.svg", "README.md"

ENTRY = "time_tuner_plan"
"""The entry of the metadata of a safetensors file."""

MOST_BYTES = 32 * 2**20
"""The largest plan file that is read; one of 1000 calls with corrections is about as large."""

MOST_HEADER = 100 * 10**6
"""The largest header of a safetensors file, as the format has it."""

SECONDS = 30
"""How long a URL may not answer."""

REPO = re.compile(r"\w[\w.-]*/\w[\w.-]*(@[\w./-]+)?")


def push(plans: "Sequence[Plan]", repo_id: str, private: bool | None = None) -> str:
    """Write plans for different numbers of calls, a card and its picture into a repository of models on the Hub.

    A repository that does not exist is made. The token is that of huggingface_hub: its login or its environment.

    Args:
        plans: one or several; they replace those of the repository.
        repo_id: "user/name".
        private: whether a new repository is private; by default as the account has it.

    Returns:
        The address of the repository.

    Raises:
        ValueError: another kind of name, or two plans for the same number of calls.
    """
    require("huggingface_hub", "hub")
    from huggingface_hub import HfApi

    if not REPO.fullmatch(repo_id) or "@" in repo_id:
        raise ValueError(f"repo_id must be user/name, got {repo_id!r}")
    api = HfApi()
    with tempfile.TemporaryDirectory() as folder:
        write_folder(plans, folder, f'Plan.from_hub("{repo_id}"')
        made = api.create_repo(repo_id, private=private, repo_type="model", exist_ok=True)
        api.upload_folder(repo_id=repo_id, folder_path=folder, repo_type="model", commit_message="Add plans")
    return str(made)


def write_folder(plans: "Sequence[Plan]", folder: str | os.PathLike[str], source: str = "") -> None:
    """Write plans, a card and its picture into a folder, which `fetch` reads.

    Args:
        plans: for different numbers of calls.
        folder: is made if it does not exist.
        source: where the card says that the plans are from, such as the id of a repository.
    """
    from .plan import Plan

    path = Path(folder)
    Plan.save_several(plans, path / FILE)
    source = source or f'Plan.from_hub("{path.name}"'
    for name, text in ((CARD, card(plans, source)), (PICTURE, picture(plans[0]))):
        with replacing(path / name) as file:
            file.write(text.encode())


def fetch(source: str | os.PathLike[str]) -> Any:
    """The values of a plan file.

    Args:
        source: a folder with a `plan.json`; a plan file; an http or https address of a plan file; or a repository on
            the Hub, "user/name" or "user/name@revision".

    Raises:
        OSError: it cannot be reached or read.
        ValueError: it is too large or no plan file, or the source is of another kind.
    """
    text = os.fspath(source)
    if urlsplit(text).scheme in ("http", "https"):
        return _from_address(text)
    path = Path(text)
    if path.exists():
        return read_values(path / FILE if path.is_dir() else path)
    if not REPO.fullmatch(text):
        raise ValueError(f"source must be user/name on the Hub, a folder, a file or an http address, got {text!r}")
    return _from_hub(text)


def read_values(path: Path) -> Any:
    """The values of a plan file, or those in the metadata of a safetensors file.

    Raises:
        OSError: it cannot be read.
        ValueError: it has no plans, or is too large.
    """
    if path.suffix.lower() != ".safetensors":
        return read_json(path, MOST_BYTES)
    with open(path, "rb") as file:
        metadata, _ = _header(file)
    if not isinstance(text := metadata.get("__metadata__", {}).get(ENTRY), str):
        raise ValueError(f"its metadata has no entry {ENTRY!r}: plan.embed(path) writes one")
    return parse_json(text.encode(), MOST_BYTES)


def embed(plans: "Sequence[Plan]", path: str | os.PathLike[str]) -> None:
    """Write plans into the metadata of a safetensors file; the file is replaced whole or not at all.

    The tensors and the other metadata stay as they are.

    Raises:
        OSError: the file cannot be read or written.
        ValueError: it is no safetensors file, or the plans are too large for its header.
    """
    given = plans[0].to_dict() if len(plans) == 1 else [plan.to_dict() for plan in plans]
    with open(path, "rb") as source:
        header, _ = _header(source)
        header["__metadata__"] = {**header.get("__metadata__", {}), ENTRY: json.dumps(given, allow_nan=False)}
        content = json.dumps(header).encode()
        content += b" " * (-len(content) % 8)
        if len(content) > MOST_HEADER:
            raise ValueError(f"the header of {path} would have {len(content)} bytes, more than {MOST_HEADER}")
        with replacing(Path(path)) as file:
            file.write(len(content).to_bytes(8, "little") + content)
            shutil.copyfileobj(source, file, 2**24)


def _header(file: Any) -> tuple[dict[str, Any], int]:
    """The header of a safetensors file and its size; the file is then at its tensors."""
    size = int.from_bytes(file.read(8), "little")
    if not 0 < size <= min(MOST_HEADER, os.fstat(file.fileno()).st_size - 8):
        raise ValueError(f"it is no safetensors file: its header would have {size} bytes")
    values = parse_json(file.read(size))
    if not isinstance(values, dict) or not isinstance(values.get("__metadata__", {}), dict):
        raise ValueError("it is no safetensors file: its header is no object")
    return values, size


def _from_address(address: str) -> Any:
    with urlopen(address, timeout=SECONDS) as answer:
        return parse_json(answer.read(MOST_BYTES + 1), MOST_BYTES)


def _from_hub(text: str) -> Any:
    require("huggingface_hub", "hub")
    from huggingface_hub import HfApi, hf_hub_download

    repo_id, _, revision = text.partition("@")
    where: dict[str, Any] = {"repo_type": "model", "revision": revision or None}
    found = HfApi().get_paths_info(repo_id, [FILE], **where)
    if not found:
        raise ValueError(f"{text} has no {FILE}: plan.push_to_hub writes one")
    size = getattr(found[0], "size", None)
    if not isinstance(size, int) or size > MOST_BYTES:
        raise ValueError(f"{FILE} of {text} has {size} bytes, more than {MOST_BYTES}")
    return read_json(Path(hf_hub_download(repo_id, FILE, **where)), MOST_BYTES)


def card(plans: "Sequence[Plan]", source: str) -> str:
    """The card of a repository of plans: how to use them, a picture, a table of each plan, and the provenance.

    `source` is the beginning of the call that reads them, such as 'Plan.from_hub("user/name"'.
    """
    several, calls = len(plans) > 1, ", ".join(str(len(plan)) for plan in plans)
    lines = ["---", "library_name: time-tuner", "tags:", "- diffusion", "- time-tuner", "- sampling"]
    base = plans[0].provenance.get("model")
    if isinstance(base, str) and REPO.fullmatch(base) and "/" in base and not Path(base).exists():
        lines += [f"base_model: {base}"]
    lines += ["---", "", f"# {'Plans' if several else 'A plan'} of {calls} network calls", ""]
    lines += ["```python", "from time_tuner import Plan", "", f"plan = {source}, calls={len(plans[0])})", "```", ""]
    lines += [f"![The noise at each call]({PICTURE})", ""]
    for plan in plans:
        lines += _section(plan)
    return "\n".join(lines)


def _section(plan: "Plan") -> list[str]:
    p = plan.provenance
    lines = [f"## {len(plan)} calls", "", f"{_code(plan.sampler)} on {_code(plan.schedule)}", ""]
    if not plan.tuned:
        lines += ["This plan is not tuned.", ""]
    some = not all(plan.guided)
    lines += [
        "| call | t | alpha | sigma | tau | tau / t |" + " guided |" * some,
        "|---|---|---|---|---|---|" + "---|" * some,
    ]
    for k in range(len(plan)):
        t, tau = float(plan.t[k]), float(plan.tau[k])
        numbers = (t, float(plan.alpha[k]), float(plan.sigma[k]), tau, tau / t)
        lines.append(f"| {k} | " + " | ".join(f"{number:.5g}" for number in numbers) + " |")
        lines[-1] += f" {'yes' if plan.guided[k] else 'no'} |" * some
    lines.append("")
    if isinstance(distance := p.get("distance"), Mapping):
        lines += [
            "Mean distance to a reference run, on noise that was not tuned on:",
            "",
            "| plan | distance |",
            "|---|---|",
        ]
        lines += [f"| {name} | {value:.4g} |" for name, value in distance.items() if isinstance(value, int | float)]
        lines.append("")
    facts = {name: value for name, value in p.items() if name not in ("distance", "cost", "made_for", "passed")}
    made_for = p.get("made_for")
    if isinstance(made_for, Mapping):
        network = made_for.get("network")
        shown = ("class", "dtype", "quantisation")
        facts |= {name: network[name] for name in shown if isinstance(network, Mapping) and name in network}
        facts |= {name: value for name, value in made_for.items() if name != "network"}
    if facts:
        lines += ["| provenance | |", "|---|---|"]
        lines += [f"| {_cell(name)} | {_code(value)} |" for name, value in facts.items()] + [""]
    return lines


def picture(plan: "Plan") -> str:
    """A picture, SVG, of the noise sigma / alpha over the calls, on a logarithmic axis, and of tau at each call."""
    schedule, calls = plan.schedule, len(plan)
    lam = [-schedule.at(times).lam.clamp(-8, 8) for times in (plan.t[:-1], plan.tau)]
    low, high = (float(f(*(each.tolist() for each in lam))) for f in (_least, _greatest))
    width, height, edge = 640, 320, 40

    def place(k: int, value: float) -> tuple[float, float]:
        x = edge + (width - 2 * edge) * (k / max(1, calls - 1))
        return x, height - edge - (height - 2 * edge) * (value - low) / ((high - low) or 1.0)

    state, tau = ([place(k, float(v)) for k, v in enumerate(each)] for each in lam)
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in state)
    marks = "".join(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="#d55e00"/>' for x, y in tau)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif">'
        f'<rect width="{width}" height="{height}" fill="white"/>'
        f'<polyline points="{path}" fill="none" stroke="#0072b2" stroke-width="2"/>{marks}'
        f'<text x="{edge}" y="24" font-size="14">log(sigma / alpha) of the state (line) and of tau (dots), '
        f"{calls} calls</text></svg>\n"
    )


def _least(*values: list[float]) -> float:
    return min(map(min, values))


def _greatest(*values: list[float]) -> float:
    return max(map(max, values))


def _cell(value: Any) -> str:
    return " ".join(str(value).split()).replace("|", "\\|").replace("`", "'")[:200]


def _code(value: Any) -> str:
    return f"`{_cell(value)}`"
