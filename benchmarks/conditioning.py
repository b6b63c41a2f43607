"""The two strategies of TimeTuner by the published optimiser and by the search, in one run.

    python benchmarks/conditioning.py                                    # exact digits, three seeds, about two hours
    python benchmarks/conditioning.py --calls 5 --seeds 1                # a part of it, a few minutes
    python benchmarks/conditioning.py --linear                           # how the search's cost grows with K
    python benchmarks/conditioning.py --problem bundled --calls 5 10     # the bundled network: hours on a CPU
    python benchmarks/conditioning.py --problem bundled --device cuda --bfloat16

For each grid, number of calls and strategy, with the published objective for both: the loss summed over steps on
held-out data and noise (mean over calibration seeds), sample evaluations (batch x forward, a backward as two forwards)
and seconds of the tuning alone; the evaluations of the calibration data and of the guard with its reference run; the
distance to a reference run, on noise of its own, of the untuned plan, of each optimum, of the guarded plan, and of the
guarded plan with the default objective; and the Frechet distance to fresh data where there are some. The published
optimiser is Adam, lr 2e-3, betas (0.9, 0.999), 500 batches of 64 for each ratio. The lines under the table name the
criteria that are met: a loss of at most 1.005 times Adam's, a fiftieth of the evaluations, a twentieth of the time, and
no plan worse than untuned.
"""

import argparse
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from problems import PROBLEMS, Problem, network_problem
from record import write
from rich.console import Console
from rich.table import Table
from torch import Tensor

from time_tuner import TUNERS, Model, Plan, SeededNoise, load_model, make_plan, tune
from time_tuner.models.base import ModelAround
from time_tuner.tuners import OBJECTIVES, Step
from time_tuner.tuners.calibration import OWN_CALLS, CalibrationBatch
from time_tuner.tuners.timesteps.objectives import step_loss
from time_tuner.tuners.timesteps.runs import PlanRun, direct_state, first_state

UNLIMITED = "100h"

COLUMNS = (
    *("grid", "K", "strategy", "loss untuned", "Adam", "search", "ratio", "evaluations Adam", "search", "ratio"),
    *("seconds Adam", "search", "ratio", "data", "guard"),
    *("distance untuned", "Adam", "search", "guarded", "default", "FD untuned", "Adam", "search", "guarded", "default"),
)


class Autocast(ModelAround):
    """A model whose network may run in bfloat16."""

    def __init__(self, inner: Model, enabled: bool) -> None:
        super().__init__(inner)
        self.enabled = enabled

    def predict(self, quantity: str, x: Tensor, t: Any, tau: Any = None) -> Tensor:
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.enabled):
            prediction = self.inner.predict(quantity, x, t, tau)
        return prediction.to(x.dtype)


def data_of(problem: Problem, args: argparse.Namespace) -> Callable[[int], Tensor]:
    """Calibration data of a seed: more than the search tunes on, for the published optimiser draws batches of them."""
    return lambda seed: problem.data(4096 if args.problem == "exact" else 2 * args.samples, seed)


@torch.no_grad()
def summed_loss(plan: Plan, draws: CalibrationBatch, strategy: str) -> float:
    """The loss of every ratio but the last, summed, in the states of the strategy."""
    run, total = PlanRun(plan), 0.0
    state = first_state(run, draws)
    for k in range(len(plan) - 1):
        if strategy == "parallel":
            state = direct_state(run, k, draws)
        target = OBJECTIVES["published"].target(Step(run, k, state, draws))
        total += float(step_loss(run, k, state, plan.tau[k], draws, target))
        state = run.step(k, state, plan.tau[k], draws)
    return total


def timed(work: Callable[[], Plan], device: str) -> tuple[Plan, float]:
    """A plan, and the seconds it took to tune it."""
    began = time.perf_counter()
    plan = work()
    if device != "cpu":
        torch.cuda.synchronize()
    return plan, time.perf_counter() - began


