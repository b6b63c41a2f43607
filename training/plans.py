"""Tune the plans that come with the bundled models: `Plan.load("digits/joint-5")` and the like.

    python training/plans.py [digits latent-digits] [--plans ddim joint] [--iterations 300] [--bfloat16]

ddim-5 and ddim-10: the conditioning times of DDIM on the published "leading" grid, by the sequential strategy. joint-5
and joint-10: step times, conditioning times and corrections, from the plans that are best after joint tuning here: DDIM
on that grid, and for 10 calls UniPC(3) on "quadratic". Tuned on samples of all labels, and compared with untuned plans
on held-out noise. Those of DDIM for digits were made in bfloat16.
"""

import argparse
from pathlib import Path

import torch

from time_tuner import Joint, Sequential, load_model, make_plan, tune
from time_tuner.samplers.ddim import DDIM
from time_tuner.samplers.unipc import UniPC
from time_tuner.tuners import Calibration, ReferenceDistance

SAMPLES, CALLS, PAIRS = 120, (5, 10), 1024
OUT = Path(__file__).parent.parent / "src" / "time_tuner" / "digits" / "assets" / "plans"
KINDS = ("ddim", "joint")


def main(models: list[str], plans: list[str], iterations: int) -> None:
    for name in models:
        model = load_model(name, label=[i % 10 for i in range(SAMPLES)])
        calibration = Calibration(model, model.schedule, samples=SAMPLES, shape=model.shape)
        judges: dict[float, ReferenceDistance] = {}
        for kind in plans:
            tuner = Joint(pairs=PAIRS, iterations=iterations, candidates=1) if kind == "joint" else Sequential()
            for calls in CALLS:
                ten = (kind, calls) == ("joint", 10)
                sampler, spacing = (UniPC(3), "quadratic") if ten else (DDIM(), "leading")
                plan = make_plan(sampler, model.schedule, calls=calls, spacing=spacing)
                plan = plan.with_provenance(model=name, label="0 to 9", guidance_scale=1.0, spacing=spacing)
                end = round(float(plan.t[-1]), 9)
                if end not in judges:
                    judges[end] = ReferenceDistance(
                        calibration.model, model.schedule, float(plan.t[-1]), calibration.held_out()
                    )
                tuned = tune(model, plan, tuner, calibration, guard=judges[end], budget="10h", progress=True)
                tuned.save(OUT / name / f"{kind}-{calls}.json")
                measured = tuned.provenance["distance"]
                print(f"{name}, {kind}-{calls}: distance {measured['untuned']:.4f} -> {measured['tuned']:.4f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=["digits", "latent-digits"])
    parser.add_argument("--plans", nargs="+", choices=KINDS, default=KINDS)
    parser.add_argument("--iterations", type=int, default=300, help="of joint tuning")
    parser.add_argument("--bfloat16", action="store_true", help="run the network under autocast")
    args = parser.parse_args()
    with torch.autocast("cpu", torch.bfloat16, enabled=args.bfloat16):
        main(args.models, args.plans, args.iterations)
