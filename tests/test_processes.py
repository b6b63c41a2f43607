"""Several processes that share work: their results are those of one, and only the first one writes and decides."""

import json
import os
import socket
import subprocess
import sys
from copy import copy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from helpers import seeded
from joint_problem import EPS, SMOOTH
from processes import files_of, together
from torch import Tensor

from time_tuner import Joint, Plan, TimeTuner, make_plan, share_work, tune
from time_tuner._distributed import check_same, decided, from_first, gathered, num_processes, rank, share, summed
from time_tuner.evaluation.drawing import draw
from time_tuner.evaluation.measures import features_of_all
from time_tuner.models.batching import BatchedModel
from time_tuner.models.counting import CostLog
from time_tuner.tuners import Budget, Calibration, ReferenceDistance, Tuner, TuningRun, base
from time_tuner.tuners.joint.loss import TeacherLoss, robust
from time_tuner.tuners.joint.teacher import Pairs
from time_tuner.tuners.ranking import Rounds
from time_tuner.tuners.ranking import rank as rank_plans


def mean_square(x: Tensor, y: Tensor) -> Tensor:
    """A distance of the user's, the mean over pairs."""
    return (x - y).double().square().sum(1).mean()


TUNED: dict[str, tuple[Tuner | str, str, dict[str, Any]]] = {
    "sequential": ("sequential", "ddim", {"samples": 12}),
    "sequential, noise": ("sequential", "ddpm", {"samples": 12}),
    "parallel": ("parallel", "ddim", {"samples": 12, "batch": 96}),
    "adam": ("sequential(optimizer=adam, iterations=2)", "ddim", {"samples": 12}),
    "joint": ("joint(pairs=24, iterations=6, candidates=1)", "ddim", {}),
    "joint, mean distance": (Joint(pairs=24, iterations=2, candidates=1, distance=mean_square), "ddim", {}),
    "joint, forward calls": ("joint(pairs=24, iterations=2, candidates=1, gradients=False)", "ddim", {}),
    "least squares": ("least_squares(pairs=24)", "ddim", {}),
}
SIZES = (2, 4)


def steps_of(name: str) -> Plan:
    return make_plan(name, SMOOTH, 3, "quadratic")


def tuned() -> dict[str, Plan]:
    found = {}
    for name, (tuner, sampler, how) in TUNED.items():
        found[name] = tune(EPS, steps_of(sampler), tuner, shape=(4,), guard=False, budget=100_000, **how)
    return found


def measured() -> dict[str, Tensor]:
    """Values of the parts that a run is made of, on samples that no number of processes divides."""
    model, noise = copy(EPS), seeded(7, 4).float()
    model.shape = (4,)
    judge = ReferenceDistance(model, SMOOTH, float(steps_of("ddim").t[-1]), noise, calls=6)
    pairs = Pairs(noise, noise.flip(0))
    loss = TeacherLoss(BatchedModel(model), pairs, robust, CostLog())
    run = TuningRun(Calibration(EPS, SMOOTH, samples=2, shape=(4,)))
    ranking = rank_plans(loss, [steps_of("ddim")], run, Rounds(4, (4,)), None)
    return {
        "samples": draw(model, steps_of("ddpm"), 7, 3, 2, lambda samples: None),
        "distances": judge.per_sample(steps_of("ddim")),
        "energy distances": judge.per_sample(steps_of("ddpm")),
        "features": features_of_all(lambda x: x.square(), noise),
        "losses": loss.per_pair(steps_of("ddim"), torch.arange(7)),
        "losses of one pair": loss.per_pair(steps_of("ddim"), torch.arange(1)),
        "own samples": Calibration(EPS, SMOOTH, samples=5, shape=(4,)).x0,
        "ranking": torch.tensor([one.loss for one in ranking]),
    }


def work() -> tuple[dict[str, Tensor], dict[str, dict[str, Any]]]:
    plans = {
        name: {
            "numbers": torch.cat([plan.t, plan.tau, *([] if plan.corrections is None else plan.corrections)]),
            "calls": {purpose: cost["calls"] for purpose, cost in plan.provenance["cost"].items()},
        }
        for name, plan in tuned().items()
    }
    return measured(), plans


@pytest.fixture(scope="module")
def alone() -> Any:
    return work()


@pytest.fixture(scope="module", params=SIZES)
def several(request: pytest.FixtureRequest) -> Any:
    return together(request.param, work)


def test_values_of_samples_do_not_depend_on_the_number_of_processes(alone: Any, several: Any) -> None:
    expected, _ = alone
    for found, _ in several:
        for name, values in expected.items():
            torch.testing.assert_close(found[name], values, rtol=1e-5, atol=1e-6, msg=name)


@pytest.mark.parametrize("name", TUNED)
def test_plans_do_not_depend_on_the_number_of_processes(name: str, alone: Any, several: Any) -> None:
    """Nor do the network calls of each process, where the samples of a call are divided."""
    _, expected = alone
    for _, found in several:
        torch.testing.assert_close(found[name]["numbers"], expected[name]["numbers"], rtol=0, atol=1e-6)
        if name != "parallel":  # whose batch is of each process, so that several hold more steps in a call
            assert found[name]["calls"] == expected[name]["calls"]


