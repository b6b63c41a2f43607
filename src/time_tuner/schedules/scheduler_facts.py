"""What a diffusers scheduler makes of its configuration: noise, prediction, bounds of the data, and its own grid."""

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from inspect import signature
from math import log
from typing import Any

import torch
from torch import Tensor

from .._checks import check_int, choose
from .base import BELOW, NoiseSchedule, as_float64
from .from_diffusers import SMALLEST, class_name, distilled, own_entries, schedule_of_class, scheduler_of
from .scheduler_classes import SCHEDULER_CLASSES

CONVERTED = ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", "use_lu_lambdas")
"""Entries with which sigmas lie between the levels, whose timesteps diffusers rounds."""


@dataclass(frozen=True)
class SchedulerFacts:
    """What a diffusers scheduler makes of its configuration; made by `scheduler_facts`.

    Attributes:
        class_name: of the scheduler.
        schedule: the noise schedule of its network.
        prediction_type: what the network predicts, in the words of diffusers: "epsilon", "sample", "v_prediction" or
            "flow_prediction".
        clip: the predicted data is kept in [-clip, clip]; None where it is not.
        thresholding: (ratio, maximum) of `dynamically_thresholded`; None where data are not thresholded.
        inverted: whether the network predicts the velocity towards the data, the opposite of a flow's.
        ends_at_zero: whether runs end at sigma = 0, rather than at the least noise of the scheduler's grid. In trailing
            grids of DDIM and PNDM whose steps do not divide the levels a run may end above 0 nevertheless.
        distilled: what the model was distilled to, see `distilled`; None for others.
    """

    class_name: str
    schedule: NoiseSchedule
    prediction_type: str
    clip: float | None
    thresholding: tuple[float, float] | None
    inverted: bool
    ends_at_zero: bool
    distilled: str | None
    _scheduler: Any = field(repr=False, compare=False)

    @property
    def levels(self) -> int | None:
        """The number of noise levels that the network was trained at, at even times; None for continuous noise."""
        return self.schedule.levels

    def times(self, steps: int, sigmas: Sequence[float] | str = "pipeline") -> Tensor:
        """The times where the scheduler's own steps begin and end, float64 (steps + 1,), falling.

        A last step of no length is left out, and the scheduler's grid of one step more is taken: with Karras sigmas
        DEIS, for instance, ends where its last step begins. Of a class with several calls in a step, the times within
        steps are left out; of DPMSolverSinglestep each call counts as a step.

        Args:
            steps: their number.
            sigmas: what a pipeline passes to `set_timesteps` before its shift. "pipeline": even from 1 to 1/n in n
                steps for FlowMatchEuler, as the pipelines of most flows do, and nothing for other classes. "class":
                nothing, as the pipeline of Stable Diffusion 3; FlowMatchEuler then makes even sigmas from 1 to
                1/1000. Or the sigmas themselves.

        Raises:
            ValueError: the class has no such grid; the message has the reason.
        """
        return self._grid(steps, sigmas)[0]

    def calls(self, steps: int, sigmas: Sequence[float] | str = "pipeline") -> int:
        """The number of network calls that the scheduler makes on `times(steps, sigmas)`."""
        return len(self._grid(steps, sigmas)[1].timesteps)

    def received(self, steps: int, sigmas: Sequence[float] | str = "pipeline") -> Tensor:
        """The network times that the scheduler passes on `times(steps, sigmas)`, float64, one for each of its calls.

        Some classes round them: their network receives another time than that of its state.
        """
        return as_float64(self._grid(steps, sigmas)[1].timesteps)

    def _grid(self, steps: int, sigmas: Sequence[float] | str) -> tuple[Tensor, Any]:
        """`times`, and the scheduler that was set to them."""
        steps = check_int("steps", steps, 1)
        if SCHEDULER_CLASSES[self.class_name].no_grid:
            raise self._no_grid(steps, SCHEDULER_CLASSES[self.class_name].no_grid)
        for more in (0, 1):
            scheduler = self._set(steps + more, sigmas)
            times = self._times_of(scheduler, steps + more)
            if len(times) == steps + 1:
                return times, scheduler
            if more or len(times) != steps:
                break
            if self.schedule.shift is not None:
                sigma = float(self.schedule.sigma_ratio(times[-1]))
                raise self._no_grid(steps, f"its last step has no length, and leaves noise of sigma = {sigma:.4g}")
        raise self._no_grid(steps, f"it has {len(times) - 1} steps where {steps + more} were set")

    def _set(self, steps: int, sigmas: Sequence[float] | str) -> Any:
        """A scheduler of its own with `set_timesteps` called."""
        kind, scheduler = SCHEDULER_CLASSES[self.class_name], deepcopy(self._scheduler)
        options: dict[str, Any] = {}
        cosmos2 = kind.noise == "flow" and self.schedule.shift is None
        accepted = signature(scheduler.set_timesteps).parameters
        if own_entries(scheduler, self.class_name).get("use_dynamic_shifting"):
            shift = self.schedule.shift or 1.0
            options["mu"] = shift if scheduler.config.get("time_shift_type") == "linear" else log(shift)
        given: Any = sigmas
        if isinstance(sigmas, str):
            choose("sigmas", sigmas, ("pipeline", "class"))
            even = sigmas == "pipeline" and kind.passes_sigmas
            given = [1 - i / steps for i in range(steps)] if even else None
        if cosmos2:  # which is passed that, for its number alone
            given = torch.linspace(0, 1, steps).tolist()
        if given is not None and "sigmas" not in accepted:
            raise self._no_grid(steps, "its set_timesteps takes no sigmas")
        if scheduler.config.get("shift_terminal") and steps == 1:
            raise self._no_grid(steps, "shift_terminal stretches the sigmas between the first and the last step")
        if self._runge_kutta and steps < 4:
            raise self._no_grid(steps, "with skip_prk_steps=False it makes n + 9 calls in n steps, n = 4 or more")
        try:
            if given is None:
                scheduler.set_timesteps(steps, **options)
            else:
                scheduler.set_timesteps(sigmas=list(given), **options)
        except Exception as error:  # whatever the class raises of a number of steps that it cannot make
            raise self._no_grid(steps, f"{type(error).__name__}: {error}".split("\n")[0]) from None
        if cosmos2 and not self.ends_at_zero:
            scheduler.sigmas[-1] = scheduler.sigmas[-2]  # as its pipelines do
        return scheduler

    def _times_of(self, scheduler: Any, steps: int) -> Tensor:
        """The distinct times of a scheduler after `set_timesteps`, falling."""
        schedule, kind = self.schedule, SCHEDULER_CLASSES[self.class_name]
        received = as_float64(scheduler.timesteps)
        if kind.end not in ("sigmas", "least"):
            if self._runge_kutta:  # whose middle times are no ends of steps
                received = as_float64(self._without_runge_kutta(steps).timesteps)
            end = as_float64([self._end(float(received.min()), steps)])
            return _distinct(torch.cat([schedule.from_network_time(received), end]))
        # No call leads to a sigma beyond the calls, which EulerDiscrete has with log-linear sigmas.
        noise = 1 - as_float64(scheduler.sigmas) if self.inverted else as_float64(scheduler.sigmas)
        sigmas = _distinct(noise[: len(received) + 1])
        if not sigmas.isfinite().all():
            raise self._no_grid(steps, "its sigmas are not finite")
        self._check_range(sigmas, steps)
        times = schedule.from_sigma_ratio(sigmas)
        if schedule.shift is None:
            if schedule.at(schedule.T).alpha == 0 and sigmas[0] ** -2 < 1.01 * SMALLEST:
                times[0] = schedule.T
            converted = any(map(scheduler.config.get, CONVERTED))
            if schedule.levels is not None and not converted:  # single precision puts levels off by a little
                levels = schedule.network_time(times)
                nearest = received[(levels[:, None] - received).abs().argmin(1)]
                times = torch.where((levels - nearest).abs() < 0.01, schedule.from_network_time(nearest), times)
            times = torch.where(sigmas > 0, times.clamp(schedule.t_min, schedule.T), 0.0)
        return _distinct(times)

    @property
    def _runge_kutta(self) -> bool:
        return self.class_name == "PNDMScheduler" and not self._scheduler.config.get("skip_prk_steps")

    def _without_runge_kutta(self, steps: int) -> Any:
        scheduler = type(self._scheduler).from_config(self._scheduler.config, skip_prk_steps=True)
        scheduler.set_timesteps(steps)
        return scheduler

    def _end(self, last: float, steps: int) -> float:
        """The time where the step from level `last` ends, of a class without sigmas."""
        kind, config, schedule = SCHEDULER_CLASSES[self.class_name], self._scheduler.config, self.schedule
        if kind.end == "final":
            next_level = last - config.get("num_train_timesteps", 1000) // steps
            if next_level >= 0:
                return float(schedule.from_network_time(next_level))
        return 0.0 if self.ends_at_zero else schedule.t_min

    def _check_range(self, sigmas: Tensor, steps: int) -> None:
        schedule = self.schedule
        high = float(schedule.sigma_ratio(schedule.T))
        low = float(schedule.sigma_ratio(schedule.least_time))
        positive = sigmas[sigmas > 0]
        for sigma in (float(positive.max()), float(positive.min())):
            if not low * (1 - BELOW) <= sigma <= high * (1 + 1e-4):
                raise self._no_grid(
                    steps, f"it has sigma = {sigma:.4g}, where its network was trained at {low:.4g} to {high:.4g}"
                )

    def _no_grid(self, steps: int, reason: str | None) -> ValueError:
        return ValueError(
            f"{self.class_name} has no grid of {steps} step{'s' * (steps > 1)}: {reason}; choose a spacing"
        )


