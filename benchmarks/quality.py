"""Quality against calls, 3 to 50, of every sampler on several grids, untuned.

    python benchmarks/quality.py [--problem exact] [--json out.json] [--plot out.png]     # about 15 minutes of a core
    python benchmarks/quality.py --problem digits --samples 200                           # about 3 hours of a core
    python benchmarks/quality.py --problem digits --samples 32 --calls 5 10 --runs ddim "dpmpp(order=2)"

exact: the Frechet distance of 4000 samples of exact digits to 4000 fresh draws of the data, raw pixels (two fresh draws
differ by 0.07). digits: how far the bundled network's samples end from where a run of 200 calls from the same noise
ends, the mean of the samples; of a stochastic sampler the energy distance of the two sets of ends, which is on another
scale. Where a sampler cannot make so many calls it makes the next fewer. The table has the best grid of each cell.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from problems import exact_digits, linear_schedule
from record import write
from rich.console import Console
from rich.table import Table

from time_tuner import Plan, SeededNoise, load_model, make_plan, sample
from time_tuner.metrics import frechet_between
from time_tuner.samplers import Sampler, sampler_of
from time_tuner.schedules import NoiseSchedule
from time_tuner.tuners.guard import ReferenceDistance

RUNS = (
    *("ddpm", "ddpm(variance=small)", "ddim", "heun", "dpm(order=2)", "dpm(order=3)"),
    *("dpmpp(order=2)", "dpmpp(order=3)", "dpmpp(order=3,third_order_weight=taylor)", "dpmpp_single", "sde_dpmpp"),
    *("unipc(order=2)", "unipc(order=3)", "deis(order=2)", "deis(order=3)", "ipndm", "pndm"),
)
CALLS = (3, 5, 8, 10, 15, 20, 30, 50)
GRIDS = ("trailing", "quadratic", "logsnr")
Measure = Callable[[Plan], float]


def plan_of(sampler: Sampler, schedule: NoiseSchedule, calls: int, grid: str) -> Plan | None:
    """The plan of so many calls, or of the next fewer, at least 2."""
    for fewer in range(calls, 1, -1):
        try:
            return make_plan(sampler, schedule, calls=fewer, spacing=grid)
        except ValueError:
            continue
    return None


def exact() -> tuple[NoiseSchedule, Measure]:
    data, schedule = exact_digits(), linear_schedule()
    eps, fresh = data.eps(schedule), data.sample(4000, seed=1000)
    x = torch.randn(4000, 64, generator=torch.Generator().manual_seed(0))
    return schedule, lambda plan: frechet_between(sample(eps, plan, x, SeededNoise(1)).double(), fresh)


def digits(samples: int) -> tuple[NoiseSchedule, Measure]:
    model = load_model("digits", label=torch.arange(samples) % 10)
    x = SeededNoise(10_000)(torch.empty(samples, *model.shape))
    judges: dict[float, ReferenceDistance] = {}

    def measure(plan: Plan) -> float:
        end = float(plan.t[-1])
        if end not in judges:
            judges[end] = ReferenceDistance(model, model.schedule, end, x, calls=200)
        return judges[end](plan)

    return model.schedule, measure


def main(problem: str, samples: int, runs: list[str], calls: list[int], grids: list[str], out: Any, plot: Any) -> None:
    schedule, measure = exact() if problem == "exact" else digits(samples)
    rows: list[dict[str, Any]] = []
    for run in runs:
        for grid in grids:
            for wanted in calls:
                plan = plan_of(sampler_of(run), schedule, wanted, grid)
                if plan is not None:
                    begin = time.perf_counter()
                    row = {"run": run, "grid": grid, "wanted": wanted, "calls": len(plan), "value": measure(plan)}
                    rows.append(row | {"stochastic": plan.stochastic, "seconds": time.perf_counter() - begin})
        print(f"{run}: {sum(r['seconds'] for r in rows):.0f} s so far", flush=True)
        write(out, rows)
    table = Table(title=f"{problem}: the best grid of {', '.join(grids)} by its first letter")
    for column in ("sampler", *map(str, calls)):
        table.add_column(column, justify="right")
    for run in runs:
        cells = []
        for wanted in calls:
            best = min((r for r in rows if (r["run"], r["wanted"]) == (run, wanted)), key=lambda r: r["value"])
            cells.append(f"{best['value']:.3f} {best['grid'][0]}")
        table.add_row(run, *cells)
    Console(width=160).print(table)
    if plot is not None:
        draw(rows, problem, plot)


def draw(rows: list[dict[str, Any]], problem: str, path: Path) -> None:
    """A line for each sampler, on the grid that is best at each number of calls.

    Energy distances of stochastic samplers are on another scale than distances, and are left out.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 6), layout="constrained")
    axes = figure.subplots()
    runs = list(dict.fromkeys(r["run"] for r in rows if problem == "exact" or not r["stochastic"]))
    for i, run in enumerate(runs):
        best: dict[int, dict[str, Any]] = {}
        for r in rows:
            if r["run"] == run and r["value"] < best.get(r["wanted"], {"value": float("inf")})["value"]:
                best[r["wanted"]] = r
        points = [best[wanted] for wanted in sorted(best)]
        style = ("-", "--", ":")[i // 7 % 3]
        x, y = [r["calls"] for r in points], [r["value"] for r in points]
        axes.plot(x, y, style, color=f"C{i % 7}", marker=".", label=run)
    ticks = sorted({r["wanted"] for r in rows})
    axes.set(xscale="log", yscale="log", xlabel="calls", xticks=ticks, xticklabels=[str(k) for k in ticks])
    axes.minorticks_off()
    axes.set_ylabel("Frechet distance" if problem == "exact" else "distance to 200 calls")
    axes.set_title(f"Quality against calls, untuned: {problem}")
    axes.legend(fontsize=8, ncols=2)
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problem", choices=["exact", "digits"], default="exact")
    parser.add_argument("--samples", type=int, default=200, help="of the bundled network")
    parser.add_argument("--runs", nargs="+", default=list(RUNS))
    parser.add_argument("--calls", nargs="+", type=int, default=list(CALLS))
    parser.add_argument("--grids", nargs="+", default=list(GRIDS))
    parser.add_argument("--json", dest="out", type=Path, default=None)
    parser.add_argument("--plot", type=Path, default=None)
    main(**vars(parser.parse_args()))
