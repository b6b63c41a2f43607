"""The demo: the bundled digits in a few network calls, untuned and tuned, beside runs of more calls.

It is bounded by the clock: the tuners have budgets in seconds, and so have the other phases, from which the number of
samples follows, by the speed of the network that is measured first.
"""

import sys
from pathlib import Path

import torch

from .. import data, plots
from ..loading import load_model
from ..models.base import HookedModel, Model
from ..plans.build import make_plan
from ..plans.plan import Plan
from ..tuners import Budget, Calibration, ReferenceDistance, tune
from ..tuners.budget import Speed, forward, measure_speed
from ..tuners.guard import unchanged
from . import output
from .compare import compare, picture, table

CALLS = 5
MORE_CALLS = (10, 20)  # untuned, to compare with
SPACING = "leading"  # that of the publication; on this network DDIM is nowhere better
OTHER = "ipndm(order=2)"  # the best untuned sampler in so few calls
TUNERS = {"TimeTuner": ("sequential(objective=published)", 25.0), "joint": ("joint", 60.0)}
"""The text and the budget in seconds of each tuner."""

OTHERS = 80.0  # seconds of the other phases, from which the number of samples follows
OWN_CALLS, REFERENCE_CALLS = 50, 50  # of the runs that draw samples to tune on, and of the reference runs
FEWEST, MOST = 4, 100  # samples
SLOWER = 1.5  # as many times must the default number of threads be slower before one thread is used


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
    with output.waiting("loading the digits network"):
        model = load_model("digits")
    plan = make_plan("ddim", model.schedule, CALLS, SPACING)
    count, seconds = plan_time(_choose_threads(model, plan))
    output.result(
        f"Tuning {CALLS} calls of the bundled digits network: conditioning times alone (TimeTuner), and all parts of a "
        f"plan (joint). This takes about {seconds:.0f} s."
    )
    files = {name: out / f"{name.lower()}-{CALLS}.json" for name in TUNERS}
    try:
        with Clock("", seconds) as clock:
            tuned = _tune(model, plan, count, seed, files, clock)
            _compare(model, plan, tuned, count, seed, out, clock)
    except KeyboardInterrupt:
        print(f"interrupted: the plans found so far are kept in {out}, the same command continues", file=sys.stderr)
        sys.exit(130)
    for name, path in files.items():
        output.remove_parts(path)
        output.result(f"  {path.name:17} the plan of {name}")
    output.result(
        "Next:",
        f"  time-tuner show {files['joint']}",
        f"  time-tuner sample --plan {files['joint']} -n 64 --label 3 --out samples.png",
        "  time-tuner tune --calls 8 --out my-plan.json",
    )


def _choose_threads(model: Model, plan: Plan) -> Speed:
    """The speed of the network, with one thread where the default number of them is slower."""
    assert model.shape is not None
    default, speeds = torch.get_num_threads(), {}
    for threads in dict.fromkeys((default, 1)):
        torch.set_num_threads(threads)
        with output.waiting(f"timing the network with {threads} threads"):
            speeds[threads] = measure_speed(model, plan, model.shape, MOST)
    took = {threads: speed.seconds(forward(MOST)) for threads, speed in speeds.items()}
    chosen = 1 if took[default] > SLOWER * took[1] else default
    torch.set_num_threads(chosen)
    if default > 1:
        output.result(f"Threads: {chosen} of {default}, which is faster here.")
    return speeds[chosen]


def plan_time(speed: Speed) -> tuple[int, float]:
    """The number of samples that there is time for, and the seconds that the demo takes."""
    guards = len(TUNERS) * CALLS * (4 + CALLS)  # three untuned plans, the tuned one, and each call set back
    runs = CALLS * (2 + len(TUNERS)) + sum(MORE_CALLS) + REFERENCE_CALLS
    calls = OWN_CALLS + REFERENCE_CALLS + guards + runs
    affordable = (OTHERS / calls - speed.call) / max(speed.evaluation, 1e-9)
    count = int(min(MOST, max(FEWEST, affordable)))
    return count, calls * speed.seconds(forward(count)) + sum(budget for _, budget in TUNERS.values())


def _tune(model: Model, plan: Plan, count: int, seed: int, files: dict[str, Path], clock: Clock) -> dict[str, Plan]:
    """The plan tuned by each tuner; those that an interrupted run has finished are read from their files."""
    watched = HookedModel(model, lambda *_: clock.advance())
    calibration = Calibration(watched, model.schedule, None, count, seed, model.shape)
    clock.phase = "reference run"
    end, noise = float(plan.t[-1]), calibration.held_out()
    guard = ReferenceDistance(watched, model.schedule, end, noise, REFERENCE_CALLS, seed)
    start = plan.with_provenance(model="digits", spacing=SPACING)
    for name, (text, budget) in TUNERS.items():
        clock.phase = f"tuning, {name}"
        path, kept = files[name], output.partial_of(files[name])
        if not kept.exists():
            path.unlink(missing_ok=True)  # of an earlier demo
        if not path.exists():
            limit = Budget(seconds=budget)
            tune(watched, start, text, calibration, seed, guard, budget=limit, checkpoint=kept).save(path)
    return {name: Plan.load(path) for name, path in files.items()}


def _compare(model: Model, plan: Plan, tuned: dict[str, Plan], count: int, seed: int, out: Path, clock: Clock) -> None:
    """Compare, print and draw; a tuned plan that is the untuned one is left out."""
    plans = {f"ddim:{CALLS}": plan, f"{OTHER}:{CALLS}": make_plan(OTHER, model.schedule, CALLS, SPACING)}
    changed = {name: one for name, one in tuned.items() if not torch.equal(one.t, plan.t) or not unchanged(one)}
    plans |= {f"{name}:{CALLS}": one for name, one in changed.items()}
    plans |= {f"ddim:{calls}": make_plan("ddim", model.schedule, calls, SPACING) for calls in MORE_CALLS}
    clock.phase = "comparison"
    compared = compare(model, plans, count, seed, count, clock, REFERENCE_CALLS)
    output.result(table(compared, seed))
    output.result(*(f"{name}: {output.verdict(one)}." for name, one in tuned.items()))
    figure = picture(compared, count)
    assert figure is not None
    plots.save(figure, out / "comparison.png")
    output.result(f"\n{clock.elapsed:.0f} s in all. Written to {out}:")
    output.result("  comparison.png    the same digits from the same noise, untuned, tuned and in more calls")
    if changed:
        plots.save(plots.plot_plan(changed, f"What was tuned, {CALLS} calls"), out / "tuned.png")
        output.result("  tuned.png         the conditioning times and the corrections of the tuned plans")
