"""`tune` and `tune_several`: calibrate, tune, compare with the untuned plan; `estimate`: what that costs."""

from collections.abc import Callable, Mapping, Sequence
from inspect import signature
from os import PathLike
from pathlib import Path
from typing import Any, TypeAlias

import torch

from .._checks import check_int, choose
from ..models.base import as_model
from ..models.batching import BatchedModel
from ..models.counting import Cost, CostLog, CountedModel
from ..plans.build import reference_plan
from ..plans.plan import Plan
from ..sampling import ModelLike, check_schedule
from .base import Progress, TuningRun, tqdm_bar
from .budget import Budget, forward
from .calibration import OWN_CALLS, Calibration
from .checkpoint import plain, versions
from .guard import ReferenceDistance, guarded
from .joint.tuner import Joint
from .timesteps.tuner import Conditioning

Tuner: TypeAlias = Callable[..., Plan]
"""`tuner(eps, plan, calibration, run, **options)`: a plan, tuned. `eps` is counted and called in batches, see
`BatchedModel`; `run` says what may be spent, keeps the state and tells how far it is, see `TuningRun`. A tuner that can foretell
what it costs has a method `cost(plan, samples, batch, **options)`: for "tuning", and for "teacher" where it has one,
what that costs as a rule, and at most."""


TUNERS: dict[str, Tuner] = {
    "sequential": Conditioning("sequential"),
    "parallel": Conditioning("parallel"),
    "joint": Joint(),
}
"""Every tuning method by its name in `tune` and on the command line."""


REFERENCE_CALLS = 100


