"""The problem that plans under guidance are tested on: twelve narrow Gaussians in four dimensions, of three classes."""

import torch
from helpers import seeded
from torch import Tensor

from time_tuner import Model, NoiseScheduleVP
from time_tuner.models.exact import ConditionalMixture
from time_tuner.schedules import NoiseSchedule

SMOOTH = NoiseScheduleVP("linear")
SCALE = 3.0
POINTS = ConditionalMixture(seeded(12, 4, seed=3), torch.arange(12) % 3, 0.15)


def guided(schedule: NoiseSchedule = SMOOTH, count: int = 1, scale: float = SCALE) -> Model:
    """The model of samples of the classes 0, 1, 2, 0, ...; of class 1 alone for one."""
    return POINTS.guided(schedule, torch.arange(count) % 3 if count > 1 else torch.tensor([1]), scale)


def reuse(plan_guided: tuple[bool, ...], seed: int = 0) -> Tensor:
    """A random G for these calls with guidance."""
    has = torch.tensor(plan_guided)
    return seeded(len(has), len(has), seed=seed).double() * (~has[:, None] & has).tril(-1)


def guided_by_label(label: list[int] | None = None) -> Model:
    """For the command line."""
    return POINTS.guided(SMOOTH, torch.tensor([1] if label is None else list(label)), SCALE)
