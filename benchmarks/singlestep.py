"""The state at 2/3 of a step of DPM-Solver-3, with the weight of its paper ("taylor") and that of the midpoint rule.

    OMP_NUM_THREADS=1 python benchmarks/singlestep.py [--samples 128]

The mean distance of the ends to those of 900 calls of the same sampler (150 of the bundled network) from the same
noise, in float64 on exact digits and in float32 on the bundled network, with grids even in lam and quadratic. A cell
has the distances with the weights "taylor" and "midpoint", and the latter over the former. Prints Markdown.
"""

import argparse

import torch
from problems import exact_digits, linear_schedule

from time_tuner import Model, SeededNoise, load_model, make_plan, sample
from time_tuner.metrics import distance

CALLS = (6, 8, 9, 12, 15, 18, 24, 30)


def rows(name: str, model: Model, x: torch.Tensor, most: int) -> None:
    for sampler in ("dpm", "dpmpp_single"):
        for spacing in ("logsnr", "quadratic"):
            end = sample(model, make_plan(f"{sampler}(order=3)", model.schedule, most, spacing), x)
            cells = []
            for calls in CALLS:
                taylor, midpoint = (
                    float(distance(sample(model, make_plan(text, model.schedule, calls, spacing), x), end).mean())
                    for text in (f"{sampler}(order=3, stage_weight={w})" for w in ("taylor", "midpoint"))
                )
                cells.append(f"{taylor:.3g}, {midpoint:.3g}: {midpoint / taylor:.2f}")
            print(f"| {name} | `{sampler}` | {spacing} | {' | '.join(cells)} |", flush=True)


def main(samples: int) -> None:
    print(f"| network | sampler | spacing | {' | '.join(f'{calls} calls' for calls in CALLS)} |")
    print("|---|---|---|" + "---|" * len(CALLS))
    noise = torch.randn(samples, 64, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    rows("exact digits", exact_digits().eps(linear_schedule()), noise, 900)
    digits = load_model("digits", [i % 10 for i in range(samples // 4)])
    rows("bundled", digits, SeededNoise(0)(torch.empty(samples // 4, *digits.shape)), 150)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=128)
    main(**vars(parser.parse_args()))
