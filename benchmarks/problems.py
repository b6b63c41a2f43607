"""The problems that benchmarks run on."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from sklearn.datasets import load_digits
from torch import Tensor

from time_tuner import NoiseScheduleVP, SeededNoise, exact, model_wrapper, sample
from time_tuner.digits.networks import NULL_LABEL, digits_network, linear_betas
from time_tuner.plans.build import reference_plan
from time_tuner.schedules import NoiseSchedule
from time_tuner.tuners.calibration import OWN_CALLS, CalibrationBatch
from time_tuner.tuners.joint.parameters import PARTS

SUBSETS = [*((part,) for part in PARTS), PARTS[:2], PARTS[1:], PARTS[::2], PARTS]
"""Every choice of what joint tuning tunes."""
JUDGED_ON = 2 * 10**8  # the first of the seeds of what plans are compared on; no tuner draws from there


def linear_schedule() -> NoiseScheduleVP:
    return NoiseScheduleVP("discrete", betas=torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64))


def exact_digits() -> exact.Mixture:
    """scikit-learn's 1797 digits, x / 8 - 1 in 64 dimensions, blurred by 0.1: the data set's own denoiser."""
    return exact.Mixture(torch.tensor(load_digits().data) / 8 - 1, 0.1)


@dataclass(frozen=True)
class Problem:
    """A model, and what plans for it are tuned and judged on.

    Attributes:
        eps, schedule: the model.
        data: calibration data of a seed; more than `samples`, for the optimiser that draws a fresh batch each time.
        held_out: data and noise that nothing was tuned on, for the loss.
        judged_on: noise that nothing was tuned on and no guard saw.
        starts, fresh: noise, and as many fresh data, for the Frechet distance; None where there are none.
        samples: how many the search tunes on.
        data_evaluations: what drawing the calibration data of the search takes, where the model does it.
    """

    name: str
    eps: Any
    schedule: NoiseSchedule
    data: Callable[[int], Tensor]
    held_out: CalibrationBatch
    judged_on: Tensor
    starts: Tensor | None
    fresh: Tensor | None
    samples: int
    data_evaluations: int = 0
    device: str = field(default="cpu")


def exact_problem(samples: int, held_out: int) -> Problem:
    data, schedule = exact_digits(), linear_schedule()
    eps, x0 = data.eps(schedule), data.sample(held_out, seed=10**6).float()
    return Problem(
        "Exact digits",
        eps,
        schedule,
        lambda seed: data.sample(4096, seed=seed).float(),
        CalibrationBatch(eps, x0, SeededNoise(10**8)(x0), 10**8),
        SeededNoise(JUDGED_ON)(torch.empty(1000, 64)),
        SeededNoise(JUDGED_ON + 10**5)(torch.empty(4000, 64)),
        data.sample(4000, 10**7),
        samples,
    )


def bundled_problem(samples: int, held_out: int, device: str = "cpu", bfloat16: bool = False) -> Problem:
    """The bundled network for digits; its data are the ends of its own 50-call runs, drawn once a seed."""
    network = digits_network().to(device)
    nothing = torch.full((1,), NULL_LABEL, device=device)
    schedule = NoiseScheduleVP("discrete", betas=linear_betas())

    def predict(x: Tensor, t: Tensor) -> Tensor:
        with torch.autocast(x.device.type, torch.bfloat16, enabled=bfloat16):
            noise: Tensor = network(x, t, class_labels=nothing.expand(len(x))).sample
        return noise.to(x.dtype)

    eps = model_wrapper(predict, schedule).bind()

    def noise(count: int, first: int) -> Tensor:
        return SeededNoise(first)(torch.empty(count, 1, 28, 28)).to(device)

    @cache
    def data(seed: int) -> Tensor:
        parts = noise(2 * samples, seed * 10**6).split(256)
        return torch.cat([sample(eps, reference_plan(schedule, 0.0, OWN_CALLS), part) for part in parts])

    x0 = data(100)[:held_out]
    return Problem(
        "The bundled network" + (", bfloat16" if bfloat16 else ""),
        eps,
        schedule,
        data,
        CalibrationBatch(eps, x0, noise(len(x0), 10**8), 10**8),
        noise(samples, JUDGED_ON),
        None,
        None,
        samples,
        data_evaluations=OWN_CALLS * samples,
        device=device,
    )
