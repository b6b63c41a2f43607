"""Plans as a diffusers scheduler: `pipe.scheduler = TimeTunerScheduler.from_plan(plan)`."""

import warnings
from collections.abc import Mapping, Sequence
from functools import partial
from os import PathLike
from typing import Any

import diffusers
import numpy as np
import torch
from diffusers import SchedulerMixin
from diffusers.configuration_utils import register_to_config
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from .._checks import check_int
from ..models.base import check_state
from ..models.fingerprint import differences
from ..plans.build import firsts_of, make_plan, rest
from ..plans.grid import check_noise
from ..plans.plan import Plan
from ..plans.rows import Call, Row
from ..samplers import Sampler, sampler_of
from ..sampling import advance, finite
from ..schedules import NoiseSchedule, Point
from ..schedules.from_diffusers import class_name
from ..schedules.scheduler_classes import SCHEDULER_CLASSES
from .config import (
    GIVEN_DATA,
    Prediction,
    check_plan,
    config_of,
    facts_of,
    prediction_of,
    prediction_of_entries,
    schedule_of,
    warn_of_other_pipeline,
)
from .hook import DenoiserHook
from .interface import MOST_SIGMA, PipelineScheduler
from .model import pipeline_fingerprint
from .native_grid import GridArguments, OwnGrid, keeps_timesteps, own_spacing, schedule_in_run, usual_sigmas
from .refusals import check_pipeline, check_start
from .step_output import StepOutput

Generators = torch.Generator | list[torch.Generator] | None

NONFINITE = "the network returned such numbers, or its dtype overflowed (float16: take bfloat16 or float32)"

NEAR = 1e-6
"""The relative difference within which two timesteps are the same."""


