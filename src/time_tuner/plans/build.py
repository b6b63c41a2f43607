"""Plans made from a sampler and a grid: untuned plans, reference plans, and plans for other numbers of calls."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .. import _spec
from .._checks import accepts, check_int
from ..samplers import Sampler, sampler_of
from ..samplers.dpmpp import DPMSolverPP
from ..schedules import NoiseSchedule, as_float64
from ..schedules.base import time_at_angle
from ..spacings import Spacing, spacing_of
from .grid import calls_for, check_end, check_noise, checked_ends, place_calls
from .plan import Plan


def make_plan(
    sampler: Sampler | str,
    schedule: NoiseSchedule,
    calls: int | None = None,
    spacing: str | Spacing | None = None,
    times: Any = None,
    unit: str = "t",
    *,
    end: float | None = None,
    guided: int | Sequence[bool] | None = None,
) -> Plan:
    """An untuned plan: the network is called where the sampler's steps need it, and receives the solver's time.

    Args:
        sampler: a sampler, or the text of one, such as "ddim(eta=0.5)"; the names are those of `SAMPLERS`.
        schedule: the noise schedule of the network.
        calls: the number of network calls, at most one for each trained noise level. Not needed with `times`.
        spacing: a name in `SPACINGS`, with options as in "karras(rho=5)", or a function spacing(schedule, steps);
            `schedule.default_spacing` of the sampler when neither spacing nor times are given.
        times: instead of a spacing, the times where steps begin and end: strictly falling, in the trained range of the
            schedule. The first may be any of them, as for a run from an image; the last may be 0.
        unit: the unit of `times`: "t", "network_time", "sigma" or "lam", see `plans.grid.checked_ends`.
        end: the time t where the run on a spacing ends, in [0, T), instead of the spacing's own. Above 0 the run leaves
            the state alpha x_0 + sigma eps of that time, for a decoder of such states or for a second plan. Not with
            `times`.
        guided: so many first calls alone have guidance, or those of these flags, see `Plan.with_guidance`: under
            classifier-free guidance the others cost one evaluation instead of two. All by default.

    Returns:
        The untuned plan.

    Raises:
        ValueError: an argument cannot be used, such as a spacing that begins the run where the state is data rather
            than noise, see `plans.grid.check_noise`.
    """
    sampler = sampler_of(sampler)
    if calls is not None:
        calls = check_int("calls", calls, 1)
        if schedule.levels is not None and calls > schedule.levels:
            levels = f"the schedule's {schedule.levels} trained noise levels"
            raise ValueError(f"calls must be at most {levels}, got {calls}")
    if times is not None:
        if spacing is not None:
            raise ValueError(f"give either spacing or times, got spacing={spacing!r} and times")
        if end is not None:
            raise ValueError(f"give either end or times, whose last is the end, got end={end!r} and times")
        ends = checked_ends(times, schedule, unit)
        calls = calls_for(sampler, ends) if calls is None else calls
        steps = sampler.steps(calls, bool(ends[-1] == 0))
        if len(ends) != len(steps) + 1:
            raise ValueError(f"times must hold {len(steps) + 1} step ends for calls={calls}, got {len(ends)}")
    else:
        if calls is None:
            raise ValueError("make_plan needs calls=, the number of network calls, or times=")
        spacing = default_spacing(sampler, schedule, calls) if spacing is None else spacing
        end = None if end is None else check_end(end, schedule)
        try:
            steps, ends = _steps_on(sampler, spacing_of(spacing), schedule, calls, end)
            ends = checked_ends(ends, schedule)
            check_noise(ends, schedule)
        except ValueError as error:
            to = "" if end is None else f" and end={end:.6g}"
            raise ValueError(f"calls={calls} with spacing={spacing!r}{to}: {error}") from None
    grid = place_calls(sampler, schedule, ends, steps)
    plan = Plan(sampler, schedule, grid.t, grid.alpha, grid.sigma, grid.t[:-1])
    return plan if guided is None else plan.with_guidance(guided)


def default_spacing(sampler: Sampler, schedule: NoiseSchedule, calls: int) -> str:
    """The name of the grid that the sampler runs on unless another is named."""
    one_step, steps = sampler.look_back(5, 0, 10) == 1, calls  # in the middle of a run
    for to_zero in (True, False):
        try:
            steps = len(sampler.steps(calls, to_zero))
        except ValueError:  # not so many calls to this end
            continue
    return schedule.default_spacing(sampler.convergence, steps, one_step)


def _steps_on(
    sampler: Sampler, grid_of: Spacing, schedule: NoiseSchedule, calls: int, end: float | None
) -> tuple[tuple[int, ...], Tensor]:
    """The calls of each step and the step ends of a run on a spacing, to this end.

    The number of steps depends on whether the grid ends at 0, which without an `end` only the grid itself shows.

    Raises:
        ValueError: the sampler cannot make so many calls, or the spacing has no such grid.
    """
    if end is not None:
        if not accepts(grid_of, 2, ["end"]):
            raise ValueError("a spacing needs the argument end= for a run with end=: add it, or give times=")
        steps = sampler.steps(calls, end == 0)
        return steps, grid_of(schedule, len(steps), end=end)
    refused: ValueError | None = None
    for to_zero in (True, False):
        try:
            steps = sampler.steps(calls, to_zero)
        except ValueError as error:
            refused = refused or error
            continue
        ends = grid_of(schedule, len(steps))
        if bool(ends[-1] == 0) == to_zero:
            return steps, ends
    raise refused or ValueError("its grids end at 0 for some numbers of steps and above 0 for others")


def untuned(plan: Plan) -> Plan:
    """The plan without the conditioning times, corrections and reuse of an earlier tuning; the plan itself if it was
    not tuned, whose conditioning times are those that its network receives."""
    if "tuner" not in plan.provenance:
        return plan
    return plan.with_tau(plan.t[:-1]).with_corrections(None).with_guidance(plan.guided)


def resample(plan: Plan, calls: int) -> Plan:
    """The plan for another number of calls, as a start for tuning; without tuning it keeps little of the gain.

    The angle arctan(sigma / alpha) is a curve over the fraction of the steps, and the ratio tau / t is a curve over the
    angle. Both are monotone cubics through the plan's points (Fritsch & Carlson, 1980), read at the new step ends and
    calls. A ratio compensates for the error of a step: for more calls its logarithm shrinks with the steps; for fewer
    calls it is kept, since larger ratios gave worse plans. Corrections belong to their own grid and are left out. A
    step to 0 stays one step, since the network was not trained at the times in it. Guidance is at the same share of the
    first calls, rounded up.

    Args:
        plan: the plan, tuned or not.
        calls: the new number of calls.

    Returns:
        The plan of `calls` calls, without corrections.

    Raises:
        ValueError: a number of calls that the sampler cannot make.
    """
    calls = check_int("calls", calls, 1)
    if calls == len(plan):
        return plan
    schedule, ends = plan.schedule, plan.step_times.detach()
    to_zero = int(ends[-1] == 0)
    steps = len(plan.sampler.steps(calls, bool(to_zero))) - to_zero
    first, last = ends.split([len(ends) - to_zero, to_zero])
    first = first if len(first) > 1 else as_float64([float(ends[0]), schedule.t_min])
    fractions = np.linspace(0, 1, len(first))
    angles = _monotone_cubic(fractions, schedule.at(first).angle.numpy(), np.linspace(0, 1, steps + 1)[1:-1])
    times = torch.cat([time_at_angle(schedule, as_float64(angles)), first[-1:]])[:steps]
    guided = -(-sum(plan.guided) * calls // len(plan))
    made = make_plan(plan.sampler, schedule, calls, times=torch.cat([first[:1], times, last]), guided=guided)
    provenance = {**plan.provenance, "resampled_from": len(plan)}
    return made.with_tau(made.tau * _ratios(plan, made)).with_provenance(**provenance)


def _ratios(plan: Plan, made: Plan) -> Tensor:
    """The ratios tau / t of `plan` at the calls of `made`, (K,), nearer to 1 where `made` has more calls."""
    known, ratios = plan.schedule.at(plan.t[:-1].detach()).angle.numpy(), (plan.tau / plan.t[:-1]).detach().numpy()
    known, first = np.unique(known, return_index=True)
    angles = np.clip(made.schedule.at(made.t[:-1]).angle.numpy(), known[0], known[-1])
    read = _monotone_cubic(known, ratios[first], angles)
    t = made.t[:-1]
    low, high = torch.clamp(made.schedule.t_min / t, max=1.0), torch.clamp(made.schedule.T / t, min=1.0)
    return as_float64(read ** min(1.0, len(plan) / len(made))).clamp(low, high)


def _monotone_cubic(x: np.ndarray, y: np.ndarray, at: np.ndarray) -> np.ndarray:
    """The monotone cubic through (x, y), both (n,), x rising, read at `at` (m,); the constant if n = 1."""
    from scipy.interpolate import PchipInterpolator  # takes longer to load than the rest of the library

    return np.asarray(PchipInterpolator(x, y)(at)) if len(x) > 1 else np.full(len(at), y[0])


def firsts_of(plan: Plan) -> list[int]:
    """The first call of each step."""
    return [sum(plan.steps[:i]) for i in range(len(plan.steps))]


def rest(plan: Plan, begin: int) -> Plan:
    """The run of a plan from call `begin` on, which is the first call of a step.

    Raises:
        ValueError: there is no such call, or it is not the first of a step.
    """
    firsts = firsts_of(plan)
    if begin >= len(plan):
        raise ValueError(
            f"strength leaves none of the plan's {len(plan)} calls: choose a larger one, at least {1 / len(plan):.3g}"
        )
    if begin not in firsts:
        raise ValueError(
            f"a run of this plan may begin at call {', '.join(map(str, firsts))}, the first of a step of its sampler, "
            f"got {begin}: choose another strength"
        )
    c = plan.corrections
    return replace(
        plan,
        **{name: getattr(plan, name)[begin:] for name in ("t", "alpha", "sigma", "tau")},
        corrections=None if c is None else c[begin:, begin:],
        guided=plan.guided[begin:],
        reuse=None if plan.reuse is None else plan.reuse[begin:, begin:],
    )


def reference_plan(schedule: NoiseSchedule, end: float, calls: int = 100, sampler: Sampler | None = None) -> Plan:
    """A plan of many calls on the grid `schedule.even_times`, for reference runs and for a model's own samples.

    Args:
        schedule: the noise schedule.
        end: the time at which it ends; for 0 the last step goes from the least trained time to 0.
        calls: the number of calls; at most the number of trained levels are made.
        sampler: DPM-Solver++(2M) by default.

    Returns:
        The plan.
    """
    calls = min(calls, schedule.levels or calls)
    return make_plan(sampler or DPMSolverPP(2), schedule, calls=calls, times=schedule.even_times(calls, end=end))


def parse_run(text: str, schedule: NoiseSchedule, spacing: str | None = None) -> Plan:
    """The untuned plan of `sampler(option=value, ...):calls@spacing(option=value, ...)`, such as "ddim(eta=0.5):10".

    Options and spacing may be left out; `spacing` is the spacing of a text without one.

    Args:
        text: the run, such as "ddim(eta=0.5):10@karras(rho=5)".
        schedule: the noise schedule of the network.
        spacing: of a text that names none.

    Returns:
        The untuned plan.

    Raises:
        ValueError: the text has another form, or names an unknown sampler, spacing or option.
    """
    sampler, calls, written = _spec.parse_run(text)
    return make_plan(sampler, schedule, calls=calls, spacing=written or spacing)
