"""Runs written in a few characters, as the command line takes them: `ddim(eta=0.5):10@quadratic`."""

import re

from .options import parse_options
from .plan import Plan, make_plan
from .samplers import Sampler, sampler_from_dict
from .schedules import NoiseSchedule

_SPEC = re.compile(r"(?P<name>\w+)(\((?P<options>[^()]*)\))?:(?P<calls>\d+)(@(?P<spacing>\w+(\([^()]*\))?))?")


def parse_sampler(name: str, options: list[str]) -> Sampler:
    """A sampler from its name and options written `name=value`."""
    return sampler_from_dict({"name": name} | parse_options(options))


def parse_run(text: str, schedule: NoiseSchedule, spacing: str | None = None) -> Plan:
    """The untuned plan of `sampler[(option=value, ...)]:calls[@spacing[(option=value, ...)]]`; `spacing` is for runs
    that name none.

    Raises:
        ValueError: the text is not of this form, or names what there is not.
    """
    match = _SPEC.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"a run is written sampler[(option=value, ...)]:calls[@spacing], got {text!r}")
    options = [option for option in (match["options"] or "").split(",") if option.strip()]
    sampler = parse_sampler(match["name"], options)
    return make_plan(sampler, schedule, calls=int(match["calls"]), spacing=match["spacing"] or spacing)
