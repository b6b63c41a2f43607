"""The problems that benchmarks run on, and the ranking of all untuned plans on one.

    python benchmarks/problems.py [--problems spirals latent] [--calls 5 10] [--samples 64] [--best 5] [--json out.json]

For each problem and number of calls: the best of the untuned table, which is every deterministic sampler with each of
its orders x every spacing x late beginnings (the grid of a run with 0, 1 or 2 steps more, without its first steps).
They are ranked by the mean distance to the end of a 100-call run from the same noise. Plans of two spacings may end at
two times; each has the reference run to its own.
"""

import argparse
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import product
from pathlib import Path

import torch
from record import write
from rich.console import Console
from rich.table import Table
from sklearn.datasets import load_digits, load_sample_images
from torch import Tensor

from time_tuner import (
    SAMPLERS,
    SPACINGS,
    Model,
    NoiseScheduleFlow,
    NoiseScheduleVE,
    NoiseScheduleVP,
    Plan,
    SeededNoise,
    exact,
    load_model,
    make_plan,
    sample,
)
from time_tuner.digits.metrics import digit_frechet
from time_tuner.digits.networks import linear_betas
from time_tuner.metrics import frechet_between
from time_tuner.models.batching import BatchedModel
from time_tuner.models.exact import ConditionalMixture
from time_tuner.pictograms import pictogram_frechet
from time_tuner.plans.build import reference_plan
from time_tuner.samplers import sampler_from_dict
from time_tuner.schedules import NoiseSchedule
from time_tuner.spacings import Spacing
from time_tuner.tuners import ReferenceDistance
from time_tuner.tuners.calibration import OWN_CALLS
from time_tuner.tuners.ranking import LATE

PARTS = ("times", "tau", "corrections")
SUBSETS = [*((part,) for part in PARTS), PARTS[:2], PARTS[1:], PARTS[::2], PARTS]
"""Every choice of what joint tuning tunes."""
JUDGED_ON = 2 * 10**8  # the first of the seeds of what plans are compared on; no tuner draws from there
RANKED_ON = JUDGED_ON + 10**7  # and of what the untuned table is ranked on: the best of it is compared on other noise
ORDERS = (None, 1, 2, 3, 4)
BATCH = 256  # samples of a network call


@dataclass(frozen=True)
class Problem:
    """A model, and what plans for it are judged on.

    Attributes:
        name: of the problem, in tables.
        model: of any number of samples; where it has conditions, sample i is under condition i modulo their number.
        data: `data(count, seed)` draws calibration data, (count, ...): fresh ones, or own samples of a network.
        frechet_of: the Frechet distance of samples (n, ...) to the data.
        judged: the number of samples of a distance.
        drawn: the number of samples of a Frechet distance.
        device: of the model.
    """

    name: str
    model: Model
    data: Callable[[int, int], Tensor]
    frechet_of: Callable[[Tensor], float]
    judged: int
    drawn: int
    device: str = "cpu"
    _references: dict[tuple[float, int, int], ReferenceDistance] = field(default_factory=dict, repr=False)

    @property
    def schedule(self) -> NoiseSchedule:
        return self.model.schedule

    def noise(self, count: int, first: int = JUDGED_ON) -> Tensor:
        """Standard normal noise (count, ...), of the seeds from `first` on."""
        assert self.model.shape is not None
        return SeededNoise(first)(torch.empty(count, *self.model.shape)).to(self.device)

    def reference(self, end: float, count: int | None = None, first: int = JUDGED_ON) -> ReferenceDistance:
        """The distance of plans to this time to the end of a 100-call run, on so much noise; `judged` by default."""
        key = (round(end, 12), count or self.judged, first)
        if key not in self._references:
            noise = self.noise(key[1], first)
            self._references[key] = ReferenceDistance(self.model, self.schedule, end, noise)
        return self._references[key]

    def distance(self, plan: Plan) -> float:
        """The mean distance of a plan to the end of a 100-call run, on noise that nothing was tuned on."""
        return self.reference(float(plan.t[-1]))(plan)

    def frechet(self, plan: Plan) -> float:
        """The Frechet distance of a plan's samples to the data, on noise that nothing was tuned on."""
        noise = self.noise(self.drawn, JUDGED_ON + 10**5)
        return self.frechet_of(sample(self.model, plan, plan.initial_state(noise), SeededNoise(10**6)))


