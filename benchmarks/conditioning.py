"""The two strategies of TimeTuner by the published optimiser and by the search, on exact digits, in one run.

    python benchmarks/conditioning.py [--calls 5 10] [--seeds 3] [--json out.json]

For each grid, number of calls and strategy: the loss summed over steps on held-out data and noise (mean over
calibration seeds), sample evaluations (batch x forward, a backward as two), seconds, and the Frechet distance to fresh
data of the untuned plan, of the bare optimum and of the plan that the guard hands over. The published optimiser is
Adam, lr 2e-3, betas (0.9, 0.999), 500 batches of 64 for each ratio.
"""

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from problems import Counted, exact_digits, linear_schedule
from rich.console import Console
from rich.table import Table

from time_tuner import Plan, make_plan, sample, seeded_noise, tune
from time_tuner.metrics import frechet_between
from time_tuner.tuners.calibration import Draws
from time_tuner.tuners.conditioning import PlanRun, direct, loss, start

SAMPLES = 256
HELD_OUT = 4096
COLUMNS = (
    *("grid", "K", "strategy", "loss untuned", "Adam", "search", "search/Adam", "evaluations Adam", "search"),
    *("Adam/search", "seconds Adam", "search", "FD untuned", "Adam", "search", "guarded"),
)


@torch.no_grad()
def summed_loss(plan: Plan, draws: Draws, strategy: str) -> float:
    """The loss of every ratio but the last, summed, in the states of the strategy."""
    run, total = PlanRun(plan), 0.0
    state = start(run, draws)
    for k in range(len(plan) - 1):
        if strategy == "parallel":
            state = direct(run, k, draws)
        before = draws.model(state[1], plan.t[k], plan.t[k])
        total += float(loss(run, k, state, plan.tau[k], draws, before))
        state = run.step(k, state, plan.tau[k], draws)
    return total


def main(grids: Sequence[str], calls: Sequence[int], seeds: int, iterations: int, out: Path | None) -> None:
    data, schedule = exact_digits(), linear_schedule()
    eps = data.eps(schedule)
    x0 = data.sample(HELD_OUT, seed=10**6).float()
    noise = seeded_noise(10**8)(x0)
    held_out = Draws(eps, x0, noise, 10**8)
    fresh = [data.sample(4000, 10**7 + i) for i in range(3)]
    starts = [seeded_noise(2 * 10**8 + i * 10**5)(torch.empty(4000, 64)) for i in range(3)]

    def distance(plan: Plan) -> float:
        ends = [sample(eps, plan, x).double() for x in starts]
        return sum(map(frechet_between, ends, fresh)) / len(fresh)

    table = Table(title=f"Exact digits, DDIM: {seeds} calibration seeds, {SAMPLES} samples each for the search")
    for column in COLUMNS:
        table.add_column(column, justify="right")
    rows = []
    for grid in grids:
        for k in calls:
            untuned = make_plan("ddim", schedule, calls=k, spacing=grid)
            for strategy in ("sequential", "parallel"):
                row: dict[str, object] = {"grid": grid, "calls": k, "strategy": strategy}
                row["loss_untuned"] = summed_loss(untuned, held_out, strategy)
                for optimizer in ("adam", "search"):
                    losses, evaluations, seconds, plans = [], [], [], []
                    for seed in range(seeds):
                        model = Counted(eps, schedule, (64,))
                        calibration = data.sample(4096, seed=seed).float()
                        options = {"iterations": iterations} if optimizer == "adam" else {}
                        begin = time.perf_counter()
                        plan = tune(model, untuned, strategy, data=calibration, seed=seed, guard=False, samples=SAMPLES,
                                    optimizer=optimizer, **options)  # fmt: skip
                        seconds.append(time.perf_counter() - begin)
                        evaluations.append(model.evaluations)
                        losses.append(summed_loss(plan, held_out, strategy))
                        plans.append(plan)
                    row |= {
                        f"loss_{optimizer}": sum(losses) / seeds,
                        f"evaluations_{optimizer}": sum(evaluations) / seeds,
                        f"seconds_{optimizer}": sum(seconds) / seeds,
                        f"fd_{optimizer}": sum(map(distance, plans)) / seeds,
                    }
                guarded = tune(eps, untuned, strategy, data=data.sample(SAMPLES, seed=0).float(), samples=SAMPLES)
                row |= {"fd_untuned": distance(untuned), "fd_guarded": distance(guarded)}
                row["reverted"] = guarded.provenance["reverted"]
                rows.append(row)
                table.add_row(
                    grid, str(k), strategy, f"{row['loss_untuned']:.3f}", f"{row['loss_adam']:.3f}",
                    f"{row['loss_search']:.3f}", f"{row['loss_search'] / row['loss_adam']:.4f}",
                    f"{row['evaluations_adam']:,.0f}", f"{row['evaluations_search']:,.0f}",
                    f"{row['evaluations_adam'] / row['evaluations_search']:.0f}", f"{row['seconds_adam']:.1f}",
                    f"{row['seconds_search']:.2f}", f"{row['fd_untuned']:.3f}", f"{row['fd_adam']:.3f}",
                    f"{row['fd_search']:.3f}", f"{row['fd_guarded']:.3f}",
                )  # fmt: skip
                print(row, flush=True)
    Console(width=200).print(table)
    if out is not None:
        out.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--grids", nargs="+", default=["leading", "quadratic"])
    parser.add_argument("--calls", nargs="+", type=int, default=[5, 10])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--iterations", type=int, default=500)
    parser.add_argument("--json", dest="out", type=Path, default=None)
    main(**vars(parser.parse_args()))
