"""The demo: the bundled digits in 5 calls, untuned and tuned, beside more calls from the same noise."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from rich.table import Table
from torch import Tensor

from .. import data, plots
from ..loading import load_model
from ..metrics import distance
from ..noise import SeededNoise
from ..plans.build import make_plan, reference_plan
from ..plans.plan import Plan
from ..samplers import sampler_from_dict
from ..sampling import sample
from ..tuners import Calibration, Joint, ReferenceDistance, Sequential, Tuner, estimate, tune
from . import output as report
from .sample import shape_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CALLS = 5
MORE_CALLS = (10, 20)  # untuned, to compare with
SPACING = "leading"  # that of the publication; on this network DDIM is nowhere better
UNTUNED: tuple[dict[str, Any], ...] = ({"name": "ddim"}, {"name": "ipndm", "order": 2})  # the tuned one; the best here
TUNED: dict[str, Tuner] = {
    "TimeTuner": Sequential(objective="published"),
    "joint": Joint(pairs=384, iterations=60, candidates=1),
}
SAMPLES = 100  # to tune on, and as many others to judge on: ten of each digit
REFERENCE_CALLS = 50
PICTURES = 10  # one of each digit, from small seeds: what is tuned and judged on has large ones


@dataclass(frozen=True)
class Result:
    """What came of one plan on the held-out noise, and the pictures it drew."""

    name: str
    plan: Plan
    distance: float
    seconds: float
    pictures: Tensor


def run(out: Path, seed: int = 0) -> None:
    """Tune, compare, draw; everything is written into the folder `out`.

    Raises:
        ValueError: the folder cannot be written.
    """
    if out.is_file():
        raise ValueError(f"--out must be a folder, got the file {str(out)!r}")
    data.check_writable(out / "comparison.png")
    began = time.perf_counter()
    report.say.print(
        f"[bold]Tuning {CALLS} calls of the bundled digits network[/bold]: what it is told (TimeTuner), and all that a "
        "plan holds (joint). This takes about three minutes."
    )
    bench = Bench(seed)
    untuned = [make_plan(sampler_from_dict(one), bench.meter.schedule, CALLS, SPACING) for one in UNTUNED]
    results = [bench.result(one["name"], plan) for one, plan in zip(UNTUNED, untuned, strict=True)]
    for name, how in TUNED.items():
        results.append(bench.result(f"{UNTUNED[0]['name']}, {name}", bench.tune(name, untuned[0], how)))
    for calls in MORE_CALLS:
        results.append(bench.result("ddim", make_plan("ddim", bench.meter.schedule, calls, SPACING)))
    results.append(bench.reference())
    report.say.print(_table(results))
    for result in results:
        if "distance" in result.plan.provenance:
            report.say.print(f"{result.name}: {report.verdict(result.plan)}.", soft_wrap=True)
    files = _write(out, results)
    report.say.print(f"\n{time.perf_counter() - began:.0f} s in all. Written to [bold]{out}[/bold]:")
    for name, what in files.items():
        report.say.print(f"  {name:17} {what}", soft_wrap=True)
    _next_steps(out)


class Bench:
    """The network, the noise to judge on, and where a many-call run takes that noise."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        with report.waiting("loading the digits network"):
            model = load_model("digits", label=_labels(SAMPLES))
            self.drawer = report.Meter(load_model("digits", label=_labels(PICTURES)))
        self.shape = shape_of(model)
        self.meter = report.Meter(model)
        end = float(make_plan("ddim", model.schedule, CALLS, SPACING).t[-1])
        self.many = reference_plan(model.schedule, end, REFERENCE_CALLS)
        self.calibration = Calibration(self.meter, model.schedule, None, SAMPLES, seed, model.shape)
        noise = self.calibration.held_out()
        began = time.perf_counter()
        with self.meter.bar("many-call run to judge by", REFERENCE_CALLS):
            self.judge = ReferenceDistance(self.meter, model.schedule, end, noise, REFERENCE_CALLS, seed)
        self.seconds = time.perf_counter() - began

    def tune(self, name: str, plan: Plan, tuner: Tuner) -> Plan:
        """The plan tuned, with its provenance."""
        plan = plan.with_provenance(model="digits", label="each in turn", guidance_scale=1.0, spacing=SPACING)
        costs = estimate(self.meter, plan, tuner, samples=SAMPLES, guard=False).costs
        expected = sum(usual.calls for usual, _ in costs.values())
        with self.meter.bar(f"tuning: {name}", expected):
            return tune(self.meter, plan, tuner, self.calibration, guard=self.judge, progress=self.meter.tell)

    def result(self, name: str, plan: Plan) -> Result:
        """A plan on the noise to judge on."""
        began = time.perf_counter()
        with self.meter.bar(f"{name}, {len(plan)} calls", len(plan)):
            ends = sample(self.meter, plan, self.judge.x)
        seconds = time.perf_counter() - began
        apart = float(distance(ends, self.judge.reference).mean())
        return Result(name, plan, apart, seconds, self._pictures(plan))

    def reference(self) -> Result:
        """The many-call run that the others are measured against."""
        return Result("many calls", self.many, 0.0, self.seconds, self._pictures(self.many))

    def _pictures(self, plan: Plan) -> Tensor:
        noise = SeededNoise(PICTURES * self.seed)
        with self.drawer.bar("pictures", len(plan)):
            return sample(self.drawer, plan, noise(torch.empty(PICTURES, *self.shape)))


