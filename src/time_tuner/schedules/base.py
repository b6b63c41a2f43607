"""What a noise schedule answers, and a point on one."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor

Values: TypeAlias = Sequence[float] | Tensor | Any
"""Numbers in any container that torch understands: a list, a tensor, a numpy array."""

BELOW = 0.03
"""By how much the last sigma of a list may lie below the least trained noise, as a share of it: published lists have
three digits."""


def as_float64(t: Any) -> Tensor:
    """`t` as a float64 CPU tensor of its own shape; gradients are kept.

    Args:
        t: a number, a sequence, an array or a tensor.

    Returns:
        The tensor.
    """
    return torch.as_tensor(t, dtype=torch.float64, device="cpu")


@dataclass(frozen=True)
class Point:
    """A point on a schedule: the time t, and alpha and sigma there, 0-dim each (or all of one shape).

    Attributes:
        t: the time.
        alpha: the weight of the data in the state.
        sigma: the weight of the noise in the state.
    """

    t: Tensor
    alpha: Tensor
    sigma: Tensor

    @property
    def lam(self) -> Tensor:
        """log(alpha / sigma); infinite where sigma = 0, minus infinity (without a gradient) where alpha = 0."""
        some = self.alpha > 0
        return torch.where(some, torch.log(torch.where(some, self.alpha, 1.0)), -torch.inf) - torch.log(self.sigma)

    @property
    def angle(self) -> Tensor:
        """arctan(sigma / alpha), from 0 without noise to pi / 2 without data."""
        return torch.atan2(self.sigma, self.alpha)

    @property
    def scale(self) -> Tensor:
        """sqrt(alpha^2 + sigma^2): the deviation of a state whose data has variance 1; 1 on a VP schedule."""
        return torch.hypot(self.alpha, self.sigma)


Map: TypeAlias = Callable[[Tensor], Tensor]


class NoiseSchedule(ABC):
    """A noise schedule: the states x_t = alpha_t x_0 + sigma_t eps of a diffusion, and the times of its network.

    sigma_t / alpha_t rises with the time t. A schedule is a frozen dataclass of plain values that implements the
    abstract members, and one entry in `SCHEDULES`. The other members have defaults, which suit a VP schedule in
    continuous time.
    """

    @property
    @abstractmethod
    def T(self) -> float:
        """The time of (almost) pure noise, where sampling starts."""

    @property
    @abstractmethod
    def t_min(self) -> float:
        """The least noisy time that the network was trained at."""

    @property
    def least_time(self) -> float:
        """The least time above 0 where a step may end: `t_min`; 0 where any noise above 0 will do and `t_min` is a
        convention of grids."""
        return self.t_min

    @property
    def levels(self) -> int | None:
        """The number of noise levels that the network was trained at, at even times from `t_min` to `T`; None where
        noise is continuous. A run makes at most one call for each level."""
        return None

    @property
    def sigma_data(self) -> float | None:
        """The deviation of the data that EDM's preconditioning of the network assumes; None for other networks."""
        return None

    @property
    def shift(self) -> float | None:
        """The shift of a rectified flow; None on other schedules."""
        return None

    @abstractmethod
    def at(self, t: Any) -> Point:
        """The point at time t, of the shape of t, float64."""

    @abstractmethod
    def inverse_lambda(self, lam: Any) -> Tensor:
        """The time at which log(alpha / sigma) is `lam`, of its shape."""

    @abstractmethod
    def network_time(self, t: Any) -> Tensor:
        """What the network receives at time t, float64 of the shape of t: a level, a time or a noise."""

    @abstractmethod
    def from_network_time(self, time: Any) -> Tensor:
        """The time t at which the network receives `time`: the inverse of `network_time`."""

    @abstractmethod
    def to_dict(self) -> dict[str, Any]:
        """The name in `SCHEDULES` and the constructor values, as JSON holds them."""

    def sigma_ratio(self, t: Any) -> Tensor:
        """The noise at time t as EDM, k-diffusion and diffusers count it: sigma / alpha, infinite where alpha = 0."""
        p = self.at(t)
        return p.sigma / p.alpha

    def from_sigma_ratio(self, sigma: Any) -> Tensor:
        """The time at which `sigma_ratio` is `sigma`; 0 for a sigma of 0."""
        return time_at_lam(self, -torch.log(as_float64(sigma)))

    def default_spacing(self, order: int, steps: int, one_step: bool = False) -> str:
        """The name in `SPACINGS` of the grid that a run of so many steps has unless another is named.

        Here it is "logsnr" for multistep samplers, and "leading" for those of one step, or "uniform" where "leading"
        would begin late; "trailing" for distilled models.

        Args:
            order: of convergence of the sampler, 0 for one of distilled models.
            steps: of the run.
            one_step: whether a step uses the predictions of its own calls alone.
        """
        # Chosen by the worst ratio to the best spacing on trained networks: docs/results.md, "Trained networks".
        if not order and self.levels:
            return "trailing"
        if order and not (one_step or order == 1):
            return "logsnr"
        # With few steps "leading" begins about one of them before T, with many it may begin at half of T.
        return "leading" if self.levels and 1 < steps <= self.levels // 10 else "uniform"

    def even_times(self, steps: int, start: float | None = None, end: float | None = None) -> Tensor:
        """The grid of many-step runs, see `even_grid`: even in sqrt(t)."""
        return even_grid(self, steps, start, end, torch.sqrt, torch.square)

    def scheduler_config(self) -> dict[str, Any]:
        """The entries that the configuration of a diffusers scheduler has for a network of this schedule; the
        prediction type among them is the usual one.

        Raises:
            ValueError: pipelines are not driven on this schedule.
        """
        raise ValueError(
            f"pipelines are driven with discrete betas or as a rectified flow, got {self!r}: make the plan on the "
            "pipeline's own schedule, schedule_from(pipe.scheduler.config), or run it with `sample`"
        )


