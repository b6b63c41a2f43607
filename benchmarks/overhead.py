"""What a run costs besides the network: 20 calls of a network that costs nothing, ours and diffusers' loop by turns.

    python benchmarks/overhead.py [--rounds 200] [--batches 1 64] [--json out.json]

The state is (B, 4, 64, 64) in float32, on one CPU thread. "bare" is the tensor arithmetic of the sampler written by
hand, with its coefficients as numbers and every x0 computed once; "advance" is the library's loop without the checks of
`sample`, and "scheduler" a TimeTunerScheduler in diffusers' loop, which is to cost at most 1.5 of "advance" and 0.7 of
diffusers' own; "tuned" is a plan tuned in times and tau, and "with
corrections" one with all K (K - 1) / 2 of them. Milliseconds a run, the median of the rounds; ratios are of medians.
"""

import argparse
import random
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, UniPCMultistepScheduler
from problems import linear_schedule
from record import write
from rich.console import Console
from rich.table import Table
from torch import Tensor

from time_tuner import SAMPLERS, Plan, make_plan, sample
from time_tuner.diffusers import TimeTunerScheduler
from time_tuner.samplers import Evaluation
from time_tuner.samplers.unipc import UniPC
from time_tuner.sampling import advance

CALLS = 20
RUNS: dict[str, Any] = {
    "ddim": lambda: DDIMScheduler(clip_sample=False, timestep_spacing="trailing"),
    "dpmpp": lambda: DPMSolverMultistepScheduler(timestep_spacing="trailing"),
    "unipc": lambda: UniPCMultistepScheduler(timestep_spacing="trailing"),
}
Run = Callable[[Tensor, Tensor], Tensor]


def weights(update: Callable[[tuple[Evaluation, ...]], Tensor], points: list[Any]) -> list[float]:
    """The weights of an update on the newest x and on the x0 of the points, the newest first."""
    unit = torch.eye(1 + len(points), dtype=torch.float64)
    past = []
    for i, p in enumerate(reversed(points)):
        x, x0 = unit[0] * (i == len(points) - 1), unit[len(points) - i]
        past.append(Evaluation(x, (x - p.alpha * x0) / p.sigma, p))
    found: list[float] = update(tuple(past)).tolist()
    return found


def bare(plan: Plan) -> Run:
    """The arithmetic by hand: x0 = x / alpha - sigma / alpha eps, then sums of x and of the last x0."""
    sampler, count = plan.sampler, len(plan)
    steps: list[tuple[float, float, list[float], list[float]]] = []
    saw = 0
    for k in range(count):
        p, q = plan.point(k), plan.point(k + 1)
        corrected: list[float] = []
        if isinstance(sampler, UniPC) and k:
            # In what was seen before the step, and x0 here: as the order conditions have it, newest x0 first.
            points = [plan.point(i) for i in range(k - 1, k - 1 - saw, -1)]
            unit = torch.eye(2 + saw, dtype=torch.float64)
            past = [Evaluation(unit[0], (unit[0] - r.alpha * unit[2 + i]) / r.sigma, r) for i, r in enumerate(points)][
                ::-1
            ]
            end = Evaluation(unit[0], (unit[0] - p.alpha * unit[1]) / p.sigma, p)
            corrected = sampler.correct((*past, end)).tolist()  # type: ignore[union-attr]
        saw = sampler.look_back(k, 0, count)
        points = [plan.point(k - i) for i in range(saw)]
        if q.sigma == 0:
            following = [0.0, 1.0]
        else:
            following = weights(lambda past, q=q: sampler.step(past, q, torch.randn_like), points)  # type: ignore[misc]
        steps.append((float(1 / p.alpha), float(-p.sigma / p.alpha), corrected, following))

    def combine(x: Tensor, data: list[Tensor], w: list[float]) -> Tensor:
        total = torch.mul(x, w[0])
        for number, tensor in zip(w[1:], data, strict=False):
            total.add_(tensor, alpha=number)
        return total

    def run(x: Tensor, eps: Tensor) -> Tensor:
        data: list[Tensor] = []
        before = x
        for to_x, to_eps, corrected, following in steps:
            data = [torch.mul(x, to_x).add_(eps, alpha=to_eps), *data[:2]]
            if corrected:
                x = combine(before, data, corrected)
            before = x
            x = data[0] if following[0] == 0 else combine(x, data, following)
        return x

    def ddim(x: Tensor, eps: Tensor) -> Tensor:
        for to_x, to_eps, _, (on_x, on_x0) in steps:
            x = torch.mul(x, on_x + on_x0 * to_x).add_(eps, alpha=on_x0 * to_eps)
        return x

    return ddim if len(steps[1][3]) == 2 else run


