"""Every spacing under several samplers in few calls, untuned; the defaults of the samplers are chosen by this table.

    python benchmarks/spacings.py [--problem exact] [--schedule vp] [--calls 5 10 20] [--json out.json]

`--problem exact`: exact digits (scikit-learn's 1797 digits blurred by 0.1, 64 dimensions), the Frechet distance of the
samples to fresh draws of the data in raw pixels, mean over pairs of noise and fresh draws; two fresh draws are the
floor. `--problem digits`: the bundled network, the mean distance to the end of 100 calls down to 0 from the same noise.

A spacing that ends above 0 (leading, uniform, quadratic, logsnr, dmn) leaves the noise of the least trained time in
the samples, as its users have it. Samplers that this version has none of are left out. The last table is the mean over
numbers of calls of the ratio to the best spacing of that sampler and number of calls: 1 is best everywhere. DMN, which
is none of the library's spacings, is measured beside them.
"""

import argparse
import json
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from dmn import dmn
from problems import exact_digits, linear_schedule
from rich.console import Console
from rich.table import Table

from time_tuner import SAMPLERS, SPACINGS, NoiseScheduleFlow, NoiseScheduleVE, Plan, SeededNoise, load_model, sample
from time_tuner.metrics import distance, frechet_between
from time_tuner.plans.build import parse_run
from time_tuner.schedules import NoiseSchedule
from time_tuner.tuners import reference_plan

SPACINGS["dmn"] = dmn

RUNS = ("ddim", "dpmpp(order=2)", "unipc", "ipndm")
GRIDS = (*(name for name in SPACINGS if name != "ays"), "karras(rho=3)", "kl_optimal(std=0.5)", "dmn(power=2)")

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


def digits(samples: int) -> tuple[NoiseSchedule, Measure]:
    model = load_model("digits", [i % 10 for i in range(samples)])
    x = SeededNoise(10**6)(torch.empty(samples, *model.shape))
    reference = sample(model, reference_plan(model.schedule, 0.0, 100), x)
    return model.schedule, lambda plan: float(distance(sample(model, plan, x), reference).mean())


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


def main(
    problem: str, kind: str, samplers: Sequence[str], calls: Sequence[int], grids: Sequence[str], samples: int | None,
    draws: int, out: Path | None,
) -> None:  # fmt: skip
    samples = samples or {"exact": 4000, "digits": 100}[problem]
    schedule, measure = exact(KINDS[kind], samples, draws) if problem == "exact" else digits(samples)
    known = [name for name in samplers if name.partition("(")[0] in SAMPLERS]
    columns = [f"{name}:{count}" for name in known for count in calls]
    rows: dict[str, dict[str, float]] = {}
    for grid in grids:
        rows[grid] = {}
        for column in columns:
            try:
                rows[grid][column] = measure(parse_run(f"{column}@{grid}", schedule))
            except ValueError:  # a spacing that this schedule has none of
                continue
    unit = "Frechet distance to fresh data" if problem == "exact" else "distance to the end of 100 calls"
    title = f"{problem} ({kind if problem == 'exact' else 'vp'}), {samples} samples: {unit}"
    console = Console(width=40 + 20 * len(columns))
    console.print(shown(title, rows, columns, 3))
    ratios: dict[str, dict[str, float]] = {}
    for grid, row in rows.items():
        ratios[grid] = {}
        for name in known:
            mine = [column for column in row if column.startswith(f"{name}:")]
            relative = [
                row[column] / min(other[column] for other in rows.values() if column in other) for column in mine
            ]
            if len(relative) == len(calls):
                ratios[grid][name] = statistics.mean(relative)
    console.print(shown("mean ratio to the best spacing", ratios, known, 3))
    if out is not None:
        out.write_text(json.dumps({"problem": problem, "rows": rows, "ratios": ratios}, indent=1) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problem", choices=["exact", "digits"], default="exact")
    parser.add_argument("--schedule", dest="kind", choices=KINDS, default="vp", help="of the exact problem")
    parser.add_argument("--samplers", nargs="+", default=list(RUNS))
    parser.add_argument("--calls", nargs="+", type=int, default=[5, 10, 20])
    parser.add_argument("--grids", nargs="+", default=list(GRIDS))
    parser.add_argument("--samples", type=int, default=None, help="4000 exact ones, 100 of the network by default")
    parser.add_argument("--draws", type=int, default=3, help="pairs of noise and fresh draws, of the exact problem")
    parser.add_argument("--json", dest="out", type=Path, default=None)
    main(**vars(parser.parse_args()))
