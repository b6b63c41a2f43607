"""Every spacing under several samplers in few calls, untuned, on trained networks and on exact digits.

    python benchmarks/spacings.py FOLDER [--networks "pixels, guidance 2"] [--calls 5 10] [--json out.json]
    python benchmarks/spacings.py --exact vp [--calls 5 10 20] [--json out.json]

`FOLDER` has the weights that `networks.py FOLDER` trains. The default spacings of the schedules are chosen by this
table. It measures the mean distance of the samples to the end of 100 calls down to 0 from the same noise, and the ratio
of this distance to that of the best spacing for the same network, sampler and number of calls. For each kind of
schedule it prints the worst and the mean of these ratios over networks, samplers and calls. Heun takes one call more
where it cannot make this number. Rows that `out.json` has are not measured again.

`--exact`: exact digits (scikit-learn's 1797 digits blurred by 0.1, 64 dimensions) on a VP, flow or VE schedule, the
Frechet distance of the samples to fresh draws of the data in raw pixels, mean over pairs of noise and fresh draws; two
fresh draws are the floor. The last table is the mean over numbers of calls of the ratio to the best spacing of that
sampler and number of calls: 1 is best everywhere.

A spacing that ends above 0 (leading, uniform, quadratic, logsnr, dmn) leaves the noise of the least trained time in
the samples, as its users have it. DMN, which is none of the library's spacings, is measured beside them.
"""

import argparse
import json
import statistics
from collections.abc import Callable, Sequence
from itertools import product
from pathlib import Path

import torch
from dmn import dmn
from networks import networks
from problems import JUDGED_ON, exact_digits, linear_schedule
from record import read, write
from rich.console import Console
from rich.table import Table

from time_tuner import SPACINGS, Model, NoiseScheduleFlow, NoiseScheduleVE, Plan, SeededNoise, sample
from time_tuner.metrics import distance, frechet_between
from time_tuner.models.batching import BatchedModel
from time_tuner.plans.build import parse_run
from time_tuner.schedules import NoiseSchedule
from time_tuner.tuners import reference_plan

RUNS = ("ddim", "dpmpp", "unipc", "ipndm", "deis", "heun")
EXACT_RUNS = ("ddim", "dpmpp(order=2)", "unipc", "ipndm")
DEFAULTS = tuple(name for name in SPACINGS if name != "ays")  # AYS has lists for other networks
KINDS_OF = {
    "VP, linear": ("pixels", "latents", "linear", "pictograms"),
    "VP, cosine": ("cosine",),
    "VP, plane": ("plane",),
    "flow": ("flow",),
    "VE": ("ve",),
}
GRIDS = (*DEFAULTS, "dmn", "karras(rho=3)", "kl_optimal(std=0.5)", "dmn(power=2)")

SPACINGS["dmn"] = dmn
KINDS: dict[str, NoiseSchedule] = {"vp": linear_schedule(), "ve": NoiseScheduleVE(), "flow": NoiseScheduleFlow()}

Measure = Callable[[Plan], float]


def exact(schedule: NoiseSchedule, samples: int, draws: int) -> tuple[NoiseSchedule, Measure]:
    data = exact_digits()
    eps = data.eps(schedule)
    starts = [torch.randn(samples, 64, generator=torch.Generator().manual_seed(i)) for i in range(draws)]
    fresh = [data.sample(samples, seed=1000 + i) for i in range(draws)]
    floor = statistics.mean(frechet_between(data.sample(samples, seed=2000 + i), fresh[i]) for i in range(draws))
    print(f"two fresh draws: {floor:.3f}")

    def measure(plan: Plan) -> float:
        ends = [sample(eps, plan, plan.initial_state(x), SeededNoise(10**6)).double() for x in starts]
        return statistics.mean(frechet_between(end, f) for end, f in zip(ends, fresh, strict=True))

    return schedule, measure


def plans(schedule: NoiseSchedule, runs: Sequence[str], calls: Sequence[int]) -> dict[str, dict[str, Plan]]:
    """Plans by run and spacing; what a schedule or a sampler has none of is left out."""
    found: dict[str, dict[str, Plan]] = {}
    for run, count, grid in product(runs, calls, DEFAULTS):
        for more in (count, count + 1) if run == "heun" else (count,):
            try:
                found.setdefault(f"{run}:{count}", {})[grid] = parse_run(f"{run}:{more}@{grid}", schedule)
            except ValueError:
                continue
            break
    return found


def distances(model: Model, plans: dict[str, dict[str, Plan]], samples: int) -> dict[str, dict[str, float]]:
    """The mean distance to the end of 100 calls down to 0, by run and spacing."""
    model = BatchedModel(model)
    x = SeededNoise(JUDGED_ON)(torch.empty(samples, *model.shape))
    many = reference_plan(model.schedule, 0.0, 100)
    reference = sample(model, many, many.initial_state(x))
    return {
        run: {
            grid: float(distance(sample(model, plan, plan.initial_state(x)), reference).mean())
            for grid, plan in of_grid.items()
        }
        for run, of_grid in plans.items()
    }


