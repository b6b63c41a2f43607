"""Checks of tuners."""

from dataclasses import fields, is_dataclass

from ..models.exact import Mixture
from ..plans.build import make_plan
from ..plans.plan import Plan
from ..schedules import NoiseScheduleVP
from ..tuners import TUNERS, Tuner, tune, tuner_of
from ._assertions import close, holds


def check_tuner(tuner: Tuner, plan: Plan | None = None, samples: int = 64) -> None:
    """Check that a tuner does what every tuner of the library does, on the exact prediction for a mixture in the plane.

    The tuned plan has the calls, the schedule and the end of the given one. Under the guard it is not farther from a
    many-step run than the untuned plan. The same arguments give the same plan, with the tuner as text, too, where its
    options are plain values. The provenance names the tuner and its cost.

    Args:
        tuner: the tuner.
        plan: to tune; by default five calls of DDIM.
        samples: to tune on and to judge on.

    Raises:
        AssertionError: names what does not hold.
    """
    holds(is_dataclass(tuner), "a tuner is a frozen dataclass of its options")
    schedule = NoiseScheduleVP("linear")
    model = Mixture([[2.0, 0.0], [-1.0, 1.5], [0.5, -2.0]], 0.2).eps(schedule)
    plan = make_plan("ddim", schedule, 5, "quadratic") if plan is None else plan
    tuned = tune(model, plan, tuner, samples=samples)
    holds(len(tuned) == len(plan), "a tuner keeps the number of calls")
    holds(tuned.schedule == plan.schedule, "a tuner keeps the noise schedule")
    close(tuned.t[-1], plan.t[-1], "a tuner keeps the end of the run")
    distance = tuned.provenance["distance"]
    holds(distance["tuned"] <= distance["untuned"], "under the guard a tuned plan is never worse than untuned")
    holds(bool(tuned.provenance["cost"]), "the provenance of a tuned plan names its cost")
    again = tune(model, plan, tuner, samples=samples)
    close(again.tau, tuned.tau, "the same arguments give the same plan", rtol=0, atol=0)
    close(again.t, tuned.t, "the same arguments give the same plan", rtol=0, atol=0)
    name = next((name for name, kind in TUNERS.items() if kind is type(tuner)), None)
    options = {field.name: getattr(tuner, field.name) for field in fields(tuner)}
    plain = {key: value for key, value in options.items() if isinstance(value, str | int | float | tuple)}
    if name is not None:
        text = f"{name}({', '.join(f'{key}={value!r}' for key, value in plain.items())})"
        holds(tuner_of(text) == type(tuner)(**plain), f"{text} is the tuner as text")
