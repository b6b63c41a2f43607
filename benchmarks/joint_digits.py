"""Joint tuning on the bundled digits network, beside every untuned sampler and spacing there is.

    python benchmarks/joint_digits.py [--guidance-scale 1 2] [--seeds 3] [--budget 180s] [--json out.json]
    python benchmarks/joint_digits.py --starts ddim@leading 'unipc@quadratic'  # not from the best plans
    python benchmarks/joint_digits.py --starts ddim@leading 'unipc(order=3)@quadratic' --known  # one a number of calls
    python benchmarks/joint_digits.py --parts --calls 5 --guidance-scale 1     # each part alone and together

For tuned plans of 5 and 10 calls, over seeds: the mean distance of a sample to the end of a 100-call run from the same
noise, and the Frechet distance of the samples to the MNIST test digits, labels balanced; beside them the plans that
come with the network, the best untuned plans of 5, 10 and 20 calls by that distance (ranked on ten samples of other
noise, the best three measured), and DDIM in 100. The standard error of a distance is in parentheses.
The network runs in float32: the rounding of bfloat16 alone takes the ends of 100 calls 0.15 apart, and small steps of
tuning may be lost in it. Noise and seeds of the measurement are not those of the tuning.
"""

import argparse
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from problems import LATE, PARTS, SUBSETS, untuned_plans
from record import write
from rich.console import Console
from rich.table import Table
from torch import Tensor

from time_tuner import Joint, Plan, SeededNoise, load_model, make_plan, sample, tune
from time_tuner.digits.metrics import digit_frechet
from time_tuner.metrics import distance
from time_tuner.models.batching import BatchedModel
from time_tuner.plans.build import parse_run
from time_tuner.tuners import Calibration, reference_plan

REFERENCE_CALLS, RANKED, BATCH, MEASURED = 100, 10, 100, 10**9
SHIPPED = ("digits/joint-5", "digits/joint-10")


def labelled(count: int, guidance_scale: float) -> Any:
    """The network with the labels 0 to 9 in a cycle."""
    return load_model("digits", [i % 10 for i in range(count)], guidance_scale)


class Bench:
    """The model under one guidance, and what plans are measured on."""

    def __init__(self, guidance_scale: float, samples: int) -> None:
        self.guidance_scale, self.samples = guidance_scale, samples
        model = labelled(BATCH, guidance_scale)
        self.eps, self.schedule, self.shape = model, model.schedule, model.shape
        self.few = labelled(RANKED, guidance_scale)
        self.ends: dict[float, Tensor] = {}

    def drawn(self, plan: Plan) -> Tensor:
        """Samples on the noise to measure on."""
        parts = []
        for first in range(0, self.samples, BATCH):
            x = SeededNoise(MEASURED + first)(torch.empty(BATCH, *self.shape))
            parts.append(sample(self.eps, plan, plan.initial_state(x)))
        return torch.cat(parts)[: self.samples]

    def reference(self, end: float) -> Tensor:
        """The end of a run of many calls from that noise."""
        if end not in self.ends:
            self.ends[end] = self.drawn(reference_plan(self.schedule, end, REFERENCE_CALLS))
        return self.ends[end]

    def measured(self, plan: Plan) -> tuple[float, float, float]:
        """Distance, its standard error, and Frechet distance."""
        drawn = self.drawn(plan)
        apart = distance(drawn, self.reference(float(plan.t[-1]))).double()
        return float(apart.mean()), float(apart.std()) / len(apart) ** 0.5, digit_frechet(drawn)

    def ranked(self, calls: int, most: int, late: Sequence[int] = LATE) -> list[tuple[str, Plan]]:
        """The untuned plans of the least distance, on a little other noise."""
        x = SeededNoise(2 * MEASURED)(torch.empty(RANKED, *self.shape))
        ends: dict[float, Tensor] = {}
        scores = []
        for name, plan in untuned_plans(self.schedule, calls, late).items():
            end = float(plan.t[-1])
            if end not in ends:
                ends[end] = sample(self.few, reference_plan(self.schedule, end, REFERENCE_CALLS), x)
            scores.append((float(distance(sample(self.few, plan, x), ends[end]).mean()), name, plan))
        return [(name, plan) for _, name, plan in sorted(scores, key=lambda score: score[0])[:most]]

    def calibration(self, seed: int) -> Calibration:
        """The noise of a seed, with all labels; plans that are tuned on as many pairs share the runs of the teacher."""
        return Calibration(BatchedModel(labelled(40, self.guidance_scale)), self.schedule, None, 40, seed, self.shape)

    def tuned(
        self, plan: Plan | None, calls: int, calibration: Calibration, tuner: Joint, budget: str
    ) -> tuple[Plan, float]:
        """A plan tuned with all labels, from the given one or from the best untuned ones, and the seconds of tuning;
        the first one includes the runs of the teacher."""
        began = time.perf_counter()
        start: dict[str, Any] = {"calls": calls} if plan is None else {"plan": plan}
        made = tune(
            calibration.model, tuner=tuner, data=calibration, guard=False, budget=budget, progress=True, **start
        )
        return made, time.perf_counter() - began


