"""Files that are no plans: each is one line of error, in Python and on the command line; and disks that fail."""

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import seeded
from typer.testing import CliRunner

from time_tuner import NoiseScheduleVP, Plan, make_plan
from time_tuner._files import DEEPEST, read_json, replacing, write_json
from time_tuner.cli.app import app
from time_tuner.plans.sharing import MOST_BYTES

DISCRETE = NoiseScheduleVP(betas=torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64))
PLAN = make_plan("dpmpp", DISCRETE, calls=3).with_corrections(seeded(3, 3).tril(-1))
TEXT = json.dumps(PLAN.to_dict())


def nested(depth: int, inside: str = "1") -> str:
    return "[" * depth + inside + "]" * depth


def with_provenance(text: str) -> str:
    return TEXT.replace('"provenance": {}', '"provenance": {"value": ' + text + "}")


def sparse(size: int) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        with open(path, "wb") as file:
            file.write(b"[" * 1000)
            file.truncate(size)

    return make


UNREADABLE: dict[str, tuple[str | bytes | Callable[[Path], Any], str]] = {
    "empty": ("", "Expecting value"),
    "a number": ("5", "not a plan: its 'format' must be"),
    "an empty list": ("[]", "the list in it is empty"),
    "a text": ('"plan"', "not a plan: its 'format' must be"),
    "half of a plan": (TEXT[: len(TEXT) // 2], "is not a plan file"),
    "something behind": (TEXT + "5", "Extra data"),
    "not UTF-8": (b"\xff\xfe{}", "not text in UTF-8"),
    "UTF-16": (TEXT.encode("utf-16"), "not text in UTF-8"),
    "byte order mark": (TEXT.encode("utf-8-sig"), "BOM"),
    "null bytes": (b"\0" * 100, "is not a plan file"),
    "100,000 brackets": ("[" * 100_000, "lists and objects inside one another"),
    "100,000 closed brackets": (nested(100_000), "lists and objects inside one another"),
    "100,000 objects": ('{"a":' * 100_000 + "1" + "}" * 100_000, "lists and objects inside one another"),
    "deep behind a string": ('["\\\\\\"[[", ' + nested(DEEPEST) + "]", "lists and objects inside one another"),
    "deep provenance": (with_provenance(nested(DEEPEST)), "lists and objects inside one another"),
    "deep tau": (TEXT.replace('"tau": [', f'"tau": [{nested(40)}, '), "tau of a plan must be a list of numbers"),
    "NaN": (with_provenance("NaN"), "it holds NaN, which is no number"),
    "infinity": (with_provenance("-Infinity"), "it holds -Infinity, which is no number"),
    "float out of range": (with_provenance("1e999"), "it holds 1e999, which is no number"),
    "long float": (with_provenance("9" * 5000 + ".0"), f"it holds {'9' * 40}, which is no number"),
    "integer of 5000 digits": (with_provenance("9" * 5000), "is not a plan file"),
    "integer out of range": (TEXT.replace('"t": [1.0', '"t": [1' + "0" * 400), "t of a plan must be a list of numbers"),
    "an entry twice": (TEXT.replace('"calls"', '"tau": [1.0], "calls"'), "it has the entry 'tau' twice"),
    "an inner entry twice": (TEXT.replace('"order": 2', '"order": 2, "order": 3'), "it has the entry 'order' twice"),
    "two plans of one length": (f"[{TEXT}, {TEXT}]", r"two plans for the same number of calls, got calls = \[3, 3\]"),
    "a folder": (lambda path: path.mkdir(), "directory"),
    "1 GB": (sparse(2**30), f"it has more than {MOST_BYTES} bytes"),
    "an endless file": (lambda path: path.symlink_to("/dev/zero"), f"it has more than {MOST_BYTES} bytes"),
    "a link to nothing": (lambda path: path.symlink_to("nothing"), "there is no file"),
}


@pytest.mark.parametrize("kind", UNREADABLE)
def test_an_unreadable_file_is_one_line(kind: str, tmp_path: Path) -> None:
    content, message = UNREADABLE[kind]
    path = tmp_path / "plan.json"
    if callable(content):
        content(path)
    else:
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    for load in (Plan.load, Plan.load_several):
        with pytest.raises((ValueError, OSError), match=message) as caught:
            load(path)
        assert len(str(caught.value).splitlines()) == 1 and "plan.json" in str(caught.value)
    result = CliRunner().invoke(app, ["show", str(path)])
    assert result.exit_code == 2 and not result.stdout
    assert result.stderr.startswith("error: ") and len(result.stderr.splitlines()) == 1
    assert "plan.json" in result.stderr


def test_the_text_these_files_are_made_of_is_a_plan(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    for text in (TEXT, with_provenance('"[[{{"'), with_provenance(nested(DEEPEST - 2)), with_provenance("1e-999")):
        path.write_text(text)
        assert torch.equal(Plan.load(path).tau, PLAN.tau)


@pytest.mark.parametrize("depth", [0, 1, 2, DEEPEST, DEEPEST + 1])
@pytest.mark.parametrize("string", ["", "[", '\\"[[', "\\\\", '\\\\\\"]', "]}"])
def test_brackets_in_strings_are_not_counted(depth: int, string: str, tmp_path: Path) -> None:
    path = tmp_path / "values.json"
    path.write_text(nested(depth, f'"{string}"'))
    if depth > DEEPEST:
        with pytest.raises(ValueError, match="inside one another"):
            read_json(path)
    else:
        assert read_json(path) == json.loads(path.read_text())


def test_a_larger_file_may_be_read_where_no_limit_is_set(tmp_path: Path) -> None:
    path = tmp_path / "values.json"
    write_json(path, {"a": list(range(1000))})
    assert read_json(path) == read_json(path, path.stat().st_size) == {"a": list(range(1000))}
    with pytest.raises(ValueError, match="it has more than 100 bytes"):
        read_json(path, 100)


# --- several plans ---


def test_all_plans_of_a_file_are_loaded_from_the_fewest_calls_to_the_most(tmp_path: Path) -> None:
    plans = [make_plan("ddim", DISCRETE, calls) for calls in (8, 2, 4)]
    Plan.save_several(plans, tmp_path / "plans.json")
    assert Plan.load_several(tmp_path / "plans.json") == [plans[1], plans[2], plans[0]]
    plans[0].save(tmp_path / "plan.json")
    assert Plan.load_several(tmp_path / "plan.json") == [plans[0]]
    for wrong in ([], [plans[0], plans[0]]):
        with pytest.raises(ValueError, match="plans of one file must have different numbers of calls, got"):
            Plan.save_several(wrong, tmp_path / "wrong.json")
    assert not (tmp_path / "wrong.json").exists()


# --- disks that fail ---


def test_a_full_disk_is_named_with_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "plan.json"
    PLAN.save(path)
    before = path.read_bytes()

    def full(dir: Path, prefix: str, suffix: str) -> tuple[int, str]:
        (dir / f"{prefix}x{suffix}").touch()
        return os.open("/dev/full", os.O_WRONLY), str(dir / f"{prefix}x{suffix}")

    monkeypatch.setattr("tempfile.mkstemp", full)
    with pytest.raises(OSError, match=r"No space left on device.*plan\.json'$") as caught:
        PLAN.with_provenance(new=True).save(path)
    assert caught.value.errno == errno.ENOSPC and caught.value.filename == str(path)
    assert path.read_bytes() == before and os.listdir(tmp_path) == ["plan.json"]


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.EIO])
@pytest.mark.parametrize("where", ["tempfile.mkstemp", "os.fdopen", "os.chmod", "os.replace"])
def test_an_error_of_the_disk_names_the_file(where: str, number: int, tmp_path: Path, monkeypatch) -> None:
    def fail(*arguments: Any, **_: Any) -> None:
        if where == "os.fdopen":
            os.close(arguments[0])
        temporary = tmp_path / ".plan.json.x.partial" if where == "tempfile.mkstemp" else None
        raise OSError(number, os.strerror(number), temporary)

    monkeypatch.setattr(where, fail)
    with pytest.raises(OSError, match=r"plan\.json'$") as caught:
        PLAN.save(tmp_path / "plan.json")
    assert (caught.value.errno, caught.value.filename) == (number, str(tmp_path / "plan.json"))
    assert not os.listdir(tmp_path)


def test_an_error_of_another_file_is_left_as_it_is(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="other"), replacing(tmp_path / "plan.json"):
        (tmp_path / "other").read_text()
    with pytest.raises(OSError, match=r"^no errno$"), replacing(tmp_path / "plan.json"):
        raise OSError("no errno")
    assert not os.listdir(tmp_path)


def test_a_full_disk_is_one_line_of_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "samples.npz"
    monkeypatch.setattr("tempfile.mkstemp", lambda dir, **_: (os.open("/dev/full", os.O_WRONLY), str(dir / "partial")))
    result = CliRunner().invoke(app, ["sample", "--model", "gaussian", "--calls", "1", "-n", "1", "--out", str(out)])
    assert result.exit_code == 2
    assert result.stderr == f"error: {out}: No space left on device\n"
