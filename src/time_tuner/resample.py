"""A plan's grid and what its network is told, carried over to another number of calls."""

import numpy as np
import torch
from scipy.interpolate import PchipInterpolator
from torch import Tensor

from .options import whole
from .plan import Plan, make_plan
from .schedules import as_times
from .schedules.base import time_at_angle


def resample(plan: Plan, calls: int) -> Plan:
    """The plan for another number of calls: a start for tuning; without that little of what tuning gained is left.

    The step ends lie on the same curve, arctan(sigma / alpha) over the share of the steps done, and the ratios tau / t
    on theirs over that angle; both curves are monotone cubics through the given points (Fritsch & Carlson, 1980). A
    ratio makes up for the error of a step, so that for more calls its logarithm shrinks as steps do; for fewer calls
    the ratios are kept as they are, for stronger ones did harm. Corrections belong to their own grid and are left out.

    Raises:
        ValueError: a number of calls that the sampler cannot make.
    """
    calls = whole("calls", calls, 1)
    if calls == len(plan):
        return plan
    schedule, ends = plan.schedule, plan.ends.detach()
    steps = len(plan.sampler.steps(calls, bool(ends[-1] == 0)))
    angles = schedule.at(ends).angle.numpy()
    shares = np.linspace(0, 1, steps + 1)[1:-1]
    inner = (
        PchipInterpolator(np.linspace(0, 1, len(ends)), angles)(shares)
        if len(ends) > 2
        else angles[:1] + (angles[-1] - angles[0]) * shares
    )
    times = time_at_angle(schedule, as_times(inner))
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
    return as_times(read ** min(1.0, len(plan) / len(made))).clamp(
        torch.clamp(low / t, max=1.0), torch.clamp(high / t, min=1.0)
    )
