"""The evaluation of plans: all runs are from the same noise, and measured against the same reference and target."""

import hashlib
import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .. import data as files
from .._checks import check_int
from .._distributed import decided, of_all
from ..loading import load_model
from ..metrics import Moments, collect_features
from ..models.base import HookedModel, Model, as_model
from ..models.batching import BatchedModel
from ..plans.build import reference_plan
from ..plans.plan import Plan
from ..sampling import ModelLike, check_schedule
from ..tuners.arguments import own_plan
from ..tuners.base import Listener, Progress, TuningRun, listener
from ..tuners.budget import Budget
from ..tuners.calibration import Calibration
from ..tuners.joint.loss import TeacherLoss, robust
from ..tuners.joint.teacher import teach, usual_teacher
from ..tuners.ranking import Rounds, rank
from ..tuners.units import Units, plan_key
from .drawing import REFERENCE_CALLS, decode, draw, sample_units
from .features import PIXELS, features_of
from .measures import Target, features_of_all, measure_pairs
from .report import BEST, PLAN, REFERENCE, UNTUNED, Report, Run, environment

AGAINST = ("ddim", "dpmpp", "unipc(order=3)")
"""The untuned samplers of a report, by default."""

CALLS = (5, 8, 10, 20, 50)
"""Their numbers of calls, by default."""

SAMPLES, BATCH = 100, 256
PAIRS = 64  # of the teacher, that the untuned plans are ranked on
MEASURED = 3  # of the ranked plans that are measured; the nearest of them is the best untuned one
FEW_CALLS = 10  # the most calls of which the best untuned plan is sought, where there are no plans
TARGET_SEED = 10**8  # added to the seed, for the noise of the target
OWN_FEATURES = {"digits": "digits", "latent-digits": "digits", "pictograms": "pictograms"}  # of the bundled models
SHOWN = 16  # samples of each run that the page shows; of numbers and points all
MOST_DATA = 10_000  # samples that are loaded

logger = logging.getLogger("time_tuner")


