"""Runs that are killed and started again: whatever was finished is found again, and the result is the same.

    python tests/support/kills.py KILLS [WORK...]

kills each kind of work so many times, in child processes that this one forks: before any of the calls by which files
are written, in the middle of one, and at random times. Of two processes that share work it kills the first one so, or
the second at random times. The last line that is printed is JSON: the kills of each work, and what failed. The process
must not have used autograd before it forks.
"""

import json
import logging
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import distributed as dist

import time_tuner.evaluation  # noqa: F401 - children do not wait for imports
from time_tuner import Joint, LeastSquares, NoiseScheduleVP, Plan, evaluate, make_plan, share_work, tune, tune_several
from time_tuner.cli.app import app
from time_tuner.models.exact import Mixture

SCHEDULE = NoiseScheduleVP("linear")
MODEL = Mixture(torch.randn(7, 2, generator=torch.Generator().manual_seed(0)), 0.3).eps(SCHEDULE)
JOINT = Joint(pairs=24, iterations=10, candidates=1)
QUICK: dict[str, Any] = {"samples": 8, "batch": 4, "shape": (2,), "guard": False}
CALLS = "3000calls"  # a budget: one of seconds gives another plan in each run
RESULT = "result.json"
ENDS = ("os.replace", "os.chmod", "os.fdopen", "shutil.rmtree", "os.unlink")
"""The calls by which files are written and removed; a child is killed before one of them."""
SECOND, ALONE = "second.pid", 3  # the second of two processes, and the exit code of one that has lost the other

Work = Callable[[Path], None]


def quadratic(calls: int, sampler: str = "ddim") -> Plan:
    return make_plan(sampler, SCHEDULE, calls, "quadratic")


def tuned(folder: Path, plan: Plan, tuner: Any, **how: Any) -> None:
    """Tune a plan with a checkpoint beside the file."""
    tune(MODEL, plan, tuner, checkpoint=folder / "partial", **{**QUICK, **how}).save(folder / RESULT)


def several(folder: Path) -> None:
    how = {**QUICK, "checkpoint": folder / "partial"}
    Plan.save_several(tune_several(MODEL, [quadratic(2), quadratic(3)], JOINT, **how), folder / RESULT)


def teacher_file(folder: Path) -> None:
    """The runs of a teacher in a file that the user names; what is read from there costs no calls."""
    tuner = LeastSquares(pairs=160, teacher_cache=folder / "teacher.safetensors")
    plan = tune(MODEL, quadratic(3), tuner, checkpoint=folder / "partial", **QUICK)
    plan.with_provenance(cost=None).save(folder / RESULT)


def sampled(folder: Path) -> None:
    """The command, whose samples are compared."""
    import numpy as np

    out = folder / "samples.npz"
    command(["sample", "--model", "gaussian", "--calls", "4", "-n", "40", "--batch", "4", "--out", str(out)])
    with np.load(out) as arrays:
        (folder / RESULT).write_text(json.dumps(arrays["samples"].tolist()))


def command(words: list[str]) -> None:
    try:
        app(words, prog_name="time-tuner")
    except SystemExit as end:
        error: BaseException | None = end
        while error is not None and not isinstance(error, OSError):
            error = error.__context__
        if end.code:
            raise error or RuntimeError(f"exit code {end.code}") from None


def evaluated(folder: Path) -> None:
    report = evaluate(
        MODEL_WITH_SHAPE, {"plan": quadratic(4)}, ("ddim",), (2, 3), samples=8, batch=4, budget=None,
        checkpoint=folder / "partial",
    )  # fmt: skip
    values = report.to_dict()
    del values["environment"]
    (folder / RESULT).write_text(json.dumps(values))


def in_two(work: Work) -> Work:
    """The work shared by two processes, of which the child is the first; the number of the second is in a file."""

    def both(folder: Path) -> None:
        meeting = folder / f"meeting-{os.getpid()}"
        second = os.fork()
        if second:
            (folder / SECOND).write_text(str(second))
        os.environ["GLOO_SOCKET_IFNAME"] = "lo"
        store = dist.FileStore(str(meeting), 2)
        dist.init_process_group("gloo", store=store, rank=int(not second), world_size=2)
        share_work(timedelta(seconds=60))
        try:
            work(folder)
        except OSError:  # the other one was killed
            os._exit(ALONE)
        if not second:
            os._exit(0)
        os.waitpid(second, 0)

    return both


class _Shaped:
    schedule, shape = SCHEDULE, (2,)

    def __call__(self, x: Any, t: Any, tau: Any = None) -> Any:
        return MODEL(x, t, tau)


MODEL_WITH_SHAPE = _Shaped()

WORKS: dict[str, Work] = {
    "sequential": lambda folder: tuned(folder, quadratic(4), "sequential", budget=CALLS),
    "parallel": lambda folder: tuned(folder, quadratic(4), "parallel", budget=CALLS),
    "adam": lambda folder: tuned(folder, quadratic(3), "sequential(optimizer=adam, iterations=2)"),
    "joint": lambda folder: tuned(folder, quadratic(3), JOINT),
    "joint, forward only": lambda folder: tuned(folder, quadratic(3), replace(JOINT, iterations=3, gradients=False)),
    "joint, ranked and guarded": lambda folder: tuned(
        folder, quadratic(2), replace(JOINT, candidates=2), any_start=True, guard=True, budget="400calls"
    ),
    "least squares": lambda folder: tuned(folder, quadratic(4), LeastSquares(pairs=16)),
    "several plans": several,
    "teacher's file": teacher_file,
    "sample": sampled,
    "evaluate": evaluated,
    "sequential, two processes": in_two(lambda folder: tuned(folder, quadratic(4), "sequential", budget=CALLS)),
    "joint, two processes": in_two(lambda folder: tuned(folder, quadratic(3), JOINT)),
    "sample, two processes": in_two(sampled),
    "evaluate, two processes": in_two(evaluated),
}


