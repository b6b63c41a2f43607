"""The configuration of a pipeline's scheduler: the noise schedule and the prediction type of its network."""

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .._checks import choose
from ..models.predictions import PREDICTIONS
from ..plans.plan import Plan
from ..sampling import check_schedule
from ..schedules import NoiseSchedule, Point, schedule_from

PREDICTION_TYPES = {"epsilon": "noise", "sample": "x_start", "v_prediction": "v", "flow_prediction": "flow"}
"""The prediction types: their names in pipelines, and in `PREDICTIONS`."""


@dataclass(frozen=True)
class Prediction:
    """What a pipeline gives its scheduler at every call.

    Attributes:
        kind: a name in `PREDICTION_TYPES`.
        clip: the predicted data is kept in [-clip, clip]; None for data without bounds (latents).
    """

    kind: str = "epsilon"
    clip: float | None = None

    def __post_init__(self) -> None:
        choose("prediction_type", self.kind, PREDICTION_TYPES)

    def read(self, quantity: str, output: Tensor, x: Tensor, p: Point) -> Tensor:
        """The noise ("eps") or the data ("x0") in the state x (B, C, ...) at point p, in float32 at least.

        Of a network with learned variance, whose `output` has 2 C channels, the first C are used.
        """
        if x.dim() > 1 and output.shape[1] == 2 * x.shape[1]:
            output = output[:, : x.shape[1]]
        if x.dtype in (torch.float16, torch.bfloat16):
            output, x = output.float(), x.float()
        prediction = PREDICTIONS[PREDICTION_TYPES[self.kind]]
        if self.clip is None:
            return (prediction.data if quantity == "x0" else prediction.noise)(output, x, p)
        data = prediction.data(output, x, p).clamp(-self.clip, self.clip)
        return data if quantity == "x0" else (x - p.alpha * data) / p.sigma


def config_of(scheduler: Any) -> dict[str, Any]:
    """The configuration of a scheduler, or of the scheduler of a pipeline, with the name of its class; a configuration
    as it is."""
    if isinstance(scheduler, Mapping):
        return dict(scheduler)
    scheduler = getattr(scheduler, "scheduler", scheduler)
    if not isinstance(getattr(scheduler, "config", None), Mapping):
        raise ValueError(f"config must be a pipeline, a scheduler or its configuration, got {type(scheduler).__name__}")
    return {**scheduler.config, "_class_name": type(scheduler).__name__}


def schedule_of(config: Mapping[str, Any], tokens: int | None = None, mu: float | None = None) -> NoiseSchedule:
    """The noise schedule that a pipeline's network was trained with.

    Args:
        config: of the pipeline's scheduler, which may be a `TimeTunerScheduler`.
        tokens, mu: the number of patches of a picture, or the shift that a pipeline computes from it, for a
            configuration with a shift that depends on it.

    Raises:
        ValueError: the configuration is not recognised, or has an option that is not supported.
    """
    if config.get("plans"):
        return Plan.from_dict(config["plans"][0]).schedule
    for option in ("thresholding", "invert_sigmas", "stochastic_sampling"):
        if config.get(option):
            raise ValueError(f"scheduler option {option}=True is not supported: build the scheduler without it")
    if config.get("use_dynamic_shifting") and mu is not None:
        shift = mu if config.get("time_shift_type") == "linear" else math.exp(mu)
        config = {**config, "use_dynamic_shifting": False, "shift": shift}
    schedule = schedule_from(config, tokens)
    schedule.scheduler_config()  # raises where pipelines are not driven
    return schedule


def prediction_of(config: Mapping[str, Any]) -> Prediction:
    """What a pipeline with this scheduler configuration gives its scheduler."""
    usual = schedule_of({**config, "use_dynamic_shifting": False}).scheduler_config()["prediction_type"]
    kind = config.get("prediction_type") or usual
    return Prediction(kind, float(config.get("clip_sample_range") or 1.0) if config.get("clip_sample") else None)


def check_plan(plan: Plan, config: Mapping[str, Any]) -> None:
    """Raise a ValueError unless the plan was made for a network with this configuration."""
    made_for, is_for = plan.provenance.get("prediction_type"), prediction_of(config).kind
    if made_for not in (None, is_for):
        raise ValueError(
            f"plan was made for prediction_type={made_for!r}, the pipeline's network predicts "
            f"{is_for!r}: tune one for it"
        )
    dynamic = bool(config.get("use_dynamic_shifting"))
    schedule = schedule_of({**config, "use_dynamic_shifting": False})
    if type(plan.schedule) is not type(schedule):
        raise ValueError(
            f"plan was made for another family: its noise schedule is {plan.schedule!r}, the pipeline's is {schedule!r}"
        )
    if not dynamic:
        check_schedule(schedule, plan)


def warn_of_other_pipeline(plan: Plan, pipe: Any) -> None:
    """Warn if the plan was tuned for a pipeline of another class than this one."""
    made_for, name = plan.provenance.get("pipeline"), type(pipe).__name__
    if hasattr(pipe, "scheduler") and made_for not in (None, name):
        warnings.warn(
            f"plan was tuned for a {made_for}, and is used in a {name}: tune one for it, unless both have one network",
            UserWarning,
            stacklevel=3,
        )
