"""Plans made from a sampler and a grid: untuned plans, reference plans, and plans for other numbers of calls."""

import math
from typing import Any

import numpy as np
import torch
from scipy.interpolate import PchipInterpolator
from torch import Tensor

from .. import _spec
from .._checks import check_int
from ..samplers import Sampler, sampler_of
from ..samplers.dpmpp import DPMSolverPP
from ..schedules import NoiseSchedule, NoiseScheduleVE, as_float64
from ..schedules.base import time_at_angle
from ..spacings import default_spacing, spacing_of
from .grid import calls_for, check_calls, checked_ends, place_calls, times_in
from .plan import Plan


def make_plan(
    sampler: Sampler | str,
    schedule: NoiseSchedule,
    calls: int | None = None,
    spacing: str | None = None,
    times: Any = None,
    unit: str = "t",
) -> Plan:
    """An untuned plan: where a sampler's steps end on a schedule, and with that where the network is called.

    Args:
        sampler: a sampler, or the text of one, such as "ddim(eta=0.5)"; the names are those of `SAMPLERS`.
        schedule: the noise schedule of the network.
        calls: number of network calls; may be left out when `times` are given.
        spacing: a name in `SPACINGS`, with options as in "karras(rho=5)"; `spacings.default_spacing` says which
            when neither spacing nor times are given.
        times: instead of a spacing, the step ends themselves, strictly falling, in the schedule's trained range; the
            last may be 0.
        unit: what the times are given in: "t", "label", "sigma" or "lam", see `spacings.times_in`.

    Raises:
        ValueError: names the argument, what was got and the way out.
    """
    sampler = sampler_of(sampler)
    if calls is not None:
        calls = check_calls(calls, schedule)
    if times is not None:
        if spacing is not None:
            raise ValueError(f"give either spacing or times, got spacing={spacing!r} and times")
        ends = checked_ends(times_in(times, unit, schedule), schedule)
        calls = calls_for(sampler, ends) if calls is None else calls
        steps = sampler.steps(calls, bool(ends[-1] == 0))
        if len(ends) != len(steps) + 1:
            raise ValueError(f"times must hold {len(steps) + 1} step ends for calls={calls}, got {len(ends)}")
    else:
        if calls is None:
            raise ValueError("make_plan needs calls=, the number of network calls, or times=")
        grid_of = spacing_of(default_spacing(sampler, schedule) if spacing is None else spacing)
        to_zero = bool(grid_of(schedule, 1)[-1] == 0)
        steps = sampler.steps(calls, to_zero)
        ends = checked_ends(grid_of(schedule, len(steps)), schedule)
    grid = place_calls(sampler, schedule, ends, steps)
    return Plan(sampler, schedule, grid.t, grid.alpha, grid.sigma, grid.t[:-1])


def resample(plan: Plan, calls: int) -> Plan:
    """The plan for another number of calls: a start for tuning; without that little of what tuning gained is left.

    The step ends lie on the same curve, arctan(sigma / alpha) over the share of the steps done, and the ratios tau / t
    on theirs over that angle; both curves are monotone cubics through the given points (Fritsch & Carlson, 1980). A
    ratio makes up for the error of a step, so that for more calls its logarithm shrinks as steps do; for fewer calls
    the ratios are kept as they are, for stronger ones did harm. Corrections belong to their own grid and are left out.

    Raises:
        ValueError: a number of calls that the sampler cannot make.
    """
    calls = check_int("calls", calls, 1)
    if calls == len(plan):
        return plan
    schedule, ends = plan.schedule, plan.step_times.detach()
    steps = len(plan.sampler.steps(calls, bool(ends[-1] == 0)))
    angles = schedule.at(ends).angle.numpy()
    shares = np.linspace(0, 1, steps + 1)[1:-1]
    inner = (
        PchipInterpolator(np.linspace(0, 1, len(ends)), angles)(shares)
        if len(ends) > 2
        else angles[:1] + (angles[-1] - angles[0]) * shares
    )
    times = time_at_angle(schedule, as_float64(inner))
    made = make_plan(plan.sampler, schedule, calls, times=torch.cat([ends[:1], times, ends[-1:]]))
    return made.with_tau(made.tau * _ratios(plan, made)).with_provenance(
        **{**plan.provenance, "resampled_from": len(plan)}
    )


def _ratios(plan: Plan, made: Plan) -> Tensor:
    """The ratios of one plan, read at the calls of the other, nearer to 1 where those are more."""
    known, ratios = plan.schedule.at(plan.t[:-1].detach()).angle.numpy(), (plan.tau / plan.t[:-1]).detach().numpy()
    known, first = np.unique(known, return_index=True)
    asked = np.clip(made.schedule.at(made.t[:-1]).angle.numpy(), known[0], known[-1])
    read = PchipInterpolator(known, ratios[first])(asked) if len(known) > 1 else np.full(len(asked), ratios[0])
    low, high = made.schedule.t_min, made.schedule.T
    t = made.t[:-1]
    return as_float64(read ** min(1.0, len(plan) / len(made))).clamp(
        torch.clamp(low / t, max=1.0), torch.clamp(high / t, min=1.0)
    )


def reference_plan(schedule: NoiseSchedule, end: float, calls: int = 100, sampler: Sampler | None = None) -> Plan:
    """Many calls, of DPM-Solver++(2M) by default, from T to the time `end`, even in sqrt(t); on a VE schedule in lam.

    It is what measures best, see `spacings.default_spacing`.
    """
    least = max(end, schedule.t_min)
    steps = calls if end else calls - 1
    if isinstance(schedule, NoiseScheduleVE):
        times = torch.logspace(math.log10(schedule.T), math.log10(least), steps + 1, dtype=torch.float64)
    else:
        times = torch.linspace(schedule.T**0.5, least**0.5, steps + 1, dtype=torch.float64) ** 2
    times[0], times[-1] = schedule.T, least  # exactly
    if not end:
        times = torch.cat([times, torch.zeros(1, dtype=torch.float64)])
    return make_plan(sampler or DPMSolverPP(2), schedule, calls=calls, times=times)


def parse_run(text: str, schedule: NoiseSchedule, spacing: str | None = None) -> Plan:
    """The untuned plan of `sampler(option=value, ...):calls@spacing(option=value, ...)`, such as "ddim(eta=0.5):10".

    Args:
        text: the run; options and spacing may be left out.
        schedule: the noise schedule of the network.
        spacing: of a run that names none.

    Raises:
        ValueError: the text has another form, or names an unknown sampler, spacing or option.
    """
    sampler, calls, written = _spec.parse_run(text)
    return make_plan(sampler, schedule, calls=calls, spacing=written or spacing)
