"""What the command line does to tune plans: say what it will cost, tune, keep what is found, say what it is worth."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..models.base import Model, for_rows
from ..models.counting import Cost
from ..plans.plan import Plan
from ..tuners.joint.sizing import BATCH, seconds_a_call
from ..tuners.tune import estimate, options_of, tune, tune_several
from . import output as report
from .sample import shape_of

IN_PYTHON = {"teacher": "cache"}  # names that differ


def options_given(method: str, **asked: Any) -> dict[str, Any]:
    """The options of a method that the command line was given, by their names in `tune`.

    Raises:
        ValueError: an unknown method, or an option that it does not have.
    """
    known, given = options_of(method), {}
    for option, value in asked.items():
        if value is not None:
            name = IN_PYTHON.get(option, option)
            if name not in known:
                raise ValueError(f"--{option} is not for --method {method}")
            given[name] = value
    return given


def costs(plans: Sequence[Plan], **how: Any) -> list[dict[str, tuple[Cost, Cost]]]:
    """What tuning each of these plans will cost, as a rule and at most; the first one bears what they share."""
    each = [estimate(plan, **how) for plan in plans]
    shared = ("teacher", "data")
    return each[:1] + [{name: cost for name, cost in of.items() if name not in shared} for of in each[1:]]


def foretell(model: Model, plans: Sequence[Plan], own_samples: bool, how: dict[str, Any]) -> None:
    """Print what tuning these plans will cost, and about how long it takes, by a few calls of the model."""
    some = for_rows(model, torch.arange(BATCH))
    call = seconds_a_call(some, plans[0], torch.zeros(BATCH, *shape_of(model)))
    for plan, cost in zip(plans, costs(plans, own_samples=own_samples, call=call, **how), strict=True):
        report.say.print(report.cost_table(cost, f"{len(plan)} calls"))
        seconds = call / BATCH * sum(usual.evaluations for usual, _ in cost.values())
        report.say.print(f"about {report.duration(seconds)} at the speed of this model here")


def tuned(
    model: Model, plans: Sequence[Plan], x0: Tensor | None, how: dict[str, Any], options: dict[str, Any], out: Path
) -> None:
    """Tune the plans, write them into one file, and say what they are worth.

    What is found lies beside the file while it is being found.
    """
    partial = out.with_name(f"{out.name}.partial")
    keeps = [partial] if len(plans) == 1 else [Path(f"{partial}-{len(plan)}") for plan in plans]
    meter = report.Meter(model)
    foretold = costs(plans, own_samples=x0 is None, budget=options["budget"], **how)
    expected = sum(usual.calls for cost in foretold for usual, _ in cost.values())
    given: dict[str, Any] = {"data": x0, "shape": model.shape, "checkpoint": partial, "progress": meter.tell}
    given |= {"say": report.say.print, **how, **options}
    try:
        with meter.bar("tuning", expected):
            if len(plans) == 1:
                found = [tune(meter, plans[0], **given)]
                found[0].save(out)
            else:
                found = tune_several(meter, plans, done=lambda few: _keep(few, out), **given)
    except KeyboardInterrupt:
        kept = [path for path in (*keeps, how.get("cache")) if path is not None and path.is_file()]
        if not kept:
            raise
        where = " and ".join(map(str, kept))
        print(f"interrupted: what was found is kept in {where}; the same command goes on from there", file=sys.stderr)
        sys.exit(130)
    for path in keeps:
        path.unlink(missing_ok=True)
    tell(found, out)


def _keep(plans: Sequence[Plan], out: Path) -> None:
    Plan.save_several(plans, out)
    report.say.print(f"{len(plans[-1])} calls: {report.verdict(plans[-1])}", soft_wrap=True)


def tell(plans: Sequence[Plan], out: Path) -> None:
    """Say what tuned plans are worth, and where they are."""
    report.say.print(f"\n{report.measured(plans[0])}:", soft_wrap=True)
    for plan in plans:
        report.say.print(report.measure_table(plan, f"{len(plan)} calls" if len(plans) > 1 else ""))
        if len(plans) == 1:
            report.say.print(f"{report.verdict(plan)}.", soft_wrap=True)
    report.say.print(f"wrote {out}", soft_wrap=True)
