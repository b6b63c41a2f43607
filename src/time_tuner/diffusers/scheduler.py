"""Plans as a diffusers scheduler: `pipe.scheduler = TimeTunerScheduler.from_plan(plan)`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from numbers import Integral
from os import PathLike
from typing import Any

import numpy as np
import torch
from diffusers import SchedulerMixin
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.utils import BaseOutput
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from ..plans.plan import Plan
from ..plans.rows import Call
from ..samplers import Sampler
from ..sampling import advance
from ..schedules import as_float64
from .config import Prediction, check_plan, config_of, prediction_of, schedule_of
from .native_grid import KNOWN, own_class, untuned

Generators = torch.Generator | list[torch.Generator] | None


@dataclass
class TimeTunerOutput(BaseOutput):
    """The state after a call, and the data that the call predicted, both (B, ...)."""

    prev_sample: Tensor
    pred_original_sample: Tensor


class TimeTunerScheduler(SchedulerMixin, ConfigMixin):
    """Runs plans in any diffusers pipeline whose network was trained with betas or as a rectified flow.

    Made by `from_plan`, or untuned by `from_config`. `num_inference_steps` of the pipeline is the number of network
    calls, and there must be a plan for it. `timesteps` is what the network is told, in the pipeline's unit; where the
    solver is stays inside. A call is known by its index, never by its timestep.

    `scheduler_config.json` is the plans and what is written below, numbers and names alone. A saved pipeline is loaded
    as any other once `time_tuner.diffusers` is imported.

    Args:
        plans: one for each number of calls, as `Plan.to_dict` has them.
        prediction_type: what the network predicts: "epsilon", "sample", "v_prediction" or "flow_prediction".
        clip_sample, clip_sample_range: whether the predicted data is kept in [-range, range].
        num_train_timesteps: levels the network was trained at, for pipelines that ask.
        made_from: the class of the scheduler whose configuration this was made from.

    Raises:
        ValueError: plans that are none, unknown predictions, or a noise schedule that pipelines are not driven with.
    """

    _compatibles = list(KNOWN)  # noqa: RUF012
    order = 1

    @register_to_config
    def __init__(
        self,
        plans: list[dict[str, Any]],
        prediction_type: str = "epsilon",
        clip_sample: bool = False,
        clip_sample_range: float = 1.0,
        num_train_timesteps: int = 1000,
        made_from: str | None = None,
    ) -> None:
        held = [Plan.from_dict(values) for values in plans]
        self.plans = {len(plan): plan for plan in held}
        if not held or len(self.plans) < len(held):
            raise ValueError(f"plans must be one for each number of calls, got calls = {[len(plan) for plan in held]}")
        for plan in held:
            plan.schedule.scheduler_config()  # raises where pipelines are not driven
        self.prediction = Prediction(prediction_type, float(clip_sample_range) if clip_sample else None)
        self._select(held[0])

    @classmethod
    def from_plan(
        cls, plans: Plan | str | PathLike[str] | Sequence[Plan], config: Any = None, **changes: Any
    ) -> "TimeTunerScheduler":
        """A scheduler that runs these plans.

        Args:
            plans: a plan, one for each number of calls, or the path of a plan file.
            config: `pipe.scheduler.config`, or the scheduler itself, to check the plans against, and for what a plan
                does not hold: the prediction type and clipping. Without it the prediction type is what the plan was
                tuned for, or else "epsilon" ("flow_prediction" in a rectified flow).
            **changes: of the entries of the configuration, as in `prediction_type="v_prediction"`.

        Raises:
            ValueError: a plan for another prediction type, noise schedule or family than the configuration's.
        """
        if isinstance(plans, str | PathLike):
            plans = Plan.load_several(plans)
        plans = [plans] if isinstance(plans, Plan) else list(plans)
        if not plans:
            raise ValueError("plans must hold at least one plan, got none")
        entries = (_entries_of(plans[0]) if config is None else config_of(config)) | changes
        for plan in plans:
            check_plan(plan, entries)
        prediction = prediction_of(entries)
        return cls._made(plans, prediction.kind, entries)

    @classmethod
    def from_config(  # type: ignore[override]
        cls,
        config: Any,
        return_unused_kwargs: bool = False,
        *,
        sampler: Sampler | str | None = None,
        calls: int | Sequence[int] | None = None,
        spacing: str | None = None,
        tokens: int | None = None,
        **options: Any,
    ) -> Any:
        """A scheduler of untuned plans in the place of another, from that one's configuration.

        Args:
            config: `pipe.scheduler.config`, or the scheduler itself.
            sampler: a sampler, or the name of one in `SAMPLERS`, with its `options`; "dpmpp" by default.
            calls: of the network; several numbers for a plan for each.
            spacing: a name in `SPACINGS`; by default the grid of the pipeline's own scheduler, offsets and all.
            tokens: patches of an image, where the configuration has a shift that depends on them.
            **options: of the sampler, as in `order=2`.

        Raises:
            ValueError: a configuration that is not understood, or an option of it that is not supported.
        """
        if isinstance(config, Mapping) and config.get("plans") and sampler is None and calls is None:
            return super().from_config(config, return_unused_kwargs, **options)
        config = config_of(config)
        if calls is None:
            raise ValueError(
                "calls= is needed, the number of network calls: TimeTunerScheduler.from_config(config, calls=8)"
            )
        schedule = schedule_of(config, tokens)
        counts = [int(calls)] if isinstance(calls, int | Integral) else list(calls)
        plans = [untuned(config, schedule, sampler or "dpmpp", n, spacing, **options) for n in counts]
        return cls._made(plans, prediction_of(config).kind, config)

    @classmethod
    def _made(cls, plans: list[Plan], prediction_type: str, config: Mapping[str, Any]) -> "TimeTunerScheduler":
        keep = {key: value for key, value in config.items() if not key.startswith("_")}
        entries = keep | {"plans": [plan.to_dict() for plan in plans], "prediction_type": prediction_type}
        made: TimeTunerScheduler = super().from_config(entries | {"made_from": own_class(config)})
        return made

    def _select(self, plan: Plan, begin: int | None = None, device: torch.device | str | None = None) -> None:
        """Stand at the start of a plan, or at call `begin` of it, with nothing to look back on."""
        self._plan, self._begin = plan, begin
        self._rest = plan if not begin else rest(plan, begin)
        self._k: int | None = None
        self._past: tuple[Call, ...] = ()
        if begin is None:
            self.timesteps = plan.schedule.network_time(plan.tau).to(device=device, dtype=torch.float32)
            self.num_inference_steps = len(plan)

    @property
    def plan(self) -> Plan:
        """The plan in use: that of the last `set_timesteps`."""
        return self._plan

    @property
    def init_noise_sigma(self) -> float:
        """What standard normal noise is multiplied with to be the first state: sqrt(alpha^2 + sigma^2) there."""
        return float(self._plan.point(0).scale)

    @property
    def begin_index(self) -> int | None:
        """The call that the run starts with, if `set_begin_index` named one."""
        return self._begin

    @property
    def step_index(self) -> int | None:
        """The call that comes next; None before the first."""
        return self._k

    def __len__(self) -> int:
        return int(self.config["num_train_timesteps"])

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: torch.device | str | None = None,
        sigmas: Any = None,
        mu: float | None = None,
    ) -> None:
        """Choose the plan for this number of network calls.

        `sigmas` may be those that pipelines of rectified flows hand over by themselves, even from 1 to 1/K; they, and
        the pipeline's shift `mu`, say nothing about a plan, which has a grid of its own.

        Raises:
            ValueError: no plan for this number of calls, or sigmas of the user's own.
        """
        if sigmas is not None:
            given = np.asarray(sigmas, dtype=np.float64)
            if not np.allclose(given, np.linspace(1, 1 / len(given), len(given))):
                raise ValueError(f"sigmas= cannot be chosen: a plan has its own grid, got {given.tolist()}")
            num_inference_steps = len(given)
        if num_inference_steps not in self.plans:
            raise ValueError(
                f"num_inference_steps must be a number of calls that there is a plan for, {sorted(self.plans)}, got "
                f"{num_inference_steps}: tune one, or from_config(pipe.scheduler.config, calls={num_inference_steps})"
            )
        self._select(self.plans[num_inference_steps], device=device)

    def set_begin_index(self, begin_index: int = 0) -> None:
        """Start at this call instead of at the first (image to image).

        Raises:
            ValueError: it lies inside a step of several calls, or at the end.
        """
        self._select(self._plan, begin_index)

    def scale_model_input(self, sample: Tensor, timestep: Any = None) -> Tensor:
        """The state as the network takes it: as it is."""
        return sample

    def step(
        self,
        model_output: Tensor,
        timestep: Any,
        sample: Tensor,
        generator: Generators = None,
        eta: float = 0.0,
        use_clipped_model_output: bool | None = None,
        return_dict: bool = True,
    ) -> TimeTunerOutput | tuple[Tensor, Tensor]:
        """The state after the next call.

        Args:
            model_output: what the network said, (B, C, ...), after guidance.
            timestep: not looked at; calls are counted.
            sample: the state (B, C, ...) that it was said of.
            generator: one, or one for each sample; for samplers that draw noise.
            eta: of pipelines for DDIM; must be 0, for here it is an option of the sampler.
            use_clipped_model_output: not looked at; noise always follows from the clipped data.

        Raises:
            ValueError: more steps than the plan has calls, or an eta.
        """
        if eta:
            raise ValueError(
                f"eta must be 0 in the pipeline, got {eta}: it is an option of the sampler, 'ddim' with eta="
            )
        if self._k is None:
            self._k = self._begin or 0
        if self._k >= len(self._plan):
            raise ValueError(f"step was called after the last of {len(self._plan)} calls: call set_timesteps first")
        first = self._begin or 0
        k, run = self._k - first, self._rest

        def noise(x: Tensor) -> Tensor:
            return randn_tensor(x.shape, generator=generator, device=x.device, dtype=x.dtype)

        p, unit = run.point(k), run.rows[k].predicts
        said = self.prediction.read(unit, model_output, sample, p)
        previous, self._past = advance(run, k, self._past, sample, said, noise)
        self._k += 1
        data = (said if unit == "x0" else (sample - p.sigma * said) / p.alpha).to(sample.dtype)
        if not return_dict:
            return previous, data
        return TimeTunerOutput(prev_sample=previous, pred_original_sample=data)

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Data with noise in it, (B, ...): at the point where the next call is made, not at what the network is told.

        Outside of a run, at the point of the call that is told the timestep; and for a timestep that no call is told,
        at that time itself.
        """
        row = self._begin if self._k is None else self._k
        if row is not None:
            t = self._plan.t[row].expand(len(original_samples))
        else:
            told = as_float64(timesteps).reshape(-1)
            here = (as_float64(self.timesteps) - told[:, None]).abs()
            t = torch.where(
                here.amin(1) < 1e-3, self._plan.t[here.argmin(1)], self._plan.schedule.from_network_time(told)
            )
            t = t.expand(len(original_samples))
        p = self._plan.schedule.at(t)
        shape = (-1, *[1] * (original_samples.dim() - 1))
        alpha, sigma = (value.float().view(shape).to(original_samples.device) for value in (p.alpha, p.sigma))
        return (alpha * original_samples + sigma * noise).to(original_samples.dtype)


def rest(plan: Plan, begin: int) -> Plan:
    """The run of a plan from call `begin` on, which begins a step.

    Raises:
        ValueError: call `begin` does not begin a step.
    """
    firsts = [sum(plan.steps[:i]) for i in range(len(plan.steps))]
    if begin not in firsts:
        raise ValueError(
            f"a run of this plan may begin at call {', '.join(map(str, firsts))}, where a step of its sampler begins, "
            f"got {begin}: choose another strength"
        )
    c = plan.corrections
    return replace(
        plan,
        **{name: getattr(plan, name)[begin:] for name in ("t", "alpha", "sigma", "tau")},
        corrections=None if c is None else c[begin:, begin:],
    )


def _entries_of(plan: Plan) -> dict[str, Any]:
    """The scheduler configuration of the plan's network, for diffusers' own schedulers too."""
    kind = plan.provenance.get("prediction_type")
    return plan.schedule.scheduler_config() | ({"prediction_type": kind} if kind else {})
