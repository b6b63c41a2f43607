"""The objectives of the sequential and the parallel tuner, side by side on exact digits.

    python benchmarks/objectives.py [--calls 5 10 20] [--grids leading quadratic] [--json out.json]

For each grid, number of calls and strategy, DDIM tuned on 256 samples: the mean distance to the end of a 100-call run
from the same noise, of the untuned plan, of the plan without the guard and, behind the arrow, with the
guard; and the Frechet distance of 4000 samples of the latter to fresh data. Nothing was tuned or guarded on
the noise of the measurement. Under the table it counts the unguarded plans that are better than untuned.
"""

import argparse
from pathlib import Path
from typing import Any

from problems import PROBLEMS, Problem
from record import write
from rich.console import Console
from rich.table import Table

from time_tuner import make_plan, tune
from time_tuner.tuners import OBJECTIVES

STRATEGIES = ("sequential", "parallel")


def measure(problem: Problem, grid: str, calls: int, strategy: str, samples: int) -> dict[str, Any]:
    """One row."""
    untuned = make_plan("ddim", problem.schedule, calls, grid)
    row: dict[str, Any] = {"grid": grid, "calls": calls, "strategy": strategy}
    row |= {"untuned": problem.distance(untuned), "fd_untuned": problem.frechet(untuned)}
    for objective in OBJECTIVES:
        for name, guard in (("unguarded", False), ("guarded", True)):
            plan = tune(
                problem.model, untuned, f"{strategy}(objective={objective})", problem.data(4096, 0), guard=guard,
                samples=samples,
            )  # fmt: skip
            row[f"{name}_{objective}"] = problem.distance(plan)
        row[f"fd_{objective}"] = problem.frechet(plan)
    return row


def main(grids: list[str], calls: list[int], samples: int, out: Path | None) -> None:
    problem = PROBLEMS["digits"]()
    table, rows = Table("grid, K", "strategy", "untuned", *OBJECTIVES, title="distance: unguarded -> guarded, FD"), []
    for grid in grids:
        for k in calls:
            for strategy in STRATEGIES:
                row = measure(problem, grid, k, strategy, samples)
                rows.append(row)
                shown = [
                    f"{row[f'unguarded_{name}']:.3f} -> {row[f'guarded_{name}']:.3f}, FD {row[f'fd_{name}']:.3f}"
                    for name in OBJECTIVES
                ]
                untuned = f"{row['untuned']:.3f}, FD {row['fd_untuned']:.3f}"
                table.add_row(f"{grid}, {k}", strategy, untuned, *shown)
                print(row, flush=True)
    Console(width=180).print(table)
    for name in OBJECTIVES:
        better = sum(row[f"unguarded_{name}"] < row["untuned"] for row in rows)
        print(f"{name}: the unguarded plan is better than untuned in {better} of {len(rows)}")
    write(out, rows)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--grids", nargs="+", default=["leading", "quadratic"])
    parser.add_argument("--calls", nargs="+", type=int, default=[5, 10, 20])
    parser.add_argument("--samples", type=int, default=256)
    parser.add_argument("--json", dest="out", type=Path, default=None)
    main(**vars(parser.parse_args()))
