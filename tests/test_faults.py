"""What happens when something fails: each fault has an outcome, and no finished work is lost."""

import errno
import json
import math
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from clock import Clock
from helpers import seeded
from torch import Tensor
from typer.testing import CliRunner

from time_tuner import Joint, NoiseScheduleVP, Plan, evaluate, make_plan, tune, tune_several
from time_tuner.cli import output
from time_tuner.cli.app import app
from time_tuner.evaluation.drawing import draw, sample_units
from time_tuner.models.base import as_model
from time_tuner.models.batching import BatchedModel
from time_tuner.models.exact import Mixture
from time_tuner.tuners import base

SCHEDULE = NoiseScheduleVP("linear")
EPS = Mixture(seeded(7, 2), 0.3).eps(SCHEDULE)
PLAN = make_plan("ddim", SCHEDULE, 4, "quadratic")
QUICK: dict[str, Any] = {"samples": 8, "batch": 4, "shape": (2,), "guard": False, "budget": "3000calls"}
JOINT = Joint(pairs=24, iterations=4, candidates=1)
KILLS = Path(__file__).parent / "support" / "kills.py"


def tuned(eps: Any = EPS, tuner: Any = "sequential", **how: Any) -> Plan:
    return tune(eps, PLAN, tuner, **{**QUICK, **how})


class Shaped:
    """A model of samples (2,) that counts its calls, and fails at one of them."""

    schedule, shape = SCHEDULE, (2,)

    def __init__(self, fail_at: int = -1, how: Any = None) -> None:
        self.calls, self.fail_at, self.how = 0, fail_at, how

    def __call__(self, x: Tensor, t: Any, tau: Any = None) -> Tensor:
        self.calls += 1
        return self.how(EPS(x, t, tau)) if self.calls == self.fail_at else EPS(x, t, tau)


def interrupt(prediction: Tensor) -> Tensor:
    raise KeyboardInterrupt


# --- kills ---


ANOTHER = "\n".join(
    [
        f"import json, os, sys; sys.path.insert(0, {str(KILLS.parent)!r}); import kills",
        "def another(folder): (folder / kills.RESULT).write_text(json.dumps({'a': os.getpid()}))",
        "kills.WORKS['another result'] = another",
        "kills.main(int(sys.argv[1]), sys.argv[2:])",
    ]
)


def kills_of(count: int, *works: str) -> dict[str, Any]:
    """The report of tests/support/kills.py, in a process of its own, which may fork; there "another result" is work
    with another result at each time."""
    words = [sys.executable, "-c", ANOTHER, str(count), *works]
    done = subprocess.run(
        words, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False
    )
    assert done.stdout, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_runs_that_are_killed_and_started_again_end_with_the_same_result() -> None:
    works = ("sample", "teacher's file", "evaluate", "sequential, two processes")
    report = kills_of(2, *works, "another result")
    assert report["kills"] == dict.fromkeys(works, 2)
    assert "the result differs after kills: .a:" in report["failed"].pop("another result") and not report["failed"]


@pytest.mark.slow
def test_every_kind_of_work_that_is_killed_ends_with_the_same_result() -> None:
    report = kills_of(int(os.environ.get("TIME_TUNER_KILLS", "5")))
    assert not report["failed"] and len(report["kills"]) > 8


# --- disks ---