class TimeTunerScheduler(PipelineScheduler, SchedulerMixin):  # loading looks for SchedulerMixin in this module
    """Runs plans in any diffusers pipeline whose network was trained with betas or as a rectified flow.

    `from_plan` makes one, and `from_config` makes one of untuned plans. `num_inference_steps` of the pipeline is the
    number of network calls, and there must be a plan for it. `timesteps` are the network times of the conditioning
    times tau; the solver's times t stay inside. A call is found by its timestep, and calls of one timestep by their
    order.

    `scheduler_config.json` holds the plans and the arguments below, as numbers and names alone. A saved pipeline is
    loaded like any other once `time_tuner.diffusers` is imported.

    Args:
        plans: one for each number of calls, as `Plan.to_dict` has them.
        prediction_type: what the network predicts: "epsilon", "sample", "v_prediction" or "flow_prediction".
        clip_sample: whether the predicted data is kept in [-clip_sample_range, clip_sample_range].
        clip_sample_range: the range of the predicted data.
        thresholding: whether the predicted data is thresholded instead, see `dynamically_thresholded`.
        dynamic_thresholding_ratio: the `ratio` of the thresholding.
        sample_max_value: the `maximum` of the thresholding.
        num_train_timesteps: the number of levels that the network was trained at; some pipelines read it.
        made_from: the class of the scheduler that this one replaces.
        sigma_data: the deviation of the data, for pipelines that read it; None where noise is not that of EDM.
        invert_sigmas: whether a flow's network receives 1 - sigma and predicts the opposite velocity.
        own_grid: whether each run has the grid that the replaced scheduler would compute from the arguments of
            `set_timesteps`; the plans then give the samplers and the numbers of calls.
        needs_mu: whether that grid depends on the argument `mu` of `set_timesteps`, a shift.

    Raises:
        ValueError: no plans or invalid ones, an unknown prediction type, a schedule that pipelines do not have, or a
            prediction of the noise where a plan starts at alpha = 0.
    """

    __module__ = "time_tuner"  # in saved pipelines: diffusers finds the class once `time_tuner` is imported
    _compatibles = list(SCHEDULER_CLASSES)  # noqa: RUF012

    @register_to_config
    def __init__(
        self,
        plans: list[dict[str, Any]],
        prediction_type: str = "epsilon",
        clip_sample: bool = False,
        clip_sample_range: float = 1.0,
        thresholding: bool = False,
        dynamic_thresholding_ratio: float = 0.995,
        sample_max_value: float = 1.0,
        num_train_timesteps: int = 1000,
        made_from: str | None = None,
        sigma_data: float | None = None,
        invert_sigmas: bool = False,
        own_grid: bool = False,
        needs_mu: bool = False,
    ) -> None:
        read = [Plan.from_dict(values) for values in plans]
        self.plans = {len(plan): plan for plan in read}
        if not read or len(self.plans) < len(read):
            raise ValueError(f"plans must be one for each number of calls, got calls = {[len(plan) for plan in read]}")
        self.prediction = prediction_of_entries(self.config)
        for plan in read:
            plan.schedule.scheduler_config()  # raises where pipelines are not driven
            self.prediction.check(plan)
        self._own_plans: dict[tuple[int, GridArguments], Plan] = {}
        self._hook: DenoiserHook | None = None
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
        several = isinstance(plans, Sequence) and all(isinstance(plan, Plan) for plan in plans)
        if not (isinstance(plans, Plan) or several):
            raise ValueError(f"plans must be a Plan, several, or the path of a plan file, got {type(plans).__name__}")
        plans = [plans] if isinstance(plans, Plan) else list(plans)
        if not plans:
            raise ValueError("plans must hold at least one plan, got none")
        if config is None:
            kind = plans[0].provenance.get("prediction_type")
            entries = plans[0].schedule.scheduler_config() | ({"prediction_type": kind} if kind else {}) | changes
            inverted = bool(entries.get("invert_sigmas"))
            sigma_data = plans[0].schedule.sigma_data
            prediction = Prediction(entries["prediction_type"], sigma_data=sigma_data, inverted=inverted)
            return cls._made(plans, prediction, entries)
        check_pipeline(config)
        source = config_of(config) | changes if changes else config
        for plan in plans:
            check_plan(plan, source)
            check_start(plan, config)
            warn_of_other_pipeline(plan, config)
            _warn_of_other_network(plan, config)
        return cls._made(plans, prediction_of(source), config_of(source), changes)

    @classmethod
    def from_config(
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
            spacing: a spacing as `make_plan` takes it. By default each run has the grid that the pipeline's own
                scheduler would compute from the sigmas and the shift that the pipeline passes. Before its first run a
                plan has the grid that is usual for the class of that scheduler.
            tokens: the number of patches of an image, for a configuration with a shift that depends on it. Not needed
                in a pipeline, which passes the shift.
            **options: of the sampler, as in `order=2`.

        Raises:
            ValueError: the configuration is not recognised, or has an option that is not supported.
        """
        if isinstance(config, Mapping) and config.get("plans") and sampler is None and calls is None:
            kept = {key: value for key, value in config.items() if key != "_use_default_values"}
            return super().from_config(kept, return_unused_kwargs, **options)
        if calls is None:
            raise ValueError(
                "calls= is needed, the number of network calls: TimeTunerScheduler.from_config(pipe, calls=8)"
            )
        check_pipeline(config)
        needs_mu = spacing is None and tokens is None and hasattr(config, "scheduler")
        needs_mu = needs_mu and bool(config_of(config).get("use_dynamic_shifting"))
        schedule = facts_of(config).schedule if needs_mu else schedule_of(config, tokens)
        prediction = prediction_of(config)
        if reason := None if config_of(config).get("plans") else facts_of(config).distilled:
            text = f"{reason}: solvers of an ODE, which plans are, do not converge with its network"
            warnings.warn(text, UserWarning, stacklevel=2)
        counts = [check_int("calls", n, 1) for n in (calls if isinstance(calls, Sequence) else [calls])]
        own = own_spacing(config) if spacing is None else None
        plans = [make_plan(sampler_of(sampler or "dpmpp", **options), schedule, n, own or spacing) for n in counts]
        plans = [own.as_received(plan) for plan in plans] if own else plans
        for plan in plans:
            check_start(plan, config)
        made = [plan.with_provenance(prediction_type=prediction.kind) for plan in plans]
        return cls._made(made, prediction, config_of(config), own_grid=own is not None, needs_mu=needs_mu)

    @classmethod
    def _made(
        cls,
        plans: list[Plan],
        prediction: Prediction,
        config: Mapping[str, Any],
        changes: Mapping[str, Any] | None = None,
        **grid: bool,
    ) -> "TimeTunerScheduler":
        """The scheduler of these plans, which keeps the entries of the one that it replaces."""
        ours: dict[str, Any] = {
            "plans": [plan.to_dict() for plan in plans],
            "prediction_type": prediction.kind,
            "clip_sample": prediction.clip is not None,
            "thresholding": prediction.thresholding is not None,
            "made_from": class_name(config),
            "sigma_data": prediction.sigma_data or config.get("sigma_data"),
            "invert_sigmas": prediction.inverted,
            "own_grid": False,
            "needs_mu": False,
        } | grid
        if prediction.clip is not None:
            ours["clip_sample_range"] = prediction.clip
        if prediction.thresholding is not None:
            ours["dynamic_thresholding_ratio"], ours["sample_max_value"] = prediction.thresholding
        keep = {key: value for key, value in config.items() if not key.startswith("_")}
        made: TimeTunerScheduler = super().from_config(keep | ours)
        defaults = set(config.get("_use_default_values", ())) - set(changes or ())
        made.register_to_config(_use_default_values=sorted(defaults & set(keep)))  # for diffusers' own classes
        return made

    def _select(self, plan: Plan, begin: int | None = None, device: torch.device | str | None = None) -> None:
        """Start a run of a plan, at call `begin` if that is given."""
        self._plan, self._begin = plan, begin
        if self._hook is not None:
            self._hook.begin()
        self._step_index: int | None = None
        self._single_step = not any(ago for row in plan.rows for ago in _reads(row))
        self._start_at(begin or 0)
        if begin is None:
            self.timesteps = plan.schedule.network_time(plan.tau).to(device=device, dtype=torch.float32)
            received = torch.cat([plan.tau, plan.t[-1:]])  # networks of some pipelines receive sigma
            self.sigmas = plan.schedule.sigma_ratio(received).clamp(max=MOST_SIGMA).float()
            self._times: list[float] = self.timesteps.tolist()
            self._near = NEAR * max(1.0, *self._times)
            self.num_inference_steps = len(plan)

    def _start_at(self, first: int) -> None:
        """Start at this call, with no calls before it."""
        self._first, self._run = first, rest(self._plan, first) if first else self._plan
        # Made here, for `step` costs as much as the arithmetic of a small state.
        self._calls = [(self._run.point(k), row) for k, row in enumerate(self._run.rows)]
        self._guides_all = all(self._run.guided)
        self._past: tuple[Call, ...] = ()
        self._num_made = 0  # calls of the run whose states were computed
        self._pending: tuple[int, StepOutput] | None = None  # the last call, until its state is computed

    @property
    def schedule(self) -> NoiseSchedule:
        """The noise schedule of the plan in use."""
        return self._plan.schedule

    @property
    def plan(self) -> Plan:
        """The plan in use: that of the last `set_timesteps`."""
        return self._plan

    @property
    def init_noise_sigma(self) -> float:
        """The factor from standard normal noise to the first state: sqrt(alpha^2 + sigma^2) at the first point.

        Raises:
            ValueError: the plan is for runs from an image: it begins where the state is data rather than noise.
        """
        try:
            check_noise(self._plan.t, self.schedule)
        except ValueError as error:
            raise ValueError(f"the plan is for runs from an image, not from noise alone: {error}") from None
        return float(self._plan.point(0).scale)

    @property
    def compatibles(self) -> list[type]:
        """The classes of diffusers that take this configuration: those of the class that this scheduler replaces, as
        far as their packages are installed."""
        replaced = getattr(diffusers, str(self.config.get("made_from")), type(self))
        return [kind for kind in replaced._get_compatibles() if not hasattr(kind, "_backends")]

    @property
    def final_alpha_cumprod(self) -> Tensor:
        """alpha^2 where the plan ends, 0-dim, float32; a flow has none."""
        if self.schedule.shift is not None:
            raise AttributeError(f"{self.schedule!r} has no alphas_cumprod")
        return (self._plan.alpha[-1] ** 2).float()

    def attach(self, pipe: Any) -> DenoiserHook:
        """A hook on the network of the pipeline, which runs plans that leave guidance out of some calls: there the
        network is evaluated under the condition alone. `remove()` removes it, and so does the end of a `with` block.

        Args:
            pipe: the pipeline that this scheduler belongs to, under classifier-free guidance.

        Raises:
            ValueError: a pipeline with another scheduler, or one in which guidance cannot be left out.
        """
        if getattr(pipe, "scheduler", None) is not self:
            raise ValueError("attach takes the pipeline of this scheduler: set pipe.scheduler to it first")
        if self._hook is not None:
            self._hook.remove()
        self._hook = DenoiserHook(pipe, self._next_is_guided)
        return self._hook

    def _next_is_guided(self) -> bool | None:
        """Whether the next call is guided; None where the hook is to do nothing."""
        k = self._step_index if self._step_index is not None else self._begin or 0
        running = self._hook is not None and self._hook.pipe.scheduler is self
        return self._plan.guided[k] if running and not all(self._plan.guided) and k < len(self._plan) else None

    def _needed_hook(self) -> DenoiserHook:
        """The hook, for a plan that leaves guidance out of some calls.

        Raises:
            ValueError: it is not attached.
        """
        if self._hook is None or not self._hook.attached:
            left = [k for k, guided in enumerate(self._plan.guided) if not guided]
            raise ValueError(
                f"the plan leaves guidance out of call {', '.join(map(str, left))}, which needs a hook on the network: "
                "call pipe.scheduler.attach(pipe) first"
            )
        return self._hook

    @property
    def begin_index(self) -> int | None:
        """The call that the run starts with, if `set_begin_index` has set it."""
        return self._begin

    @property
    def step_index(self) -> int | None:
        """The index of the next call; None before the first."""
        return self._step_index

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: torch.device | str | None = None,
        sigmas: Any = None,
        mu: float | None = None,
        timesteps: Any = None,
    ) -> None:
        """Choose the plan for this number of network calls.

        With `own_grid` the run has the grid that the replaced scheduler would compute from these arguments. Without
        it the run has the grid of the plan: `mu` has no effect, and `sigmas` and `timesteps` must be those of the plan
        or the defaults of the pipeline.

        Raises:
            ValueError: no plan for this number of calls, other sigmas or timesteps, or a plan that leaves guidance out
                of some calls without `attach`.
        """
        given = GridArguments.of(sigmas, timesteps, mu)
        num_inference_steps = given.steps or num_inference_steps
        if num_inference_steps not in self.plans:
            name = (
                "num_inference_steps"
                if given.steps is None
                else f"the number of {'sigmas' if timesteps is None else 'timesteps'}"
            )
            raise ValueError(
                f"{name} must be a number of calls that there is a plan for, {sorted(self.plans)}, got "
                f"{num_inference_steps}: tune one, or from_config(pipe, calls={num_inference_steps})"
            )
        plan = self.plans[num_inference_steps]
        if self.config.own_grid:
            key = (num_inference_steps, given)
            if key not in self._own_plans:
                self._own_plans[key] = self._on_own_grid(plan, given)
            plan = self._own_plans[key]
        self._select(plan, device=device)
        if not self._guides_all:
            self._needed_hook()
        if not self.config.own_grid:
            self._check_passed(given)

    def _on_own_grid(self, plan: Plan, given: GridArguments) -> Plan:
        """The plan on the grid that the replaced scheduler would compute from these arguments."""
        if self.config.needs_mu and given.mu is None:
            raise ValueError(
                "mu must be passed to set_timesteps where the shift depends on the image, got None: give tokens= to "
                "from_config"
            )
        grid = OwnGrid(self, given.for_steps)
        made = make_plan(plan.sampler, schedule_in_run(self, given), len(plan), grid)
        return grid.as_received(made).with_provenance(**plan.provenance)

    def _check_passed(self, given: GridArguments) -> None:
        """Raise a ValueError if sigmas or timesteps are neither those of the plan nor the defaults of the pipeline."""
        if given.steps is None:
            return
        both = given.sigmas is not None and given.timesteps is not None and keeps_timesteps()
        if both and self.schedule.shift is not None and self.schedule.to_dict()["network_input"] != "t":
            raise ValueError(
                "the pipeline passes timesteps= beside sigmas=, and its network receives the time before the shift, "
                f"got a plan for {self.schedule!r}: make it on the schedule of PipelineModel(pipe, ...)"
            )
        passed = self._plan.provenance.get("passed", {})
        for name, values, own in (
            ("sigmas", given.sigmas, self.sigmas[:-1]),
            ("timesteps", given.timesteps, self.timesteps.cpu()),
        ):
            if values is None:
                continue
            known = [own.tolist(), passed.get(name)]
            if name == "sigmas" or given.sigmas is not None:  # timesteps beside sigmas are defaults
                scale = 1.0 if name == "sigmas" else float(self.config.num_train_timesteps)
                known += [scale * sigmas for sigmas in usual_sigmas(len(values))]
            near = 2e-3 * max(1.0, max(map(abs, values)))
            if not any(k is not None and np.allclose(values, k, atol=near, rtol=0) for k in known):
                raise ValueError(
                    f"{name}= cannot be chosen: a plan has its own grid, got {list(values)}; an untuned scheduler runs "
                    "them, from_config(pipe, calls=)"
                )

    def set_begin_index(self, begin_index: int = 0) -> None:
        """Start at this call instead of the first (image to image).

        Raises:
            ValueError: it lies inside a step of several calls, or at the end.
        """
        self._select(self._plan, begin_index)

    def step(
        self,
        model_output: Tensor,
        timestep: Any,
        sample: Tensor,
        generator: Generators = None,
        eta: float = 0.0,
        use_clipped_model_output: bool | None = None,
        prev_timestep: Any = None,
        return_dict: bool = True,
        pred_original_sample: Tensor | None = None,
    ) -> StepOutput:
        """The state after the call with this timestep, which is computed when it is read, or at the next call.

        The first call of a run may be any that begins a step. A sampler without memory of earlier calls may make a call
        several times, as for tiles, and go back to earlier ones; other samplers make every call once, in order. A call
        whose predicted data alone was read may be made again, after `_step_index -= 1`, as the pipelines of Cosmos 1
        do.

        Args:
            model_output: the network's output, (B, C, ...), after guidance.
            timestep: of the call, one of `timesteps`.
            sample: the state (B, C, ...) that the network received.
            generator: one, or one for each sample; for samplers that draw noise.
            eta: pipelines pass it for DDIM; must be 0, since here it is an option of the sampler.
            use_clipped_model_output: not used; noise always follows from the clipped data.
            prev_timestep: not used; the next call of the plan follows.
            return_dict: not used; the output has names and is a pair.
            pred_original_sample: the predicted data, in the place of the network's output.

        Raises:
            ValueError: a timestep of no call, a call out of order, more steps than the plan has calls, or an eta; an
                output of another shape; NaN or infinity after the last call.
        """
        if eta:
            raise ValueError(
                f"eta must be 0 in the pipeline, got {eta}: it is an option of the sampler, 'ddim' with eta="
            )
        call = self._next_call(timestep)
        if (self._step_index is None and call != self._first) or call < self._first:
            self._start_at(0 if self._single_step else call)
        if self._pending is not None and self._pending[0] != call:
            _ = self._pending[1].prev_sample  # which the pipeline has not read, and the next call may look back on
        k = call - self._first
        if not sample.is_floating_point():
            check_state("sample", sample)
        p, row = self._calls[k]
        passed, kind, added = model_output, self.prediction, None
        if pred_original_sample is not None:
            passed, kind = pred_original_sample, GIVEN_DATA
        if not self._guides_all:
            passed, added = self._parts(k, passed, sample, kind)
        prediction = kind.read(row.predicts, passed, sample, p)
        if row.guidance is not None and row.guidance.terms:
            prediction = prediction + row.guidance((*self._past, ()), prediction.dtype)
        output = StepOutput(
            partial(self._advance, self._run, k, self._past, sample, prediction, generator, added),
            partial(_data, prediction, row.predicts, sample, p),
        )
        self._step_index, self._pending = call + 1, (call, output)
        return output

    def _parts(self, k: int, passed: Tensor, sample: Tensor, kind: Prediction) -> tuple[Tensor, Tensor | None]:
        """What the pipeline passes at call k of a run that leaves guidance out of some calls: after guidance where that
        is not left out; and what guidance adds to the prediction, where later calls reuse it."""
        p, row = self._calls[k]
        conditional = self._needed_hook().conditional(passed, sample, row.guidance is None)
        if row.guidance is not None:
            return conditional, None
        if not row.reused:
            return passed, None
        alone = kind.read(row.predicts, conditional, sample, p)
        return passed, kind.read(row.predicts, passed, sample, p) - alone

    def _advance(
        self,
        run: Plan,
        k: int,
        past: tuple[Call, ...],
        x: Tensor,
        prediction: Tensor,
        generator: Generators,
        added: Tensor | None,
    ) -> Tensor:
        """The state after call k of a run."""
        previous, calls = advance(run, k, past, x, prediction, partial(_randn, generator), added)
        if run is self._run:
            self._past, self._num_made, self._pending = calls, k + 1, None
        if k + 1 == len(run) and not finite(previous):
            raise ValueError(f"the state is NaN or infinite after the last call: {NONFINITE}")
        return previous

    def _calls_at(self, timestep: float) -> list[int]:
        """The calls with this timestep."""
        return [k for k, time in enumerate(self._times) if abs(time - timestep) <= self._near]

    def _next_call(self, timestep: Any) -> int:
        """The call that a step with this timestep makes; see `step`."""
        if isinstance(timestep, Tensor) and timestep.numel() > 1:
            if (timestep != timestep.reshape(-1)[0]).any():
                raise ValueError(
                    f"timestep must be one for all samples, got different ones in a tensor of {tuple(timestep.shape)}"
                )
            timestep = timestep.reshape(-1)[0]
        value, count, begun = float(timestep), len(self._times), self._step_index is not None
        expected = self._step_index if begun else self._begin
        if expected is not None and expected < count and abs(self._times[expected] - value) <= self._near:
            if begun and not self._single_step and expected - self._first < self._num_made:
                raise self._made_already(expected, value)
            return expected
        if expected is not None and expected >= count and not self._single_step:
            raise ValueError(f"step was called after the last of {count} calls: call set_timesteps first")
        calls = self._calls_at(value)
        if not calls:
            raise ValueError(
                f"timestep {value:g} is that of no call of the plan, which are "
                f"{', '.join(f'{time:g}' for time in self._times)}: take those of scheduler.timesteps"
            )
        if expected is None or not begun:
            firsts = firsts_of(self._plan)
            return next((k for k in calls if k in firsts), calls[0])
        earlier = [k for k in calls if k < expected]
        if not earlier:
            raise ValueError(
                f"timestep {value:g} is that of call {calls[0]}, and call {expected} was to come: a plan makes every "
                "call; for a new run call set_timesteps first"
            )
        if self._single_step:
            return earlier[-1]
        raise self._made_already(earlier[-1], value)

    def _made_already(self, call: int, timestep: float) -> ValueError:
        return ValueError(
            f"call {call} (timestep {timestep:g}) was made already, and {self._plan.sampler!r} remembers its "
            "calls: for several steps at one timestep (tiles) choose a sampler without memory, such as 'ddim'; for a "
            "new run call set_timesteps first"
        )

    def _solver_time(self, timestep: float) -> float:
        """That of the call with this timestep; for a timestep of no call the time itself."""
        calls = self._calls_at(timestep)
        if not calls:
            return super()._solver_time(timestep)
        expected = self._begin if self._step_index is None else self._step_index
        return float(self._plan.t[expected if expected in calls else calls[0]])


def _randn(generator: Generators, x: Tensor) -> Tensor:
    return randn_tensor(x.shape, generator=generator, device=x.device, dtype=x.dtype)


def _data(prediction: Tensor, quantity: str, x: Tensor, p: Point) -> Tensor:
    """The predicted data of a call, in the dtype of its state."""
    return (prediction if quantity == "x0" else (x - p.sigma * prediction) / p.alpha).to(x.dtype)


def _warn_of_other_network(plan: Plan, pipe: Any) -> None:
    """Warn if the plan was tuned for another network than the pipeline's, or another treatment of its predictions."""
    made_for = plan.provenance.get("made_for")
    if not hasattr(pipe, "scheduler") or not isinstance(made_for, Mapping) or not made_for.get("network"):
        return
    given = {name: value for name, value in made_for.items() if name not in ("shape", "conditions", "guidance_scale")}
    if differ := differences(given, pipeline_fingerprint(pipe)):
        text = "; ".join(map(str, differ))
        warnings.warn(f"the plan was tuned for another model: {text}", UserWarning, stacklevel=3)


def _reads(row: Row) -> set[int]:
    """How many calls ago the tensors are from that a row reads."""
    parts = (row.next_state, row.corrected, row.guidance)
    return {ago for part in parts if part is not None for _, ago in part.terms}
