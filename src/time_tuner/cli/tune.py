"""Plans tuned from the command line: what it will cost, the tuning, and what it has gained."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from .._distributed import rank
from ..models.base import Model
from ..plans.plan import Plan
from ..tuners import Tuner, estimate, tune, tune_several
from . import output, values

SHARED = ("teacher", "data")  # purposes whose cost several plans share


def check_new(out: Path, overwrite: bool) -> None:
    """Raise a ValueError if a finished plan would be overwritten."""
    if not rank() and out.exists() and not overwrite and not output.kept_parts(out):
        raise ValueError(f"--out {out} exists: name another file (--out other.json), or give --overwrite")


def show_estimate(
    model: Model, starts: Sequence[Plan] | Sequence[int], tuner: Tuner | None, as_json: bool, **how: Any
) -> None:
    """Print what tuning from these plans, or for these numbers of calls, will cost, and about how long it takes;
    arguments as of `estimate`."""
    estimates, texts = list[Any](), list[Any]()
    plans_or_calls: Sequence[Plan | int] = starts
    for i, start in enumerate(plans_or_calls):
        given: dict[str, Any] = {"plan": start} if isinstance(start, Plan) else {"calls": start}
        if "evaluations" in how:
            given = {}
        found = estimate(model, tuner=tuner, shape=model.shape, device=model.device, **given, **how)
        costs = {name: cost for name, cost in found.costs.items() if not i or name not in SHARED}
        count = len(start) if isinstance(start, Plan) else start
        estimates.append(values.of_cost(costs, found.seconds, count))
        texts.append(output.cost_table(costs, f"{count} calls"))
        texts.append(f"about {output.duration(found.seconds)} at the speed of this model here")
        texts.append(output.devices_table(found.devices))
    output.report({"estimates": estimates} if as_json else None, *texts)


def tune_plans(
    model: Model,
    starts: Sequence[Plan] | Sequence[int],
    tuner: Tuner | None,
    data: Tensor | None,
    seed: int,
    out: Path,
    made_for: Mapping[str, Any],
    as_json: bool = False,
    **how: Any,
) -> None:
    """Tune plans, write them into one file, and print what tuning has gained.

    The state of tuning is kept beside the file: the same command continues from it.

    Args:
        model: the model.
        starts: plans to tune, for different numbers of calls, or these numbers; with `evaluations` half of them.
        tuner: the tuner; None for the default, see `tune`.
        data: to tune on; the model's own samples by default.
        seed: of everything that is drawn.
        out: the file.
        made_for: of the model, for the provenance.
        as_json: whether the result is printed as JSON.
        **how: samples, batch, budget and evaluations, see `tune`.
    """
    how |= {"shape": model.shape, "device": model.device, "checkpoint": output.partial_of(out)}
    single, plans_given = len(starts) == 1, isinstance(starts[0], Plan)

    def keep(plans: Sequence[Plan]) -> None:
        plans = [plan.with_provenance(**made_for) for plan in plans]
        if single:
            plans[0].save(out)
        else:
            Plan.save_several(plans, out)
            if not as_json:
                output.result(f"{len(plans[-1])} calls: {output.verdict(plans[-1])}")

    with output.resumable(out), output.Bar("tuning") as bar:
        how |= {"tuner": tuner, "data": data, "seed": seed, "progress": bar.tuning}
        if single:
            if "evaluations" not in how:
                how["plan" if plans_given else "calls"] = starts[0]
            found = [tune(model, **how)]
            keep(found)
        else:
            how["plans" if plans_given else "calls"] = starts
            found = tune_several(model, done=keep, **how)
    if not rank():
        output.remove_parts(out)
    texts: list[Any] = [output.measure_table(plan) for plan in found]
    verdicts = [f"{output.verdict(found[0])}."] if single else []
    given = {**values.of_plans(found), "out": out}
    output.report(given if as_json else None, *texts, *verdicts, f"wrote {out}")
