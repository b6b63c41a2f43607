"""A model of your own, end to end: wrap it, make a plan, tune it, sample, save, load.

    python examples/own_model.py [spiral-plan.json]

The model is a plain torch function that predicts the data, as a trained network would: from a noisy point it returns
the mean of all points of a spiral that it may come from.
"""

import math
import sys
from pathlib import Path

import torch
from torch import Tensor

from time_tuner import NoiseScheduleVP, Plan, SeededNoise, make_plan, model_wrapper, sample, tune

LEVELS = 400
turns = torch.linspace(0.5, 3, 600) * math.pi
spiral = torch.stack([turns.cos(), turns.sin()], 1) * turns[:, None] / 9


def alpha_bar(n: Tensor) -> Tensor:
    """What is left of the data's variance at level n, 0 .. 399; also between two levels."""
    return torch.cos((n + 1) / LEVELS * 0.99 * math.pi / 2) ** 2


def network(x: Tensor, n: Tensor) -> Tensor:
    """The data in x (B, 2), told levels n (B,)."""
    a = alpha_bar(n)[:, None]
    likely = torch.softmax(-torch.cdist(x / a.sqrt(), spiral).square() * a / (2 * (1 - a)), 1)
    return likely @ spiral


def main() -> None:
    path = Path(sys.argv[1] if len(sys.argv) > 1 else "spiral-plan.json")

    # 1. Wrap: the schedule it was trained with, and what it predicts.
    schedule = NoiseScheduleVP("discrete", alphas_cumprod=alpha_bar(torch.arange(LEVELS, dtype=torch.float64)))
    eps = model_wrapper(network, schedule, model_type="x_start").bind()

    # 2. Make a plan: which sampler, how many calls, where.
    plan = make_plan("ddim", schedule, calls=6)

    # 3. Tune it: what the network is told at each call. What does harm on noise of its own is put back.
    tuned = tune(eps, plan, data=spiral)
    print("call   t       told    ratio")
    for k in range(len(tuned)):
        print(f"{k:4}   {tuned.t[k]:.4f}  {tuned.tau[k]:.4f}  {tuned.tau[k] / tuned.t[k]:.3f}")
    before, bare, after = (tuned.provenance["distance"][name] for name in ("untuned", "unguarded", "tuned"))
    print(
        f"\nhow far it ends from a run of many calls: {before:.4f} untuned, {bare:.4f} at the optimum of the published"
    )
    print(f"loss, {after:.4f} with calls {tuned.provenance['reverted_calls']} put back\n")

    # 4. Save and load: a file of plain numbers.
    tuned.save(path)
    again = Plan.load(path)
    print(f"{path} holds the same plan in {path.stat().st_size} bytes: {again == tuned}\n")

    # 5. Sample.
    noise = SeededNoise(7)(torch.empty(1000, 2))
    for name, which in (("untuned", plan), ("tuned", again)):
        off = torch.cdist(sample(eps, which, noise), spiral).min(1).values
        print(f"{name:8} samples are {off.mean():.4f} off the spiral on average")


if __name__ == "__main__":
    main()