def evaluate(
    model: ModelLike | str,
    plans: Mapping[str, Plan] | Sequence[Plan] = (),
    against: Sequence[str] = AGAINST,
    calls: Sequence[int] = CALLS,
    *,
    name: str | None = None,
    data: Tensor | str | Path | None = None,
    features: str | Callable[[Tensor], Tensor] | None = None,
    samples: int | None = None,
    seed: int = 0,
    batch: int | None = None,
    budget: str | Budget | None = "1m",
    cache: str | Path | None = None,
    command: str | None = None,
    progress: bool | Listener = False,
    checkpoint: str | Path | None = None,
) -> Report:
    """Plans of a model beside untuned samplers in as few and in more calls, and beside the best untuned plan there is.

    Every run draws the same number of samples from the same noise. They are measured one by one against the reference
    run of 100 calls from that noise, and as a set against a target: the data, or the ends of reference runs from other
    noise. See `METRICS`.

    Args:
        model: a model, or its name, see `load_model`.
        plans: by their names, or in a sequence, whose names are made of their tuners and calls.
        against: texts of untuned runs without their calls, such as "ddim" or "unipc(order=3)@quadratic".
        calls: the numbers of calls of the untuned runs. A number that a sampler cannot make is left out, and noted.
        name: of the model in the report; that which it is loaded by, or of its class.
        data: the target: samples (m, ...), or a folder of pictures or an .npz, see `load_data`; of latents pictures are
            the target, in the shape of what the model decodes.
        features: the name of features in `FEATURES`, package.module:function, or a function of pictures; pixels by
            default, of the bundled models their own: those of the digit classifier, of pictograms coarse pixels.
        samples: of each run; 100 by default, or two batches of a model that limits them.
        seed: of the first sample.
        batch: the most samples in one network call.
        budget: of the ranking of all untuned plans, for each number of calls of the plans and guidance at the same ones
            (of `calls` up to 10 where there are no plans), as in `tune`; None: they are not ranked.
        cache: a .safetensors file that keeps the mean and covariance of the data's features, of these data and of
            features of this name alone. It needs features by name.
        command: that reproduces the report, for its page.
        progress: True for a bar on standard error, or a function that is called with the `Progress`.
        checkpoint: a folder that keeps finished batches of samples and rankings: an interrupted evaluation continues
            from there when it is started again. It is removed at the end.

    Returns:
        The report: `print(report)`, `report.to_dict()`, `report.write(folder)`.

    Raises:
        ValueError: an argument that cannot be used, before any sample is drawn; or a run of plans or of the reference
            that is not finite. An untuned run that is not finite is left out, and noted.
    """
    # 1. All that can be refused without a network call.
    name = model if name is None and isinstance(model, str) else name
    loaded = load_model(model) if isinstance(model, str) else as_model(model)
    if loaded.shape is None:
        raise ValueError("model must have the shape of a sample: model_wrapper(..., shape=(3, 32, 32)), or as_model")
    count = check_int("samples", 2 * (loaded.max_batch or SAMPLES // 2) if samples is None else samples, 4)
    batch = check_int("batch", loaded.max_batch or BATCH if batch is None else batch, 1)
    named = _named(plans)
    for plan in named.values():
        check_schedule(loaded.schedule, plan)
    if not (cache is None or features is None or isinstance(features, str)):
        raise ValueError(f"cache needs features by name, as package.module:function, got the function {features!r}")
    feature_name, of_features = features_of(OWN_FEATURES.get(name or "", PIXELS) if features is None else features)
    limit = None if budget is None else Budget.parse(budget)
    if limit is not None and limit.seconds is None:
        raise ValueError(f"budget of the ranking must be a time, as in 30s or 1m, got {budget!r}")
    made, left_out = _untuned(loaded, against, calls)
    runs = [_run(loaded, f"{text}:{len(plan)}", text, UNTUNED, plan) for text, plan in made]
    taken = {run.name for run in runs}
    for label, plan in named.items():
        title = f"{label}, given" if label in taken else label
        runs.append(_run(loaded, title, _series(label, plan, named), PLAN, plan))
    if not runs:
        raise ValueError("evaluate needs plans=, or against= with calls=, got none of them")
    patterns = {(len(plan), plan.guided) for plan in named.values()}
    ranked_for = sorted(patterns or {(n, (True,) * n) for n in calls if n <= FEW_CALLS})
    shape = tuple(decode(loaded, torch.zeros(1, *loaded.shape, device=loaded.device), 1).shape[1:])
    collect_features(of_features, torch.linspace(-1, 1, math.prod(shape)).reshape(1, *shape))  # of any picture
    given = None if data is None else _load(data, shape)

    # 2. Runs from the same noise. The best untuned plans are known only after their ranking.
    units = None if checkpoint is None else sample_units(Path(checkpoint), loaded, batch, command)
    with listener(progress) as listening:
        clock = _Clock(listening, limit, len(ranked_for))
        bench = _Bench(loaded, count, seed, batch, None if feature_name == PIXELS else of_features, clock, units)
        ends = dict.fromkeys(float(run.plan.t[-1]) for run in runs)
        all_calls = sum(run.calls for run in runs) + REFERENCE_CALLS * (len(ends) + (given is None))
        clock.expect(count * (all_calls + (0 if limit is None else MEASURED * sum(n for n, _ in ranked_for))))
        if given is None:
            own = reference_plan(loaded.schedule, min(ends), REFERENCE_CALLS)
            target = Target(decode(loaded, bench.drawn(own, seed + TARGET_SEED), batch), of_features)
        else:
            target = Target(given, of_features, _moments(given, of_features, feature_name, cache))
        found = list[Run]()
        for run in runs:
            try:
                drawn = bench.drawn(run.plan)
            except ValueError as error:  # it is not finite
                if run.kind == PLAN:
                    raise ValueError(f"the run {run.name}: {error}") from None
                left_out[run.name] = str(error)
            else:
                found.append(bench.measured(run, drawn, target))
        if not found:
            raise ValueError(f"no run is finite: {next(iter(left_out.values()))}")
        for n, guided in ranked_for:
            if limit is None:
                break
            ranked = _ranked(units, loaded, _start(loaded, n, guided, named), count, seed, batch, limit, clock)
            best = [_run(loaded, text, BEST, BEST, plan) for text, plan in ranked.items()]
            tried = [bench.measured(run, bench.drawn(run.plan), target) for run in best]
            found += [min(tried, key=lambda run: run.values["distance"].value)] if tried else []
        found += bench.references(target)
    facts = {
        "model": name or str(loaded.facts().get("pipeline", type(model).__name__)),
        **{f"model's {key}": value for key, value in loaded.facts().items()},
        "samples": count,
        "seed": seed,
        "features": feature_name,
        "target": f"data {data}" if isinstance(data, str | Path) else "own samples" if data is None else "data",
        "target size": target.moments.count,
        "reference calls": REFERENCE_CALLS,
    }
    if units is not None:
        units.remove()
    return Report(found, facts | {"environment": environment()}, left_out, command)


class _Bench:
    """Draws the samples of runs, all from the same noise, and measures them against reference runs from it."""

    def __init__(
        self,
        model: Model,
        count: int,
        seed: int,
        batch: int,
        features: Callable[[Tensor], Tensor] | None,
        clock: "_Clock",
        units: Units | None,
    ) -> None:
        self.units = units
        self.model, self.count, self.seed, self.batch = model, count, seed, batch
        self.features, self.clock = features, clock
        self._ends = dict[float, tuple[Plan, Tensor, Tensor]]()

    def drawn(self, plan: Plan, first: int | None = None) -> Tensor:
        first = self.seed if first is None else first
        return draw(self.model, plan, self.count, first, self.batch, self.clock.advance, self.units)

    def reference(self, end: float) -> tuple[Plan, Tensor, Tensor]:
        """The reference run to this end, its samples and their pictures."""
        if end not in self._ends:
            self.clock.phase = "reference"
            plan = reference_plan(self.model.schedule, end, REFERENCE_CALLS)
            samples = self.drawn(plan)
            self._ends[end] = plan, samples, decode(self.model, samples, self.batch)
            self.clock.phase = "samples"
        return self._ends[end]

    def measured(self, run: Run, samples: Tensor, target: Target) -> Run:
        """The run with the values of these samples, which it drew."""
        pictures = decode(self.model, samples, self.batch)
        values = target.measure(pictures)
        if not run.plan.stochastic:
            _, ends, others = self.reference(float(run.plan.t[-1]))
            values = measure_pairs(samples, ends, pictures, others, self.features) | values
        return run.with_results(values, _shown(pictures))

    def references(self, target: Target) -> list[Run]:
        """The reference runs, measured against the target."""
        found = []
        for end, (plan, _, pictures) in self._ends.items():
            name = REFERENCE if len(self._ends) == 1 else f"{REFERENCE} to t = {end:.3g}"
            run = _run(self.model, name, REFERENCE, REFERENCE, plan)
            found.append(run.with_results(target.measure(pictures), _shown(pictures)))
        return found


class _Clock:
    """Reports how far an evaluation is: by the evaluations of the network that are left, and the clock of rankings."""

    def __init__(self, listening: Listener | None, limit: Budget | None, rankings: int) -> None:
        self._listening, self._expected, self._done, self._began = listening, 1, 0, time.monotonic()
        self._ranking = 0.0 if limit is None else (limit.seconds or 0.0) * rankings
        self._ranked, self.phase, self._fraction, self._calls = 0.0, "samples", 0.0, 0

    def expect(self, evaluations: int) -> None:
        """So many evaluations are expected, without those of rankings."""
        self._expected = evaluations

    def ranked(self, seconds: float, most: float) -> None:
        """A ranking has taken so many seconds, of so many at most."""
        self._ranked += seconds
        self._ranking += seconds - most

    def advance(self, evaluations: int) -> None:
        self._done += evaluations
        self.report()

    def report(self) -> None:
        self._calls += 1
        elapsed = time.monotonic() - self._began
        pace = max(elapsed - self._ranked, 1e-9) / max(self._done, 1)
        left = pace * max(0, self._expected - self._done) + max(0.0, self._ranking - self._ranked)
        self._fraction = max(self._fraction, elapsed / max(elapsed + left, 1e-9))
        if self._listening is not None:
            self._listening(Progress(self.phase, min(1.0, self._fraction), left, self._calls))


def _run(model: Model, name: str, series: str, kind: str, plan: Plan) -> Run:
    """A run with as many evaluations of the network as it has for this model."""
    return Run(name, series, kind, plan, plan.evaluations if model.evaluations == 2 else len(plan))


def _shown(pictures: Tensor) -> Tensor:
    """Those of the samples that the page shows."""
    return pictures if pictures[0].numel() <= 2 else pictures[:SHOWN]


def _named(plans: Mapping[str, Plan] | Sequence[Plan]) -> dict[str, Plan]:
    """Plans by name."""
    if isinstance(plans, Plan):
        plans = [plans]
    if not isinstance(plans, Mapping):
        found: dict[str, Plan] = {}
        for i, plan in enumerate(plans):
            if not isinstance(plan, Plan):
                raise ValueError(f"plans must be plans, or plans by their names, got {plan!r}")
            name = f"{plan.provenance.get('tuner', 'plan')}-{len(plan)}"
            found[name if name not in found else f"{name}-{i}"] = plan
        return found
    for name, plan in plans.items():
        if not isinstance(plan, Plan):
            raise ValueError(f"plans must be plans by their names, got {plan!r} for {name!r}")
    return dict(plans)


def _series(name: str, plan: Plan, plans: Mapping[str, Plan]) -> str:
    """The curve that a plan belongs to: of its tuner, unless two of its plans make as many calls."""
    tuner = str(plan.provenance.get("tuner", "plan"))
    alike = [one for one in plans.values() if one.provenance.get("tuner", "plan") == tuner]
    return tuner if len({len(one) for one in alike}) == len(alike) else name


def _untuned(
    model: Model, against: Sequence[str], calls: Sequence[int]
) -> tuple[list[tuple[str, Plan]], dict[str, str]]:
    """The untuned plans, each with its text, and why others are left out, by name."""
    found, left_out = list[tuple[str, Plan]](), dict[str, str]()
    counts = sorted({check_int("calls", one, 1) for one in calls})
    for text in against:
        sampler, _, spacing = text.partition("@")
        refused = dict[str, str]()
        for n in counts:
            try:
                plan = own_plan(model, n, sampler, spacing or None)
            except ValueError as error:
                refused[f"{text}:{n}"] = str(error)
            else:
                found.append((text, plan))
        if len(refused) == len(counts):  # nothing can be made of it
            raise ValueError(next(iter(refused.values()), "calls must hold at least one number, got none"))
        left_out |= refused
    return found, left_out


def _start(model: Model, calls: int, guided: tuple[bool, ...], plans: Mapping[str, Plan]) -> Plan:
    """An untuned plan of so many calls, with guidance at these, that ends where the first of such plans does."""
    own = own_plan(model, calls)
    end = next((float(plan.t[-1]) for plan in plans.values() if plan.guided == guided), float(own.t[-1]))
    return (own if end == float(own.t[-1]) else own_plan(model, calls, end=end)).with_guidance(guided)


def _ranked(
    units: Units | None, model: Model, start: Plan, count: int, seed: int, batch: int, limit: Budget, clock: _Clock
) -> dict[str, Plan]:
    """The result of `_rank`, which is kept where units are."""
    if units is None:
        return _rank(model, start, count, seed, batch, limit, clock)

    def make() -> dict[str, Any]:
        return {name: plan.to_dict() for name, plan in _rank(model, start, count, seed, batch, limit, clock).items()}

    name = f"ranking of {plan_key(start)}, {count} samples from {seed} on, {batch} at a time, {limit}"
    return {text: Plan.from_dict(values) for text, values in units.values(name, make).items()}


def _rank(
    model: Model, start: Plan, count: int, seed: int, batch: int, limit: Budget, clock: _Clock
) -> dict[str, Plan]:
    """The nearest of all untuned plans with as many calls and the same end, by name, on noise of their own."""
    assert limit.seconds is not None
    network = BatchedModel(HookedModel(model, lambda *_: clock.report()), of_all(batch))
    calibration = Calibration(network, start.schedule, None, count, seed, device=model.device)
    run, began = TuningRun(calibration, limit), time.monotonic()
    pairs = teach(network, usual_teacher(start), run, PAIRS)
    rounds = Rounds.within(None, len(start), len(pairs))
    ranking = rank(TeacherLoss(network, pairs, robust, run.cost_log), [start], run, rounds, limit.seconds - run.seconds)
    clock.ranked(time.monotonic() - began, limit.seconds)
    if not ranking:
        logger.warning("no untuned plans of %d calls were ranked: give a larger budget", len(start))
    return {one.name: one.plan for one in ranking[:MEASURED]}


def _load(data: Tensor | str | Path, shape: tuple[int, ...]) -> Tensor:
    """Data of pictures of this shape."""
    if isinstance(data, str | Path):
        return files.load_data(data, shape, MOST_DATA)
    if not isinstance(data, Tensor) or tuple(data.shape[1:]) != shape or len(data) < 2:
        got = tuple(data.shape) if isinstance(data, Tensor) else type(data).__name__
        raise ValueError(f"data must be samples (m, ...) of shape {shape}, at least two, got {got}")
    return data


def _moments(data: Tensor, features: Callable[[Tensor], Tensor], name: str, cache: Any) -> Moments | None:
    """The moments of the data's features, from the cache if it has them, of these data; None without a cache."""
    if cache is None:
        return None
    content = hashlib.sha256(data.detach().cpu().contiguous().numpy().tobytes()).hexdigest()
    notes = {"features": name, "data": content}
    if decided(Path(cache).exists()):
        return Moments.load(cache, **notes)
    found = Moments.of(features_of_all(features, data))
    found.save(cache, **notes)
    return found
