"""A network of your own: wrap it, make a plan, tune the plan, save, load, sample.

    python examples/own_model.py [spiral-plan.json]

The network is a torch function in place of a trained network. It predicts the data: for a noisy point, the mean of the
points of a spiral, weighted by their likelihood.
"""

import math
import sys
from pathlib import Path

import torch
from torch import Tensor

from time_tuner import NoiseScheduleVP, Plan, SeededNoise, make_plan, model_wrapper, sample, tune

LEVELS = 400
angles = torch.linspace(0.5, 3, 600) * math.pi
spiral = torch.stack([angles.cos(), angles.sin()], 1) * angles[:, None] / 9


def alpha_bar(n: Tensor) -> Tensor:
    """alpha^2 at level n, 0 .. 399, which may lie between two levels."""
    return torch.cos((n + 1) / LEVELS * 0.99 * math.pi / 2) ** 2


def network(x: Tensor, n: Tensor) -> Tensor:
    """The data in x (B, 2) at levels n (B,)."""
    a = alpha_bar(n)[:, None]
    likely = torch.softmax(-torch.cdist(x / a.sqrt(), spiral).square() * a / (2 * (1 - a)), 1)
    return likely @ spiral


def main() -> None:
    path = Path(sys.argv[1] if len(sys.argv) > 1 else "spiral-plan.json")

    # 1. Wrap the network: its noise schedule and its prediction type.
    schedule = NoiseScheduleVP("discrete", alphas_cumprod=alpha_bar(torch.arange(LEVELS, dtype=torch.float64)))
    eps = model_wrapper(network, schedule, model_type="x_start").bind()

    # 2. Make an untuned plan: the sampler, the number of calls, the spacing.
    plan = make_plan("ddim", schedule, calls=6, spacing="quadratic")

    # 3. Tune the conditioning time of each call. The guard sets harmful ratios back to 1.
    tuned = tune(eps, plan, "sequential", data=spiral)
    print("call   t       tau     ratio")
    for k in range(len(tuned)):
        print(f"{k:4}   {tuned.t[k]:.4f}  {tuned.tau[k]:.4f}  {tuned.tau[k] / tuned.t[k]:.3f}")
    before, bare, after = (tuned.provenance["distance"][name] for name in ("untuned", "unguarded", "tuned"))
    print(f"\ndistance to the end of a reference run: {before:.4f} untuned, {bare:.4f} tuned without the guard,")
    print(f"{after:.4f} tuned; the guard reverted the calls {tuned.provenance['reverted_calls']}\n")

    # 4. Save and load: the file holds plain numbers.
    tuned.save(path)
    again = Plan.load(path)
    print(f"{path} holds the same plan in {path.stat().st_size} bytes: {again == tuned}\n")

    # 5. Draw samples.
    noise = SeededNoise(7)(torch.empty(1000, 2))
    for name, which in (("untuned", plan), ("tuned", again)):
        off = torch.cdist(sample(eps, which, noise), spiral).min(1).values
        print(f"{name:8} mean distance of samples to the spiral: {off.mean():.4f}")


if __name__ == "__main__":
    main()
