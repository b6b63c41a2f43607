"""The grid of a pipeline's own scheduler."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import numpy as np
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from torch import Tensor

from ..plans.plan import Plan
from ..schedules import NoiseSchedule, as_float64
from ..schedules.scheduler_facts import SchedulerFacts
from .config import config_of, facts_of, schedule_of


@dataclass(frozen=True)
class GridArguments:
    """What a pipeline passes to `set_timesteps` of its scheduler for a number of steps, besides that number."""

    sigmas: tuple[float, ...] | None = None
    timesteps: tuple[float, ...] | None = None
    mu: float | None = None

    @classmethod
    def of(cls, sigmas: Any, timesteps: Any, mu: Any) -> "GridArguments":
        """The arguments of a call of `set_timesteps`."""
        return cls(_numbers(sigmas), _numbers(timesteps), None if mu is None else float(mu))

    @property
    def steps(self) -> int | None:
        """The number of steps that the lists have; None without a list."""
        given = self.sigmas if self.timesteps is None else self.timesteps
        return None if given is None else len(given)

    def for_steps(self, steps: int) -> "GridArguments":
        """The same curve, down to 0, in another number of steps."""
        if self.steps in (None, steps):
            return self

        def read(values: tuple[float, ...] | None) -> tuple[float, ...] | None:
            if values is None:
                return None
            at, known = np.linspace(0, 1, steps + 1)[:-1], np.linspace(0, 1, len(values) + 1)
            return tuple(np.interp(at, known, [*values, 0.0]).tolist())

        return replace(self, sigmas=read(self.sigmas), timesteps=read(self.timesteps))


@cache
def keeps_timesteps() -> bool:
    """Whether diffusers' schedulers of flows leave the timesteps that they are passed: since version 0.42."""
    own = FlowMatchEulerDiscreteScheduler(shift=2.0)
    own.set_timesteps(sigmas=[1.0, 0.5], timesteps=[1000.0, 500.0])
    return float(own.timesteps[1]) == 500


def schedule_in_run(scheduler: Any, given: GridArguments) -> NoiseSchedule:
    """The noise schedule of the network in a pipeline that passes this to its scheduler.

    Where a pipeline of a flow passes timesteps, its scheduler shifts the noise and leaves the timesteps: the network
    receives the time before the shift (CogView4, GLM-Image), but in diffusers before 0.42.

    Raises:
        ValueError: as of `schedule_of`; timesteps that are not those of the sigmas.
    """
    ours = bool(config_of(scheduler).get("plans"))
    dynamic = given.mu is not None and ours
    schedule = facts_of(scheduler, mu=given.mu).schedule if dynamic else schedule_of(scheduler, mu=given.mu)
    if schedule.shift is None or given.timesteps is None or not keeps_timesteps():
        return schedule
    scale = float(config_of(scheduler).get("num_train_timesteps", 1000))
    if given.sigmas is not None and not np.allclose(np.divide(given.timesteps, scale), given.sigmas, atol=2e-3):
        raise ValueError(
            f"timesteps= must be {scale:g} sigmas= where both are passed, got {list(given.timesteps)} and "
            f"{list(given.sigmas)}: pass sigmas alone"
        )
    return replace(schedule, network_input="t")  # type: ignore[type-var]


