"""Orders of convergence, declared and measured, of every sampler and option of the conformance suite.

    python benchmarks/orders.py

Gradients of log error against log step length over 96 to 256 steps from t = 0.8 to 0.2 of the linear schedule, on a
mixture whose probability flow is known (deterministic samplers) and on a Gaussian by propagated moments (stochastic
ones): on a graded grid, whose first and last steps are short, and on one even in lam. Samplers of distilled models have
no order. Prints a table in Markdown.
"""

import sys
from pathlib import Path

from torch import Tensor

from time_tuner import SAMPLERS, SPACINGS
from time_tuner.samplers import Sampler
from time_tuner.testing.samplers import SMOOTH, measured_order

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
import test_conformance as suite


def even(steps: int) -> Tensor:
    """From t = 0.8 to 0.2, even in lam."""
    return SPACINGS["logsnr"](SMOOTH, steps, 0.8, 0.2)


def options(sampler: Sampler) -> str:
    """The options that are not the default ones, and the order."""
    plain = type(sampler)()
    shown = [
        f"{name}={value!r}"
        for name, value in vars(sampler).items()
        if value != getattr(plain, name) or name in ("order", "variance", "eta", "skip_prk_steps")
    ]
    return ", ".join(shown)


def main() -> None:
    names = {kind: name for name, kind in SAMPLERS.items()}
    print("| name | options | declared | graded grid | even in lam |\n|---|---|---|---|---|")
    for sampler in suite.EVERY:
        if sampler.convergence:
            orders = " | ".join(f"{measured_order(sampler, grid):.2f}" for grid in (None, even))
            shown = options(sampler)
            name = f"`{names[type(sampler)]}`"
            print(f"| {name} | {f'`{shown}`' if shown else ''} | {sampler.convergence} | {orders} |", flush=True)


if __name__ == "__main__":
    main()