def run_child(work: Work, folder: Path, event: int | None = None, seconds: float | None = None, half: bool = False) -> \
        tuple[bool, int, float]:  # fmt: skip
    """Do the work in a child: whether it was finished, how many files it wrote or removed, and its seconds.

    It kills itself before so many such calls, or in the middle of writing one file; or it is killed after so many
    seconds, or else the second of two processes.
    """
    (folder / SECOND).unlink(missing_ok=True)
    read, write = os.pipe()
    began, child = time.monotonic(), os.fork()
    if not child:
        code = 1
        try:
            os.close(read)
            os.dup2(os.open(folder / "child.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND), 2)
            os.dup2(2, 1)
            counted = count_writes(event, half)
            work(folder)
            os.write(write, counted[0].to_bytes(8, "little"))
            code = 0
        except BaseException:
            logging.getLogger().exception("the work failed")
        finally:
            os._exit(code)
    os.close(write)
    if seconds is not None:
        time.sleep(seconds)
        second = folder / SECOND
        victim = int(second.read_text()) if second.exists() else child
        with suppress(ProcessLookupError):  # it has ended
            os.kill(victim, signal.SIGKILL)
    count = int.from_bytes(os.read(read, 8), "little")
    os.close(read)
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    if code not in (0, ALONE, -signal.SIGKILL):
        raise AssertionError((folder / "child.log").read_text()[-3000:])
    return not code, count, time.monotonic() - began


def count_writes(event: int | None, half: bool) -> list[int]:
    """Count the calls that write and remove files of this process from now on, and die before one of them."""
    count = [0]

    def watch(module: Any, name: str) -> None:
        own = getattr(module, name)

        def watched(*arguments: Any, **options: Any) -> Any:
            count[0] += 1
            if event is not None and count[0] >= event:
                if name != "fdopen" or not half:
                    os.kill(os.getpid(), signal.SIGKILL)
                os.write(arguments[0], b'{"format": "time-tuner')
                os.kill(os.getpid(), signal.SIGKILL)
            return own(*arguments, **options)

        setattr(module, name, watched)

    for end in ENDS:
        module, name = end.split(".")
        watch({"os": os, "shutil": shutil}[module], name)
    return count


def kill(work: Work, kills: int, seed: int) -> tuple[int, int]:
    """Kill the work so often, starting it again each time. Returns the kills, and the runs that were finished; an
    AssertionError where the result is another than without kills, or is left half written."""
    draw, done, finished = random.Random(seed), 0, 0
    with tempfile.TemporaryDirectory() as base:
        reference = Path(base) / "reference"
        reference.mkdir()
        whole, events, seconds = run_child(work, reference)
        assert whole, "the work was not finished without a kill"
        expected = json.loads((reference / RESULT).read_text())
        while done < kills:
            folder = Path(base) / f"run-{finished}"
            folder.mkdir()
            whole = False
            for _ in range(draw.choice((1, 1, 2, 3, 5))):
                if done >= kills or whole:
                    break
                if draw.random() < 0.5:
                    whole, _, _ = run_child(work, folder, seconds=draw.random() * seconds)
                else:
                    whole, _, _ = run_child(work, folder, draw.randint(1, max(1, events)), half=draw.random() < 0.3)
                done += not whole
            if not whole:
                whole, _, _ = run_child(work, folder)
            assert whole, "the work was not finished by the run that was not killed"
            got = json.loads((folder / RESULT).read_text())
            assert got == expected, f"the result differs after kills: {difference(expected, got)}"
            finished += 1
            shutil.rmtree(folder)
    return done, finished


def difference(a: Any, b: Any, where: str = "") -> str:
    """Where two JSON values differ first."""
    if isinstance(a, dict) and isinstance(b, dict) and a.keys() == b.keys():
        return next((difference(a[key], b[key], f"{where}.{key}") for key in a if a[key] != b[key]), "")
    if isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
        pairs = enumerate(zip(a, b, strict=True))
        return next((difference(p, q, f"{where}[{i}]") for i, (p, q) in pairs if p != q), "")
    return f"{where}: {str(a)[:200]} and {str(b)[:200]}"


def main(kills: int, names: list[str]) -> int:
    torch.set_num_threads(1)
    report: dict[str, Any] = {"kills": {}, "failed": {}}
    for i, name in enumerate(names or WORKS):
        began = time.monotonic()
        try:
            done, finished = kill(WORKS[name], kills, i)
            report["kills"][name] = done
            print(f"{name}: {done} kills, {finished} runs finished, {time.monotonic() - began:.0f} s", flush=True)
        except AssertionError as error:
            report["failed"][name] = str(error)
            print(f"{name}: {error}", flush=True)
    print(json.dumps(report))
    return int(bool(report["failed"]))


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), sys.argv[2:]))