@dataclass(frozen=True)
class OwnGrid:
    """The grid of a pipeline's own scheduler, as a spacing.

    Args:
        scheduler: of the pipeline.
        passed: gives what the pipeline passes for a number of steps. Without it most pipelines of its class are
            followed: those of FlowMatchEuler pass sigmas that are even from 1 to 1/n in n steps.
    """

    scheduler: Any
    passed: Callable[[int], GridArguments] | None = field(default=None, compare=False)

    def __call__(self, schedule: NoiseSchedule, steps: int) -> Tensor:
        """The step ends, float64 (steps + 1,).

        Raises:
            ValueError: the scheduler has no grid of this number of steps.
        """
        facts, sigmas = self._facts(schedule, steps)
        if isinstance(sigmas, Tensor):
            ends = as_float64([0.0 if facts.ends_at_zero else facts.schedule.t_min])
            times = torch.cat([facts.schedule.from_network_time(sigmas), ends])
        else:
            times = facts.times(steps, sigmas)
        if facts.schedule == schedule:
            return times
        return schedule.from_sigma_ratio(facts.schedule.sigma_ratio(times))  # another shift

    def as_received(self, plan: Plan) -> Plan:
        """The plan, whose network receives what the scheduler's class passes where that rounds network times.

        Solvers of higher order in diffusers cut or round the network times between two levels, and leave the noise as
        it is. Samplers with calls inside their steps are left as they are.
        """
        facts, sigmas = self._facts(plan.schedule, len(plan))
        if len(plan.steps) < len(plan) or isinstance(sigmas, Tensor) or plan.schedule.levels is None:
            return plan
        received, exact = facts.received(len(plan), sigmas), plan.schedule.network_time(plan.t[:-1])
        if len(received) != len(plan) or not 1e-2 < float((received - exact).abs().max()) <= 1:
            return plan
        tau = plan.schedule.from_network_time(received).clamp(plan.schedule.t_min, plan.schedule.T)
        return plan.with_tau(tau)

    def defaults(self, steps: int) -> dict[str, dict[str, list[float]]]:
        """The lists that the pipeline passes to its scheduler, as the provenance of a plan has them; the scheduler that
        runs the plan is passed them too."""
        given = GridArguments() if self.passed is None else self.passed(steps)
        lists = {"sigmas": given.sigmas, "timesteps": given.timesteps}
        passed = {name: list(values) for name, values in lists.items() if values is not None}
        return {"passed": passed} if passed else {}

    def _facts(self, schedule: NoiseSchedule, steps: int) -> tuple[SchedulerFacts, Any]:
        """What the scheduler makes of its configuration in a run, and the sigmas that it is set to: those of
        `SchedulerFacts.times`, or network times of betas, as a tensor."""
        if self.passed is None:
            return replace(facts_of(self.scheduler), schedule=schedule), "pipeline"
        given = self.passed(steps)
        facts = facts_of(self.scheduler, mu=given.mu)
        if given.mu is None:
            facts = replace(facts, schedule=schedule)
        if given.timesteps is not None and facts.schedule.shift is None:
            return facts, as_float64(given.timesteps)
        if given.timesteps is not None and given.sigmas is None:
            scale = float(config_of(self.scheduler).get("num_train_timesteps", 1000))
            return facts, [time / scale for time in given.timesteps]
        return facts, "class" if given.sigmas is None else given.sigmas

    def __repr__(self) -> str:
        return "that of the pipeline's own scheduler"


def own_spacing(config: Any, passed: Callable[[int], GridArguments] | None = None) -> OwnGrid | None:
    """The grid of a pipeline's own scheduler; None if that is one of this library, made from a plan alone."""
    entries = config_of(config)
    if entries.get("plans") and not entries.get("made_from"):
        return None
    return OwnGrid(getattr(config, "scheduler", config), passed)


def usual_sigmas(steps: int) -> list[np.ndarray]:
    """The sigmas that pipelines of flows pass by default before their shift: even from 1 to 1/n, as most; even from 1
    to 1/1000, as CogView4; linear, then quadratic, as Mochi; or rising, for their number alone, as Cosmos 2."""
    even, most, rising = np.linspace(1, 1 / steps, steps), np.linspace(1, 1e-3, steps), np.linspace(0, 1, steps)
    half, noise = steps // 2, 0.025
    if not half:
        return [even, most, rising]
    i, j = np.arange(half), np.arange(steps - half)
    slope, rest = noise / half, steps - half
    # x = slope i up to the half, and then a quadratic with this value and slope there, and 1 at the end.
    curve = (1 - noise - slope * rest) / rest**2
    linear = np.concatenate([slope * i, noise + slope * j + curve * j**2])
    return [even, most, rising, 1 - linear]


def _numbers(values: Any) -> tuple[float, ...] | None:
    return None if values is None else tuple(as_float64(values).tolist())