def tune(
    eps: ModelLike,
    plan: Plan,
    method: str = "sequential",
    data: Any = None,
    seed: int = 0,
    guard: bool | ReferenceDistance = True,
    *,
    samples: int = 256,
    batch: int | None = None,
    shape: tuple[int, ...] | None = None,
    device: torch.device | str = "cpu",
    budget: str | int | Budget | None = None,
    checkpoint: str | Path | None = None,
    progress: bool | Callable[[Progress], None] = False,
    say: Callable[[str], None] = print,
    verbose: bool = False,
    **options: Any,
) -> Plan:
    """A better plan for the same number of calls.

    Args:
        eps: the model, `eps(x, t, tau)`.
        plan: where to start: its sampler and its grid.
        method: a name in `TUNERS`. "sequential" and "parallel" are the two strategies of TimeTuner (Xia et al., 2024).
        data: x_0 to calibrate on, a tensor (n, ...) or an iterable of samples or batches; None: the model's own
            samples; or a `Calibration`, to tune several plans on the same, which brings its seed, samples and shape.
            "joint" needs none, and takes none.
        seed: of everything that is drawn.
        guard: True to judge the result on held-out noise and put back what makes it worse; False for the bare optimum;
            or a `ReferenceDistance` to judge several plans by one reference.
        samples: how many samples to tune on, and to judge on; of a model under several conditions as many as these.
        batch: the most samples in one network call; by default `samples`, and on other devices than the CPU as many as
            there are to ask about, halved while the memory does not suffice. A batch larger than `samples` lets
            "parallel" ask about several steps at once. With `optimizer="adam"` also its batch, 64 by default.
        shape: of one sample; needed only when neither `data` nor `eps.shape` tells.
        device: where the model is.
        budget: what tuning may spend, as in "20000calls", "60s" or "2m", or a number of calls; the best found until
            then is handed over. One call is one forward of one batch, a backward counts as two. The reference, the
            calibration data and the guard come on top: see `estimate`.
        checkpoint: a file that keeps what is found while it is being found: a run that was interrupted goes on from
            there when it is started again with the same arguments, and comes to the same plan. In the end it holds
            the plan, too, which the same call then gives at once: remove it when the plan is saved.
        progress: called with a `Progress` after each step; True for a bar on standard error.
        say: called with the sentence whether an earlier run is continued.
        verbose: the same as `progress=True`.
        **options: of the method, for example `optimizer="adam"` for the published procedure, `objective="substeps"` or
            `last=True`.

    Returns:
        The tuned plan. Its provenance says how it was made, what that cost, and, with a guard, what it is worth:
        "distance" holds the mean distance to the end of a many-step run of the "untuned" plan, of the "tuned" one, and
        of the tuner's own result before the guard, "unguarded"; "reference_calls" is the number of calls of that run;
        "reverted_calls" are the calls whose tau the guard set back. "stopped" is there when the budget ran out.

    Raises:
        ValueError: an unknown method, unusable data, a model that returns NaN or a wrong shape, or one with another
            noise schedule than the plan.
    """
    samples = check_int("samples", samples, 2)
    _check(method, options)
    if not isinstance(plan, Plan):
        raise ValueError(f"plan must be a Plan, as make_plan or Plan.load gives, got {plan!r}")
    if not isinstance(guard, bool | ReferenceDistance):
        raise ValueError(f"guard must be True, False or a ReferenceDistance, got {guard!r}")
    seed = check_int("seed", seed)
    if not (progress is None or isinstance(progress, bool) or callable(progress)):
        raise ValueError(f"progress must be True, False or a function, got {progress!r}")
    for name, path in (("checkpoint", checkpoint), ("cache", options.get("cache"))):
        if not isinstance(path, str | PathLike | None):
            raise ValueError(f"{name} must be a path, got {path!r}")
    model = as_model(eps, plan.schedule, shape)
    check_schedule(model.schedule, plan)
    if isinstance(data, Calibration):
        calibration, seed, samples, shape = data, data.seed, data.samples, data.shape
    if model.num_conditions is not None and model.num_conditions > samples:
        raise ValueError(
            f"samples must be at least as many as the model has conditions, {model.num_conditions}, got {samples}"
        )
    cost_log = CostLog()
    network = BatchedModel(CountedModel(model, cost_log), _batch(batch, samples, device, options))
    if not isinstance(data, Calibration):
        calibration = Calibration(network, plan.schedule, data, samples, seed, shape, device, cost_log)
    made: dict[str, Any] = {
        "plan": plan.to_dict(),
        "method": method,
        "options": {name: plain(value) for name, value in options.items()},
        "data": calibration.fingerprint,
        "seed": seed,
        "samples": samples,
        "guard": guard if isinstance(guard, bool) else "given",
        "versions": versions(),
    }
    if checkpoint is not None:
        made["model"] = calibration.answer(BatchedModel(model, network.batch))  # a call that is no part of the work
    tell = tqdm_bar(method) if progress is True or verbose else progress or None
    run = TuningRun(Budget.parse(budget), cost_log, None if checkpoint is None else Path(checkpoint), made, tell, say)
    if run.plan is not None:
        return Plan.from_dict(run.plan)
    tuned = TUNERS[method](network, plan, calibration, run, **options).with_provenance(
        method=method,
        seed=seed,
        samples=samples,
        data="own samples" if calibration.own else "given",
        versions=versions(),
        **({"stopped": run.stopped} if run.stopped else {}),
    )
    if guard is not False:
        if isinstance(guard, ReferenceDistance):
            judge = guard.counted(cost_log)
        else:
            end, noise = float(plan.t[-1]), calibration.held_out()
            with cost_log.purpose("reference"):
                judge = ReferenceDistance(network, plan.schedule, end, noise, REFERENCE_CALLS, seed)
        with cost_log.purpose("guard"):
            tuned = guarded(tuned, plan.with_tau(plan.t[:-1]).with_corrections(None), judge)
    tuned = tuned.with_provenance(cost=cost_log.to_dict())
    run.finish(tuned.to_dict())
    return tuned


