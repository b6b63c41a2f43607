"""Progress: one value in every phase, which does not fall, and one bar over the whole run."""

import time
import warnings
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from clock import Clock
from helpers import tune_by
from joint_problem import EPS, SMOOTH
from mixture_runs import DATA, Interrupt, quadratic, tuned

from time_tuner import TUNERS, TimeTuner, exact, make_plan, tune
from time_tuner.tuners import Progress

RANKING = ["teacher", "ranking"]
PHASES = {
    "sequential": ["data", *RANKING],
    "parallel": ["data", *RANKING],
    "joint": [*RANKING, "grids"],
    "least_squares": RANKING,
}


@pytest.mark.parametrize("name", TUNERS)
@pytest.mark.parametrize("budget", ["30s", "2000calls"])
def test_progress_is_one_value_in_every_phase(monkeypatch: pytest.MonkeyPatch, name: str, budget: str) -> None:
    clock, seen = Clock(monkeypatch, 1e-3), list[tuple[float, Progress]]()
    plan = make_plan("ddim", SMOOTH, 4, "quadratic")
    began = clock.now
    tuned = tune_by(
        clock(EPS), plan, name, shape=(4,), samples=64, budget=budget,
        progress=lambda progress: seen.append((clock.now - began, progress)),
    )  # fmt: skip
    values, took = [progress for _, progress in seen], clock.now - began
    phases = list(dict.fromkeys(progress.phase for progress in values))
    assert [phase for phase in phases if phase != "sizing"] == [*PHASES[name], "tuning", "reference", "guard"]
    # Least squares tune on the path of the teacher, too, whose runs are made after the ranking.
    fractions = [progress.fraction for progress in values]
    assert fractions == sorted(fractions) and 0 <= fractions[0] < 0.1 and fractions[-1] == 1
    assert values[-1].seconds_left == 0
    assert values[-1].calls == sum(cost["calls"] for cost in tuned.provenance["cost"].values())
    assert all(progress.losses is not None for progress in values if progress.phase in ("reference", "guard"))
    # The bar and the words are about the same time, and about the true one.
    for now, progress in seen[len(seen) // 2 :]:
        assert progress.seconds_left is not None
        assert progress.fraction == pytest.approx(now / (now + progress.seconds_left), abs=0.15)
        assert now + progress.seconds_left == pytest.approx(took, rel=0.4)


def test_there_is_a_sign_of_life_at_once_and_ten_times_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also while the teacher runs, whose runs take 64 samples at a time."""
    clock, at = Clock(monkeypatch, 1e-3), list[float]()
    plan = make_plan("ddim", SMOOTH, 4, "quadratic")
    began = clock.now
    how: dict[str, Any] = {"pairs": 128, "iterations": 20, "candidates": 1}
    tune_by(clock(EPS), plan, "joint", shape=(4,), guard=False, progress=lambda p: at.append(clock.now - began), **how)
    assert at[0] < 0.1  # after the trials of the network
    gaps = [after - before for before, after in pairwise(at)]
    assert max(gaps) <= 0.1 + 64 * 1e-3 + 1e-9
    assert sum(gap >= 0.1 for gap in gaps) > len(gaps) / 2, "and not with every call"


def test_steps_are_reported_with_their_losses() -> None:
    seen: list[Progress] = []
    plan = tuned(progress=seen.append)
    steps = list({progress.step: progress for progress in seen if progress.step}.values())
    assert [progress.step for progress in steps] == [1, 2, 3, 4]
    loss = plan.provenance["loss"]
    assert [progress.losses for progress in steps] == list(zip(loss["untuned"], loss["tuned"], strict=True))
    assert str(steps[0]).startswith("tuning, loss ") and f"{steps[0].calls:,} calls" in str(steps[0])


def test_progress_of_a_continued_run_counts_what_was_done(tmp_path: Path) -> None:
    def stop(progress: Progress) -> None:
        if progress.step == 3:
            raise Interrupt

    slow = {"checkpoint": tmp_path / "partial", "guard": False}

    def eps(x: torch.Tensor, t: Any, tau: Any = None) -> torch.Tensor:
        time.sleep(0.005)
        return exact.Mixture(DATA[:5], 0.3).eps(quadratic().schedule)(x, t, tau)

    with pytest.raises(Interrupt):
        tune(eps, quadratic(), data=DATA, samples=64, progress=stop, **slow)
    seen: list[Progress] = []
    tune(eps, quadratic(), data=DATA, samples=64, progress=seen.append, **slow)
    assert min(progress.fraction for progress in seen if progress.seconds_left is not None) > 0.3


def test_one_bar_is_over_the_whole(capsys: pytest.CaptureFixture[str]) -> None:
    for how in ({"pairs": 64, "iterations": 10}, {}):
        tune_by(EPS, make_plan("ddim", SMOOTH, 4, "quadratic"), "joint" if how else "parallel", shape=(4,), samples=32,
                progress=True, **how)  # fmt: skip
        out, err = capsys.readouterr()
        assert not out and err.count("\n") == 1
        bars = [line for line in err.split("\r") if line.strip()]
        assert "100%|" in bars[-1] and "guard" in bars[-1]


def test_the_published_interface_has_the_same_bar(capsys: pytest.CaptureFixture[str]) -> None:
    tuner = TimeTuner(EPS, SMOOTH)
    data = [{"image": torch.randn(32, 4, generator=torch.Generator().manual_seed(0))}]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tuner.optimize_timesteps(data, num_steps=4, verbose=True)
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "100%|" in err.split("\r")[-1] and " 0 calls" not in err.split("\r")[-1]
