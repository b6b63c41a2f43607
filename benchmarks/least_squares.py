"""Corrections by least squares, on exact digits and on the bundled network, and joint tuning without gradients.

    python benchmarks/least_squares.py [exact network] [--calls 3 4 5 6 8 10] [--pairs 256] [--json out.json]
    python benchmarks/least_squares.py joint_exact joint_network [--calls 3 5] [--iterations 50]

For every deterministic sampler on the quadratic grid: the mean distance to the end of a 100-call run from the same
noise, and the Frechet distance of 4000 samples to 4000 fresh draws of the data, untuned and tuned, without the guard.
On the network, labels 0 to 9: the distance alone, for DDIM on the leading grid and for UniPC on the quadratic one.
Noise of the measurement is not that of the tuning. "better" counts the rows where the tuned run is nearer. The rows of
joint(gradients=False) are for DDIM on the same grids, one for each seed; their evaluations include the teacher's.
"""

import argparse
from itertools import product
from pathlib import Path
from typing import Any

import torch
from problems import JUDGED_ON, PROBLEMS
from record import write
from rich.console import Console
from rich.table import Table

from time_tuner import SAMPLERS, Joint, Plan, SeededNoise, load_model, make_plan, tune
from time_tuner.models.batching import BatchedModel
from time_tuner.tuners import Calibration, LeastSquares, ReferenceDistance
from time_tuner.tuners.joint.teacher import usual_teacher

NETWORK_SAMPLES = 100
SEEDS = (0, 1, 2)
WHICH = ["exact", "network", "joint_exact", "joint_network"]


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


def joint_rows(which: str, calls: list[int], pairs: int, iterations: int, candidates: int) -> list[dict[str, Any]]:
    """By `joint(gradients=False)`; the Frechet distance beside that of the teacher on the same noise."""
    if exact := which == "exact":
        problem, spacing, samples = PROBLEMS["digits"](), "quadratic", 256
        model, schedule, shape, x = problem.model, problem.schedule, (64,), problem.noise(problem.judged)
    else:
        model = BatchedModel(load_model("digits", [i % 10 for i in range(NETWORK_SAMPLES)]), 50)
        schedule, shape, spacing, samples = model.schedule, model.shape, "leading", NETWORK_SAMPLES
        x = SeededNoise(JUDGED_ON)(torch.empty(NETWORK_SAMPLES, *shape))
    rows = list[dict[str, Any]]()
    for k, seed in product(calls, SEEDS if exact else SEEDS[:1]):
        plan = make_plan("ddim", schedule, k, spacing)
        tuner = Joint(pairs=pairs, iterations=iterations, candidates=candidates, gradients=False)
        calibration = Calibration(model, schedule, None, samples, seed, shape=shape)
        found = tune(model, plan, tuner, calibration, guard=False)
        distance = ReferenceDistance(model, schedule, float(plan.t[-1]), x)
        row: dict[str, Any] = {"problem": f"joint, {which}", "run": f"ddim:{k}@{spacing}, seed {seed}"}
        row["distance"] = distance(plan), distance(found)
        if exact:
            frechet = [problem.frechet(p) for p in (plan, found, usual_teacher(plan))]
            row |= {"FD": tuple(frechet[:2]), "FD of the teacher": frechet[2]}
        row["evaluations"] = sum(cost["evaluations"] for cost in found.provenance["cost"].values())
        rows.append(row)
        print(row, flush=True)
    return rows


def main(
    which: list[str],
    calls: list[int],
    pairs: int,
    network_calls: list[int],
    iterations: int,
    candidates: int,
    out: Path | None,
) -> None:
    rows = exact_rows(calls, pairs) if "exact" in which else []
    rows += network_rows(network_calls, min(pairs, 64)) if "network" in which else []
    rows += joint_rows("exact", calls, pairs, iterations, candidates) if "joint_exact" in which else []
    if "joint_network" in which:
        rows += joint_rows("network", network_calls, min(pairs, 64), iterations, 1)
    write(out, rows)
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
    parser.add_argument(
        "which", nargs="*", default=["exact", "network"], metavar="exact|network|joint_exact|joint_network"
    )
    parser.add_argument("--calls", nargs="+", type=int, default=[3, 4, 5, 6, 8, 10])
    parser.add_argument("--network-calls", nargs="+", type=int, default=[5])
    parser.add_argument("--pairs", type=int, default=256, help="64 at most on the network")
    parser.add_argument("--iterations", type=int, default=50, help="of joint tuning")
    parser.add_argument("--candidates", type=int, default=1, help="of joint tuning on exact digits")
    parser.add_argument("--json", dest="out", type=Path, default=None)
    args = parser.parse_args()
    main(args.which, args.calls, args.pairs, args.network_calls, args.iterations, args.candidates, args.out)
