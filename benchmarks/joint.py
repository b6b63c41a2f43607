"""Joint tuning on exact digits: quality against calls, cost, parts, samplers, transfer to other numbers of calls.

    python benchmarks/joint.py [calls cost parts samplers transfer teachers memory] [--seeds 3] [--json out.json]

FD is the Frechet distance of 4000 samples to 4000 fresh draws of the data in raw pixels, the mean of eight such pairs
(one alone deviates by 0.007). No noise of the measurement is used in tuning. Evaluations are batch x forward, a
backward as two; the teacher's are not among them.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import torch
from problems import SUBSETS, exact_digits, linear_schedule
from rich.console import Console
from rich.table import Table
from torch import Tensor

from time_tuner import SAMPLERS, Joint, Plan, SeededNoise, load_model, make_plan, sample, tune
from time_tuner.metrics import distance, frechet_between
from time_tuner.models.base import Model
from time_tuner.models.checkpointing import CheckpointedModel, kept_bytes
from time_tuner.plans import resample
from time_tuner.samplers.dpmpp import DPMSolverPP
from time_tuner.samplers.unipc import UniPC
from time_tuner.tuners import reference_plan
from time_tuner.tuners.joint.loss import TimeGradients, run_each
from time_tuner.tuners.joint.parameters import Parameters
from time_tuner.tuners.joint.teacher import usual_teacher

DATA, SCHEDULE = exact_digits(), linear_schedule()
EPS = DATA.eps(SCHEDULE)
FRESH = [DATA.sample(4000, 10**7 + i) for i in range(8)]
NOISE = [SeededNoise(3 * 10**9 + i * 10**5)(torch.empty(4000, 64)) for i in range(8)]
TUNING: dict[str, Any] = {"shape": (64,), "guard": False}
ITERATIONS, PAIRS = 800, 1024
UNTUNED = (("ddim", "quadratic"), ("dpmpp", "quadratic"), ("unipc", "quadratic"))


def frechet(plan: Plan) -> float:
    """FD of a plan's samples."""
    ends = [sample(EPS, plan, plan.initial_state(x)).double() for x in NOISE]
    return statistics.mean(map(frechet_between, ends, FRESH))


def tuned(plan: Plan, seed: int = 0, iterations: int = ITERATIONS, **options: Any) -> tuple[Plan, float, int]:
    """The tuned plan, the seconds of tuning, and its sample evaluations."""
    began = time.perf_counter()
    tuner = Joint(pairs=PAIRS, iterations=iterations, **options)
    made = tune(EPS, plan, tuner, seed=seed, **TUNING)
    return made, time.perf_counter() - began, made.provenance["cost"]["tuning"]["evaluations"]


def spread(values: list[float]) -> str:
    """Mean and standard deviation."""
    return f"{statistics.mean(values):.4f} +- {statistics.pstdev(values):.4f}"


def calls(table: Table, seeds: int) -> list[dict[str, Any]]:
    """Tuned from DDIM on the quadratic grid, beside untuned samplers."""
    rows = []
    for name in ("calls", *(f"{name} untuned" for name, _ in UNTUNED), "joint", "seconds", "evaluations"):
        table.add_column(name, justify="right")
    for k in (3, 4, 5, 6, 8, 10):
        baselines = [frechet(make_plan(name, SCHEDULE, k, spacing)) for name, spacing in UNTUNED]
        plan = make_plan("ddim", SCHEDULE, k, "quadratic")
        found = [tuned(plan, seed) for seed in range(seeds)]
        distances = [frechet(plan) for plan, _, _ in found]
        seconds, spent = max(s for _, s, _ in found), max(n for _, _, n in found)
        rows.append({"calls": k, "untuned": baselines, "joint": distances, "seconds": seconds, "evaluations": spent})
        table.add_row(str(k), *(f"{b:.3f}" for b in baselines), spread(distances), f"{seconds:.0f}", f"{spent:,}")
    teacher = usual_teacher(make_plan("ddim", SCHEDULE, 5, "quadratic"))
    draws = statistics.mean(frechet_between(a, b) for a, b in zip(FRESH, [*FRESH[1:], FRESH[0]], strict=True))
    table.caption = f"teacher ({len(teacher)} calls) {frechet(teacher):.4f}; two fresh draws of the data {draws:.4f}"
    return rows


def cost(table: Table, seeds: int) -> list[dict[str, Any]]:
    """Quality against the number of iterations, in 5 calls."""
    rows = []
    for name in ("iterations", "evaluations", "seconds", "FD"):
        table.add_column(name, justify="right")
    for iterations in (20, 60, 200, 400, 1200):
        found = [tuned(make_plan("ddim", SCHEDULE, 5, "quadratic"), seed, iterations) for seed in range(seeds)]
        distances = [frechet(plan) for plan, _, _ in found]
        rows.append({"iterations": iterations, "evaluations": found[0][2], "joint": distances})
        table.add_row(str(iterations), f"{found[0][2]:,}", f"{found[0][1]:.0f}", spread(distances))
    return rows


def parts(table: Table, seeds: int) -> list[dict[str, Any]]:
    """Each part of joint tuning alone and together, in 200 iterations, beside the two strategies of TimeTuner."""
    rows = []
    for name in ("tuned", "ddim, 5 calls", "dpmpp, 5 calls", "ddim, 10 calls"):
        table.add_column(name, justify="right")
    starts = [("ddim", 5), ("dpmpp", 5), ("ddim", 10)]
    plans = [make_plan(name, SCHEDULE, k, "quadratic") for name, k in starts]

    def row(name: str, make: Callable[[Plan, int], Plan]) -> None:
        distances = [[frechet(make(plan, seed)) for seed in range(seeds)] for plan in plans]
        rows.append({"tuned": name, "frechet": distances})
        table.add_row(name, *map(spread, distances))

    row("nothing", lambda plan, seed: plan)
    for tuner in ("sequential", "parallel"):
        row(tuner, lambda plan, seed, tuner=tuner: tune(EPS, plan, tuner, seed=seed, shape=(64,)))  # type: ignore[misc]
    for names in SUBSETS:
        row(" + ".join(names), lambda plan, seed, names=names: tuned(plan, seed, 200, parts=names, candidates=1)[0])  # type: ignore[misc]
    return rows


