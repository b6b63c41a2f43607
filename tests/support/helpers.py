"""What several test files need to know of a run: its moments, written down without the loop."""

from dataclasses import fields
from typing import Any

import torch
from torch import Tensor

from time_tuner import TUNERS, Plan, tune
from time_tuner.sampling import coefficients


def seeded(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def moments(
    plan: Plan, mean: float, std: float, start_mean: float = 0.0, start_std: float = 1.0
) -> tuple[float, float]:
    """Mean and standard deviation at the end of a run with the exact noise prediction of N(mean, std^2).

    That prediction is affine in the state, so both follow from the coefficient table: a state is a mean plus weights on
    independent standard normals, x_T and the draws.
    """
    calls, table = len(plan), coefficients(plan)
    x_mean, x_weights = torch.tensor(start_mean, dtype=torch.float64), torch.zeros(1 + calls, dtype=torch.float64)
    x_weights[0] = start_std
    eps_mean, eps_weights = torch.zeros(calls, dtype=torch.float64), torch.zeros(calls, 1 + calls, dtype=torch.float64)
    for k in range(calls):
        p = plan.schedule.at(plan.tau[k])
        slope = p.sigma / (p.alpha**2 * std**2 + p.sigma**2)
        eps_mean[k] = slope * (x_mean - p.alpha * mean)
        eps_weights[k] = slope * x_weights
        on_start, on_eps, on_draws = table[k, 0], table[k, 1 : 1 + calls], table[k, 1 + calls :]
        x_mean = on_start * start_mean + on_eps @ eps_mean
        x_weights = on_eps @ eps_weights
        x_weights[0] += on_start * start_std
        x_weights[1:] += on_draws
    return float(x_mean), float(x_weights.norm())


def tune_by(eps: Any, plan: Plan, name: str = "sequential", data: Any = None, **options: Any) -> Plan:
    """`tune` by the tuner of this name; its own options and those of `tune` are given together."""
    own = {field.name for field in fields(TUNERS[name])}
    tuner = TUNERS[name](**{option: value for option, value in options.items() if option in own})
    return tune(eps, plan, tuner, data, **{option: value for option, value in options.items() if option not in own})
