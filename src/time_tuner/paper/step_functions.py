"""One step of a sampler as a function, in the published style: ours, and the user's own as a run that can be tuned."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import torch
from torch import Tensor

from ..models.base import HookedModel, Model
from ..plans.build import make_plan
from ..samplers import Noise, Sampler, sampler_of
from ..sampling import trajectory
from ..schedules import NoiseSchedule, Point, as_float64
from ..tuners.calibration import CalibrationBatch
from ..tuners.timesteps.runs import Run, State

StepFn: TypeAlias = Callable[..., tuple[Tensor, Tensor]]
"""`step_fn(x, t, s, t_ratio=..., **kwargs) -> (x_s, x0_pred)`: one step of some sampler from time t to s < t, in which
the network receives t_ratio times the time. Under guidance it also receives `condition=`, the labels of the data."""


class RecordingModel(HookedModel):
    """A model that records the states it is called with, and the data that it predicts in them."""

    def __init__(self, inner: Model) -> None:
        super().__init__(inner, self._record)
        self.states: list[Tensor] = []
        self.data: list[Tensor] = []

    def _record(self, quantity: str, x: Tensor, t: Any, prediction: Tensor) -> None:
        p = self.schedule.at(t)
        self.states.append(x)
        self.data.append(prediction if quantity == "x0" else (x - p.sigma * prediction) / p.alpha)


@dataclass(frozen=True)
class SamplerStep:
    """One step of a sampler of the table; a sampler with history takes its first step, which has none.

    Tuning with it runs the sampler itself, with its history.
    """

    sampler: Sampler
    schedule: NoiseSchedule
    bind: Callable[[Any, Any], Model]

    def with_options(self, **options: Any) -> "SamplerStep":
        """The same with other options of the sampler."""
        return replace(self, sampler=sampler_of(self.sampler, **options))

    def __call__(
        self,
        x: Tensor,
        t: Any,
        s: Any,
        t_ratio: Any = 1.0,
        condition: Any = None,
        uncond_condition: Any = None,
        noise: Noise | None = None,
        **options: Any,
    ) -> tuple[Tensor, Tensor]:
        """The state at s, and the data predicted at t, from the state x (B, ...) at t > s."""
        eps = RecordingModel(self.bind(condition, uncond_condition))
        sampler = self.with_options(**options).sampler
        plan = make_plan(sampler, self.schedule, times=torch.stack([as_float64(t), as_float64(s)]))
        plan = plan.with_tau(as_float64(t_ratio) * plan.t[:-1])
        return list(trajectory(eps, plan, x, noise))[-1], eps.data[-1]


class FunctionRun(Run):
    """A run of a user's step function over a grid of K + 1 points, with one ratio a step."""

    def __init__(self, schedule: NoiseSchedule, points: Point, step_fn: StepFn, kwargs: Mapping[str, Any]) -> None:
        super().__init__(schedule, points)
        self.step_fn, self.kwargs = step_fn, kwargs

    def step(self, k: int, state: State, tau: Tensor, batch: CalibrationBatch) -> State:
        _, x = state
        t, s = self.points.t[k], self.points.t[k + 1]
        conditions = {"condition": batch.condition, "uncond_condition": batch.unconditional}
        conditions = {name: value for name, value in conditions.items() if value is not None}
        # Its draws from torch's own generators are the same at every evaluation.
        with torch.random.fork_rng(devices=[x.device] if x.is_cuda else []):
            torch.manual_seed(batch.first + k)
            result = self.step_fn(x, t, s, t_ratio=tau / t, **{**self.kwargs, **conditions})
        if not isinstance(result, tuple) or len(result) != 2 or not isinstance(result[0], Tensor):
            raise ValueError(f"step_fn must return (x_s, x0_pred), got {type(result).__name__}")
        if result[0].shape != x.shape:
            raise ValueError(
                f"step_fn must return x_s of the shape of x, {tuple(x.shape)}, got {tuple(result[0].shape)} at step {k}"
            )
        return (), result[0]