def estimate(
    plan: Plan,
    method: str = "sequential",
    *,
    samples: int = 256,
    batch: int | None = None,
    device: torch.device | str = "cpu",
    own_samples: bool = True,
    guard: bool = True,
    budget: str | int | Budget | None = None,
    call: float = 0.0,
    **options: Any,
) -> dict[str, tuple[Cost, Cost]]:
    """What `tune` with these arguments will cost: for each purpose, as a rule and at most. "tuning" is left out where
    the method does not tell.

    `call` is the seconds that the model takes for 16 samples, by which a method may choose how much it does; 0 where
    that is not known.

    Raises:
        ValueError: an unknown method or option.
    """
    samples = check_int("samples", samples, 2)
    _check(method, options)
    batch, limit = _batch(batch, samples, device, options), Budget.parse(budget)
    run = forward(samples, batch)
    least, most = run * (3 * len(plan)), run * (len(plan) * (2 + len(plan)))  # untuned, tuned, a row or all put back
    foretell = getattr(TUNERS[method], "cost", None)
    costs = {} if foretell is None else foretell(plan, samples, batch, **options, budget=limit, call=call)
    if "tuning" in costs:
        costs["tuning"] = tuple(map(limit.cut, costs["tuning"]))
    if "teacher" not in costs:  # which needs no data
        own_calls = len(reference_plan(plan.schedule, 0.0, OWN_CALLS))
        costs = {"data": (run * (own_calls * own_samples),) * 2} | costs
    reference_calls = len(reference_plan(plan.schedule, float(plan.t[-1]), REFERENCE_CALLS))
    return costs | {
        "reference": (run * (reference_calls * guard),) * 2,
        "guard": (least, most) if guard else (Cost(), Cost()),
    }


def options_of(method: str) -> list[str]:
    """The names of a method's options.

    Raises:
        ValueError: an unknown method.
    """
    return list(signature(TUNERS[choose("method", method, TUNERS)]).parameters)[
        4:
    ]  # after the model, the plan, the calibration and the run


def _check(method: str, options: Mapping[str, Any]) -> None:
    takes = options_of(method)
    unknown = [name for name in options if name not in takes]
    if unknown:
        raise ValueError(f"method {method!r} has no option {unknown[0]!r}; its options: {', '.join(takes) or 'none'}")


def _batch(batch: int | None, samples: int, device: torch.device | str, options: Mapping[str, Any]) -> int | None:
    """The most samples in a network call; None where the device says itself when there are too many."""
    if batch is not None or options.get("optimizer") == "adam" or torch.device(device).type != "cpu":
        return batch
    return samples


def tune_several(
    eps: ModelLike,
    plans: Sequence[Plan],
    method: str = "joint",
    data: Any = None,
    seed: int = 0,
    *,
    samples: int = 256,
    shape: tuple[int, ...] | None = None,
    device: torch.device | str = "cpu",
    checkpoint: str | Path | None = None,
    done: Callable[[Sequence[Plan]], None] = lambda plans: None,
    **options: Any,
) -> list[Plan]:
    """The plans tuned, from the fewest calls to the most.

    They are tuned on the same data, or by the same runs of the teacher; with `method="joint"` each starts from its
    neighbour, too. A budget is for each.

    Args:
        eps, method, data, seed, samples, shape, device, checkpoint, options: see `tune`.
        plans: for different numbers of calls, on one schedule.
        done: called with the plans that are finished, after each.

    Raises:
        ValueError: two plans for the same number of calls; and see `tune`.
    """
    plans = sorted(plans, key=len)
    counts = [len(plan) for plan in plans]
    if len(set(counts)) < len(counts) or not plans:
        raise ValueError(f"plans must be for different numbers of calls, got {counts or 'none'}")
    if not isinstance(data, Calibration):
        data = Calibration(eps, plans[0].schedule, data, samples, seed, shape, device)
    tuned: list[Plan] = []
    for plan in plans:
        path = None if checkpoint is None else Path(f"{checkpoint}-{len(plan)}")
        more = {**options}
        if method == "joint" and tuned:
            more = {"pairs": tuned[-1].provenance["pairs"], "others": tuned[-1:], **options}
        tuned.append(tune(eps, plan, method, data, device=device, checkpoint=path, **more))
        done(tuned)
    return tuned