def as_schedule(name: str, schedule: Any) -> NoiseSchedule:
    """The noise schedule, if it is one; the ValueError for something else names the argument.

    Args:
        name: of the argument, for the message.
        schedule: what was given.

    Returns:
        The noise schedule.
    """
    if not isinstance(schedule, NoiseSchedule):
        raise ValueError(
            f"{name} must be a noise schedule, got {type(schedule).__name__}: for betas, NoiseScheduleVP('discrete', "
            "betas=betas); for a diffusers scheduler, schedule_from(scheduler)"
        )
    return schedule


def even_grid(
    schedule: NoiseSchedule, steps: int, start: float | None, end: float | None, transform: Map, inverse: Map
) -> Tensor:
    """Times from `start` to `end` that are even in `transform(t)`, float64 (steps + 1,), falling; both ends are exact.

    Args:
        schedule, steps: the noise schedule and the number of steps.
        start: T by default.
        end: the least trained time by default. 0 for the least trained time one step before, then 0.
        transform, inverse: a monotone function of time and its inverse.

    Raises:
        ValueError: start does not lie above end.
    """
    start = schedule.T if start is None else start
    end = schedule.t_min if end is None else end
    last = end or schedule.t_min
    even_steps = steps if end else steps - 1
    if even_steps and not start > last:
        raise ValueError(f"start must lie above end and the least trained time, got start={start}, end={end}")
    first_value, last_value = (float(transform(as_float64(t))) for t in (start, last))
    times = as_float64(inverse(torch.linspace(first_value, last_value, even_steps + 1, dtype=torch.float64)))
    times[-1] = last
    times[0] = start  # afterwards, for this is the only one of a single step to 0
    return times if end else torch.cat([times, torch.zeros(1, dtype=torch.float64)])


def time_at_lam(schedule: NoiseSchedule, lam: Tensor) -> Tensor:
    """The time at which log(alpha / sigma) is `lam`, float64; 0 where that is infinite."""
    clean = lam == torch.inf
    return torch.where(clean, 0.0, as_float64(schedule.inverse_lambda(torch.where(clean, 0.0, lam))))


def time_at_angle(schedule: NoiseSchedule, angle: Tensor) -> Tensor:
    """The time at which arctan(sigma / alpha) is `angle`, float64."""
    return as_float64(schedule.inverse_lambda(-torch.log(torch.tan(angle))))