def measure(problem: Problem, grid: str, calls: int, strategy: str, args: argparse.Namespace) -> dict[str, Any]:
    """One row."""
    untuned = make_plan("ddim", problem.schedule, calls, grid)
    seeds, data = args.seeds, data_of(problem, args)
    x0 = data(100)[: args.held_out]
    held_out = CalibrationBatch(problem.model, x0, SeededNoise(10**8)(x0), 10**8)

    def quality(name: str, plans: Sequence[Plan]) -> dict[str, Any]:
        distances, frechets = ([of(plan) for plan in plans] for of in (problem.distance, problem.frechet))
        return {f"distance_{name}": sum(distances) / len(plans), f"fd_{name}": sum(frechets) / len(plans)}

    row: dict[str, Any] = {"grid": grid, "calls": calls, "strategy": strategy}
    row |= {"loss_untuned": summed_loss(untuned, held_out, strategy), **quality("untuned", [untuned])}
    for optimizer in ("adam", "search"):
        options: dict[str, Any] = {"iterations": args.iterations} if optimizer == "adam" else {}
        tuner = TUNERS[strategy](optimizer=optimizer, objective="published", **options)
        made = [
            timed(
                lambda seed=seed, tuner=tuner: tune(
                    problem.model, untuned, tuner, data(seed), seed, False, samples=args.samples,
                    device=problem.device, budget=UNLIMITED,
                ),
                problem.device,
            )
            for seed in range(seeds)
        ]  # fmt: skip
        plans = [plan for plan, _ in made]
        row |= {
            f"losses_{optimizer}": [summed_loss(plan, held_out, strategy) for plan in plans],
            f"evaluations_{optimizer}": sum(p.provenance["cost"]["tuning"]["evaluations"] for p in plans) / seeds,
            f"seconds_{optimizer}": sum(seconds for _, seconds in made) / seeds,
            f"ratios_{optimizer}": [(plan.tau / plan.t[:-1]).tolist() for plan in plans],
            **quality(optimizer, plans),
        }
        row[f"loss_{optimizer}"] = sum(row[f"losses_{optimizer}"]) / seeds
    for name, objective in (("guarded", "published"), ("default", None)):
        plan = tune(
            problem.model, untuned, TUNERS[strategy](objective=objective), data(0), samples=args.samples,
            device=problem.device, budget=UNLIMITED,
        )  # fmt: skip
        row |= quality(name, [plan]) | {f"{name}_provenance": dict(plan.provenance)}
    spent = row["guarded_provenance"]["cost"]
    row["evaluations_guard"] = sum(spent[name]["evaluations"] for name in ("reference", "guard"))
    row["evaluations_data"] = OWN_CALLS * args.samples if args.problem == "bundled" else 0
    return row


def cells(row: dict[str, Any]) -> list[str]:
    shown = [row["grid"], str(row["calls"]), row["strategy"]]
    for what, form in (("loss", ",.3f"), ("evaluations", ",.0f"), ("seconds", ",.2f")):
        adam, search = row[f"{what}_adam"], row[f"{what}_search"]
        shown += [format(row["loss_untuned"], form)] if what == "loss" else []
        shown += [format(adam, form), format(search, form)]
        shown += [f"{search / adam:.4f}" if what == "loss" else f"{adam / search:.0f}"]
    shown += [f"{row['evaluations_data']:,}", f"{row['evaluations_guard']:,}"]
    for what in ("distance", "fd"):
        values = [row[f"{what}_{name}"] for name in ("untuned", "adam", "search", "guarded", "default")]
        shown += ["" if value is None else f"{value:.3f}" for value in values]
    return shown


