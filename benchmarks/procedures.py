"""The procedures of other papers, as settings of our tuners and spacings, beside ours, on equal budgets.

    python benchmarks/procedures.py [--problems digits] [--calls 3 4 5 6 8 10] [--seeds 3] [--json peers.json]

For each problem, number of calls and seed: the mean distance to the end of a 100-call run from the same noise, and the
Frechet distance of samples to the data, on noise that nothing was ranked or tuned on.

Every procedure that tunes has the same budget of network calls of 64 samples. A procedure that chooses a grid alone has
the sampler that is nearest on it, on the noise of the ranking; one that starts from a plan has the nearest untuned plan
of its own samplers, as the papers choose samplers, orders and first grids for each network. Ours finds its start in its
budget. No plan has been set back by a guard.

These are our own implementations. What a paper tunes is tuned as it says; the optimiser is ours, Gauss-Newton in place
of Adam or RMSprop, with the same gradients through the whole run. A file that exists is continued.
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from dmn import dmn
from problems import PROBLEMS, RANKED_ON, Problem, ranked
from record import of_peers, read, write

from time_tuner import Joint, LeastSquares, Plan, Sequential, make_plan, tune
from time_tuner.tuners import Calibration, Tuner
from time_tuner.tuners.grids import curvature, gits, oss

SAMPLERS = ("ddim", "ipndm(order=2)", "ipndm(order=3)", "dpmpp", "dpmpp(order=3)", "unipc", "unipc(order=3)")
SAMPLES = 64  # of a network call, to tune on
Table = list[tuple[float, str, Plan]]
"""The untuned plans of a problem with their distances and names, the nearest first."""


@dataclass(frozen=True)
class Task:
    """What a procedure makes a plan for."""

    problem: Problem
    calls: int
    seed: int
    budget: str
    untuned: Table

    @property
    def calibration(self) -> Calibration:
        model = self.problem.model
        return Calibration(model, self.problem.schedule, None, SAMPLES, self.seed, model.shape)

    def nearest(self, *samplers: str) -> Plan:
        """The nearest untuned plan of these samplers, by the beginnings of their names."""
        return next(plan for _, name, plan in self.untuned if not samplers or name.lower().startswith(samplers))

    def tuned(self, tuner: Tuner, *samplers: str) -> Plan:
        """The nearest plan of these samplers, tuned from there alone."""
        return tune(self.problem.model, self.nearest(*samplers), tuner, self.calibration, guard=False,
                    budget=self.budget)  # fmt: skip


def published(task: Task) -> Plan:
    """TimeTuner as published: the sequential strategy on DDIM, on its own grid."""
    plan = make_plan("ddim", task.problem.schedule, task.calls, "leading")
    return tune(task.problem.model, plan, Sequential(objective="published"), task.calibration, guard=False,
                budget=task.budget)  # fmt: skip


def on_grid(task: Task, spacing: Any) -> Plan:
    """The plan on a grid of the sampler that is nearest there, on the noise of the ranking."""
    plans = [make_plan(sampler, task.problem.schedule, task.calls, spacing) for sampler in SAMPLERS]
    return min(plans, key=lambda plan: task.problem.reference(float(plan.t[-1]), 64, RANKED_ON)(plan))


PROCEDURES: dict[str, tuple[str, Callable[[Task], Plan]]] = {
    "best untuned": ("the nearest of all untuned plans", lambda task: task.nearest()),
    "DMN": ("the nearest sampler on the grid of `dmn.py`", lambda task: on_grid(task, dmn)),
    "AYS": ("the nearest sampler on `kl_optimal`, its closed form, as its optimiser is not published",
            lambda task: on_grid(task, "kl_optimal")),
    "GITS": ("the nearest sampler on `gits`", lambda task: on_grid(task, gits(task.problem.model, seed=task.seed))),
    "OSS": ("the nearest sampler on `oss`", lambda task: on_grid(task, oss(task.problem.model, seed=task.seed))),
    "curvature": ("the nearest sampler on `curvature`",
                  lambda task: on_grid(task, curvature(task.problem.model, seed=task.seed))),
    "TimeTuner": ("`sequential(objective=published)`, DDIM on `leading`", published),
    "LD3": ("`joint(parts=(times, tau), candidates=1)`, UniPC, DPM-Solver++ or iPNDM",
            lambda task: task.tuned(Joint(("times", "tau"), candidates=1), "unipc", "dpmsolverpp", "ipndm")),
    "GS": ("`joint(candidates=1)`, DPM-Solver++", lambda task: task.tuned(Joint(candidates=1), "dpmsolverpp")),
    "DyWeight": ("`joint(candidates=1)`, iPNDM; the sums of its weights move times",
                 lambda task: task.tuned(Joint(candidates=1), "ipndm")),
    "ours, nearest start": ("`joint`, from the nearest plan, which is given", lambda task: task.tuned(Joint())),
    "ours, least squares": ("`least_squares`, from the nearest plan", lambda task: task.tuned(LeastSquares())),
    "ours": ("`tune(model, calls=...)`",
             lambda task: tune(task.problem.model, calls=task.calls, data=task.calibration, guard=False,
                               budget=task.budget)),
}  # fmt: skip
"""Every procedure by its name: what it is here, and what it makes."""


def main(
    problems: list[str], calls: list[int], seeds: int, budget: str, samples: int, only: list[str], out: Path | None
) -> None:
    rows = read(out)
    done = {(row["problem"], row["calls"], row["seed"], row["procedure"]) for row in rows}
    for name in problems:
        problem: Problem = PROBLEMS[name]()
        tables: dict[int, Table] = {}
        for seed, count, procedure in product(range(seeds), calls, only):
            if (problem.name, count, seed, procedure) in done:
                continue
            if count not in tables:
                tables[count] = ranked(problem, count, samples)
            setting, made = PROCEDURES[procedure]
            about = {"problem": problem.name, "calls": count, "seed": seed, "procedure": procedure, "setting": setting}
            try:
                plan = made(Task(problem, count, seed, budget, tables[count]))
            except (ValueError, StopIteration) as error:
                print(f"{about}: {error}", flush=True)  # no such plan of so many calls
                continue
            rows.append({**about, "distance": problem.distance(plan), "frechet": problem.frechet(plan)})
            print(rows[-1], flush=True)
            write(out, rows)
    for problem_name in dict.fromkeys(row["problem"] for row in rows):
        some = [row for row in rows if row["problem"] == problem_name]
        print(f"\n{problem_name}, distance\n\n{of_peers(some)}\n{problem_name}, FD\n\n{of_peers(some, 'frechet')}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problems", nargs="+", choices=PROBLEMS, default=["digits"])
    parser.add_argument("--calls", nargs="+", type=int, default=[3, 4, 5, 6, 8, 10])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--budget", default="2000calls", help="of each procedure that tunes")
    parser.add_argument("--samples", type=int, default=64, help="that the untuned plans are ranked on")
    parser.add_argument("--only", nargs="+", choices=PROCEDURES, default=list(PROCEDURES))
    parser.add_argument("--json", dest="out", type=Path, default=None)
    main(**vars(parser.parse_args()))
