"""Corrections by least squares, on exact digits and on the bundled network.

    python benchmarks/least_squares.py [exact network] [--calls 3 4 5 6 8 10] [--pairs 256] [--json out.json]

For every deterministic sampler on the quadratic grid: the mean distance to the end of a 100-call run from the same
noise, and the Frechet distance of 4000 samples to 4000 fresh draws of the data, untuned and tuned, without the guard.
On the network, labels 0 to 9: the distance alone, for DDIM on the leading grid and for UniPC on the quadratic one.
Noise of the measurement is not that of the tuning. "better" counts the rows where the tuned run is nearer.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from problems import JUDGED_ON, PROBLEMS
from rich.console import Console
from rich.table import Table

from time_tuner import SAMPLERS, Plan, SeededNoise, load_model, make_plan, tune
from time_tuner.models.batching import BatchedModel
from time_tuner.tuners import Calibration, LeastSquares, ReferenceDistance

NETWORK_SAMPLES = 100


def plans(schedule: Any, calls: int) -> dict[str, Plan]:
    """Every deterministic sampler on the quadratic grid."""
    found: dict[str, Plan] = {}
    for name in SAMPLERS:
        try:
            plan = make_plan(name, schedule, calls, "quadratic")
        except ValueError:  # not for so many calls
            continue
        if not plan.stochastic:
            found[name] = plan
    return found


def tuned(plan: Plan, calibration: Calibration, pairs: int) -> Plan:
    return tune(calibration.model, plan, LeastSquares(pairs), calibration, guard=False)


def exact_rows(calls: list[int], pairs: int) -> list[dict[str, Any]]:
    problem, rows = PROBLEMS["digits"](), list[dict[str, Any]]()
    calibration = Calibration(problem.model, problem.schedule, None, 256, shape=(64,))

    def measured(plan: Plan) -> tuple[float, float]:
        return problem.distance(plan), problem.frechet(plan)

    for k in calls:
        for name, plan in plans(problem.schedule, k).items():
            before, after = measured(plan), measured(tuned(plan, calibration, pairs))
            values = {"distance": (before[0], after[0]), "FD": (before[1], after[1])}
            rows.append({"problem": "exact digits", "run": f"{name}:{k}@quadratic", **values})
            print(rows[-1], flush=True)
    return rows


def network_rows(calls: list[int], pairs: int) -> list[dict[str, Any]]:
    rows = list[dict[str, Any]]()
    model = BatchedModel(load_model("digits", [i % 10 for i in range(NETWORK_SAMPLES)]), 50)
    calibration = Calibration(model, model.schedule, None, NETWORK_SAMPLES, shape=model.shape)
    x = SeededNoise(JUDGED_ON)(torch.empty(NETWORK_SAMPLES, *model.shape))
    for sampler, spacing in (("ddim", "leading"), ("unipc", "quadratic")):
        for k in calls:
            plan = make_plan(sampler, model.schedule, k, spacing)
            distance = ReferenceDistance(model, model.schedule, float(plan.t[-1]), x)
            values = {"distance": (distance(plan), distance(tuned(plan, calibration, pairs)))}
            rows.append({"problem": f"network, {pairs} pairs", "run": f"{sampler}:{k}@{spacing}", **values})
            print(rows[-1], flush=True)
    return rows


def main(which: list[str], calls: list[int], pairs: int, network_calls: list[int], out: Path | None) -> None:
    rows = exact_rows(calls, pairs) if "exact" in which else []
    rows += network_rows(network_calls, min(pairs, 64)) if "network" in which else []
    if out is not None:
        out.write_text(json.dumps(rows, indent=1))
    table = Table(title=f"Least squares on {pairs} pairs, untuned -> tuned")
    for column in ("problem", "run", "distance", "FD"):
        table.add_column(column, justify="right")
    for row in rows:
        shown = [f"{row[name][0]:.3f} -> {row[name][1]:.3f}" if name in row else "" for name in ("distance", "FD")]
        table.add_row(row["problem"], row["run"], *shown)
    Console(width=110).print(table)
    for name in ("distance", "FD"):
        values = [row[name] for row in rows if name in row]
        print(f"{name} better in {sum(after < before for before, after in values)} of {len(values)} rows")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("which", nargs="*", default=["exact", "network"], metavar="exact|network")
    parser.add_argument("--calls", nargs="+", type=int, default=[3, 4, 5, 6, 8, 10])
    parser.add_argument("--network-calls", nargs="+", type=int, default=[5])
    parser.add_argument("--pairs", type=int, default=256, help="64 at most on the network")
    parser.add_argument("--json", dest="out", type=Path, default=None)
    args = parser.parse_args()
    main(args.which, args.calls, args.pairs, args.network_calls, args.out)
