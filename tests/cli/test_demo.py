import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import call, done
from PIL import Image

from time_tuner import Plan
from time_tuner.cli import demo, output
from time_tuner.tuners import Budget
from time_tuner.tuners.budget import Speed

JOINT, PAPER = demo.CASES
BUSY = 10.0  # as many times as slow as two cores of today


@pytest.fixture
def quick_demo(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both parts on the faster network, in two calls, with a few samples."""
    quick = {"model": "latent-digits", "calls": 2, "budget": 0.5, "work": 1, "labels": True}
    monkeypatch.setattr(demo, "CASES", (replace(JOINT, **quick), replace(PAPER, **quick)))
    for name, value in (("REFERENCE_CALLS", 4), ("FEWEST", 3), ("MOST", 3)):
        monkeypatch.setattr(demo, name, value)


def test_the_demo_compares_and_writes(tmp_path: Path, quick_demo: None) -> None:
    out = tmp_path / "shown"
    result = done("demo", "--out", out)
    assert re.search(r"This takes about \d+ s", result.output)
    names = {path.name for path in out.iterdir()}
    plans = {"joint-2.json", "timetuner-2.json"}
    assert names == plans | {"comparison.png", "timetuner.png", "tuned.png", "calls.gif"}
    assert all(name in result.output for name in names)
    for name in ("comparison.png", "timetuner.png", "tuned.png"):
        with Image.open(out / name) as image:
            assert image.format == "PNG" and min(image.size) > 300 and np.asarray(image.convert("L")).std() > 1
    with Image.open(out / "calls.gif") as moving:
        assert moving.n_frames == 3, "before the first call, and after each of two"
    for case, file in zip(demo.CASES, ("joint-2.json", "timetuner-2.json"), strict=True):
        plan = Plan.load(out / file)
        assert len(plan) == 2
        assert f"{case.tuned}: {output.verdict(plan)}." in result.output
        assert f"tuned, {case.tuned}" in result.output, "the tuned plan has a row, whether it gained anything or not"


def test_a_plan_that_has_gained_nothing_has_a_row_that_says_so(
    tmp_path: Path, quick_demo: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a machine that is too slow for a single step of tuning."""
    tune, captions, grid = demo.tune, list[str](), demo.plots.image_grid

    def slow(*args: Any, budget: Budget, **kwargs: Any) -> Plan:
        return tune(*args, budget=Budget(seconds=1e-6), **kwargs)

    def watched(strips: Any, *args: Any) -> Any:
        captions.extend(strip.caption for strip in strips)
        return grid(strips, *args)

    monkeypatch.setattr(demo, "tune", slow)
    monkeypatch.setattr(demo.plots, "image_grid", watched)
    result = done("demo", "--out", tmp_path)
    assert "untuned, 2 calls\nthe best found" in captions
    assert "the same command tunes longer" in result.output and "tuned, joint tuning: no gain" in result.output


def test_an_interrupted_demo_keeps_finished_plans(
    tmp_path: Path, quick_demo: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    tune = demo.tune

    def interrupted(model: Any, plan: Any, text: str, *args: Any, **kwargs: Any) -> Any:
        if text == PAPER.tuner:
            raise KeyboardInterrupt
        return tune(model, plan, text, *args, **kwargs)

    (tmp_path / "joint-2.json").write_text("of an earlier demo")
    with monkeypatch.context() as patched:
        patched.setattr(demo, "tune", interrupted)
        stopped = call("demo", "--out", tmp_path)
    assert stopped.exit_code == 130 and "the same command continues" in stopped.stderr
    kept = (tmp_path / "joint-2.json").read_bytes()
    assert len(Plan.load(tmp_path / "joint-2.json")) == 2
    called = []
    monkeypatch.setattr(demo, "tune", lambda m, p, text, *a, **k: called.append(text) or tune(m, p, text, *a, **k))
    done("demo", "--out", tmp_path)
    assert called == [PAPER.tuner]
    assert (tmp_path / "joint-2.json").read_bytes() == kept
    assert not list(tmp_path.glob("*.partial*"))


def sizes(slower: float) -> tuple[dict[str, demo.Size], float]:
    """What the demo does on a machine that is as many times as slow as one core of today, and its seconds."""
    speeds = {"joint": Speed(0.02, 0.0225), "timetuner": Speed(0.0, 0.0027)}
    found = demo.size({name: Speed(slower * one.call, slower * one.evaluation) for name, one in speeds.items()})
    return found, sum(one.seconds for one in found.values())


@pytest.mark.parametrize("slower", [0.01, 0.1, 0.5, 1])
def test_the_demo_ends_in_three_minutes_on_a_quiet_machine(slower: float) -> None:
    assert 0 < sizes(slower)[1] <= 180


def test_a_slow_machine_has_more_time_to_tune_and_fewer_samples() -> None:
    quiet, busy = sizes(1)[0], sizes(BUSY)[0]
    for name in ("joint", "timetuner"):
        assert busy[name].samples <= quiet[name].samples and busy[name].budget > quiet[name].budget
        assert busy[name].samples >= demo.PICTURES, "enough for a row of pictures"
    assert sizes(1000)[0]["joint"].budget == demo.LONGEST


def test_a_demo_that_takes_longer_says_why(capsys: pytest.CaptureFixture[str]) -> None:
    demo._announce(sizes(BUSY)[0])
    assert "the machine is slow, or has other work" in capsys.readouterr().out
    demo._announce(sizes(1)[0])
    assert "slow" not in capsys.readouterr().out