def linear_schedule() -> NoiseScheduleVP:
    return NoiseScheduleVP("discrete", betas=linear_betas())


def exact_digits() -> exact.Mixture:
    """scikit-learn's 1797 digits, x / 8 - 1 in 64 dimensions, blurred by 0.1: the data set's own denoiser."""
    return exact.Mixture(torch.tensor(load_digits().data) / 8 - 1, 0.1)


def exact_patches(size: int = 6) -> exact.Mixture:
    """2000 square colour patches in [-1, 1] of the two photographs that come with scikit-learn, blurred by 0.1."""
    draw, patches = torch.Generator().manual_seed(0), []
    for photograph in load_sample_images().images:
        pixels = torch.from_numpy(photograph.copy()).permute(2, 0, 1) / 127.5 - 1
        for _ in range(1000):
            row, column = (int(torch.randint(n - size + 1, (1,), generator=draw)) for n in pixels.shape[1:])
            patches.append(pixels[:, row : row + size, column : column + size])
    return exact.Mixture(torch.stack(patches), 0.1)


def exact_classes() -> ConditionalMixture:
    """The exact digits with their ten classes."""
    data = load_digits()
    return ConditionalMixture(torch.tensor(data.data) / 8 - 1, torch.tensor(data.target).long(), 0.1)


def two_spirals() -> exact.Mixture:
    """2 x 500 points of two spirals in the plane, within the unit circle, blurred by 0.03."""
    angle = torch.linspace(0.5, 3.5, 500, dtype=torch.float64) * math.pi
    spiral = torch.stack([angle.cos(), angle.sin()], 1) * angle[:, None] / (3.5 * math.pi)
    return exact.Mixture(torch.cat([spiral, -spiral]), 0.03)


def exact_problem(name: str, data: exact.Mixture, schedule: NoiseSchedule) -> Problem:
    fresh = data.sample(4000, 10**7)
    return Problem(
        name,
        data.eps(schedule),
        lambda count, seed: data.sample(count, seed).float(),
        lambda ends: frechet_between(ends.double(), fresh),
        judged=1000,
        drawn=4000,
    )


