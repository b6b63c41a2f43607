"""Plans tuned from the command line: what it will cost, the tuning, and what it has gained."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from .._distributed import rank
from ..models.base import Model
from ..plans.plan import Plan
from ..tuners import Tuner, estimate, tune, tune_several
from . import output

SHARED = ("teacher", "data")  # purposes whose cost several plans share


def checkpoint_of(out: Path) -> Path:
    """The file that keeps the state of tuning beside the plan file."""
    return out.with_name(f"{out.name}.partial")


def kept_files(out: Path) -> list[Path]:
    """The files that an interrupted run has left beside the plan file; one for each plan."""
    return sorted(out.parent.glob(f"{checkpoint_of(out).name}*")) if out.parent.is_dir() else []


def check_new(out: Path, overwrite: bool) -> None:
    """Raise a ValueError if a finished plan would be overwritten."""
    if not rank() and out.exists() and not overwrite and not kept_files(out):
        raise ValueError(f"--out {out} exists: name another file (--out other.json), or give --overwrite")


def show_estimate(model: Model, starts: Sequence[Plan] | Sequence[int], tuner: Tuner | None, **how: Any) -> None:
    """Print what tuning from these plans, or for these numbers of calls, will cost, and about how long it takes;
    arguments as of `estimate`."""
    for i, start in enumerate(starts):
        given: dict[str, Any] = {"plan": start} if isinstance(start, Plan) else {"calls": start}
        if "evaluations" in how:
            given = {}
        found = estimate(model, tuner=tuner, shape=model.shape, device=model.device, **given, **how)
        costs = {name: cost for name, cost in found.costs.items() if not i or name not in SHARED}
        output.result(output.cost_table(costs, f"{len(start) if isinstance(start, Plan) else start} calls"))
        output.result(f"about {output.duration(found.seconds)} at the speed of this model here")
        output.result(output.devices_table(found.devices))


def tune_plans(
    model: Model,
    starts: Sequence[Plan] | Sequence[int],
    tuner: Tuner | None,
    data: Tensor | None,
    seed: int,
    out: Path,
    made_for: Mapping[str, Any],
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
        **how: samples, batch, budget and evaluations, see `tune`.
    """
    how |= {"shape": model.shape, "device": model.device, "checkpoint": checkpoint_of(out)}
    single, plans_given = len(starts) == 1, isinstance(starts[0], Plan)

    def keep(plans: Sequence[Plan]) -> None:
        plans = [plan.with_provenance(**made_for) for plan in plans]
        if single:
            plans[0].save(out)
        else:
            Plan.save_several(plans, out)
            output.result(f"{len(plans[-1])} calls: {output.verdict(plans[-1])}")

    try:
        with output.Bar("tuning") as bar:
            how |= {"tuner": tuner, "data": data, "seed": seed, "progress": bar.tuning}
            if single:
                if "evaluations" not in how:
                    how["plan" if plans_given else "calls"] = starts[0]
                found = [tune(model, **how)]
                keep(found)
            else:
                how["plans" if plans_given else "calls"] = starts
                found = tune_several(model, done=keep, **how)
    except KeyboardInterrupt:
        kept = kept_files(out)
        if not kept:
            raise
        where = " and ".join(map(str, kept))
        print(f"interrupted: the state is kept in {where}, and the same command continues from it", file=sys.stderr)
        sys.exit(130)
    for path in [] if rank() else kept_files(out):
        path.unlink()
    for plan in found:
        output.result(output.measure_table(plan))
    if len(found) == 1:
        output.result(f"{output.verdict(found[0])}.")
    output.result(f"wrote {out}")
