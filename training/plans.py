"""Tune the plans that come with the bundled models: `Plan.load("digits/joint-5")` and the like.

    python training/plans.py [digits latent-digits] [--plans ddim joint] [--iterations 300] [--bfloat16]

ddim-5 and ddim-10: DDIM on the published "leading" grid, what the network is told, by the sequential strategy. joint-5
and joint-10: where the steps are, what the network is told and how its predictions are combined, from the starts that
lead farthest here: DDIM on that grid, and for 10 calls UniPC(3) on "quadratic". Tuned on samples of every label in
turn, and judged on held-out noise. Those of DDIM for digits were made in bfloat16.
"""

import argparse
from pathlib import Path
from typing import Any

import torch

from time_tuner import load_model, make_plan, tune
from time_tuner.samplers.ddim import DDIM
from time_tuner.samplers.unipc import UniPC
from time_tuner.tuners import Calibration, ReferenceDistance

SAMPLES, CALLS, PAIRS = 120, (5, 10), 1024
OUT = Path(__file__).parent.parent / "src" / "time_tuner" / "digits" / "assets" / "plans"
METHODS = {"ddim": "sequential", "joint": "joint"}


def main(models: list[str], plans: list[str], iterations: int) -> None:
    for name in models:
        model = load_model(name, label=[i % 10 for i in range(SAMPLES)])
        calibration = Calibration(model, model.schedule, samples=SAMPLES, shape=model.shape)
        judges: dict[float, ReferenceDistance] = {}
        for kind in plans:
            how: dict[str, Any] = {}
            if kind == "joint":
                how = {"iterations": iterations, "pairs": PAIRS, "starts": 1}
            for calls in CALLS:
                ten = (kind, calls) == ("joint", 10)
                sampler, spacing = (UniPC(3), "quadratic") if ten else (DDIM(), "leading")
                plan = make_plan(sampler, model.schedule, calls=calls, spacing=spacing)
                plan = plan.with_provenance(model=name, label="each in turn", guidance_scale=1.0, spacing=spacing)
                end = round(float(plan.t[-1]), 9)
                if end not in judges:
                    judges[end] = ReferenceDistance(
                        calibration.model, model.schedule, float(plan.t[-1]), calibration.held_out()
                    )
                tuned = tune(model, plan, METHODS[kind], calibration, guard=judges[end], verbose=True, **how)
                tuned.save(OUT / name / f"{kind}-{calls}.json")
                measured = tuned.provenance["distance"]
                print(f"{name}, {kind}-{calls}: distance {measured['untuned']:.4f} -> {measured['tuned']:.4f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=["digits", "latent-digits"])
    parser.add_argument("--plans", nargs="+", choices=list(METHODS), default=list(METHODS))
    parser.add_argument("--iterations", type=int, default=300, help="of joint tuning")
    parser.add_argument("--bfloat16", action="store_true", help="run the network under autocast")
    args = parser.parse_args()
    with torch.autocast("cpu", torch.bfloat16, enabled=args.bfloat16):
        main(args.models, args.plans, args.iterations)
