"""Plans travel whole: by the Hub, a folder, an address, and the metadata of a safetensors file."""

import inspect
import json
import shutil
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any
from xml.etree import ElementTree

import pytest
import torch
from huggingface_hub import HfApi as RealApi
from huggingface_hub import hf_hub_download as real_download
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from time_tuner import NoiseScheduleFlow, NoiseScheduleVP, Plan, make_plan
from time_tuner.plans import sharing

BUNDLED = Plan.load("digits/joint-5")
OTHER = make_plan("dpmpp", BUNDLED.schedule, 8)


# --- the Hub, by a stand-in of huggingface_hub ---


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The folder of a stand-in Hub: a folder for each repository."""
    root = tmp_path / "hub"

    class HfApi:
        def create_repo(
            self, repo_id: str, *, private: Any = None, repo_type: Any = None, exist_ok: bool = False
        ) -> str:
            assert repo_type == "model"
            (root / repo_id).mkdir(parents=True, exist_ok=exist_ok)
            return f"https://huggingface.co/{repo_id}"

        def upload_folder(
            self, *, repo_id: str, folder_path: Any, repo_type: Any = None, commit_message: Any = None
        ) -> None:
            shutil.copytree(folder_path, root / repo_id, dirs_exist_ok=True)

        def get_paths_info(self, repo_id: str, paths: Any, *, revision: Any = None, repo_type: Any = None) -> list[Any]:
            assert revision in (None, "v1")
            found = [root / repo_id / path for path in paths]
            return [SimpleNamespace(path=path.name, size=path.stat().st_size) for path in found if path.exists()]

    def hf_hub_download(repo_id: str, filename: str, *, repo_type: Any = None, revision: Any = None) -> str:
        return str(root / repo_id / filename)

    module = ModuleType("huggingface_hub")
    module.__spec__ = ModuleSpec("huggingface_hub", None)
    vars(module).update(HfApi=HfApi, hf_hub_download=hf_hub_download)
    monkeypatch.setitem(__import__("sys").modules, "huggingface_hub", module)
    for name in ("create_repo", "upload_folder", "get_paths_info"):  # the real one has these arguments
        own, real = (inspect.signature(getattr(api, name)).parameters for api in (HfApi, RealApi))
        assert own.keys() <= real.keys(), name
    real = inspect.signature(real_download).parameters
    assert inspect.signature(hf_hub_download).parameters.keys() <= real.keys()
    return root


def test_plans_come_back_from_the_hub(hub: Path) -> None:
    address = BUNDLED.push_to_hub("me/plans", OTHER)
    assert address == "https://huggingface.co/me/plans"
    assert Plan.from_hub("me/plans", calls=5) == BUNDLED
    assert Plan.from_hub("me/plans@v1", calls=8) == OTHER
    with pytest.raises(ValueError, match=r"has plans for calls = \[5, 8\], got calls=6"):
        Plan.from_hub("me/plans", calls=6)
    BUNDLED.push_to_hub("me/plans")  # replaces them
    assert Plan.from_hub("me/plans") == BUNDLED
    assert sorted(path.name for path in (hub / "me/plans").iterdir()) == ["README.md", "plan.json", "plan.svg"]


def test_large_and_missing_files_of_the_hub_are_refused(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    BUNDLED.push_to_hub("me/plans")
    monkeypatch.setattr(sharing, "MOST_BYTES", 100)
    with pytest.raises(ValueError, match=r"plan\.json of me/plans has \d+ bytes, more than 100"):
        Plan.from_hub("me/plans")
    (hub / "me" / "empty").mkdir()
    with pytest.raises(ValueError, match=r"me/empty has no plan\.json"):
        Plan.from_hub("me/empty")


@pytest.mark.parametrize("name", ["plans", "me/my plans", "../x/y", "me/plans/more", "me/plans@v1"])
def test_other_names_are_no_repositories(hub: Path, name: str) -> None:
    with pytest.raises(ValueError, match="repo_id must be user/name"):
        BUNDLED.push_to_hub(name)
    if "@" not in name:
        with pytest.raises(ValueError, match="source must be user/name on the Hub"):
            Plan.from_hub(name)


def test_the_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time_tuner._checks.find_spec", lambda name: None)
    for share in (lambda: BUNDLED.push_to_hub("me/plans"), lambda: Plan.from_hub("me/plans")):
        with pytest.raises(ValueError, match=r"huggingface_hub is missing: pip install 'time-tuner\[hub\]'"):
            share()


# --- the card ---


def test_card_says_how_to_use_the_plans_and_what_they_gain(hub: Path) -> None:
    made_for = {
        "network": {"class": "UNet2DModel", "dtype": "float32", "weights": {"secret": [1.0]}},
        "shape": [1, 28, 28],
    }
    plan = BUNDLED.with_provenance(made_for=made_for, model="some/base", note="a | b `c`\nd")
    plan.push_to_hub("me/plans", OTHER)
    text = (hub / "me/plans/README.md").read_text()
    assert text.startswith("---\nlibrary_name: time-tuner\n") and "base_model: some/base" in text
    code = text.partition("```python\n")[2].partition("```")[0]
    names: dict[str, Any] = {}
    exec(code, names)
    assert names["plan"] == plan
    for value in (plan.provenance["distance"]["tuned"], *plan.tau.tolist()):
        assert f"{value:.4g}" in text or f"{value:.5g}" in text
    assert "UNet2DModel" in text and "secret" not in text and "`a \\| b 'c' d`" in text
    assert text.count("\n## ") == 2
    rows = [line for line in text.splitlines() if line.startswith("| ") and line[2].isdigit()]
    assert len(rows) == 5 + 8 and {line.count("|") for line in rows} == {7}


def test_card_names_the_calls_with_guidance() -> None:
    text = sharing.card([make_plan("ddim", NoiseScheduleFlow(), 3, guided=2)], 'Plan.from_hub("me/plans"')
    rows = [line.split("|")[-2].strip() for line in text.splitlines() if line.startswith("| ") and line[2].isdigit()]
    assert rows == ["yes", "yes", "no"]


@pytest.mark.parametrize(
    "plan",
    [
        BUNDLED,
        make_plan("ddim", NoiseScheduleVP("linear"), 1),
        make_plan("dpmpp", NoiseScheduleFlow(), 4, end=0.0),
        make_plan("ddim", NoiseScheduleVP(alphas_cumprod=[0.9, 0.5, 0.2, 0.0]), 3, "trailing"),
    ],
    ids=["tuned", "one call", "flow", "zero SNR"],
)
def test_picture_is_a_drawing_of_every_call(plan: Plan) -> None:
    drawn = ElementTree.fromstring(sharing.picture(plan))
    _, _, width, height = map(float, drawn.attrib["viewBox"].split())
    circles = [one for one in drawn if one.tag.endswith("circle")]
    assert len(circles) == len(plan)
    assert all(0 <= float(c.attrib["cx"]) <= width and 0 <= float(c.attrib["cy"]) <= height for c in circles)


# --- a folder, a file, an address ---


def test_a_folder_and_a_file_are_read(tmp_path: Path) -> None:
    sharing.write_folder([BUNDLED, OTHER], tmp_path / "plans")
    for source in (tmp_path / "plans", str(tmp_path / "plans"), tmp_path / "plans" / "plan.json"):
        assert Plan.from_hub(source, calls=5) == BUNDLED


@pytest.fixture
def address(tmp_path: Path) -> Iterator[str]:
    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *args: Any) -> None:
            pass

    BUNDLED.save(tmp_path / "plan.json")
    (tmp_path / "other.json").write_text("{}")
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(tmp_path)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_an_address_is_read_and_bounded(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    assert Plan.from_hub(f"{address}/plan.json") == BUNDLED
    with pytest.raises(ValueError, match=r"other\.json: not a plan"):
        Plan.from_hub(f"{address}/other.json")
    with pytest.raises(OSError, match="404"):
        Plan.from_hub(f"{address}/none.json")
    monkeypatch.setattr(sharing, "MOST_BYTES", 100)
    with pytest.raises(ValueError, match="more than 100 bytes"):
        Plan.from_hub(f"{address}/plan.json")


@pytest.mark.parametrize("source", ["file:///etc/hostname", "ftp://127.0.0.1/plan.json", "no such folder"])
def test_other_sources_are_refused(source: str) -> None:
    with pytest.raises(ValueError, match="source must be user/name on the Hub, a folder, a file or an http address"):
        Plan.from_hub(source)


# --- safetensors ---


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    path = tmp_path / "model.safetensors"
    tensors = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(5, dtype=torch.bfloat16)}
    save_file(tensors, path, metadata={"format": "pt"})
    return path


def test_a_plan_travels_in_the_metadata_of_weights(weights: Path) -> None:
    before = load_file(weights)
    BUNDLED.embed(weights)
    assert Plan.load(weights) == BUNDLED
    OTHER.embed(weights, BUNDLED)  # replaces it
    assert Plan.load(weights, calls=5) == BUNDLED and Plan.from_hub(weights, calls=8) == OTHER
    after = load_file(weights)
    assert after.keys() == before.keys() and all(torch.equal(after[name], before[name]) for name in before)
    with safe_open(weights, "pt") as file:
        assert file.metadata()["format"] == "pt"
    assert [path.name for path in weights.parent.iterdir()] == [weights.name]


def test_weights_without_a_plan_and_other_files_are_refused(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="its metadata has no entry 'time_tuner_plan'"):
        Plan.load(weights)
    wrong = weights.with_name("wrong.safetensors")
    for content in (b"", b"\xff" * 64, (8).to_bytes(8, "little") + b"[1, 2]  ", (4).to_bytes(8, "little") + b"{{{{"):
        wrong.write_bytes(content)
        with pytest.raises(ValueError, match=r"wrong\.safetensors is not a plan file"):
            Plan.load(wrong)
        with pytest.raises(ValueError):  # noqa: PT011 - of several kinds
            BUNDLED.embed(wrong)
        assert wrong.read_bytes() == content
    monkeypatch.setattr(sharing, "MOST_HEADER", 1000)
    kept = weights.read_bytes()
    with pytest.raises(ValueError, match="more than 1000"):
        BUNDLED.embed(weights)
    assert weights.read_bytes() == kept


def test_a_changed_plan_in_weights_is_refused(weights: Path) -> None:
    BUNDLED.embed(weights)
    tensors = load_file(weights)
    changed = json.dumps(BUNDLED.to_dict() | {"calls": 6})
    save_file(tensors, weights, metadata={sharing.ENTRY: changed})
    with pytest.raises(ValueError, match="calls of a plan must be"):
        Plan.load(weights)
