"""What is left of a plan's gain where the model has changed since it was tuned.

    python benchmarks/robustness.py [--plan digits/joint-5] [--changes guidance-2 bfloat16] [--json robustness.json]

A plan is tuned for the bundled network under the labels 0 to 9. Then the network, its guidance, its labels or its
precision change. For each change: the mean distance, to the end of a 100-call run of the changed model from the same
noise, of an untuned plan and of the tuned plan as it is; with `--budget`, of a plan tuned anew for the changed model.
Their noise is none that was tuned on, and "batch-1" calls the network with one sample at a time.

"fine-tuned": 100 steps of Adam at 1e-5 on scikit-learn's digits, enlarged. "8 bits", "4 bits": every weight of a
convolution or a linear map is rounded to so many bits, with a scale for each output channel. A file that exists is
continued.
"""

import argparse
from collections.abc import Callable
from copy import deepcopy
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from problems import JUDGED_ON, linear_schedule
from record import of_robustness, read, write
from sklearn.datasets import load_digits
from torch import nn

from time_tuner import Model, Plan, SeededNoise, make_plan, model_wrapper, tune
from time_tuner.digits.networks import NULL_LABEL, PixelNetwork
from time_tuner.models.batching import BatchedModel
from time_tuner.tuners import Calibration, ReferenceDistance

UNTUNED = ("ipndm(order=2)", "leading")  # the best untuned plan of 5 calls, see docs/results.md
SHAPE = (1, 28, 28)


@cache
def network() -> PixelNetwork:
    return PixelNetwork()


def model(net: Any = None, labels: tuple[int, ...] = tuple(range(10)), scale: float = 1.0) -> Model:
    """The model of a network under labels in a cycle, with classifier-free guidance."""
    wrapped = model_wrapper(net or network(), linear_schedule(), guidance_type="classifier-free",
                            guidance_scale=scale, shape=SHAPE)  # fmt: skip
    return wrapped.bind(torch.tensor(labels), torch.tensor([NULL_LABEL]))


def in_bfloat16() -> Model:
    half = deepcopy(network()).to(torch.bfloat16)
    return model(lambda x, n, labels: half(x.to(torch.bfloat16), n, labels).float())


def quantised(bits: int) -> Model:
    other = deepcopy(network())
    for part in other.modules():
        if isinstance(part, nn.Conv2d | nn.Linear):
            weight, most = part.weight.data, 2 ** (bits - 1) - 1
            scale = weight.abs().flatten(1).amax(1).clamp(min=1e-12).reshape(-1, *[1] * (weight.dim() - 1)) / most
            part.weight.data = (weight / scale).round() * scale
    return model(other)


def fine_tuned(steps: int = 100) -> Model:
    other, data = deepcopy(network()).requires_grad_(True), load_digits()
    pictures = nn.functional.interpolate(torch.tensor(data.images).float()[:, None] / 8 - 1, (20, 16), mode="bicubic")
    pictures = nn.functional.pad(pictures.clamp(-1, 1), (6, 6, 4, 4), value=-1.0)
    labels, draw, schedule = torch.tensor(data.target), torch.Generator().manual_seed(0), linear_schedule()
    descent = torch.optim.Adam(other.parameters(), 1e-5)
    for _ in range(steps):
        rows = torch.randint(len(pictures), (32,), generator=draw)
        n, noise = torch.randint(1000, (32,), generator=draw), torch.randn(32, *SHAPE, generator=draw)
        p = schedule.at((n + 1).double() / 1000)
        alpha, sigma = (one.float().reshape(-1, 1, 1, 1) for one in (p.alpha, p.sigma))
        loss = (other(alpha * pictures[rows] + sigma * noise, n, labels[rows]) - noise).square().mean()
        descent.zero_grad()
        loss.backward()
        descent.step()
    return model(other.requires_grad_(False))


CHANGES: dict[str, Callable[[], Model]] = {
    "none": model,
    "batch-1": model,
    "guidance-2": partial(model, scale=2.0),
    "guidance-4": partial(model, scale=4.0),
    "label-3": partial(model, labels=(3,)),
    "no-label": partial(model, labels=(NULL_LABEL,)),
    "bfloat16": in_bfloat16,
    "8-bits": partial(quantised, 8),
    "4-bits": partial(quantised, 4),
    "fine-tuned": fine_tuned,
}
"""Every change by its name: the changed model. Seeds change in all of them."""


def main(
    plan: str, changes: list[str], budget: str | None, samples: int, judged: int, batch: int, out: Path | None
) -> None:
    rows, tuned = read(out), Plan.load(plan)
    noise = SeededNoise(JUDGED_ON)(torch.empty(judged, *SHAPE))
    for change in changes:
        if change in {row["change"] for row in rows}:
            continue
        changed = CHANGES[change]()
        plans = {"untuned": make_plan(UNTUNED[0], changed.schedule, len(tuned), UNTUNED[1]), "tuned": tuned}
        if budget is not None:
            calibration = Calibration(changed, changed.schedule, None, samples, 0, SHAPE)
            plans["anew"] = tune(changed, calls=len(tuned), data=calibration, budget=budget)
        judges = dict[float, ReferenceDistance]()
        network_calls = BatchedModel(changed, 1 if change == "batch-1" else batch)
        row: dict[str, Any] = {"change": change, "plan": plan}
        for name, one in plans.items():
            end = round(float(one.t[-1]), 9)
            if end not in judges:
                judges[end] = ReferenceDistance(network_calls, one.schedule, float(one.t[-1]), noise)
            row[name] = judges[end](one)
        rows.append(row)
        print(row, flush=True)
        write(out, rows)
    print(f"\n{of_robustness(rows)}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--plan", default="digits/joint-5", help="a plan file, or a bundled plan")
    parser.add_argument("--changes", nargs="+", choices=CHANGES, default=list(CHANGES))
    parser.add_argument("--budget", help="of tuning anew; without it no plan is")
    parser.add_argument("--samples", type=int, default=64, help="to tune and to rank on")
    parser.add_argument("--judged", type=int, default=64, help="samples of a distance")
    parser.add_argument("--batch", type=int, default=64, help="samples of a network call")
    parser.add_argument("--json", dest="out", type=Path, default=None)
    main(**vars(parser.parse_args()))
