"""`estimate`: what a run of `tune` will cost."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from .._checks import check_int
from .._distributed import num_processes
from ..models.base import as_model
from ..models.batching import BatchedModel
from ..models.counting import Cost
from ..plans.plan import Plan
from ..sampling import ModelLike
from .arguments import batch_of, budget_of, default_tuner, pattern_search, start_of, tuner_of
from .base import Tuner
from .budget import Budget, Speed, measure_speed
from .calibration import Calibration
from .costs import bytes_exchanged, planned_costs, seconds_on

DEVICES = (1, 8, 64)
"""The numbers of devices that `estimate` has the time of."""


@dataclass(frozen=True)
class Estimate:
    """The expected cost of a run of `tune`.

    Attributes:
        costs: the usual and the largest cost of each purpose; "tuning" is left out where the tuner does not know it.
        speed: of the network, as it was timed.
        devices: by their number, the seconds of the run on so many devices like this one, and the bytes that each
            exchanges with the others.
    """

    costs: Mapping[str, tuple[Cost, Cost]]
    speed: Speed
    devices: Mapping[int, tuple[float, int]] = field(default_factory=dict)

    @property
    def seconds(self) -> float:
        """The usual seconds of the whole run at this speed."""
        return sum(self.speed.seconds(usual) for usual, _ in self.costs.values())


def estimate(
    eps: ModelLike,
    plan: Plan | None = None,
    tuner: Tuner | str | None = None,
    *,
    calls: int | None = None,
    evaluations: int | None = None,
    end: float | None = None,
    any_start: bool = False,
    samples: int = 256,
    batch: int | None = None,
    shape: tuple[int, ...] | None = None,
    device: torch.device | str = "cpu",
    own_samples: bool = True,
    guard: bool = True,
    budget: str | int | Budget | None = None,
) -> Estimate:
    """What `tune` with these arguments will cost, after a few network calls that are timed; `own_samples` where no data
    will be given.

    Args:
        eps: a model, or a function `eps(x, t, tau)`.
        plan: the plan from which tuning would start, see `tune`.
        tuner: a tuner, or the text of one, see `tune`.
        calls: instead of a plan, see `tune`.
        evaluations: instead of a plan or `calls`, see `tune`.
        end: with `calls` or `evaluations`, see `tune`.
        any_start: see `tune`.
        samples: to tune on, and as many for the guard.
        batch: the most samples in one network call.
        shape: of one sample, for a model that does not know it.
        device: where the model is.
        own_samples: whether the model draws the calibration data; False where data will be given.
        guard: whether the plan will be compared with untuned ones.
        budget: of tuning, see `tune`.

    Returns:
        The usual and the largest cost of each purpose, and the time that they take.
    """
    samples, budget = check_int("samples", samples, 2), Budget.parse(budget)
    batch, tuner = batch_of(batch, samples, device), None if tuner is None else tuner_of(tuner)
    free = any_start or plan is None
    if evaluations is not None:
        calls, tuner = pattern_search(evaluations, plan, calls, tuner)
    model = BatchedModel(as_model(eps, None if plan is None else plan.schedule, shape), batch)
    plan = start_of(model, plan, calls, end)
    calibration = Calibration(eps, plan.schedule, samples=samples, shape=shape, device=device)
    tuner = tuner or default_tuner(plan, own_samples)
    tuner.check(plan, own_samples)
    tuner = tuner.for_model(model, plan, calibration)
    speed = measure_speed(model, plan, calibration.shape, min(64, batch or samples), device)
    budget = budget_of(tuner, budget)
    costs = planned_costs(tuner, plan, free, samples, batch, own_samples, guard, budget, speed)
    each, processes, devices = model.evaluations, num_processes(), dict[int, tuple[float, int]]()
    for count in DEVICES:
        faster = Speed(speed.call, speed.evaluation * processes / count)
        own = planned_costs(tuner, plan, free, samples, batch, own_samples, guard, budget, faster)
        seconds = seconds_on(count, own, Speed(speed.call, speed.evaluation * processes))
        numbers = math.prod(calibration.shape)
        devices[count] = seconds, 0 if count == 1 else bytes_exchanged(tuner, plan, own, numbers)
    counted = {name: (usual.of_each(each), most.of_each(each)) for name, (usual, most) in costs.items()}
    return Estimate(counted, Speed(speed.call, speed.evaluation / each), devices)
