"""Sampling in fewer steps, from the start: respacing, DDPM, DDIM and TimeTuner.

    python examples/tutorial.py [--samples 10000] [--picture histograms.png]

The data are scalars from N(5, 2^2), and the model predicts their noise exactly. Only the sampler makes an error. The
error is computed exactly: every step is affine in the state, so that mean and standard deviation of a run have a
closed form. The table shows them beside the mean and the standard deviation of samples.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from time_tuner import NoiseScheduleVP, Plan, SeededNoise, make_plan, respaced_betas, sample, tune
from time_tuner.metrics import exact_moments
from time_tuner.models.exact import Gaussian
from time_tuner.samplers import DDIM, DDPM
from time_tuner.sampling import coefficients

BETAS = np.linspace(1e-4, 0.02, 1000)
TEN = np.linspace(0, 999, 10, dtype=int)  # the levels of a run of ten steps

DATA = Gaussian(5.0, 2.0)
SCHEDULE = NoiseScheduleVP("discrete", betas=BETAS)
EPS = DATA.eps(SCHEDULE)

RESPACING = """\
Keep ten of the 1000 levels. alpha_bar of a level is the product of 1 - beta up to that level. The beta of a longer step
is therefore 1 - alpha_bar of the level / alpha_bar of the kept level before:
  levels  {levels}
  beta~   {betas}
The product of 1 - beta~ is the kept alpha_bar again, equal to {back:.0e}. A run over all ten levels of the schedule
with these betas equals a run over the ten kept levels of the long schedule, to {same:.0e}.
"""
HEADING = f"""\
{"":27} {"calls":>5}   {"sampled":^14}   {"exact":^18}
{"":27} {"":>5}   {"mean":>7} {"std":>6}   {"mean":>9} {"std":>8}
{"the data":27} {"":>5}   {"":>7} {"":>6}   {5:9.5f} {2:8.5f}"""
ETA = """
DDIM with eta = 1 adds noise with the smaller of DDPM's two variances, the variance of the posterior. The two rows are
the same run, equal to {gap:.0e}. DDIM with eta = 0 adds no noise.
"""
TIME_TUNER = """\
TimeTuner keeps the steps and gives the network another time at each of them, the conditioning time tau. The published
loss compares the noise predicted before and after the step. The ratios tau / t:
  as published  {bare}
  by default    {judged}
On these data, the optimum of the published loss is worse than the untuned run. The default loss compares each step with
four smaller steps, and the guard measures the result on other noise. The distance to a run of many steps is
{before:.4f} untuned and {after:.4f} tuned."""


def row(name: str, plan: Plan, samples: int) -> Tensor:
    """Prints the sampled and the exact moments of a plan; returns the samples."""
    noise = SeededNoise([0])
    x = sample(EPS, plan, noise(torch.empty(1, samples, dtype=torch.float64)), noise)
    mean, std = exact_moments(DATA, plan)
    print(f"{name:27} {len(plan):5}   {x.mean():7.3f} {x.std():6.3f}   {mean:9.5f} {std:8.5f}")
    return x.flatten()


def numbers(values: Tensor | np.ndarray, form: str) -> str:
    return " ".join(format(float(value), form) for value in values)


def respacing() -> None:
    """Prints the betas of a DDPM on some of its levels."""
    tilde = respaced_betas(BETAS, TEN)
    back = np.abs(np.cumprod(1 - tilde.numpy()) - np.cumprod(1 - BETAS)[TEN]).max()
    short = make_plan("ddpm", NoiseScheduleVP("discrete", betas=tilde), calls=10, spacing="linspace")
    long = make_plan("ddpm", SCHEDULE, calls=10, spacing="linspace")
    same = (coefficients(short) - coefficients(long)).abs().max()
    print(RESPACING.format(levels=numbers(TEN, "6.0f"), betas=numbers(tilde, "6.4f"), back=back, same=same))


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Sampling in fewer steps, from the start.")
    parser.add_argument("--samples", type=int, default=10_000)
    parser.add_argument("--picture", type=Path, help="the picture of histograms to write")
    options = parser.parse_args(arguments)
    drawn = {}

    respacing()
    print(HEADING)

    # DDPM in fewer steps keeps the mean and loses variance.
    for calls in (1000, 100, 10):
        ddpm = make_plan("ddpm", SCHEDULE, calls=calls, spacing="linspace")
        drawn[f"DDPM, {calls} calls"] = row("DDPM", ddpm, options.samples)

    # DDIM computes the predicted data and adds noise of the next level, of which eta decides the fresh part.
    for eta in (0, 0.25, 0.5, 0.75, 1):
        ddim = make_plan(DDIM(eta), SCHEDULE, calls=10, spacing="linspace")
        drawn[f"DDIM, eta = {eta}, 10 calls"] = row(f"DDIM, eta = {eta}", ddim, options.samples)
    small = make_plan(DDPM("small"), SCHEDULE, calls=10, spacing="linspace")
    row("DDPM, smaller variance", small, options.samples)

    # TimeTuner: the optimum of the published loss, and the default loss with the guard.
    untuned = make_plan("ddim", SCHEDULE, calls=10, spacing="linspace")
    how = {"data": DATA.sample(2000), "samples": 1000}
    bare, judged = (
        tune(EPS, untuned, "sequential(objective=published)", guard=False, **how),
        tune(EPS, untuned, "sequential", **how),
    )
    row("DDIM, tuned as published", bare, options.samples)
    row("DDIM, tuned with the guard", judged, options.samples)

    print(ETA.format(gap=(coefficients(ddim) - coefficients(small)).abs().max()))
    ratios = {name: numbers(plan.tau / plan.t[:-1], ".3f") for name, plan in (("bare", bare), ("judged", judged))}
    print(
        TIME_TUNER.format(
            before=judged.provenance["distance"]["untuned"], after=judged.provenance["distance"]["tuned"], **ratios
        )
    )

    if options.picture:
        three = ("DDPM, 1000 calls", "DDPM, 10 calls", "DDIM, eta = 0, 10 calls")
        draw({name: drawn[name] for name in three}, options.picture)
        print(f"\nHistograms are in {options.picture}.")


def draw(samples: dict[str, Tensor], path: Path) -> None:
    """Draws a histogram of each, with the density of the data."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4 * len(samples), 3), layout="constrained")
    x = np.linspace(-3, 13, 400)
    for axes, (name, values) in zip(figure.subplots(1, len(samples), sharey=True), samples.items(), strict=True):
        axes.hist(values.numpy(), bins=60, range=(-3, 13), density=True, color="#56b4e9")
        axes.plot(x, np.exp(-((x - 5) ** 2) / 8) / np.sqrt(8 * np.pi), color="#d55e00")
        axes.set_title(name)
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    main()
