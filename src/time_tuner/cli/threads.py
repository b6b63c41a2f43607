"""How many threads torch should use: on a machine with other work, several may wait for one another."""

from collections.abc import Mapping

import torch

from ..models.base import Model
from ..plans.plan import Plan
from ..tuners.budget import Speed, measure_speed

SLOWER = 1.5  # as many times must the default number of threads be slower before one thread is used


def speeds_by_threads(model: Model, plan: Plan, samples: int) -> dict[int, Speed]:
    """The speed of a model with the default number of threads, and with one thread; the number of threads stays."""
    assert model.shape is not None
    default, speeds = torch.get_num_threads(), dict[int, Speed]()
    try:
        for threads in dict.fromkeys((1, default)):  # with one thread first: the first call is slower than the others
            torch.set_num_threads(threads)
            measure_speed(model, plan, model.shape, 1)
            speeds[threads] = measure_speed(model, plan, model.shape, samples)
    finally:
        torch.set_num_threads(default)
    return speeds


def best_threads(speeds: Mapping[int, Speed]) -> int:
    """The number of threads to use: one where the others are much slower."""
    default = max(speeds)
    return 1 if speeds[default].evaluation > SLOWER * speeds[1].evaluation else default