def samplers(table: Table, seeds: int) -> list[dict[str, Any]]:
    """From every deterministic sampler, without further candidates."""
    rows = []
    for name in ("sampler", "calls", "untuned", "joint", "validation loss"):
        table.add_column(name, justify="right")
    for name in SAMPLERS:
        for k in (5, 6):
            try:
                plan = make_plan(name, SCHEDULE, k, "quadratic")
            except ValueError:  # Heun takes its calls in pairs
                continue
            break
        if plan.stochastic:
            continue
        found = [tuned(plan, seed, candidates=1)[0] for seed in range(seeds)]
        values = list(map(frechet, found))
        losses = [each.provenance["validation_loss"]["tuned"] for each in found]
        rows.append({"sampler": name, "calls": len(plan), "joint": values, "loss": losses})
        table.add_row(name, str(len(plan)), f"{frechet(plan):.3f}", spread(values), spread(losses))
    return rows


def transfer(table: Table, seeds: int) -> list[dict[str, Any]]:
    """A grid tuned for 8 calls, alone and with its ratios, used for other numbers of calls without tuning."""
    rows = []
    kinds = {"times": ("times",), "times + tau": ("times", "tau")}
    for name in ("calls", "untuned", *(f"{kind}, {how}" for kind in kinds for how in ("from 8", "tuned"))):
        table.add_column(name, justify="right")
    eight = make_plan("dpmpp", SCHEDULE, 8, "quadratic")
    sources = {kind: tuned(eight, parts=parts)[0] for kind, parts in kinds.items()}
    for k in (4, 5, 6, 10, 12, 16):
        plan = make_plan("dpmpp", SCHEDULE, k, "quadratic")
        row = {"untuned": frechet(plan)}
        for kind, parts in kinds.items():
            row[f"{kind}, from 8"] = frechet(resample(sources[kind], k))
            row[f"{kind}, tuned"] = frechet(tuned(plan, parts=parts)[0])
        rows.append({"calls": k, **row})
        table.add_row(str(k), *(f"{value:.4f}" for value in row.values()))
    return rows


def teachers(table: Table, seeds: int) -> list[dict[str, Any]]:
    """The distance of many calls to 300 calls: exact digits; 40 samples of the network, also with guidance 2."""
    rows = []
    for name in ("calls", "sampler", "exact digits", "network", "guidance 2"):
        table.add_column(name, justify="right")
    problems = [(EPS, SCHEDULE, NOISE[0])]
    for scale in (1.0, 2.0):
        model = load_model("digits", [i % 10 for i in range(40)], scale)
        problems.append((model, model.schedule, SeededNoise(99)(torch.empty(40, *model.shape))))
    ends = [sample(eps, reference_plan(schedule, schedule.t_min, 300), x) for eps, schedule, x in problems]
    for k, sampler in product((20, 30, 40, 60), (DPMSolverPP(2), DPMSolverPP(3), UniPC(2), UniPC(3))):
        apart = [
            float(distance(sample(eps, reference_plan(schedule, schedule.t_min, k, sampler), x), end).mean())
            for (eps, schedule, x), end in zip(problems, ends, strict=True)
        ]
        rows.append({"calls": k, "sampler": repr(sampler), "distance": apart})
        table.add_row(str(k), f"{type(sampler).__name__}({sampler.order})", *(f"{each:.4f}" for each in apart))
    return rows


def memory(table: Table, seeds: int) -> list[dict[str, Any]]:
    """The activations that 16 runs of the network keep for the backward pass, in MB, all or one call at a time."""
    rows = []
    for name in ("calls", "kept", "one call at a time"):
        table.add_column(name, justify="right")
    model = load_model("digits")
    x = SeededNoise(0)(torch.empty(16, *model.shape))
    for k in (2, 4, 8, 16):
        parameters = Parameters(make_plan("ddim", model.schedule, k, "quadratic"))
        sizes = [kept(through(model), parameters, x) / 2**20 for through in (lambda eps: eps, CheckpointedModel)]
        rows.append({"calls": k, "kept": sizes[0], "checkpointed": sizes[1]})
        table.add_row(str(k), *(f"{size:.1f}" for size in sizes))
    return rows


def kept(eps: Model, parameters: Parameters, x: Tensor) -> int:
    """The bytes that a run keeps for its backward pass."""
    plan, numbers, _ = parameters.linear(torch.zeros(len(parameters), dtype=torch.float64))
    return kept_bytes(lambda: run_each(eps, plan, x, numbers, parameters.pairs, TimeGradients(exact=True))[0])


SECTIONS: dict[str, Callable[[Table, int], list[dict[str, Any]]]] = {
    each.__name__: each for each in (calls, cost, parts, samplers, transfer, teachers, memory)
}


def main(sections: list[str], seeds: int, out: Path | None) -> None:
    results = {}
    for name in sections or SECTIONS:
        table = Table(title=f"{name}: {SECTIONS[name].__doc__}", title_justify="left")
        results[name] = SECTIONS[name](table, seeds)
        Console(width=130).print(table)
    if out is not None:
        out.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sections", nargs="*", metavar="SECTION", help=", ".join(SECTIONS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--json", dest="out", type=Path, default=None)
    main(**vars(parser.parse_args()))
