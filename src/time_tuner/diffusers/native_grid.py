"""The grid of a pipeline's own scheduler."""

import ast
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from inspect import getsource, unwrap
from textwrap import dedent
from typing import Any

import torch
from torch import Tensor

from ..schedules import NoiseSchedule, as_float64
from ..schedules.scheduler_facts import SchedulerFacts
from .config import config_of, facts_of


@dataclass(frozen=True)
class GridArguments:
    """What a pipeline passes to `set_timesteps` of its scheduler for a number of steps, besides that number."""

    sigmas: tuple[float, ...] | None = None
    timesteps: tuple[float, ...] | None = None
    mu: float | None = None


@dataclass(frozen=True)
class OwnGrid:
    """The grid of a pipeline's own scheduler, as a spacing.

    Args:
        scheduler: of the pipeline.
        passed: gives what the pipeline passes for a number of steps. Without it most pipelines of its class are
            followed: those of FlowMatchEuler pass sigmas that are even from 1 to 1/n in n steps.
        even: whether these are passed; the pipelines of Stable Diffusion 3 and some others pass nothing.
    """

    scheduler: Any
    passed: Callable[[int], GridArguments] | None = field(default=None, compare=False)
    even: bool = True

    def __call__(self, schedule: NoiseSchedule, steps: int) -> Tensor:
        """The step ends, float64 (steps + 1,).

        Raises:
            ValueError: the scheduler has no grid of this number of steps.
        """
        if self.passed is None:
            return self._facts(schedule).times(steps, "pipeline" if self.even else "class")
        given = self.passed(steps)
        facts = self._facts(schedule, given.mu)
        if given.timesteps is not None:
            ends = as_float64([0.0 if facts.ends_at_zero else facts.schedule.t_min])
            times = torch.cat([facts.schedule.from_network_time(as_float64(given.timesteps)), ends])
        else:
            times = facts.times(steps, "class" if given.sigmas is None else given.sigmas)
        if facts.schedule == schedule:
            return times
        return schedule.from_sigma_ratio(facts.schedule.sigma_ratio(times))  # another shift

    def _facts(self, schedule: NoiseSchedule, mu: float | None = None) -> SchedulerFacts:
        facts = facts_of(self.scheduler, mu=mu)
        return facts if mu is not None else replace(facts, schedule=schedule)

    def __repr__(self) -> str:
        return "that of the pipeline's own scheduler"


def own_spacing(config: Any, passed: Callable[[int], GridArguments] | None = None) -> OwnGrid | None:
    """The grid of a pipeline's own scheduler; None if that is one of this library, made from a plan alone."""
    entries = config_of(config)
    if entries.get("plans") and not entries.get("made_from"):
        return None
    scheduler = getattr(config, "scheduler", config)
    return OwnGrid(scheduler, passed, scheduler is config or _makes_sigmas(config))


def _makes_sigmas(pipe: Any) -> bool:
    """Whether the code of a pipeline's call makes sigmas for its scheduler; those that it is given do not count."""
    try:
        source = dedent(getsource(unwrap(type(pipe).__call__)))
    except (OSError, TypeError):  # a class without a file
        return True
    names = (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Name))
    return any(node.id == "sigmas" and isinstance(node.ctx, ast.Store) for node in names)
