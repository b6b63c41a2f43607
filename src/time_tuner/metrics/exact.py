"""Exact moments of a plan's run, without sampling."""

from collections import deque

import torch
from torch import Tensor

from ..models.exact import Gaussian
from ..plans.plan import Plan
from ..sampling import trajectory


def exact_moments(data: Gaussian, plan: Plan) -> tuple[Tensor, Tensor]:
    """Exact mean and standard deviation of the end of a plan with the noise prediction of this data, run from
    `plan.start` of standard normal noise; each of a sample's shape.

    Every call is affine in the noise, so that the loop itself carries both: a state is held by its weights on 1, x_T
    and each of the draws.

    Args:
        data: the distribution of the data.
        plan: the plan, deterministic or not.

    Returns:
        The mean and the standard deviation, each of a sample's shape.
    """
    calls = len(plan)
    unit = torch.eye(calls + 2, dtype=torch.float64)
    draws = iter(unit[2:])
    # A mean on the first axis alone: the model of every coordinate, in weights.
    weights = Gaussian(data.mean.reshape(-1, 1) * unit[0], data.std.reshape(-1, 1).expand(-1, calls + 2))
    end = plan.initial_state(unit[1].expand(data.mean.numel(), -1))
    eps = weights.eps(plan.schedule)
    end = deque(trajectory(eps, plan, end, lambda x: next(draws).expand_as(x)), maxlen=1).pop()
    return end[:, 0].reshape(data.mean.shape), end[:, 1:].norm(dim=1).reshape(data.mean.shape)
