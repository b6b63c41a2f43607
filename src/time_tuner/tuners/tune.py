"""`tune` and `tune_several`: calibrate, tune, compare with the untuned plan."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any

import torch

from .._checks import check_int
from ..data import check_writable
from ..models.base import as_model
from ..models.batching import BatchedModel
from ..models.counting import Cost, CostLog, CountedModel
from ..models.fingerprint import fingerprint_of
from ..noise import Constraint
from ..plans.build import reference_plan, untuned
from ..plans.plan import Plan
from ..sampling import ModelLike, check_schedule
from .arguments import TUNERS, batch_of, budget_of, check_no_end, default_tuner, pattern_search, start_of, tuner_of
from .base import PARTS, Listener, Tuner, TuningRun, listener
from .budget import Budget, measure_speed
from .calibration import Calibration
from .checkpoint import Checkpoint, plain, versions
from .costs import REFERENCE_CALLS, planned_costs, ranking_pairs
from .guard import MOST_NOISE, ReferenceDistance, guarded, unchanged
from .joint.loss import TeacherLoss, robust
from .joint.teacher import FEWEST, described, teach, teacher_cost, teacher_of
from .joint.teacher import SHARE as TEACHER_SHARE
from .network_times import received
from .ranking import SECONDS_SHARE, Ranked, Ranking, Rounds, rank
from .units import Units, plan_key

logger = logging.getLogger("time_tuner")


def tune(
    eps: ModelLike,
    plan: Plan | None = None,
    tuner: Tuner | str | None = None,
    data: Any = None,
    seed: int = 0,
    guard: bool | ReferenceDistance = True,
    *,
    calls: int | None = None,
    evaluations: int | None = None,
    end: float | None = None,
    any_start: bool = False,
    samples: int = 256,
    batch: int | None = None,
    shape: tuple[int, ...] | None = None,
    device: torch.device | str = "cpu",
    budget: str | int | Budget | None = None,
    checkpoint: str | Path | None = None,
    progress: bool | Listener = False,
    noise: Constraint | None = None,
) -> Plan:
    """The best plan for a number of calls.

    The untuned plans of every deterministic sampler and spacing are ranked first, see `ranking`; then a plan is tuned,
    and the tuned plan is compared with the best untuned ones on held-out noise.

    Args:
        eps: a model, or a function `eps(x, t, tau)`.
        plan: the plan from which tuning starts, and to whose end. What the tuner does not tune stays: its grid for a
            tuner that tunes no times, its sampler for one that tunes no corrections.
        tuner: a tuner, or the text of one, such as "joint(pairs=128)"; the names are those of `TUNERS`. "sequential"
            and "parallel" are the two strategies of TimeTuner (Xia et al., 2024). None: "joint"; "sequential" for a
            plan that draws noise, and with `data`; a log message reports that.
        data: x_0 to calibrate on, a tensor (n, ...) or an iterable of samples or batches; None: the model's own
            samples; or a `Calibration`, for several plans, with its seed, samples and shape. Joint tuning takes none.
        seed: of all noise.
        guard: True to compare the plan with the untuned ones on held-out noise, and to set back what makes it worse;
            False for the tuner's own result; a `ReferenceDistance` to compare several plans with one reference run.
        calls: instead of a plan: tuning starts from the best untuned plan of so many calls.
        evaluations: for a model under classifier-free guidance, instead of a plan or `calls`: the best plan of at most
            so many evaluations of the network, two for each call with guidance and one for each call without; see
            `Joint`.
        end: with `calls` or `evaluations`, the time where the plan ends, see `make_plan`. The teacher, the untuned
            plans and the guard's reference run end there, too.
        any_start: whether tuning starts from the best untuned plan that ends where the given one does.
        samples: to tune on, and as many for the guard. A model with several conditions needs at least as many.
        batch: the most samples in one network call, in each process where several share the work; by default
            `samples`, and on other devices than the CPU as many as there are, halved while the memory does not suffice.
            In a batch larger than `samples` the parallel strategy tunes several steps together.
        shape: of one sample, where neither the data nor the model have one.
        device: where the model is.
        budget: what tuning may spend, such as "20000calls", "60s" or "2m", or a number of calls: the best plan found
            until then is returned. One call is one forward of one batch, a backward counts as two. By default 120 s by
            the clock, or none where the options of the tuner determine how much it does. A teacher's runs are part of
            a budget of seconds, and so is the ranking, which takes a tenth of it at most; own samples, the reference
            run and the guard are not: see `estimate`.
        checkpoint: a file that keeps what is found. An interrupted run continues from there when it is started again
            with the same arguments, to the same plan. A finished plan is kept, too, and returned at once by the same
            call: remove the file when the plan is saved.
        progress: called with the `Progress`; True for a bar on standard error.
        noise: maps standard normal noise (B, ...) to the noise of the model, where its states have a constraint, such
            as `lambda z: z - z.mean(1, keepdim=True)` for particles whose centre stays at 0. It is used for the first
            states, for the noise in data and for that of stochastic samplers. A `Calibration` has its own.

    Returns:
        The tuned plan, or an untuned one that is better. Its provenance holds how it was tuned, at what cost, and, with
        a guard, the "distance" to the end of a many-step run, of the plan that tuning started from, "untuned", of the
        result, "tuned", of the tuner's own result, "unguarded", and of the "best untuned" plan and its "runner-up";
        "untuned_plans" names these two, and how many were ranked. "reference_calls" are the calls of the many-step run,
        "reverted_calls" those whose tau the guard set back. "stopped" is there when the budget was spent.

    Raises:
        ValueError: an argument that cannot be used, before any long work; or a model that returns NaN or a wrong shape.
    """
    # 1. All that can be refused without a network call.
    samples, seed, budget = check_int("samples", samples, 2), check_int("seed", seed), Budget.parse(budget)
    tuner = None if tuner is None else tuner_of(tuner)
    for name, value, valid, kind in (
        ("plan", plan, isinstance(plan, Plan | None), "a Plan, as make_plan or Plan.load gives, or None with calls="),
        ("guard", guard, isinstance(guard, bool | ReferenceDistance), "True, False or a ReferenceDistance"),
        ("progress", progress, isinstance(progress, bool) or callable(progress), "True, False or a function"),
        ("checkpoint", checkpoint, isinstance(checkpoint, str | PathLike | None), "a path"),
    ):
        if not valid:
            raise ValueError(f"{name} must be {kind}, got {value!r}")
    if checkpoint is not None:
        check_writable(Path(checkpoint))
    model, free = as_model(eps, None if plan is None else plan.schedule, shape), any_start or plan is None
    if evaluations is not None:
        calls, tuner = pattern_search(evaluations, plan, calls, tuner)
    plan = start_of(model, plan, calls, end)
    check_schedule(model.schedule, plan)
    if isinstance(data, Calibration):
        samples, seed = data.samples, data.seed
        if noise is not None:
            raise ValueError("noise= is part of the Calibration: give Calibration(..., noise=)")
    log = CostLog()
    network = BatchedModel(CountedModel(model, log), batch_of(batch, samples, device))
    if not isinstance(data, Calibration):
        data = Calibration(network, plan.schedule, data, samples, seed, shape, device, log, noise)
    data.check(model, plan)
    tuner = tuner or default_tuner(plan, data.own)
    tuner.check(plan, data.own)
    with log.purpose("sizing"):
        tuner = tuner.for_model(network, plan, data)
    limit = budget_of(tuner, budget)
    if isinstance(guard, ReferenceDistance):
        guard.check(plan)
    # 2. The run: its checkpoint, its finished units, its progress.
    kept, units = None, data.units
    if checkpoint is not None:
        inputs = _inputs(tuner, plan, data, guard, BatchedModel(model, network.batch)) | {"free": free}
        kept = Checkpoint(Path(checkpoint), inputs)
        units = _units(checkpoint, inputs) if units is None else units
    planned = planned_costs(tuner, plan, free, samples, network.batch, not data.drawn, guard, limit, None)
    with listener(progress) as listening:
        expected = {purpose: usual.of_each(model.evaluations) for purpose, (usual, _) in planned.items()}
        run = TuningRun(data, limit, log, kept, listening, expected)
        if run.plan is None:
            with data.keeping(units, log, plan_key(plan)):
                tuned = _tuned(tuner, network, plan, free, run, guard, planned).with_provenance(cost=log.to_dict())
        else:
            with run.restoring():
                tuned = Plan.from_dict(run.plan)
        run.finish(tuned.to_dict())
    if units is not None and units is not data.units:  # which others do not share
        units.remove()
    return tuned


def _units(checkpoint: str | Path, inputs: Mapping[str, Any]) -> Units:
    """The finished units beside a checkpoint, of this model, seed and data; of any plan and tuner."""
    shared = ("model", "seed", "shape", "samples", "data", "noise", "versions")
    return Units(Path(f"{checkpoint}.units"), {name: inputs[name] for name in shared})


def _tuned(
    tuner: Tuner,
    model: BatchedModel,
    plan: Plan,
    free: bool,
    run: TuningRun,
    guard: bool | ReferenceDistance,
    planned: Mapping[str, tuple[Cost, Cost]],
) -> Plan:
    """The work of `tune`: a trial, own samples, the ranking, tuning, the reference run and the guard; `free` where
    tuning may start from any untuned plan."""
    calibration, log = run.calibration, run.cost_log
    plan = received(model, plan)
    with log.purpose("sizing"):
        if guard is True:
            reference = reference_plan(plan.schedule, float(plan.t[-1]), REFERENCE_CALLS)
            calibration.try_run("reference run of the guard", model, reference)
        tuner.try_out(model, plan, run)
    notes: dict[str, Any] = {"tuner": _name(tuner), "seed": calibration.seed, "samples": calibration.samples}
    if made_for := fingerprint_of(model, calibration.shape):
        notes["made_for"] = made_for
    if tuner.uses_data:
        notes["data"] = "own samples" if calibration.own else "given"
        calibration.x0  # noqa: B018 - own samples are drawn here, before the clock of the budget begins
    run.begin()
    if "ranking" in planned:
        run.ranking = _ranking(tuner, model, plan, run, planned["ranking"][1].evaluations)
    if free and run.ranking:
        best = run.ranking[0].plan
        plan = best.with_provenance(**{**plan.provenance, **best.provenance})
    with run.restoring():
        tuned = received(model, tuner.tune(model, plan, run)).with_provenance(**notes, versions=versions())
    run.resume()  # where nothing was left to tune
    if run.stopped:
        tuned = tuned.with_provenance(stopped=run.stopped)
    if guard is False:
        return tuned
    if isinstance(guard, ReferenceDistance):
        judge, more = guard.counted(log), None
    else:
        judge, more = _judge(model, plan, run), partial(_larger_judge, model, plan, run)
    with log.purpose("guard"):
        parts = PARTS if free else tuner.tunes
        start = received(model, untuned(plan))
        found = guarded(tuned, start, judge, model.rounded_times, run.ranking, parts, more)
    if run.stopped and run.state and unchanged(found):
        logger.warning("%s, and nothing was gained: give a larger one", run.stopped)
    return found


def _judge(model: BatchedModel, plan: Plan, run: TuningRun, times: int = 1) -> ReferenceDistance:
    """The distance of the guard, on so many times as much noise as there are samples."""
    calibration, x = run.calibration, run.calibration.held_out(times)
    with run.cost_log.purpose("reference"):
        return ReferenceDistance(
            model,
            plan.schedule,
            float(plan.t[-1]),
            x,
            REFERENCE_CALLS,
            calibration.seed,
            calibration.constraint,
            calibration.units,
        )


def _larger_judge(model: BatchedModel, plan: Plan, run: TuningRun) -> ReferenceDistance | None:
    """The distance on more noise, as much as costs no more than tuning did, and MOST_NOISE times as much at most."""
    spent = {purpose: run.cost_log.of(purpose).of_all().evaluations for purpose in ("tuning", "reference")}
    times = min(MOST_NOISE, spent["tuning"] // max(1, spent["reference"]))
    return _judge(model, plan, run, times) if times > 1 else None


def _ranking(tuner: Tuner, model: BatchedModel, plan: Plan, run: TuningRun, evaluations: int) -> Sequence[Ranked]:
    """The untuned plans by the distance of their runs to those of the tuner's teacher, or of the usual one."""
    if run.kept_ranking is not None:
        with run.restoring():
            found = Ranking.from_dict(run.kept_ranking, model, tuner.starts(plan))
        if not run.state:  # else the tuner does, when it has restored its own
            run.resume()
        return found
    teacher, kept = teacher_of(plan, getattr(tuner, "teacher", None)), run.calibration.teacher_runs
    if run.budget.seconds is not None:
        with run.cost_log.purpose("sizing"):
            speed = measure_speed(model, plan, run.calibration.shape, FEWEST, run.calibration.device)
        if speed.seconds(teacher_cost(FEWEST, len(teacher), model.batch)) > run.budget.seconds:
            return ()
    samples, batch = run.calibration.samples, model.batch
    key, count, seconds = described(teacher), ranking_pairs(tuner, run.budget, samples, len(teacher), batch), None
    if len(kept.get(key, ())) < count:
        cache = getattr(tuner, "teacher_cache", None) if tuner.ranks_on_its_pairs else None
        path, share = (
            None if cache is None else Path(cache),
            TEACHER_SHARE if tuner.ranks_on_its_pairs else SECONDS_SHARE,
        )
        kept[key] = teach(model, teacher, run, count, path, share=share, found=kept.get(key))
    if run.budget.seconds is not None:
        seconds = SECONDS_SHARE * run.budget.seconds
    if len(kept[key]) < FEWEST or run.spent_share > 1 - SECONDS_SHARE:
        return ()
    rounds = Rounds.within(evaluations, len(plan), min(count, len(kept[key])))
    loss = TeacherLoss(model, kept[key][:count], getattr(tuner, "distance", robust), run.cost_log)
    with run.cost_log.purpose("ranking"):
        found = rank(loss, tuner.starts(plan), run, rounds, seconds)
    run.keep_ranking(found.to_dict())
    return found