def verdicts(row: dict[str, Any]) -> list[str]:
    """The criteria that a row does not meet, and a note on its guard."""
    name = f"{row['grid']}, K = {row['calls']}, {row['strategy']}"
    criteria = {
        "the held-out loss is more than 1.005 times Adam's": row["loss_search"] > 1.005 * row["loss_adam"],
        "it takes more than a fiftieth of the evaluations": 50 * row["evaluations_search"] > row["evaluations_adam"],
        "it takes more than a twentieth of the time": 20 * row["seconds_search"] > row["seconds_adam"],
    }
    notes = [f"{name}: {what}" for what, missed in criteria.items() if missed]
    note = row["guarded_provenance"]
    if (
        note["distance"]["tuned"] > note["distance"]["untuned"]
        or row["default_provenance"]["distance"]["tuned"] > row["default_provenance"]["distance"]["untuned"]
    ):
        notes.append(f"{name}: the guarded plan is worse than untuned")
    if note["distance"]["unguarded"] > note["distance"]["untuned"]:
        reverted = ", ".join(map(str, note["reverted_calls"]))
        notes.append(f"{name}: the published objective alone is worse than untuned; reverted calls: {reverted}")
    return notes


def compare(problem: Problem, args: argparse.Namespace) -> None:
    title = f"{problem.name}, DDIM: {args.seeds} calibration seeds, {args.samples} samples each for the search"
    table, rows = Table(*COLUMNS, title=title), []
    warm = make_plan("ddim", problem.schedule, 3, "quadratic")  # what a first run has to load is not timed
    tune(problem.model, warm, data=data_of(problem, args)(0)[:64], samples=64, guard=False, device=problem.device)
    for grid in args.grids:
        for calls in args.calls:
            for strategy in args.strategies:
                row = measure(problem, grid, calls, strategy, args)
                rows.append(row)
                table.add_row(*cells(row))
                print(" | ".join(cells(row)), flush=True)
                write(args.out, rows)
    Console(width=260).print(table)
    for row in rows:
        print(
            "\n".join(verdicts(row) or [f"{row['grid']}, K = {row['calls']}, {row['strategy']}: all criteria are met"])
        )


def linear(problem: Problem, args: argparse.Namespace) -> None:
    """Sample evaluations of the sequential search, a step: the same for every K when the cost is linear in K."""
    table = Table("grid", "K", "evaluations", "a step", "seconds", title=f"{problem.name}: the sequential search")
    data = data_of(problem, args)(0)
    for grid in args.grids:
        for calls in (5, 10, 20, 40):
            untuned = make_plan("ddim", problem.schedule, calls, grid)
            plan, seconds = timed(
                lambda untuned=untuned: tune(
                    problem.model, untuned, "sequential(objective=published)", data, guard=False,
                    samples=args.samples, device=problem.device, budget=UNLIMITED,
                ),
                problem.device,
            )  # fmt: skip
            spent = plan.provenance["cost"]["tuning"]["evaluations"]
            table.add_row(grid, str(calls), f"{spent:,}", f"{spent / (calls - 1):,.0f}", f"{seconds:.2f}")
    Console().print(table)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problem", choices=["exact", "bundled"], default="exact")
    parser.add_argument("--grids", nargs="+", default=["leading", "quadratic"])
    parser.add_argument("--calls", nargs="+", type=int, default=[5, 10, 20])
    parser.add_argument("--strategies", nargs="+", default=["sequential", "parallel"])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--iterations", type=int, default=500)
    parser.add_argument("--samples", type=int, default=256, help="of the search")
    parser.add_argument("--held-out", type=int, default=None, help="samples that the loss is measured on")
    parser.add_argument("--linear", action="store_true", help="only show how the search's cost grows with K")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--bfloat16", action="store_true", help="run the bundled network under autocast")
    parser.add_argument("--json", dest="out", type=Path, default=None)
    args = parser.parse_args()
    args.held_out = args.held_out or {"exact": 4096, "bundled": 512}[args.problem]
    if args.problem == "exact":
        compared = PROBLEMS["digits"]()
    else:
        network = load_model("digits", device=args.device)
        compared = network_problem("bundled network", Autocast(network, args.bfloat16), args.device)
    (linear if args.linear else compare)(compared, args)