def worst_ratios(rows: dict[str, dict[str, dict[str, float]]]) -> None:
    """Prints the worst and the mean ratio of each spacing, by kind of network and of sampler."""
    kinds: dict[str, Callable[[str], bool]] = {
        "DDIM": lambda run: run.startswith("ddim"),
        "multistep samplers": lambda run: not run.startswith(("ddim", "heun")),
        "Heun": lambda run: run.startswith("heun"),
    }
    for kind, chosen in kinds.items():
        table = Table(title=f"worst (mean) ratio to the best spacing, {kind}", title_justify="left")
        for column in ("spacing", *KINDS_OF):
            table.add_column(column, justify="right")
        for grid in DEFAULTS:
            cells = []
            for names in KINDS_OF.values():
                ratios = [
                    of_grid[grid] / min(of_grid.values())
                    for name, runs in rows.items()
                    for run, of_grid in runs.items()
                    if name.startswith(names) and chosen(run) and grid in of_grid
                ]
                cells.append(f"{max(ratios):.2f} ({statistics.mean(ratios):.2f})" if ratios else "-")
            table.add_row(grid, *cells)
        Console(width=140).print(table)


def compare_networks(
    folder: Path, names: Sequence[str] | None, runs: Sequence[str], calls: Sequence[int], samples: int, out: Path | None
) -> None:
    rows: dict[str, dict[str, dict[str, float]]] = {}
    for row in read(out):
        rows.setdefault(row["network"], {}).setdefault(row["run"], {})[row["spacing"]] = row["distance"]
    made: dict[str, dict[str, dict[str, Plan]]] = {}
    for name, load in networks(folder).items():
        if names is not None and name not in names:
            continue
        model = load()
        base = name.partition(",")[0]
        if base not in made:
            made[base] = plans(model.schedule, runs, calls)
        done = rows.setdefault(name, {})
        missing = {run: of_grid for run, of_grid in made[base].items() if run not in done}
        done |= distances(model, missing, samples)
        flat = [
            {"network": network, "run": run, "spacing": grid, "distance": value}
            for network, of_run in rows.items()
            for run, of_grid in of_run.items()
            for grid, value in of_grid.items()
        ]
        write(out, flat)
        print(name, flush=True)
    worst_ratios(rows)


def shown(title: str, rows: dict[str, dict[str, float]], columns: Sequence[str], digits: int) -> Table:
    """The least of each column is bold."""
    table = Table(title=title, title_justify="left")
    table.add_column("spacing")
    for column in columns:
        table.add_column(column, justify="right")
    least = {column: min(row[column] for row in rows.values() if column in row) for column in columns}
    for name, row in rows.items():
        cells = [f"{row[c]:.{digits}f}" if c in row else "-" for c in columns]
        best = [row.get(column) == least[column] for column in columns]
        table.add_row(name, *(f"[bold]{cell}[/bold]" if b else cell for cell, b in zip(cells, best, strict=True)))
    return table


def compare_exact(
    kind: str, samplers: Sequence[str], calls: Sequence[int], samples: int, draws: int, out: Path | None
) -> None:
    schedule, measure = exact(KINDS[kind], samples, draws)
    columns = [f"{name}:{count}" for name in samplers for count in calls]
    rows: dict[str, dict[str, float]] = {}
    for grid in GRIDS:
        rows[grid] = {}
        for column in columns:
            try:
                rows[grid][column] = measure(parse_run(f"{column}@{grid}", schedule))
            except ValueError:  # a spacing that this schedule has none of
                continue
    console = Console(width=40 + 20 * len(columns))
    console.print(shown(f"exact ({kind}), {samples} samples: Frechet distance to fresh data", rows, columns, 3))
    ratios: dict[str, dict[str, float]] = {}
    for grid, row in rows.items():
        ratios[grid] = {}
        for name in samplers:
            mine = [column for column in row if column.startswith(f"{name}:")]
            relative = [
                row[column] / min(other[column] for other in rows.values() if column in other) for column in mine
            ]
            if len(relative) == len(calls):
                ratios[grid][name] = statistics.mean(relative)
    console.print(shown("mean ratio to the best spacing", ratios, samplers, 3))
    if out is not None:
        out.write_text(json.dumps({"problem": "exact", "rows": rows, "ratios": ratios}, indent=1) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, help="the weights of networks.py")
    parser.add_argument("--exact", choices=KINDS, help="exact digits on this schedule in place of networks")
    parser.add_argument("--networks", nargs="+", help="names, as the run prints them; all by default")
    parser.add_argument("--samplers", nargs="+", help=f"{', '.join(RUNS)}; {', '.join(EXACT_RUNS)} on exact digits")
    parser.add_argument("--calls", nargs="+", type=int, help="5 8 10 20; 5 10 20 on exact digits")
    parser.add_argument("--samples", type=int, help="64 of a network, 4000 exact ones by default")
    parser.add_argument("--draws", type=int, default=3, help="pairs of noise and fresh draws, of exact digits")
    parser.add_argument("--json", dest="out", type=Path, default=None)
    args = parser.parse_args()
    if (args.folder is None) == (args.exact is None):
        parser.error("give either the folder of the weights or --exact")
    if args.exact:
        runs, calls = args.samplers or EXACT_RUNS, args.calls or [5, 10, 20]
        compare_exact(args.exact, runs, calls, args.samples or 4000, args.draws, args.out)
    else:
        runs, calls = args.samplers or RUNS, args.calls or [5, 8, 10, 20]
        compare_networks(args.folder, args.networks, runs, calls, args.samples or 64, args.out)
