"""Orders of convergence, declared and measured, of every sampler and option of the conformance suite.

    python benchmarks/orders.py [--json orders.json]

Slopes of log error against log step length over 96 to 256 steps from t = 0.8 to 0.2 of the linear schedule, on a
mixture whose probability flow is known (deterministic samplers) and on a Gaussian by propagated moments (stochastic
ones): on a graded grid, whose first and last steps are short, and on one even in lam. Then DPM-Solver of order 3 with
the middle state of the paper, where the one here is that of diffusers. Prints a table in Markdown. A file
that exists is continued.
"""

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path

from record import of_orders, read, write
from torch import Tensor

from time_tuner import SPACINGS
from time_tuner.samplers import SAMPLERS, Evaluation, Noise, Sampler
from time_tuner.samplers.dpm import DPMSolver
from time_tuner.samplers.exponential import frame, phi
from time_tuner.schedules import Point
from time_tuner.testing.samplers import SMOOTH, graded, measured_order

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "support"))
from tables import EVERY


@dataclass(frozen=True)
class AsPublished(DPMSolver):
    """DPM-Solver-3 with the state at 2/3 of alg. 2: (phi_1 / h - 1) / r in place of phi_1 / (2 r)."""

    order: int = 3

    def step(self, past: tuple[Evaluation, ...], q: Point, noise: Noise) -> Tensor:
        if len(past) != 2:
            return super().step(past, q, noise)
        p, last = past
        x, b, hh = frame(p, q, self.data)
        w, r = phi(hh), (last.p.lam - p.p.lam) / (q.lam - p.p.lam)
        return x - b * w[0] * p.eps - b * w[1] / r * (last.eps - p.eps)


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


def main(out: Path | None) -> None:
    names, rows = {kind: name for name, kind in SAMPLERS.items()}, read(out)
    done = {(row["name"], row["options"]) for row in rows}
    for sampler in [one for one in (*EVERY, AsPublished()) if one.convergence]:
        name = f"`{names[type(sampler)]}`" if type(sampler) in names else "DPM-Solver-3 as published"
        shown = options(sampler)
        about = {"name": name, "options": f"`{shown}`" if shown else "", "declared": sampler.convergence}
        if (about["name"], about["options"]) not in done:
            slopes = {kind: measured_order(sampler, grid) for kind, grid in (("graded", graded), ("even", even))}
            rows.append({**about, **slopes})
            print(rows[-1], flush=True)
            write(out, rows)
    print(f"\n{of_orders(rows)}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", dest="out", type=Path, default=None)
    main(**vars(parser.parse_args()))
