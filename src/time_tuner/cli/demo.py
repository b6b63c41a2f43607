"""The demo: a few network calls, untuned and tuned, beside a reference run of many calls from the same noise.

It is bounded by the clock: the tuners have budgets in seconds, and so have the measurements, from which the number of
samples follows. Both follow from the speed of the networks, which is measured first: a slow machine, or one with other
work, has more time for tuning and fewer samples.
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from rich.table import Table
from torch import Tensor

from .. import data, plots
from ..evaluation.drawing import decode, draw
from ..loading import load_model
from ..metrics import distance
from ..models.base import HookedModel, Model, for_rows
from ..noise import SeededNoise
from ..plans.build import make_plan, reference_plan
from ..plans.plan import Plan
from ..sampling import trajectory
from ..tuners import Budget, Calibration, ReferenceDistance, tune, tuner_of
from ..tuners.budget import Speed, forward
from ..tuners.guard import unchanged
from . import output
from .compare import PICTURES, Comparison, Run, strip
from .threads import best_threads, speeds_by_threads

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Case:
    """One thing that the demo shows.

    Attributes:
        name: of its files.
        title: of its picture.
        model: the name of the model.
        calls: network calls of the runs.
        start: the sampler and the spacing from which tuning starts, and the name of that run.
        others: other untuned runs, likewise.
        tuner: its text.
        tuned: the name of the tuned run.
        budget: seconds of tuning, on a fast machine.
        work: network calls of 16 samples for which there is time on a slow machine, too.
        measuring: seconds in which samples are drawn.
        any_start: whether tuning starts from the best untuned plan, rather than from `start`.
        labels: whether sample i has label i modulo 10; otherwise any.
    """

    name: str
    title: str
    model: str
    calls: int
    start: tuple[str, str, str]
    others: Sequence[tuple[str, str, str]]
    tuner: str
    tuned: str
    budget: float
    work: int
    measuring: float
    any_start: bool = False
    labels: bool = False

    @property
    def uses_data(self) -> bool:
        """Whether the model draws samples to tune on."""
        return tuner_of(self.tuner).uses_data

    def load(self, samples: int | None = None) -> Model:
        """The model for so many samples."""
        labels = [i % 10 for i in range(samples)] if self.labels and samples else None
        return load_model(self.model, label=labels)


CASES = (
    Case(
        name="joint",
        title="Digits in {calls} network calls, untuned and tuned",
        model="digits",
        calls=4,
        start=("ddim", "leading", "DDIM"),
        others=(("dpmpp", "logsnr", "DPM-Solver++"),),
        tuner="joint",
        tuned="joint tuning",
        budget=70.0,
        work=240,
        measuring=45.0,
        any_start=True,
    ),
    Case(
        name="timetuner",
        title="TimeTuner: only the times that the network receives are tuned",
        model="latent-digits",
        calls=5,
        start=("ddim", "leading", "DDIM"),
        others=(),
        tuner="sequential",
        tuned="TimeTuner",
        budget=15.0,
        work=300,
        measuring=15.0,
        labels=True,
    ),
)
OWN_CALLS, REFERENCE_CALLS = 50, 50  # of the runs that draw samples to tune on, and of the reference runs
FEWEST, MOST = PICTURES, 64  # samples
MOVING = 6  # pictures in a row of the animation
LONGEST = 240.0  # seconds of tuning on the slowest machine
USUAL = 200.0  # seconds; a demo that takes longer says why


@dataclass(frozen=True)
class Size:
    """How many samples there is time for, the budget of tuning in seconds, and the seconds of both."""

    samples: int
    budget: float
    seconds: float


class Clock(output.Bar):
    """One bar over the whole demo, by the clock.

    Attributes:
        phase: what is in progress.
    """

    phase = ""

    def advance(self, amount: float = 1) -> None:
        left = output.duration(max(0.0, self.total - self.elapsed))
        self.show(f"{self.phase}, {left} left", min(self.elapsed, self.total))


def run(out: Path, seed: int = 0) -> None:
    """Tune, compare and draw; everything is written into the folder `out`.

    Raises:
        ValueError: the folder cannot be written.
    """
    if out.is_file():
        raise ValueError(f"--out must be a folder, got the file {str(out)!r}")
    data.check_writable(out / "comparison.png")
    with output.waiting("loading the networks"):
        models = {case.name: case.load() for case in CASES}
    sizes = size(_speeds(models))
    _announce(sizes)
    written, compared = dict[str, str](), dict[str, Comparison]()
    files = {case.name: out / f"{case.name}-{case.calls}.json" for case in CASES}
    try:
        with Clock("", sum(one.seconds for one in sizes.values())) as clock:
            for case in CASES:
                compared[case.name] = _case(case, sizes[case.name], seed, files[case.name], clock)
            seconds = clock.elapsed
    except KeyboardInterrupt:
        print(f"interrupted: the plans found so far are kept in {out}, the same command continues", file=sys.stderr)
        sys.exit(130)
    for case in CASES:
        result = compared[case.name]
        output.result(_table(case, result), f"{_sentence(case, result)}\n")
        picture = "comparison.png" if case is CASES[0] else f"{case.name}.png"
        plots.save(_picture(case, result), out / picture)
        written[picture] = f"the same noise in {case.calls} calls, untuned and tuned, and in {REFERENCE_CALLS} calls"
    plots.save_animation(_frames(CASES[0], compared[CASES[0].name], seed), out / "calls.gif")
    written["calls.gif"] = "what each of the calls does, untuned and tuned"
    tuned = {f"{case.name}, {case.calls} calls": compared[case.name].runs[-1].plan for case in CASES}
    plots.save(plots.plot_plan(tuned, "What was tuned"), out / "tuned.png")
    written["tuned.png"] = "the times and the corrections of the tuned plans"
    for case in CASES:
        output.remove_parts(files[case.name])
        written[files[case.name].name] = f"the tuned plan of {case.model}"
    first = files[CASES[0].name]
    output.result(
        f"{seconds:.0f} s in all. Written to {out}:",
        *(f"  {name:17} {what}" for name, what in written.items()),
        "Next:",
        f"  time-tuner show {first}",
        f"  time-tuner sample --plan {first} -n 64 --label 3 --out samples.png",
        "  time-tuner tune --calls 8 --out my-plan.json",
    )


def _speeds(models: Mapping[str, Model]) -> dict[str, Speed]:
    """The speed of each network with the best number of threads, which is set."""
    speeds: dict[str, Mapping[int, Speed]] = {}
    for name, model in models.items():
        with output.waiting(f"timing the network of {name}"):
            speeds[name] = speeds_by_threads(model, make_plan("ddim", model.schedule, 2), MOST)
    default, best = torch.get_num_threads(), best_threads(speeds[CASES[0].name])
    torch.set_num_threads(best)
    if best < default:
        output.result(f"One thread is used, which is faster than {default} here.")
    return {name: by_threads[best] for name, by_threads in speeds.items()}


def size(speeds: Mapping[str, Speed]) -> dict[str, Size]:
    """How much each case does on a machine with networks of these speeds, by the names of the cases."""
    sizes = {}
    for case in CASES:
        speed, runs = speeds[case.name], 2 + len(case.others)
        # The reference run; in the guard the untuned plan and the nearest of the ranking, the tuned one, and each call
        # set back; the runs of the comparison; and the samples that the sequential tuner draws to tune on.
        calls = REFERENCE_CALLS + case.calls * (4 + case.calls + runs) + OWN_CALLS * case.uses_data
        affordable = (case.measuring / calls - speed.call) / max(speed.evaluation, 1e-9)
        count = int(min(MOST, max(FEWEST, affordable)))
        budget = min(LONGEST, max(case.budget, case.work * speed.seconds(forward(16))))
        sizes[case.name] = Size(count, budget, calls * speed.seconds(forward(count)) + budget)
    return sizes


def _announce(sizes: Mapping[str, Size]) -> None:
    seconds = sum(one.seconds for one in sizes.values())
    text = f"Tuning {' and '.join(f'{case.calls} calls of {case.model}' for case in CASES)}. "
    text += f"This takes about {output.duration(seconds)}"
    if seconds > USUAL:
        text += f": the machine is slow, or has other work, and so there are {sizes[CASES[0].name].samples} samples"
    output.result(f"{text}.")


def _case(case: Case, size: Size, seed: int, path: Path, clock: Clock) -> Comparison:
    """Tune, and draw by all plans from the same noise. A finished plan of an interrupted demo is read from its file."""
    sampler, spacing, name = case.start
    own = case.load(size.samples)
    model = HookedModel(own, lambda *_: clock.advance())
    start = make_plan(sampler, model.schedule, case.calls, spacing)
    start = start.with_provenance(model=case.model, spacing=spacing)
    clock.phase = f"reference run, {case.model}"
    assert model.shape is not None
    noise = SeededNoise(range(seed, seed + size.samples))(torch.empty(size.samples, *model.shape))
    judge = ReferenceDistance(model, model.schedule, float(start.t[-1]), noise, REFERENCE_CALLS, seed)
    clock.phase = f"tuning, {case.tuned}"
    kept = output.partial_of(path)
    if not kept.exists():
        path.unlink(missing_ok=True)  # of an earlier demo
    if not path.exists():
        samples = size.samples if case.uses_data else MOST  # a resumed demo, which may have another size, continues
        calibration = Calibration(model, model.schedule, None, samples, seed, model.shape)
        limit = Budget(seconds=size.budget)
        how: dict[str, Any] = {"any_start": case.any_start, "budget": limit, "checkpoint": kept}
        tune(model, start, case.tuner, calibration, seed, judge, **how).save(path)
    clock.phase = f"comparison, {case.model}"
    untuned = {other: make_plan(one, model.schedule, case.calls, grid) for one, grid, other in case.others}
    plans = {**untuned, name: start, case.tuned: Plan.load(path)}
    runs = []
    for name, plan in plans.items():
        drawn = draw(model, plan, size.samples, seed, size.samples, lambda count: None)
        runs.append(Run(name, plan, drawn, distance(drawn, judge.reference)))
    reference = reference_plan(model.schedule, float(start.t[-1]), REFERENCE_CALLS)
    return Comparison(own, Run("reference", reference, judge.reference), runs)


def _table(case: Case, compared: Comparison) -> Table:
    """The distance of each run from the reference."""
    count = len(compared.reference.samples)
    made = output.table("run", "calls", "distance", title=f"{case.model}, {count} samples")
    for run in compared.runs:
        assert run.distances is not None
        made.add_row(_name_of(compared, run), str(len(run.plan)), output.with_error(run.distances))
    made.caption = f"from a run of {REFERENCE_CALLS} calls; ± standard error"
    return made


def _name_of(compared: Comparison, run: Run) -> str:
    """The name of a run, and whether it is tuned: where tuning gained nothing its plan is the best untuned one."""
    if run is not compared.runs[-1]:
        return f"untuned, {run.name}"
    return f"tuned, {run.name}" + (": no gain, the best untuned plan" if unchanged(run.plan) else "")


def _sentence(case: Case, compared: Comparison) -> str:
    """What tuning has gained, or why it has not."""
    tuned = compared.runs[-1].plan
    text = f"{case.tuned}: {output.verdict(tuned)}."
    if unchanged(tuned):
        text += " On a machine that has more time the same command tunes longer: time-tuner demo"
    return text


def _picture(case: Case, compared: Comparison) -> "Figure":
    """Untuned rows, the reference, and below it the tuned row, with maps of the differences."""
    strips = [_strip(compared, run) for run in (*compared.runs[:-1], compared.reference, compared.runs[-1])]
    footnote = (
        "Every column begins from the same noise. The maps are white where a picture equals the reference, and dark "
        f"where it differs.\ndistance: from the reference, the mean of {len(compared.reference.samples)} samples, of "
        "which the first are drawn; 0 is equal"
    )
    return plots.image_grid(strips, case.title.format(calls=case.calls), footnote, len(strips) - 2)


def _strip(compared: Comparison, run: Run) -> plots.Strip:
    """The row of a run, with a caption that says whether it is tuned."""
    if run is compared.reference:
        caption = f"reference\n{len(run.plan)} calls"
    elif run is not compared.runs[-1]:
        caption = f"untuned, {len(run.plan)} calls\n{run.name}"
    elif unchanged(run.plan):
        caption = f"untuned, {len(run.plan)} calls\nthe best found"
    else:
        caption = f"tuned, {len(run.plan)} calls\n{run.name}"
    return strip(compared.model, run, PICTURES, caption)


def _frames(case: Case, compared: Comparison, seed: int) -> "list[Figure]":
    """The states before the first call and after each call, untuned and tuned, beside the reference."""
    count, runs = min(MOVING, len(compared.reference.samples)), (compared.runs[-2], compared.runs[-1])
    model = for_rows(compared.model, torch.arange(count))
    assert model.shape is not None
    noise = SeededNoise(range(seed, seed + count))(torch.empty(count, *model.shape))
    states: list[list[Tensor]] = []
    for run in runs:
        x = run.plan.initial_state(noise)
        with torch.no_grad():
            states.append([x, *trajectory(model, run.plan, x)])
    last, frames = _strip(compared, compared.reference), []
    for k in range(case.calls + 1):
        untuned, tuned = (
            plots.Strip(_strip(compared, run).caption, decode(model, state[k], count))
            for run, state in zip(runs, states, strict=True)
        )
        title = f"after call {k} of {case.calls}" if k else "before the first call"
        frames.append(plots.image_grid([untuned, plots.Strip(last.caption, last.images[:count]), tuned], title))
    return frames
