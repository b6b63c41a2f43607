"""Sampling in fewer steps, from the start: respacing, DDPM, DDIM, and what TimeTuner adds.

    python examples/tutorial.py [--samples 10000] [--picture histograms.png]

The data are scalars from N(5, 2^2), a model that knows its noise prediction exactly. All that a sampler gets wrong is
then its own error, and can be computed: every step is affine in the state, so that mean and standard deviation go
through a run in closed form. They stand beside what a sample of finite size says.
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
TEN = np.linspace(0, 999, 10, dtype=int)  # the levels that are kept in a run of ten steps

DATA = Gaussian(5.0, 2.0)
SCHEDULE = NoiseScheduleVP("discrete", betas=BETAS)
EPS = DATA.eps(SCHEDULE)

RESPACING = """\
Keep ten of the 1000 levels. What is left of the data's variance at a level, alpha_bar, is the product of 1 - beta up
to there; so the beta of a longer step is 1 - alpha_bar here / alpha_bar at the kept level before:
  levels  {levels}
  beta~   {betas}
Multiplied up again they give the kept alpha_bar back, to {back:.0e}. All steps of a schedule with these betas, or the
ten kept steps of the long one: that is the same run, to {same:.0e}.
"""
HEADING = f"""\
{"":27} {"calls":>5}   {"sampled":^14}   {"exact":^18}
{"":27} {"":>5}   {"mean":>7} {"std":>6}   {"mean":>9} {"std":>8}
{"the data":27} {"":>5}   {"":>7} {"":>6}   {5:9.5f} {2:8.5f}"""
ETA = """
With eta = 1 the noise that DDIM adds has the smaller of DDPM's two variances, that of its posterior, and what is kept
of the old noise makes up the posterior's mean: the two rows are one run, to {gap:.0e}. With eta = 0 nothing is drawn.
"""
TIME_TUNER = """\
TimeTuner leaves the steps where they are and tells the network, at each of them, another time than the solver's, so
that the noise it sees after the step is the noise it saw before. The ratios of the two times:
  as published  {bare}
  by default    {judged}
At the optimum of that criterion the last steps go too far on data as simple as these. By default every step is tuned
to end where four smaller ones would, and what came of it is judged on noise of its own: {before:.4f} away from a run
of many steps untuned, {after:.4f} tuned."""


def row(name: str, plan: Plan, samples: int) -> Tensor:
    """Print what a plan gives, sampled and exactly; returns the samples."""
    noise = SeededNoise([0])
    x = sample(EPS, plan, noise(torch.empty(1, samples, dtype=torch.float64)), noise)
    mean, std = exact_moments(DATA, plan)
    print(f"{name:27} {len(plan):5}   {x.mean():7.3f} {x.std():6.3f}   {mean:9.5f} {std:8.5f}")
    return x.flatten()


def numbers(values: Tensor | np.ndarray, form: str) -> str:
    return " ".join(format(float(value), form) for value in values)


def respacing() -> None:
    """A DDPM on some of its levels is a DDPM again, with betas of its own."""
    tilde = respaced_betas(BETAS, TEN)
    back = np.abs(np.cumprod(1 - tilde.numpy()) - np.cumprod(1 - BETAS)[TEN]).max()
    short = make_plan("ddpm", NoiseScheduleVP("discrete", betas=tilde), calls=10, spacing="linspace")
    long = make_plan("ddpm", SCHEDULE, calls=10, spacing="linspace")
    same = (coefficients(short) - coefficients(long)).abs().max()
    print(RESPACING.format(levels=numbers(TEN, "6.0f"), betas=numbers(tilde, "6.4f"), back=back, same=same))


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Sampling in fewer steps, from the start.")
    parser.add_argument("--samples", type=int, default=10_000)
    parser.add_argument("--picture", type=Path, help="where to draw the histograms")
    options = parser.parse_args(arguments)
    drawn = {}

    respacing()
    print(HEADING)

    # DDPM in fewer steps keeps the mean and loses variance.
    for calls in (1000, 100, 10):
        ddpm = make_plan("ddpm", SCHEDULE, calls=calls, spacing="linspace")
        drawn[f"DDPM, {calls} calls"] = row("DDPM", ddpm, options.samples)

    # DDIM goes to the predicted data and back up to the next level, with any share eta of fresh noise.
    for eta in (0, 0.25, 0.5, 0.75, 1):
        ddim = make_plan(DDIM(eta), SCHEDULE, calls=10, spacing="linspace")
        drawn[f"DDIM, eta = {eta}, 10 calls"] = row(f"DDIM, eta = {eta}", ddim, options.samples)
    small = make_plan(DDPM("small"), SCHEDULE, calls=10, spacing="linspace")
    row("DDPM, smaller variance", small, options.samples)

    # TimeTuner: the optimum of the published criterion; and that of the default one, judged on noise not tuned on.
    untuned = make_plan("ddim", SCHEDULE, calls=10, spacing="linspace")
    how = {"data": DATA.sample(2000), "samples": 1000}
    bare, judged = tune(EPS, untuned, objective="published", guard=False, **how), tune(EPS, untuned, **how)
    row("DDIM, tuned as published", bare, options.samples)
    row("DDIM, tuned and judged", judged, options.samples)

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
    """A histogram of each, with the density of the data."""
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