@pytest.mark.parametrize("name", ["os.replace", "os.fdopen"])
def test_a_disk_that_fills_up_stops_the_run_and_loses_no_finished_step(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, whole, own, count = tmp_path / "plan.partial", tuned(), getattr(os, name[3:]), 0

    def full(*arguments: Any, **options: Any) -> Any:
        nonlocal count
        count += 1
        if count > 5:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return own(*arguments, **options)

    with monkeypatch.context() as patched:
        patched.setattr(name, full)
        with pytest.raises(OSError, match="No space left on device") as caught:
            tuned(checkpoint=file)
    assert caught.value.filename == str(file) and json.loads(file.read_text())["state"]
    assert not list(tmp_path.rglob(".*")), "no half file is left"
    seen: list[int] = []
    assert tuned(checkpoint=file, progress=lambda progress: seen.append(progress.step)) == whole
    assert 1 not in seen, "finished steps are not made again"


def test_a_folder_that_cannot_be_written_is_refused_before_any_call(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    model = Shaped()
    with pytest.raises(ValueError, match="cannot be written"):
        tuned(model, checkpoint=tmp_path / "file" / "plan.partial")
    assert not model.calls


def test_files_of_killed_processes_are_removed_but_none_that_may_be_in_use(tmp_path: Path) -> None:
    old, new, other = (
        tmp_path / name for name in (".plan.json.a.partial", ".plan.json.b.partial", ".x.json.a.partial")
    )
    for path in (old, new, other):
        path.touch()
    for path in (old, other):
        os.utime(path, (time.time() - 7200,) * 2)
    PLAN.save(tmp_path / "plan.json")
    assert sorted(os.listdir(tmp_path)) == [new.name, other.name, "plan.json"]


# --- files that are damaged ---


@pytest.mark.parametrize("size", [0, 1, 100, -3])
def test_a_truncated_checkpoint_is_one_line_and_is_not_written_over(size: int, tmp_path: Path) -> None:
    file = tmp_path / "plan.partial"
    tuned(checkpoint=file)
    content = file.read_bytes()[:size]
    file.write_bytes(content)
    with pytest.raises(ValueError, match=r"checkpoint '.*plan\.partial' is no partial plan .* or remove it"):
        tuned(checkpoint=file)
    assert file.read_bytes() == content


@pytest.mark.parametrize("size", [0, 7, 100, -1])
def test_a_truncated_teacher_file_is_one_line(size: int, tmp_path: Path) -> None:
    file = tmp_path / "teacher.safetensors"
    tuner = f"least_squares(pairs=8, teacher_cache='{file}')"
    whole = tuned(tuner=tuner)
    file.write_bytes(file.read_bytes()[:size])
    with pytest.raises(ValueError, match=r"teacher\.safetensors is no teacher file for this run.*or remove it"):
        tuned(tuner=tuner)
    file.unlink()
    assert tuned(tuner=tuner).corrections.equal(whole.corrections)  # type: ignore[union-attr, arg-type]


def test_a_state_that_cannot_be_continued_names_the_checkpoint(tmp_path: Path) -> None:
    file = tmp_path / "plan.partial"
    tuned(checkpoint=file)
    kept = json.loads(file.read_text())
    del kept["plan"]
    for state in ({"values": {"x": []}}, {"values": {"0": [[1]]}}, {"values": 5}, {"values": {"0": []}}):
        file.write_text(json.dumps({**kept, "state": state}))
        with pytest.raises(ValueError, match=r"checkpoint '.*plan\.partial' cannot be continued from"):
            tuned(checkpoint=file)


@pytest.mark.parametrize("state", [{"solvers": [{"v": [1.0]}]}, {"solvers": [{"parameters": 1}]}, {"pairs": 10**12}])
def test_a_state_of_joint_tuning_that_cannot_be_continued_names_the_checkpoint(state: Any, tmp_path: Path) -> None:
    file = tmp_path / "plan.partial"
    tuned(tuner=JOINT, checkpoint=file)
    kept = json.loads(file.read_text())
    del kept["plan"]
    file.write_text(json.dumps({**kept, "state": {**kept["state"], **state}}))
    with pytest.raises(ValueError, match=r"checkpoint '.*plan\.partial' cannot be continued from"):
        tuned(tuner=JOINT, checkpoint=file)


# --- networks that fail ---


def test_samples_before_a_nan_are_kept(tmp_path: Path) -> None:
    """Of the third batch of four the network returns NaN; mended, it is called for the last two alone."""
    broken, whole = Shaped(2 + 10, lambda prediction: prediction * math.nan), Shaped()
    units = sample_units(tmp_path / "units", as_model(broken), 4)
    with pytest.raises(ValueError, match=r"returned NaN or infinity|became NaN"):
        draw(as_model(broken), PLAN, 16, 0, 4, lambda samples: None, units)
    assert len(list(units.folder.glob("unit-*"))) == 2
    mended = Shaped()
    again = sample_units(tmp_path / "units", as_model(mended), 4)
    found = draw(as_model(mended), PLAN, 16, 0, 4, lambda samples: None, again)
    assert mended.calls == 1 + 2 * len(PLAN)
    assert torch.equal(found, draw(as_model(whole), PLAN, 16, 0, 4, lambda samples: None))


@pytest.mark.parametrize("tuner", ["sequential", JOINT, "least_squares(pairs=8)"])
def test_a_network_that_returns_nan_beside_its_own_times_is_tuned_around_them(tuner: Any) -> None:
    """It has no prediction at conditioning times far from the solver's."""

    def partial(x: Tensor, t: Any, tau: Any = None) -> Tensor:
        tau = t if tau is None else tau
        far = (torch.as_tensor(tau).double() / torch.as_tensor(t).double()).sub(1).abs() > 0.02
        bad = far.reshape(-1, *(1,) * (x.dim() - 1)).expand(len(x) if far.dim() else 1, *(1,) * (x.dim() - 1))
        return torch.where(bad, torch.nan, EPS(x, t, tau))

    found = tuned(partial, tuner)
    assert ((found.tau / found.t[:-1] - 1).abs() <= 0.02 + 1e-6).all()


@pytest.mark.parametrize(
    "full",
    [
        torch.OutOfMemoryError("CUDA out of memory."),
        MemoryError(),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried 5 bytes"),
    ],
)
def test_where_memory_is_short_the_batch_is_halved_and_that_is_logged_once(
    full: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    def small(x: Tensor, t: Any, tau: Any = None) -> Tensor:
        if len(x) > 4:
            raise full
        return EPS(x, t, tau)

    model, x = BatchedModel(as_model(small, SCHEDULE), 8), seeded(20, 2).float()
    t = torch.tensor(0.5).double()
    for _ in range(3):
        assert torch.allclose(model(x, t), EPS(x, t, t))
    assert caplog.messages == ["the memory is not enough for 8 samples in a call: continuing with 4"]
    with pytest.raises(type(full)):
        BatchedModel(as_model(lambda x, t, tau: small(torch.cat([x] * 9), t, tau), SCHEDULE))(x, t)


def test_another_error_of_a_network_is_not_taken_for_a_full_memory() -> None:
    def wrong(x: Tensor, t: Any, tau: Any = None) -> Tensor:
        raise RuntimeError("shapes do not fit")

    with pytest.raises(RuntimeError, match="shapes do not fit"):
        BatchedModel(as_model(wrong, SCHEDULE), 4)(seeded(8, 2).float(), torch.tensor(0.5).double())


def test_joint_tuning_goes_on_where_a_backward_pass_is_short_of_memory(caplog: pytest.LogCaptureFixture) -> None:
    """Activations are computed again first; then, too, the batch is halved. The plan is the same."""
    refused = [0]

    class Backward(torch.autograd.Function):
        @staticmethod
        def forward(context: Any, x: Tensor) -> Tensor:
            return x.clone()

        @staticmethod
        def backward(context: Any, gradient: Tensor) -> Tensor:
            if len(gradient) > 5:
                refused[0] += 1
                raise torch.OutOfMemoryError("CUDA out of memory.")
            return gradient

    how = {"tuner": JOINT, "batch": None}
    found = tuned(lambda x, t, tau: Backward.apply(EPS(x, t, tau)), **how)
    assert refused[0] == 2, "of 8 samples, and of 8 again whose activations are computed again; not of 4"
    assert caplog.messages.count("the memory is not enough for the activations of a run: they are computed again") == 1
    assert torch.allclose(found.tau, tuned(**how).tau, atol=1e-4)


# --- clocks ---


def test_a_clock_that_is_set_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    whole, own, jumps = tuned(), time.time, iter(range(10**6))
    monkeypatch.setattr(time, "time", lambda: own() + (-1) ** next(jumps) * 86400.0)
    assert tuned() == whole


def test_where_the_clock_of_a_budget_jumps_the_best_plan_so_far_is_returned(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a machine that slept for an hour, after own samples and a few calls."""
    slept = iter((3600.0,))
    clock = Clock(monkeypatch, lambda n: next(slept, 1e-3) if n > 480 else 1e-3)
    found = tuned(clock(EPS), budget="60s", batch=None)
    assert "60 s" in found.provenance["stopped"] and (found.tau > 0).all()


# --- interrupts, and two processes ---


def test_an_interrupted_sample_command_says_where_it_continues(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["sample", "--model", "gaussian", "--calls", "2", "-n", "8", "--batch", "4", "--out"]
    out, whole = tmp_path / "samples.npz", tmp_path / "whole.npz"
    assert CliRunner().invoke(app, [*words, str(whole)]).exit_code == 0

    def stop(self: output.Bar, amount: float = 1) -> None:
        if self._done >= 12:
            raise KeyboardInterrupt
        self._done += amount

    with monkeypatch.context() as patched:
        patched.setattr(output.Bar, "advance", stop)
        result = CliRunner().invoke(app, [*words, str(out)])
    assert result.exit_code == 130 and not out.exists()
    assert f"interrupted: the state is kept in {out}.partial, and the same command continues from it" in result.stderr
    assert CliRunner().invoke(app, [*words, str(out)]).exit_code == 0
    assert sorted(os.listdir(tmp_path)) == ["samples.npz", "whole.npz"]
    assert out.read_bytes() == whole.read_bytes()


def test_an_interrupted_evaluation_continues(tmp_path: Path) -> None:
    how: dict[str, Any] = {"against": ("ddim",), "calls": (2,), "samples": 8, "batch": 4, "budget": None}
    whole = evaluate(Shaped(), {"plan": PLAN}, **how).to_dict()
    with pytest.raises(KeyboardInterrupt):
        evaluate(Shaped(150, interrupt), {"plan": PLAN}, checkpoint=tmp_path / "partial", **how)
    model = Shaped()
    found = evaluate(model, {"plan": PLAN}, checkpoint=tmp_path / "partial", **how).to_dict()
    assert model.calls < 320 and not (tmp_path / "partial").exists()
    assert {**found, "environment": 0} == {**whole, "environment": 0}


def test_an_interrupted_tuning_ends_at_what_is_found_in_a_smaller_budget(tmp_path: Path) -> None:
    """So that Ctrl-C leaves a result that can be used at once."""
    file = tmp_path / "plan.partial"

    def stop(progress: Any) -> None:
        if progress.step == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tuned(checkpoint=file, progress=stop)
    found, whole = tuned(checkpoint=file, budget="1calls"), tuned()
    ratios, expected = (one.tau / one.t[:-1] for one in (found, whole))
    assert torch.equal(ratios[:2], expected[:2]) and (ratios[2:] == 1).all() and (ratios[:2] != 1).any()


def test_several_plans_that_are_continued_have_the_costs_of_a_run_without_an_interrupt(tmp_path: Path) -> None:
    """The teacher's runs are counted for the first plan alone, also where the second one reads them from a file."""

    def stop(plans: Any) -> None:
        raise KeyboardInterrupt

    plans = [make_plan("ddim", SCHEDULE, calls) for calls in (2, 3)]
    how: dict[str, Any] = {**QUICK, "budget": None, "tuner": Joint(pairs=24, iterations=1, candidates=1)}
    whole = tune_several(EPS, plans, **how)
    with pytest.raises(KeyboardInterrupt):
        tune_several(EPS, plans, checkpoint=tmp_path / "partial", done=stop, **how)
    found = tune_several(EPS, plans, checkpoint=tmp_path / "partial", **how)
    assert found == whole
    assert [plan.provenance["cost"] for plan in found] == [plan.provenance["cost"] for plan in whole]
    assert ["teacher" in plan.provenance["cost"] for plan in found] == [True, False]


def test_two_processes_that_write_one_plan_do_not_corrupt_it(tmp_path: Path) -> None:
    path, plans = tmp_path / "plan.json", [make_plan("ddim", SCHEDULE, calls) for calls in (2, 3)]
    plans[0].save(path)
    writers = [threading.Thread(target=lambda one=one: [one.save(path) for _ in range(50)]) for one in plans]
    for writer in writers:
        writer.start()
    while any(writer.is_alive() for writer in writers):
        assert Plan.load(path) in plans
    assert os.listdir(tmp_path) == ["plan.json"]


def test_two_runs_with_one_checkpoint_find_the_same_plan(tmp_path: Path) -> None:
    """The second one begins and ends while the first is at its second step."""
    file, whole, second = tmp_path / "plan.partial", tuned(), list[Plan]()

    def meanwhile(progress: base.Progress) -> None:
        if progress.step == 2 and not second:
            second.append(tuned(checkpoint=file))

    assert tuned(checkpoint=file, progress=meanwhile) == whole == second[0]
