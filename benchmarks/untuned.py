"""Untuned plans on exact digits: the Frechet distance of 4000 samples to 4000 fresh draws of the data, raw pixels.

    python benchmarks/untuned.py [--draws 5]

Mean and standard deviation over so many pairs of noise and fresh draws. Two fresh draws of the data, and 200 calls of
Heun, are the floor.
"""

import argparse
import statistics

import torch
from problems import exact_digits, linear_schedule
from rich.console import Console
from rich.table import Table

from time_tuner import make_plan, sample
from time_tuner.metrics import frechet_between
from time_tuner.plans.build import parse_run

N = 4000
RUNS = (
    *(f"ddim:{calls}@{grid}" for grid in ("leading", "quadratic") for calls in (5, 10, 20)),
    *(f"dpmpp(lower_order_final={lower}):{calls}@quadratic" for calls in (5, 10) for lower in ("false", "true")),
    *(f"dpmpp(order=3,lower_order_final=true):{calls}@quadratic" for calls in (5, 10)),
    *(f"unipc:{calls}@quadratic" for calls in (5, 10)),
    "heun:10@quadratic",
)


def main(draws: int, teacher: bool) -> None:
    data, schedule = exact_digits(), linear_schedule()
    eps = data.eps(schedule)
    table = Table(title=f"Exact digits, untuned: Frechet distance, mean and deviation of {draws} draws")
    for column in ("run", "FD", "deviation"):
        table.add_column(column, justify="right")
    starts = [torch.randn(N, 64, generator=torch.Generator().manual_seed(i)) for i in range(draws)]
    fresh = [data.sample(N, seed=1000 + i) for i in range(draws)]
    measured = {"two fresh draws": [frechet_between(data.sample(N, seed=2000 + i), fresh[i]) for i in range(draws)]}
    plans = {text: parse_run(text, schedule) for text in RUNS}
    if teacher:
        plans["heun:200@quadratic"] = make_plan("heun", schedule, calls=200, spacing="quadratic")
    for text, plan in plans.items():
        ends = [sample(eps, plan, x).double() for x in (starts[:1] if len(plan) > 100 else starts)]
        measured[text] = [frechet_between(end, f) for end, f in zip(ends, fresh, strict=False)]
    for text, values in measured.items():
        spread = f"{statistics.stdev(values):.3f}" if len(values) > 1 else "-"
        table.add_row(text, f"{statistics.mean(values):.3f}", spread)
    Console(width=100).print(table)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=5)
    parser.add_argument("--teacher", action="store_true", help="also 200 calls of Heun")
    main(**vars(parser.parse_args()))