def ours(plan: Plan) -> Run:
    return lambda x, eps: sample(lambda *_: eps, plan, x)


def advancing(plan: Plan) -> Run:
    def run(x: Tensor, eps: Tensor) -> Tensor:
        past: tuple[Any, ...] = ()
        for k in range(len(plan)):
            x, past = advance(plan, k, past, x, eps, torch.randn_like)
        return x

    return run


class Theirs:
    """diffusers' loop, with a scheduler of theirs or ours; `set_timesteps` and the list of times are not counted."""

    def __init__(self, scheduler: Any) -> None:
        self.scheduler = scheduler

    def prepare(self) -> None:
        self.scheduler.set_timesteps(CALLS)
        self.timesteps = list(self.scheduler.timesteps)

    def __call__(self, x: Tensor, eps: Tensor) -> Tensor:
        for t in self.timesteps:
            x = self.scheduler.step(eps, t, self.scheduler.scale_model_input(x, t)).prev_sample
        return x


@torch.no_grad()
def measure(runs: dict[str, Any], batch: int, rounds: int) -> dict[str, float]:
    """The median of each run's milliseconds, all runs by turns."""
    draw = torch.Generator().manual_seed(0)
    x, eps = (torch.randn(batch, 4, 64, 64, generator=draw) for _ in range(2))
    order = random.Random(0)
    taken: dict[str, list[float]] = {name: [] for name in runs}
    for i in range(rounds + 3):
        for name in order.sample([*runs], len(runs)):  # nobody always finds the caches of the same one before
            run = runs[name]
            if isinstance(run, Theirs):
                run.prepare()
            begin = time.perf_counter()
            run(x, eps)
            if i >= 3:  # the first rounds warm up
                taken[name].append(1000 * (time.perf_counter() - begin))
    return {name: statistics.median(values) for name, values in taken.items()}


def main(rounds: int, batches: list[int], out: Path | None) -> None:
    torch.set_num_threads(1)
    schedule = linear_schedule()
    table = Table(title=f"{CALLS} calls of (B, 4, 64, 64), float32: milliseconds a run")
    for column in (
        "sampler", "B", "bare", "advance", "ours", "scheduler", "diffusers", "ours/ bare", "ours/ diffusers",
        "scheduler/ advance", "scheduler/ diffusers", "tuned/ ours", "with corrections",
    ):  # fmt: skip
        table.add_column(column, justify="right")
    rows = []
    for name, scheduler in RUNS.items():
        plan = make_plan(SAMPLERS[name](), schedule, calls=CALLS, spacing="trailing")
        ratios = torch.linspace(0.95, 1.0, CALLS, dtype=torch.float64)
        tuned = plan.with_times([*(0.999 * plan.step_times[:-1]), plan.step_times[-1]]).with_tau(plan.tau * ratios)
        corrected = plan.with_corrections(torch.full((CALLS, CALLS), 0.01, dtype=torch.float64).tril(-1))
        runs = {"bare": bare(plan), "ours": ours(plan), "diffusers": Theirs(scheduler()), "tuned": ours(tuned)}
        runs |= {"corrections": ours(corrected), "advance": advancing(plan)}
        runs["scheduler"] = Theirs(TimeTunerScheduler.from_plan(plan))
        x = torch.randn(1, 4, 64, 64, generator=torch.Generator().manual_seed(1))
        for own in ("diffusers", "scheduler"):
            runs[own].prepare()
        for other in ("bare", "diffusers", "scheduler", "advance"):  # all compute the same
            torch.testing.assert_close(runs[other](x, x * 0.5), runs["ours"](x, x * 0.5), rtol=1e-3, atol=1e-3)
        for batch in batches:
            ms = measure(runs, batch, max(10, rounds // batch) if batch > 1 else rounds)
            row = {"sampler": name, "batch": batch} | ms
            rows.append(row)
            table.add_row(
                name, str(batch),
                *(f"{ms[kind]:.3f}" for kind in ("bare", "advance", "ours", "scheduler", "diffusers")),
                f"{ms['ours'] / ms['bare']:.2f}", f"{ms['ours'] / ms['diffusers']:.2f}",
                f"{ms['scheduler'] / ms['advance']:.2f}", f"{ms['scheduler'] / ms['diffusers']:.2f}",
                f"{ms['tuned'] / ms['ours']:.2f}", f"{ms['corrections']:.3f}",
            )  # fmt: skip
    Console(width=140).print(table)
    write(out, rows)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 64])
    parser.add_argument("--json", dest="out", type=Path, default=None)
    main(**vars(parser.parse_args()))