def _inputs(
    tuner: Tuner, plan: Plan, calibration: Calibration, guard: bool | ReferenceDistance, model: BatchedModel
) -> dict[str, Any]:
    """All that a plan is tuned from, in plain values."""
    run = plan.to_dict()
    return {
        "plan": {name: run.get(name) for name in ("sampler", "schedule", "t", "tau", "corrections", "guided", "reuse")},
        "tuner": _name(tuner),
        "options": {field.name: plain(getattr(tuner, field.name)) for field in fields(tuner)},
        "samples": calibration.samples,
        "shape": list(calibration.shape),
        "data": calibration.fingerprint,
        "noise": plain(calibration.constraint),
        "seed": calibration.seed,
        "guard": guard if isinstance(guard, bool) else "given",
        "model": calibration.answer(model),
        "versions": versions(),
    }


def _name(tuner: Tuner) -> str:
    """The name of a tuner in `TUNERS`; that of its class where it is not there."""
    return next((name for name, kind in TUNERS.items() if kind is type(tuner)), type(tuner).__name__)


def tune_several(
    eps: ModelLike,
    plans: Sequence[Plan] | None = None,
    tuner: Tuner | str | None = None,
    data: Any = None,
    seed: int = 0,
    *,
    calls: Sequence[int] | None = None,
    end: float | None = None,
    samples: int = 256,
    shape: tuple[int, ...] | None = None,
    device: torch.device | str = "cpu",
    checkpoint: str | Path | None = None,
    noise: Constraint | None = None,
    done: Callable[[Sequence[Plan]], None] = lambda plans: None,
    **how: Any,
) -> list[Plan]:
    """The plans tuned, from the fewest calls to the most, on the same data or by the same runs of a teacher.

    In joint tuning each also has the one before as a warm start. A budget is for each.

    Args:
        eps: a model, or a function `eps(x, t, tau)`.
        plans: for different numbers of calls, on one schedule.
        tuner: a tuner, or the text of one, see `tune`.
        data: x_0 to calibrate on, see `tune`.
        seed: of all noise.
        calls: instead of plans: the numbers of calls.
        end: instead of plans, with `calls`: where these plans end, as in `tune`.
        samples: to tune on, and as many for the guard.
        shape: of one sample, where neither the data nor the model have one.
        device: where the model is.
        checkpoint: a file that keeps what is found, see `tune`.
        noise: the constraint of the noise, see `tune`.
        done: called with the finished plans, after each.
        **how: `guard`, `batch`, `budget` and `progress`, see `tune`.

    Returns:
        The tuned plans, from the fewest calls to the most.

    Raises:
        ValueError: two plans for the same number of calls; and see `tune`.
    """
    if (plans is None) == (calls is None):
        raise ValueError(f"give either plans= or calls=, got {'neither' if plans is None else 'both'}")
    tuner, free = None if tuner is None else tuner_of(tuner), plans is None
    model = as_model(eps, plans[0].schedule if plans else None, shape)
    if plans is None:
        plans = [start_of(model, None, n, end) for n in calls or ()]
    else:
        check_no_end(end, "plans=")
    plans = sorted(plans, key=len)
    counts = list(map(len, plans))
    if len(set(counts)) < len(counts) or not plans:
        raise ValueError(f"plans must be for different numbers of calls, got {counts or 'none'}")
    if getattr(tuner, "evaluations", None) is not None:
        raise ValueError(f"evaluations of {tuner!r} are for one plan: call tune for each number of evaluations")
    if not isinstance(data, Calibration):
        data = Calibration(eps, plans[0].schedule, data, samples, seed, shape, device, noise=noise)
    tuner = tuner or default_tuner(plans[0], data.own)
    for plan in plans:
        tuner.check(plan, data.own)
        data.check(as_model(eps, plan.schedule, shape), plan)
        if isinstance(how.get("guard"), ReferenceDistance):
            how["guard"].check(plan)
        if checkpoint is not None:
            check_writable(Path(f"{checkpoint}-{len(plan)}"))
    tuned: list[Plan] = []
    units = data.units
    if checkpoint is not None:  # the runs of the teacher and own samples are those of all plans
        units = _units(checkpoint, _inputs(tuner, plans[0], data, True, data.model))
    with data.keeping(units, data.cost_log):
        for plan in plans:
            path = None if checkpoint is None else Path(f"{checkpoint}-{len(plan)}")
            following = tuner.following(tuned[-1]) if tuned else tuner
            start: dict[str, Any] = {"calls": len(plan), "end": end} if free else {"plan": plan}
            tuned.append(tune(eps, tuner=following, data=data, device=device, checkpoint=path, **start, **how))
            done(tuned)
    if units is not None:
        units.remove()
    return tuned
