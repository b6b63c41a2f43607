"""Tuned against untuned DDIM in 10 calls on the bundled digits under guidance.

    python benchmarks/guidance.py [--samples 200] [--calls 10] [--json out.json]

Classifier-free guidance at scale 2, and classifier guidance (a noise-conditional classifier, scale 1), labels balanced.
For the untuned plan, and both strategies of TimeTuner without and with the guard: the mean distance of a sample to the
end of a 500-call run from the same noise, and the Frechet distance of the samples to the MNIST test set. No plan is
tuned on the noise and the seeds of the measurement.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import torch
from problems import linear_schedule
from record import write
from rich.console import Console
from rich.table import Table
from torch import Tensor

from time_tuner import SeededNoise, make_plan, model_wrapper, sample, tune
from time_tuner.digits.classifier import load_noisy_classifier
from time_tuner.digits.metrics import digit_frechet
from time_tuner.digits.networks import NULL_LABEL, digits_network
from time_tuner.metrics import distance
from time_tuner.models.base import Model
from time_tuner.tuners import Calibration, ReferenceDistance, reference_plan
from time_tuner.tuners.guard import guarded

REFERENCE_CALLS = 500
SHAPE = (1, 28, 28)


def guided(kind: str) -> Callable[[Tensor], Model]:
    """`bind(labels)` gives the eps of the bundled network under this guidance."""
    network, classifier = digits_network(), load_noisy_classifier()

    def predict(x: Tensor, t: Tensor, cond: Tensor) -> Tensor:
        noise: Tensor = network(x, t, class_labels=cond).sample
        return noise

    def free(x: Tensor, t: Tensor, cond: Tensor) -> Tensor:
        return predict(x, t, torch.full_like(cond, NULL_LABEL))  # the digit is chosen by the classifier alone

    if kind == "classifier-free":
        wrapped = model_wrapper(predict, linear_schedule(), guidance_type=kind, guidance_scale=2.0)
        return lambda labels: wrapped.bind(labels, torch.tensor([NULL_LABEL]))
    wrapped = model_wrapper(
        free, linear_schedule(), guidance_type=kind, guidance_scale=1.0, classifier_fn=classifier.log_prob
    )
    return lambda labels: wrapped.bind(labels)


def main(samples: int, tuning: int, calls: int, spacing: str, out: Path | None) -> None:
    table = Table(title=f"Digits, DDIM, {calls} calls, {spacing} grid, {samples} samples")
    for column in ("guidance", "plan", "distance to 500 calls", "Frechet distance", "reverted calls"):
        table.add_column(column, justify="right")
    rows = []
    for kind in ("classifier-free", "classifier"):
        bind = guided(kind)
        measured, tuned_on = bind(torch.arange(samples) % 10), bind(torch.arange(tuning) % 10)
        schedule = linear_schedule()
        untuned = make_plan("ddim", schedule, calls=calls, spacing=spacing)
        x = SeededNoise(10_000)(torch.empty(samples, *SHAPE))
        end = sample(measured, reference_plan(schedule, float(untuned.t[-1]), REFERENCE_CALLS), x)
        plans = {"untuned": untuned}
        noise = Calibration(tuned_on, schedule, samples=tuning, shape=SHAPE).held_out()
        judge = ReferenceDistance(tuned_on, schedule, float(untuned.t[-1]), noise)
        for tuner in ("sequential", "parallel"):
            tuned = tune(tuned_on, untuned, tuner, guard=False, samples=tuning, shape=SHAPE, budget="2h", progress=True)
            plans |= {f"{tuner}, unguarded": tuned, tuner: guarded(tuned, untuned, judge)}
        states = {name: sample(measured, plan, x) for name, plan in plans.items()}
        for name, images in (states | {f"{REFERENCE_CALLS} calls": end}).items():
            row = {"guidance": kind, "plan": name, "distance": float(distance(images, end).mean())}
            row["frechet"] = digit_frechet(images)
            row["reverted"] = list(plans[name].provenance.get("reverted_calls", [])) if name in plans else []
            rows.append(row)
            reverted = ", ".join(map(str, row["reverted"]))
            table.add_row(kind, name, f"{row['distance']:.3f}", f"{row['frechet']:.2f}", reverted)
    Console(width=110).print(table)
    write(out, rows)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=200)
    parser.add_argument("--tuning", type=int, default=128, help="samples to tune on")
    parser.add_argument("--calls", type=int, default=10)
    parser.add_argument("--spacing", default="leading")
    parser.add_argument("--json", dest="out", type=Path, default=None)
    main(**vars(parser.parse_args()))