def exchanged() -> dict[str, Any]:
    whole = torch.arange(5, dtype=torch.bfloat16).view(5, 1)
    own = torch.arange(3.0) * rank() if rank() == 0 else None
    return {
        "processes": num_processes(),
        "gathered": gathered(whole[share(5)], 5).flatten().tolist(),
        "gathered of fewer": gathered(1j * whole[share(2)].float(), 2).flatten().tolist(),
        "summed": float(summed(torch.tensor(1.0 + rank()))),
        "decided": [decided(rank()), decided([rank(), "x" * 100]), decided(None), decided(True)],
        "from first": from_first(own).tolist(),  # type: ignore[union-attr]
        "none": from_first(None),
    }


def test_what_processes_exchange() -> None:
    assert together(3, exchanged) == 3 * [
        {
            "processes": 3,
            "gathered": [0, 1, 2, 3, 4],
            "gathered of fewer": [0, 1j],
            "summed": 6.0,
            "decided": [0, [0, "x" * 100], None, True],
            "from first": [0, 0, 0],
            "none": None,
        }
    ]


def clocks() -> list[Any]:
    """What a budget of 10 s leaves after 6 s by the clock of process 0, and 6000 s by that of another one."""
    now = [0.0]
    base.time = SimpleNamespace(monotonic=lambda: now[0])  # type: ignore[assignment]
    run = TuningRun(budget=Budget(seconds=10.0))
    now[0] = 6.0 * (1 + 999 * rank())
    return [run.seconds, run.spent_share, run.can_afford(1), run.can_afford(1, 5.0)]


def test_the_clock_of_the_first_process_decides() -> None:
    assert together(2, clocks) == 2 * [[6.0, 0.6, True, False]]


def files(folder: Path) -> Plan:
    joint = Joint(pairs=24, iterations=2, candidates=1, teacher_cache=folder / "teacher.safetensors")
    plan = tune(EPS, steps_of("ddim"), joint, shape=(4,), guard=False, checkpoint=folder / "plan.partial")
    plan.save(folder / f"plan-{rank()}.json")
    return plan


def test_the_first_process_alone_writes_and_reads(tmp_path: Path) -> None:
    first, again = together(2, files, tmp_path), together(2, files, tmp_path)
    assert files_of(tmp_path) == ["plan-0.json", "plan.partial", "teacher.safetensors"]
    assert len({str(plan.to_dict()) for plan in [*first, *again]}) == 1


def dies() -> None:
    if rank() == 1:
        os._exit(1)
    gathered(torch.ones(1), 2)


def test_a_process_that_dies_ends_the_others_with_an_error() -> None:
    with pytest.raises(ConnectionError, match="process 0 has lost another one"):
        together(2, dies)


def differs() -> None:
    check_same({"step": rank()}, "state after step 1")


def test_processes_that_do_not_do_the_same_end_with_an_error() -> None:
    with pytest.raises(RuntimeError, match="process 1 has another state after step 1 than process 0"):
        together(2, differs)


def published() -> None:
    TimeTuner(EPS, SMOOTH).optimize_timesteps([{"image": torch.zeros(4, 4)}], num_steps=3)


def test_the_published_interface_is_refused_in_several_processes() -> None:
    with pytest.raises(ValueError, match="optimize_timesteps is for one process"):
        together(2, published)


def test_work_of_a_program_without_torchrun_is_not_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(ValueError, match="start the program with torchrun"):
        share_work()
    assert num_processes() == 1


LAUNCHERS = {
    "torchrun": ("torch.distributed.run", "--nproc-per-node", "--master-addr", "--master-port"),
    "accelerate": ("accelerate.commands.launch", "--num_processes", "--main_process_ip", "--main_process_port"),
}


def launched(launcher: str, processes: int, *words: str, folder: Path) -> subprocess.CompletedProcess[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    program, number, address, at = LAUNCHERS[launcher]
    command = [sys.executable, "-m", program, number, str(processes), address, "127.0.0.1", at, str(port)]
    if launcher == "accelerate" and processes > 1:
        command += ["--multi_gpu"]  # on the CPU it would start them by MPI alone
    command += ["-m", "time_tuner", *words]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=240)


@pytest.mark.slow
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_commands_run_in_several_processes(launcher: str, tmp_path: Path) -> None:
    """The same plan, samples and report by one process and by two; one line of results, not two."""
    reports = []
    for n in (1, 2):
        tuner = "joint(pairs=16, iterations=2, candidates=1)"
        for words, wrote in (
            (["tune", "--sampler", "ddim", "--calls", "3", "--method", tuner, "--samples", "8"], f"plan-{n}.json"),
            (["sample", "--sampler", "ddpm", "--calls", "3", "-n", "5"], f"samples-{n}.npz"),
            (["evaluate", "--calls", "2", "--against", "ddim", "-n", "8", "--budget", "none"], f"report-{n}"),
        ):
            done = launched(launcher, n, *words, "--model", "gaussian", "--out", wrote, folder=tmp_path)
            assert done.returncode == 0, done.stderr
            lines = [line for line in done.stdout.splitlines() if line.startswith("wrote ")]
            assert any(wrote in line for line in lines) and len(set(lines)) == len(lines)
        report = json.loads((tmp_path / f"report-{n}" / "report.json").read_text())
        reports.append({name: value for name, value in report.items() if name not in ("command", "environment")})
    one, two = (Plan.load(tmp_path / f"plan-{n}.json") for n in (1, 2))
    torch.testing.assert_close(one.tau, two.tau, rtol=0, atol=1e-6)
    assert (tmp_path / "samples-1.npz").read_bytes() == (tmp_path / "samples-2.npz").read_bytes()
    assert reports[0] == reports[1]