def _labels(count: int) -> list[int]:
    return [i % 10 for i in range(count)]


def _table(results: Sequence[Result]) -> Table:
    made = report.table("plan", "calls", "distance", "seconds", title="On noise that no plan was tuned on")
    few = len(UNTUNED) + len(TUNED)
    for i, result in enumerate(results, 1):
        apart = f"{result.distance:.3f}" if result.distance else "-"
        row = (result.name, str(len(result.plan)), apart, f"{result.seconds:.2f}")
        made.add_row(*row, end_section=i in (few, len(results) - 1))
    made.caption = (
        f"distance: to the end of the {REFERENCE_CALLS}-call run from the same noise, mean of {SAMPLES} digits. "
        "TimeTuner: what the network is told, tuned by the published objective; joint: all that a plan holds. "
        f"seconds: to draw {SAMPLES} digits."
    )
    made.caption_justify = "left"
    return made


def _write(out: Path, results: Sequence[Result]) -> dict[str, str]:
    """The files in the folder, with what each holds."""
    plots.save(_comparison(results), out / "comparison.png")
    tuned = dict(zip(TUNED, (r.plan for r in results[len(UNTUNED) :]), strict=False))
    plots.save(plots.plot_tau(tuned, "What the tuned network is told"), out / "tau.png")
    files = {
        "comparison.png": "the same digits from the same noise, untuned, tuned and in more calls",
        "tau.png": "what the network is told, against where the solver is",
    }
    for name, plan in tuned.items():
        file = f"{name.lower()}-{CALLS}.json"
        plan.save(out / file)
        files[file] = f"the plan that {name} tuning found"
    return files


def _comparison(results: Sequence[Result]) -> "Figure":
    *others, many = results
    truth = plots.Strip("reference", many.pictures, f"{len(many.plan)} calls")

    def strips(few: bool) -> list[plots.Strip]:
        return [
            plots.Strip(r.name, r.pictures, f"{len(r.plan)} calls, distance {r.distance:.2f}")
            for r in others
            if (len(r.plan) == CALLS) == few
        ]

    return plots.image_grid(
        {f"{CALLS} network calls": strips(True), "More calls": [*strips(False), truth]},
        "The same network, from the same noise",
        "A column starts from one noise. Tuned plans call the same network as often, at other times.\n"
        f"Distance: to the reference, mean of {SAMPLES} other digits.",
    )


def _next_steps(out: Path) -> None:
    plan = out / f"joint-{CALLS}.json"
    report.say.print("Next:")
    for command in (
        f"time-tuner show {plan}",
        f"time-tuner sample --plan {plan} -n 64 --label 3 --out samples.png",
        "time-tuner tune --method joint --sampler dpmpp --calls 8 --out my-plan.json",
    ):
        report.say.print(f"  {command}", soft_wrap=True)