def main(
    scales: list[float],
    seeds: int,
    samples: int,
    calls: list[int],
    budget: str,
    pairs: int | None,
    starts: list[str],
    known: bool,
    parts: bool,
    tuned_only: bool,
    out: Path | None,
) -> None:
    rows: list[dict[str, Any]] = []
    on = "" if pairs is None else f" on {pairs} pairs"
    how = f"within {budget}{on} from {(', ' if known else ' or ').join(starts) or 'the best untuned plans'}"
    table = Table(title=f"Digits network: joint tuning {how}, {samples} samples")
    for name in ("guidance", "calls", "plan", "distance", "Frechet", "seconds", "evaluations"):
        table.add_column(name, justify="right")

    def add(scale: float, name: str, plan: Plan, bench: Bench, seconds: float = 0.0, spent: int = 0) -> None:
        apart, error, frechet = bench.measured(plan)
        rows.append({"guidance": scale, "calls": len(plan), "plan": name, "distance": apart, "frechet": frechet})
        rows[-1] |= {"error": error, "seconds": seconds, "evaluations": spent}
        print(rows[-1], flush=True)
        cost = (f"{seconds:.0f}", f"{spent:,}") if spent else ("", "")
        table.add_row(f"{scale:g}", str(len(plan)), name, f"{apart:.3f} ({error:.3f})", f"{frechet:.3f}", *cost)
        write(out, rows)

    def summed_up(scale: float, k: int, name: str) -> None:
        found = [row for row in rows if (row["guidance"], row["calls"], row["plan"]) == (scale, k, name)]
        values = [[row[what] for row in found] for what in ("distance", "frechet")]
        shown = [f"{statistics.mean(each):.3f} +- {statistics.pstdev(each):.3f}" for each in values]
        table.add_row(f"{scale:g}", str(k), f"{name}, {len(found)} seeds", *shown, "", "")

    for scale in scales:
        bench = Bench(scale, samples)
        calibrations = [bench.calibration(seed) for seed in range(seeds)]
        for i, k in enumerate(calls):
            made = (start.rpartition("@") for start in (starts[i : i + 1] if known else starts))
            found = [parse_run(f"{name}:{k}@{spacing}", bench.schedule) for name, _, spacing in made]
            plan, others = (found[0] if found else None), found[1:]
            for names in SUBSETS if parts else [PARTS]:
                name = "joint" if names == PARTS else " + ".join(names)
                for calibration in calibrations:
                    which: dict[str, Any] = {"candidates": 1} if parts or known else {"warm_starts": others}
                    tuner = Joint(parts=names, pairs=pairs, **which)
                    tuned, seconds = bench.tuned(plan, k, calibration, tuner, budget)
                    add(scale, name, tuned, bench, seconds, tuned.provenance["cost"]["tuning"]["evaluations"])
                summed_up(scale, k, name)
            if parts and plan is not None:
                add(scale, "untuned", plan, bench)
                for strategy in ("sequential", "parallel"):
                    add(scale, strategy, tune(calibrations[0].model, plan, strategy, calibrations[0]), bench)
        if tuned_only or parts:
            continue
        for name in SHIPPED:
            if (plan := Plan.load(name)).provenance["guidance_scale"] == scale:
                add(scale, name, plan, bench)
        for k in (*calls, 20):
            for name, plan in bench.ranked(k, 3):
                add(scale, name, plan, bench)
        add(scale, "DDIM@quadratic", make_plan("ddim", bench.schedule, 100, "quadratic"), bench)
        many = reference_plan(bench.schedule, bench.schedule.t_min, REFERENCE_CALLS)
        add(scale, "reference", many, bench)
    Console(width=130).print(table)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--guidance-scale", dest="scales", nargs="+", type=float, default=[1.0, 2.0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--samples", type=int, default=400)
    parser.add_argument("--calls", nargs="+", type=int, default=[5, 10])
    parser.add_argument("--budget", default="180s")
    parser.add_argument("--pairs", type=int, default=None, help="of the teacher, a quarter of them to validate on")
    parser.add_argument("--starts", nargs="+", default=[], metavar="SAMPLER@SPACING")
    parser.add_argument("--known", action="store_true", help="one of --starts for each of --calls, no other candidates")
    parser.add_argument("--parts", action="store_true", help="each part alone and together, without further candidates")
    parser.add_argument("--tuned-only", action="store_true", help="leave out the untuned plans")
    parser.add_argument("--json", dest="out", type=Path, default=None)
    args = parser.parse_args()
    if args.known and len(args.starts) != len(args.calls):
        parser.error(f"--known takes one of --starts for each of --calls, {len(args.calls)}, got {len(args.starts)}")
    main(**vars(args))