def scheduler_facts(config: Any, tokens: int | None = None, mu: float | None = None) -> SchedulerFacts:
    """What a diffusers scheduler, or the one that diffusers makes of its configuration, does with its entries.

    Args:
        config: a scheduler, or its configuration; without the name of its class it must have all entries of one.
        tokens: of a shift that depends on the image, see `schedule_from`.
        mu: that shift itself, see `schedule_from`.

    Returns:
        The facts of the scheduler.

    Raises:
        ValueError: as of `schedule_from`; diffusers is missing; no class, or several, have these entries.
    """
    if not isinstance(getattr(config, "config", config), Mapping):
        raise ValueError(f"config must be a scheduler or its configuration, got {type(config).__name__}")
    name = class_name(config)
    if name is None:
        name = _class_of_entries(getattr(config, "config", config))
    scheduler = scheduler_of(config, name)
    if scheduler is None:
        raise ValueError(
            f"what {name} makes of its configuration is read from diffusers: install it, or give the object"
        )
    entries, kind = own_entries(scheduler, name), SCHEDULER_CLASSES[name]
    schedule = schedule_of_class(scheduler, name, tokens, mu)
    usual = "flow_prediction" if schedule.shift is not None else "epsilon"
    thresholds = kind.thresholds and entries.get("thresholding")
    clips = kind.clips and entries.get("clip_sample") and not thresholds
    ends_at_zero = kind.end == "one" or (kind.end == "final" and bool(entries.get("set_alpha_to_one")))
    if kind.end == "sigmas":
        converted = any(map(entries.get, CONVERTED))
        log_linear = entries.get("interpolation_type") == "log_linear" and not converted
        cosmos2 = kind.noise == "flow" and schedule.shift is None  # whose pipelines read that, and not its class
        final = (scheduler.config if cosmos2 else entries).get("final_sigmas_type", "zero")
        ends_at_zero = final == "zero" and not log_linear
    return SchedulerFacts(
        class_name=name,
        schedule=schedule,
        prediction_type=entries.get("prediction_type") or usual,
        clip=float(entries.get("clip_sample_range", 1.0)) if clips else None,
        thresholding=(entries["dynamic_thresholding_ratio"], entries["sample_max_value"]) if thresholds else None,
        inverted=kind.noise == "flow" and bool(entries.get("invert_sigmas")),
        ends_at_zero=ends_at_zero,
        distilled=distilled(scheduler),
        _scheduler=scheduler,
    )


def _distinct(values: Tensor) -> Tensor:
    """Falling, without repetitions, which single precision may put off by a little."""
    rising: Tensor = values.unique()
    differs = rising.diff() > 1e-5 * rising[1:].abs()
    return torch.cat([rising[:1], rising[1:][differs]]).flip(0)


def _class_of_entries(config: Mapping[str, Any]) -> str:
    """The class whose entries a configuration without a name has.

    Raises:
        ValueError: there is none, or there are several that do different things; or diffusers is missing.
    """
    try:
        import diffusers
    except ImportError:
        raise ValueError("a configuration is read by its class, from diffusers: install it") from None
    given = {key for key in config if not key.startswith("_")}
    here = [name for name in SCHEDULER_CLASSES if hasattr(diffusers, name)]  # older versions lack some
    fit = [name for name in here if given == set(signature(getattr(diffusers, name)).parameters)]
    if not fit or any(SCHEDULER_CLASSES[name] != SCHEDULER_CLASSES[fit[0]] for name in fit):
        which = f"the entries of {', '.join(fit)} alike" if fit else "the entries of no class"
        raise ValueError(f"config has no _class_name, and {which}: give the scheduler itself, or its _class_name too")
    return fit[0]