def classes_problem(name: str, guidance_scale: float) -> Problem:
    """Exact digits under the classes 0 to 9 in a cycle, which the data have, too."""
    mixture = exact_classes()
    classes = [exact.Mixture(mixture.means[mixture.labels == one], mixture.std) for one in range(10)]

    def data(count: int, seed: int) -> Tensor:
        each = [one.sample(-(-count // 10), 10 * seed + i) for i, one in enumerate(classes)]
        return torch.stack(each, 1).flatten(0, 1)[:count].float()

    model = BatchedModel(mixture.guided(linear_schedule(), list(range(10)), guidance_scale), BATCH)
    fresh = data(4000, 10**6).double()
    return Problem(name, model, data, lambda ends: frechet_between(ends.double(), fresh), judged=500, drawn=2000)


def network_problem(
    name: str, model: Model, device: str = "cpu", frechet: Callable[[Tensor], float] = digit_frechet
) -> Problem:
    """A network of pictures, or of their latents. Its data are the ends of its own 50-call runs, drawn once a seed."""
    batched = BatchedModel(model, BATCH)

    @cache
    def data(count: int, seed: int) -> Tensor:
        noise = SeededNoise(seed * 10**6)(torch.empty(count, *model.shape)).to(device)
        return sample(batched, reference_plan(model.schedule, 0.0, OWN_CALLS), noise)

    def frechet_of(ends: Tensor) -> float:
        return frechet(model.decode(ends).cpu())

    return Problem(name, batched, data, frechet_of, judged=64, drawn=400, device=device)


def labelled(name: str, guidance_scale: float) -> Model:
    """A bundled model under the labels 0 to 9 in a cycle."""
    return load_model(name, list(range(10)), guidance_scale)


PROBLEMS: dict[str, Callable[[], Problem]] = {
    "digits": lambda: exact_problem("exact digits", exact_digits(), linear_schedule()),
    "digits-flow": lambda: exact_problem("exact digits, flow", exact_digits(), NoiseScheduleFlow()),
    "digits-ve": lambda: exact_problem("exact digits, VE", exact_digits(), NoiseScheduleVE()),
    "patches": lambda: exact_problem("exact patches", exact_patches(), linear_schedule()),
    "patches-8": lambda: exact_problem("exact patches, 8 x 8", exact_patches(8), linear_schedule()),
    "patches-flow": lambda: exact_problem("exact patches, flow", exact_patches(), NoiseScheduleFlow()),
    "patches-ve": lambda: exact_problem("exact patches, VE", exact_patches(), NoiseScheduleVE()),
    "classes": lambda: classes_problem("exact digits, classes", 1.0),
    "classes-guided": lambda: classes_problem("exact digits, classes, guidance 3", 3.0),
    "spirals": lambda: exact_problem("two spirals", two_spirals(), linear_schedule()),
    "latent": lambda: network_problem("latent network", labelled("latent-digits", 1.0)),
    "network": lambda: network_problem("bundled network", labelled("digits", 1.0)),
    "network-guided": lambda: network_problem("bundled network, guidance 2", labelled("digits", 2.0)),
    "pictograms": lambda: network_problem("pictograms", load_model("pictograms"), frechet=pictogram_frechet),
}
"""Every problem by its name on the command line."""


def later(grid: Spacing, skipped: int) -> Spacing:
    """The spacing without its first steps, of which it has so many more."""
    return lambda schedule, steps: grid(schedule, steps + skipped)[skipped:]


def untuned_plans(schedule: NoiseSchedule, calls: int, late: Sequence[int] = LATE) -> dict[str, Plan]:
    """Every deterministic sampler and order on every spacing, from its beginning or so many steps late, by a text such
    as "UniPC(order=3)@quadratic, late 1". What cannot be done in so many calls, or on this schedule, is left out."""
    found: dict[tuple[str, tuple[float, ...]], tuple[str, Plan]] = {}
    for (name, kind), order in product(SAMPLERS.items(), ORDERS):
        if order is not None and "order" not in kind.__dataclass_fields__:
            continue
        for (spacing, grid), skipped in product(SPACINGS.items(), late):
            try:
                sampler = sampler_from_dict({"name": name} | ({} if order is None else {"order": order}))
                plan = make_plan(sampler, schedule, calls, later(grid, skipped))
            except ValueError:
                continue
            if not plan.stochastic:
                key = (repr(sampler), tuple(round(t, 9) for t in plan.t.tolist()))
                found.setdefault(key, (f"{sampler!r}@{spacing}" + (f", late {skipped}" if skipped else ""), plan))
    return dict(found.values())


def ranked(
    problem: Problem, calls: int, samples: int = 64, late: Sequence[int] = LATE
) -> list[tuple[float, str, Plan]]:
    """The untuned plans of the problem with their mean distances, the nearest first."""
    scores = []
    for name, plan in untuned_plans(problem.schedule, calls, late).items():
        scores.append((problem.reference(float(plan.t[-1]), samples, RANKED_ON)(plan), name, plan))
    return sorted(scores, key=lambda score: score[0])


def main(problems: list[str], calls: list[int], samples: int, best: int, out: Path | None) -> None:
    rows = []
    table = Table("problem", "calls", "plans", "plan", "ranked at", "distance", "Frechet")
    for name, count in product(problems, calls):
        problem = PROBLEMS[name]()
        scores = ranked(problem, count, samples)
        for score, text, plan in scores[:best]:
            values = {"distance": problem.distance(plan), "frechet": problem.frechet(plan)}
            rows.append({"problem": problem.name, "calls": count, "plan": text, "ranked at": score, **values})
            print(rows[-1], flush=True)
            shown = (f"{score:.4g}", *(f"{value:.4g}" for value in values.values()))
            table.add_row(problem.name, str(count), str(len(scores)), text, *shown)
    Console(width=150).print(table)
    write(out, rows)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problems", nargs="+", choices=PROBLEMS, default=list(PROBLEMS))
    parser.add_argument("--calls", nargs="+", type=int, default=[5, 10])
    parser.add_argument("--samples", type=int, default=64, help="that the plans are ranked on")
    parser.add_argument("--best", type=int, default=3, help="plans that are shown, measured on other noise")
    parser.add_argument("--json", dest="out", type=Path, default=None)
    main(**vars(parser.parse_args()))
