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

from ..plans.build import make_plan
from ..plans.plan import Plan
from ..plans.rows import Call
from ..samplers import Sampler, sampler_of
from ..sampling import advance
from ..schedules import as_float64
from .config import Prediction, check_plan, config_of, prediction_of, schedule_of, warn_of_other_pipeline
from .native_grid import KNOWN, own_class, own_spacing

Generators = torch.Generator | list[torch.Generator] | None


@dataclass
class TimeTunerOutput(BaseOutput):
    """The state after a call, and the data that the call predicted, both (B, ...)."""

    prev_sample: Tensor
    pred_original_sample: Tensor


class TimeTunerScheduler(SchedulerMixin, ConfigMixin):
    """Runs plans in any diffusers pipeline whose network was trained with betas or as a rectified flow.

    `from_plan` makes one, and `from_config` makes one of untuned plans. `num_inference_steps` of the pipeline is the
    number of network calls, and there must be a plan for it. `timesteps` are the network times of the conditioning
    times tau; the solver's times t stay inside. A call is identified by its index, never by its timestep.

    `scheduler_config.json` holds the plans and the arguments below, as numbers and names alone. A saved pipeline is
    loaded like any other once `time_tuner.diffusers` is imported.

    Args:
        plans: one for each number of calls, as `Plan.to_dict` has them.
        prediction_type: what the network predicts: "epsilon", "sample", "v_prediction" or "flow_prediction".
        clip_sample, clip_sample_range: whether the predicted data is kept in [-range, range].
        num_train_timesteps: the number of levels that the network was trained at; some pipelines read it.
        made_from: the class of the scheduler that this one replaces.

    Raises:
        ValueError: no plans or invalid ones, an unknown prediction type, or a schedule that pipelines do not have.
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
        read = [Plan.from_dict(values) for values in plans]
        self.plans = {len(plan): plan for plan in read}
        if not read or len(self.plans) < len(read):
            raise ValueError(f"plans must be one for each number of calls, got calls = {[len(plan) for plan in read]}")
        for plan in read:
            plan.schedule.scheduler_config()  # raises where pipelines are not driven
        self.prediction = Prediction(prediction_type, float(clip_sample_range) if clip_sample else None)
        self._select(read[0])

    @classmethod
    def from_plan(
        cls, plans: Plan | str | PathLike[str] | Sequence[Plan], config: Any = None, **changes: Any
    ) -> "TimeTunerScheduler":
        """A scheduler that runs these plans.

        Args:
            plans: a plan, one for each number of calls, or the path of a plan file.
            config: the pipeline, its scheduler or `pipe.scheduler.config`. The plans are checked against it, and the
                prediction type and clipping are read from it. Without it the prediction type is that which the plan was
                tuned for, or else "epsilon" ("flow_prediction" in a rectified flow).
            **changes: of the entries of the configuration, as in `prediction_type="v_prediction"`.

        Warns:
            UserWarning: `config` is a pipeline of another class than a plan was tuned for.

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
            warn_of_other_pipeline(plan, config)
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
        """A scheduler of untuned plans that replaces another scheduler.

        Args:
            config: the pipeline, its scheduler or `pipe.scheduler.config`.
            sampler: a sampler, or the text of one, such as "dpmpp(order=3)"; "dpmpp" by default.
            calls: the number of network calls, or several numbers, with a plan for each.
            spacing: a spacing as `make_plan` takes it; by default the grid of the pipeline's own scheduler.
            tokens: the number of patches of an image, for a configuration with a shift that depends on it.
            **options: of the sampler, as in `order=2`.

        Raises:
            ValueError: the configuration is not recognised, or has an option that is not supported.
        """
        if isinstance(config, Mapping) and config.get("plans") and sampler is None and calls is None:
            return super().from_config(config, return_unused_kwargs, **options)
        config = config_of(config)
        if calls is None:
            raise ValueError(
                "calls= is needed, the number of network calls: TimeTunerScheduler.from_config(pipe, calls=8)"
            )
        schedule = schedule_of(config, tokens)
        counts = [int(calls)] if isinstance(calls, int | Integral) else list(calls)
        kind, grid = prediction_of(config).kind, spacing or own_spacing(config)
        plans = [make_plan(sampler_of(sampler or "dpmpp", **options), schedule, n, grid) for n in counts]
        return cls._made([plan.with_provenance(prediction_type=kind) for plan in plans], kind, config)

    @classmethod
    def _made(cls, plans: list[Plan], prediction_type: str, config: Mapping[str, Any]) -> "TimeTunerScheduler":
        keep = {key: value for key, value in config.items() if not key.startswith("_")}
        entries = keep | {"plans": [plan.to_dict() for plan in plans], "prediction_type": prediction_type}
        made: TimeTunerScheduler = super().from_config(entries | {"made_from": own_class(config)})
        return made

    def _select(self, plan: Plan, begin: int | None = None, device: torch.device | str | None = None) -> None:
        """Start a run of a plan, at call `begin` if that is given."""
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
        """The factor from standard normal noise to the first state: sqrt(alpha^2 + sigma^2) at the first point."""
        return float(self._plan.point(0).scale)

    @property
    def begin_index(self) -> int | None:
        """The call that the run starts with, if `set_begin_index` has set it."""
        return self._begin

    @property
    def step_index(self) -> int | None:
        """The index of the next call; None before the first."""
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

        `sigmas` may be those that pipelines of rectified flows pass by default, even from 1 to 1/K. A plan has its
        own grid, which neither these nor the pipeline's shift `mu` change.

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
                f"{num_inference_steps}: tune one, or from_config(pipe, calls={num_inference_steps})"
            )
        self._select(self.plans[num_inference_steps], device=device)

    def set_begin_index(self, begin_index: int = 0) -> None:
        """Start at this call instead of the first (image to image).

        Raises:
            ValueError: it lies inside a step of several calls, or at the end.
        """
        self._select(self._plan, begin_index)

    def scale_model_input(self, sample: Tensor, timestep: Any = None) -> Tensor:
        """The state as the network receives it: unchanged."""
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
            model_output: the network's output, (B, C, ...), after guidance.
            timestep: not used; calls are counted.
            sample: the state (B, C, ...) that the network received.
            generator: one, or one for each sample; for samplers that draw noise.
            eta: pipelines pass it for DDIM; must be 0, since here it is an option of the sampler.
            use_clipped_model_output: not used; noise always follows from the clipped data.

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

        p, quantity = run.point(k), run.rows[k].predicts
        prediction = self.prediction.read(quantity, model_output, sample, p)
        previous, self._past = advance(run, k, self._past, sample, prediction, noise)
        self._k += 1
        data = (prediction if quantity == "x0" else (sample - p.sigma * prediction) / p.alpha).to(sample.dtype)
        if not return_dict:
            return previous, data
        return TimeTunerOutput(prev_sample=previous, pred_original_sample=data)

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Data with noise in it, (B, ...), at the solver's time of the next call, not at its conditioning time.

        Before a run, at the solver's time of the call with this timestep; for another timestep at that time itself.
        """
        row = self._begin if self._k is None else self._k
        if row is not None:
            t = self._plan.t[row].expand(len(original_samples))
        else:
            given = as_float64(timesteps).reshape(-1)
            apart = (as_float64(self.timesteps) - given[:, None]).abs()
            t = torch.where(
                apart.amin(1) < 1e-3, self._plan.t[apart.argmin(1)], self._plan.schedule.from_network_time(given)
            )
            t = t.expand(len(original_samples))
        p = self._plan.schedule.at(t)
        shape = (-1, *[1] * (original_samples.dim() - 1))
        alpha, sigma = (value.float().view(shape).to(original_samples.device) for value in (p.alpha, p.sigma))
        return (alpha * original_samples + sigma * noise).to(original_samples.dtype)


def rest(plan: Plan, begin: int) -> Plan:
    """The run of a plan from call `begin` on, which is the first call of a step.

    Raises:
        ValueError: there is no such call, or it is not the first of a step.
    """
    firsts = [sum(plan.steps[:i]) for i in range(len(plan.steps))]
    if begin >= len(plan):
        raise ValueError(
            f"strength leaves none of the plan's {len(plan)} calls: choose a larger one, at least {1 / len(plan):.3g}"
        )
    if begin not in firsts:
        raise ValueError(
            f"a run of this plan may begin at call {', '.join(map(str, firsts))}, the first of a step of its sampler, "
            f"got {begin}: choose another strength"
        )
    c = plan.corrections
    return replace(
        plan,
        **{name: getattr(plan, name)[begin:] for name in ("t", "alpha", "sigma", "tau")},
        corrections=None if c is None else c[begin:, begin:],
    )


def _entries_of(plan: Plan) -> dict[str, Any]:
    """The scheduler configuration of a network with the plan's schedule, for diffusers' own schedulers too."""
    kind = plan.provenance.get("prediction_type")
    return plan.schedule.scheduler_config() | ({"prediction_type": kind} if kind else {})
