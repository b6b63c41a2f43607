"""Tune the plans that come with the bundled models: `Plan.load("digits/ddim-10")` and the like.

    python training/plans.py [digits latent-digits]

DDIM in 5 and 10 calls on the published "leading" grid, sequential, on samples of every label in turn, judged on
held-out noise.
"""

import sys
from pathlib import Path

from time_tuner import load_model, make_plan, tune
from time_tuner.tuners import Judge
from time_tuner.tuners.calibration import Calibration

SAMPLES = 128
OUT = Path(__file__).parent.parent / "src" / "time_tuner" / "assets" / "plans"


def main(names: list[str]) -> None:
    for name in names:
        model = load_model(name, label=[i % 10 for i in range(SAMPLES)])
        judge = None
        for calls in (5, 10):
            plan = make_plan("ddim", model.schedule, calls=calls, spacing="leading")
            plan = plan.with_provenance(model=name, label="each in turn", guidance_scale=1.0, spacing="leading")
            if judge is None:
                noise = Calibration(model.eps, model.schedule, samples=SAMPLES, shape=model.shape).held_out()
                judge = Judge(model.eps, model.schedule, float(plan.t[-1]), noise)
            tuned = tune(model.eps, plan, guard=judge, samples=SAMPLES, shape=model.shape, verbose=True)
            tuned.save(OUT / name / f"ddim-{calls}.json")
            print(
                f"{name}, {calls} calls: distance {tuned.provenance['before']:.4f} -> {tuned.provenance['after']:.4f}"
            )


if __name__ == "__main__":
    main(sys.argv[1:] or ["digits", "latent-digits"])
