"""What the command line does to tune plans: say what it will cost, tune, keep what is found, say what it is worth."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from .._spec import build
from ..models.base import Model
from ..models.counting import Cost
from ..plans.plan import Plan
from ..tuners import TUNERS, Estimate, Tuner, estimate, tune, tune_several
from . import output as report

IN_PYTHON = {"teacher": "teacher_cache", "tune": "parts"}  # names that differ


def tuner_given(method: str, **options: Any) -> Tuner:
    """The tuner of the command line's options.

    Raises:
        ValueError: an unknown method, or an option that it does not have.
    """
    given = {IN_PYTHON.get(name, name): value for name, value in options.items() if value is not None}
    return build("tuner", TUNERS, method, given)


def costs(model: Model, plans: Sequence[Plan], **how: Any) -> list[dict[str, tuple[Cost, Cost]]]:
    """The usual and the largest cost of tuning each of these plans; that of the first includes what they share."""
    each = [estimate(model, plan, **how).costs for plan in plans]
    shared = ("teacher", "data")
    return [dict(each[0]), *({name: cost for name, cost in of.items() if name not in shared} for of in each[1:])]


def foretell(model: Model, plans: Sequence[Plan], own_samples: bool, how: dict[str, Any]) -> None:
    """Print what tuning these plans will cost, and about how long it takes, by a few calls of the model."""
    speed = estimate(model, plans[0], own_samples=own_samples, **how).speed
    for plan, cost in zip(plans, costs(model, plans, own_samples=own_samples, **how), strict=True):
        report.say.print(report.cost_table(cost, f"{len(plan)} calls"))
        seconds = Estimate(cost, speed).seconds
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
    foretold = costs(model, plans, own_samples=x0 is None, budget=options["budget"], **how)
    expected = sum(usual.calls for cost in foretold for usual, _ in cost.values())
    given: dict[str, Any] = {"data": x0, "shape": model.shape, "checkpoint": partial, "progress": meter.tell}
    given |= {**how, **options}
    report.show_messages()
    try:
        with meter.bar("tuning", expected):
            if len(plans) == 1:
                found = [tune(meter, plans[0], **given)]
                found[0].save(out)
            else:
                found = tune_several(meter, plans, done=lambda few: _keep(few, out), **given)
    except KeyboardInterrupt:
        kept = [path for path in (*keeps, getattr(how["tuner"], "teacher_cache", None)) if path is not None and path.is_file()]
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
