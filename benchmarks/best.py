"""The best plan of a number of calls, as `tune(model, calls=...)` finds it, beside the best untuned plan there is.

    python benchmarks/best.py [--problems digits patches] [--calls 3 4 5 6 8 10] [--seeds 3] [--json best.json]

For each problem of `problems.py` and each number of calls: every deterministic sampler and order on every spacing, also
with late beginnings, ranked on noise of their own, of which the three nearest are measured; what `tune` finds by
default in a budget of network calls, by seed; least squares alone, with their own start; and the teacher. All are
measured on noise that nothing was ranked or tuned on: the mean distance to the end of a 100-call run from the same
noise, and the Frechet distance of samples to the data.

"worse" are the rows where the tuned plan is farther than the best untuned one by more than the standard error of their
difference. "left" is the share of the best untuned plan's excess over the teacher's Frechet distance that is left. A
file that exists is continued.
"""

import argparse
import math
import time
from itertools import product
from pathlib import Path
from typing import Any

import torch
from problems import PROBLEMS, Problem, ranked
from record import read, write
from rich.console import Console
from rich.table import Table

from time_tuner import Plan, tune
from time_tuner.tuners import Calibration, LeastSquares
from time_tuner.tuners.joint.teacher import usual_teacher

SHOWN = 3  # untuned plans that are measured


def per_sample(problem: Problem, plan: Plan) -> torch.Tensor:
    return problem.reference(float(plan.t[-1])).per_sample(plan)


def best_untuned(problem: Problem, calls: int, samples: int) -> tuple[str, Plan, torch.Tensor]:
    """The name, the plan and the distances of the nearest untuned plan."""
    nearest = [(name, plan, per_sample(problem, plan)) for _, name, plan in ranked(problem, calls, samples)[:SHOWN]]
    return min(nearest, key=lambda one: float(one[2].mean()))


def row_of(
    problem: Problem, calls: int, seed: int, budget: str, untuned: tuple[str, Plan, torch.Tensor]
) -> dict[str, Any]:
    name, plan, before = untuned
    exact = problem.drawn > 1000
    calibration = Calibration(problem.model, problem.schedule, None, 256 if exact else 64, seed, problem.model.shape)
    began = time.monotonic()
    found = tune(problem.model, calls=calls, data=calibration, budget=budget)
    seconds = time.monotonic() - began
    after = per_sample(problem, found)
    lines = LeastSquares(128 if exact else 64)
    rows = tune(problem.model, calls=calls, tuner=lines, data=calibration, guard=False) if calls > 1 else found
    start = per_sample(problem, rows.with_corrections(None))
    gain = before - after
    error = float(gain.std()) / math.sqrt(len(gain))
    return {
        "problem": problem.name,
        "calls": calls,
        "seed": seed,
        "untuned": name,
        "distance": {"untuned": float(before.mean()), "tuned": float(after.mean()), "error": error},
        "least squares": {"untuned": float(start.mean()), "tuned": float(per_sample(problem, rows).mean())},
        "frechet": {
            "untuned": problem.frechet(plan),
            "tuned": problem.frechet(found),
            "teacher": problem.frechet(usual_teacher(found)),
        },
        "ranked": found.provenance["untuned_plans"],
        "evaluations": sum(cost["evaluations"] for cost in found.provenance["cost"].values()),
        "seconds": seconds,
    }  # fmt: skip


def shown(rows: list[dict[str, Any]]) -> Table:
    """A line for each problem and number of calls, with the mean and the worst of the seeds."""
    table = Table("problem", "calls", "untuned", "tuned", "worst", "FD untuned", "tuned", "teacher", "left", "worse")
    for name, calls in dict.fromkeys((row["problem"], row["calls"]) for row in rows):
        some = [row for row in rows if (row["problem"], row["calls"]) == (name, calls)]
        distances, frechet = [row["distance"] for row in some], [row["frechet"] for row in some]
        tuned = [one["tuned"] for one in distances]
        mean = {key: sum(one[key] for one in frechet) / len(some) for key in ("untuned", "tuned", "teacher")}
        excess = mean["untuned"] - mean["teacher"]
        left = f"{(mean['tuned'] - mean['teacher']) / excess:.2f}" if excess > 0 else "-"
        worse = sum(one["tuned"] - one["untuned"] > one["error"] for one in distances)
        numbers = (distances[0]["untuned"], sum(tuned) / len(tuned), max(tuned), *mean.values())
        table.add_row(name, str(calls), *(f"{number:.3f}" for number in numbers), left, f"{worse} of {len(some)}")
    return table


def main(problems: list[str], calls: list[int], seeds: int, budget: str, samples: int | None, out: Path | None) -> None:
    rows = read(out)
    for name, count in product(problems, calls):
        problem, untuned = PROBLEMS[name](), None
        for seed in range(seeds):
            if any((row["problem"], row["calls"], row["seed"]) == (problem.name, count, seed) for row in rows):
                continue
            untuned = untuned or best_untuned(problem, count, samples or (64 if problem.drawn > 1000 else 16))
            rows.append(row_of(problem, count, seed, budget, untuned))
            print(rows[-1], flush=True)
            write(out, rows)
    Console(width=130).print(shown(rows))
    lines = [row["least squares"] for row in rows]
    better = sum(one["tuned"] < one["untuned"] for one in lines)
    print(f"least squares alone are nearer than their own start in {better} of {len(lines)} rows")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problems", nargs="+", choices=PROBLEMS, default=list(PROBLEMS))
    parser.add_argument("--calls", nargs="+", type=int, default=[3, 4, 5, 6, 8, 10])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--budget", default="4000calls", help="of tuning, for each seed")
    parser.add_argument("--samples", type=int, help="that the untuned plans are ranked on; 64, of networks 16")
    parser.add_argument("--json", dest="out", type=Path, default=None)
    main(**vars(parser.parse_args()))
