"""The configuration of a pipeline's scheduler: the noise schedule and the prediction type of its network."""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import Tensor

from .._checks import choose
from .._dtypes import wide
from ..models import predictions
from ..models.predictions import EDM, PREDICTIONS
from ..models.thresholding import dynamic_threshold
from ..plans.plan import Plan
from ..sampling import check_schedule
from ..schedules import NoiseSchedule, Point
from ..schedules.from_diffusers import OURS
from ..schedules.scheduler_facts import SchedulerFacts, scheduler_facts

PREDICTION_TYPES = {"epsilon": "noise", "sample": "x_start", "v_prediction": "v", "flow_prediction": "flow"}
"""The prediction types: their names in pipelines, and in `PREDICTIONS`."""

EDM_TYPES = {"epsilon": 1, "v_prediction": -1}
"""The prediction types of networks with EDM's preconditioning, and the sign of c_out there."""

NOT_DRIVEN = {
    "stochastic_sampling": "its model is distilled, and needs the predicted data with new noise in each step",
}
"""Entries of a scheduler that no plan honours, and why."""


@dataclass(frozen=True)
class Prediction:
    """What a pipeline passes to its scheduler at every call.

    Attributes:
        kind: a name in `PREDICTION_TYPES`.
        clip: the predicted data is kept in [-clip, clip]; None for data without bounds (latents).
        thresholding: (ratio, maximum) of `dynamically_thresholded`, which replaces the clipping; None without it.
        sigma_data: the deviation of the data in EDM's preconditioning of the network; None for other networks.
        inverted: whether the output is the opposite of its kind (a velocity towards the data).
    """

    kind: str = "epsilon"
    clip: float | None = None
    thresholding: tuple[float, float] | None = None
    sigma_data: float | None = None
    inverted: bool = False

    def __post_init__(self) -> None:
        choose("prediction_type", self.kind, PREDICTION_TYPES)
        if self.sigma_data is not None and self.kind not in EDM_TYPES:
            raise ValueError(
                f"prediction_type of a network with EDM's preconditioning must be one of {', '.join(EDM_TYPES)}, got "
                f"{self.kind!r}"
            )

    @cached_property
    def _of_network(self) -> predictions.Prediction:
        if self.sigma_data is None:
            return PREDICTIONS[PREDICTION_TYPES[self.kind]]
        return EDM(EDM_TYPES[self.kind], self.sigma_data)

    def network_input(self, x: Tensor, p: Point) -> Tensor:
        """The state x (B, ...) at point p as the network receives it."""
        return self._of_network.network_input(x, p).to(x.dtype)

    def read(self, quantity: str, output: Tensor, x: Tensor, p: Point) -> Tensor:
        """The noise ("eps") or the data ("x0") in the state x (B, C, ...) at point p, in float32 at least.

        Of a network with learned variance, whose `output` has 2 C channels, the first C are used.

        Raises:
            ValueError: the output is no tensor of this shape.
        """
        if not isinstance(output, Tensor) or output.shape != x.shape:
            output = _mean(output, x)
        output = wide(-output if self.inverted else output)
        free = self.clip is None and self.thresholding is None
        if free and quantity == "eps" and self.kind == "epsilon" and self.sigma_data is None:
            return output
        x, prediction = wide(x), self._of_network
        if free:
            return (prediction.data if quantity == "x0" else prediction.noise)(output, x, p)
        data = self._bounded(prediction.data(output, x, p))
        return data if quantity == "x0" else (x - p.alpha * data) / p.sigma

    def check(self, plan: Plan) -> None:
        """Raise a ValueError if the prediction does not determine the data where the plan starts."""
        if plan.point(0).alpha == 0 and not self._of_network.determines_data:
            raise ValueError(
                f"a prediction of the noise does not determine the data at alpha = 0 (t = {float(plan.t[0]):.4g}, zero "
                "terminal SNR): start at a lower time, or use a network that predicts the data, v or a flow"
            )

    def _bounded(self, data: Tensor) -> Tensor:
        if self.thresholding is None:
            return data if self.clip is None else data.clamp(-self.clip, self.clip)
        ratio, maximum = self.thresholding
        return dynamic_threshold(data, ratio, maximum=maximum)


GIVEN_DATA = Prediction("sample")
"""What a pipeline passes that has computed the predicted data itself."""


def _mean(output: Any, x: Tensor) -> Tensor:
    """The first half of the channels of a network with learned variance; a ValueError for anything else."""
    if isinstance(output, Tensor) and x.dim() > 1 and output.shape == (len(x), 2 * x.shape[1], *x.shape[2:]):
        return output[:, : x.shape[1]]
    got = f"shape {tuple(output.shape)}" if isinstance(output, Tensor) else type(output).__name__
    raise ValueError(
        f"model_output must be a tensor of the shape of the state, {tuple(x.shape)}, got {got}: give the "
        "network's output after guidance"
    )


def config_of(scheduler: Any) -> dict[str, Any]:
    """The configuration of a scheduler, or of the scheduler of a pipeline, with the name of its class; a configuration
    as it is."""
    if isinstance(scheduler, Mapping):
        return {**scheduler, "_class_name": OURS} if scheduler.get("plans") else dict(scheduler)
    scheduler = getattr(scheduler, "scheduler", scheduler)
    if not isinstance(getattr(scheduler, "config", None), Mapping):
        raise ValueError(f"config must be a pipeline, a scheduler or its configuration, got {type(scheduler).__name__}")
    return {**scheduler.config, "_class_name": type(scheduler).__name__}


def facts_of(config: Any, tokens: int | None = None, mu: float | None = None) -> SchedulerFacts:
    """What a pipeline's scheduler, which may be a `TimeTunerScheduler`, makes of its configuration.

    Args:
        config: the pipeline, its scheduler or the configuration of that.
        tokens, mu: the number of patches of a picture, or the shift that a pipeline computes from it, for a
            configuration with a shift that depends on it. Without them its schedule has the shift 1.

    Raises:
        ValueError: a class that is not read, or an entry that no plan honours.
    """
    entries = config_of(config)
    for name, reason in NOT_DRIVEN.items():
        if entries.get(name):
            raise ValueError(f"pipelines with {name}=True cannot be driven: {reason}")
    if tokens is None and mu is None:
        mu = 1.0 if entries.get("time_shift_type") == "linear" else 0.0
    source = entries if isinstance(config, Mapping) else getattr(config, "scheduler", config)
    facts = scheduler_facts(source, tokens, mu)
    facts.schedule.scheduler_config()  # raises where pipelines are not driven
    return facts


def schedule_of(config: Any, tokens: int | None = None, mu: float | None = None) -> NoiseSchedule:
    """The noise schedule that a pipeline's network was trained with; arguments as for `facts_of`.

    Raises:
        ValueError: as of `facts_of`; a dynamic shift without tokens or mu.
    """
    entries = config_of(config)
    if entries.get("plans"):
        return Plan.from_dict(entries["plans"][0]).schedule
    if entries.get("use_dynamic_shifting") and tokens is None and mu is None:
        raise ValueError(
            "use_dynamic_shifting needs tokens=, the number of patches of the image (4096 for 1024 x 1024)"
        )
    return facts_of(config, tokens, mu).schedule


def prediction_of(config: Any) -> Prediction:
    """What a pipeline with this scheduler, or scheduler configuration, passes to its scheduler."""
    entries = config_of(config)
    if entries.get("plans"):
        return prediction_of_entries(entries)
    facts = facts_of(config)
    sigma_data = facts.schedule.sigma_data
    return Prediction(facts.prediction_type, facts.clip, facts.thresholding, sigma_data, facts.inverted)


def prediction_of_entries(entries: Mapping[str, Any]) -> Prediction:
    """The prediction that the entries of a `TimeTunerScheduler` describe."""
    thresholds = (float(entries["dynamic_thresholding_ratio"]), float(entries["sample_max_value"]))
    return Prediction(
        entries["prediction_type"],
        float(entries["clip_sample_range"]) if entries["clip_sample"] else None,
        thresholds if entries["thresholding"] else None,
        Plan.from_dict(entries["plans"][0]).schedule.sigma_data,
        bool(entries.get("invert_sigmas")),
    )


def check_plan(plan: Plan, config: Any) -> None:
    """Raise a ValueError unless the plan was made for a network with this configuration."""
    made_for, is_for = plan.provenance.get("prediction_type"), prediction_of(config).kind
    if made_for not in (None, is_for):
        raise ValueError(
            f"plan was made for prediction_type={made_for!r}, the pipeline's network predicts "
            f"{is_for!r}: tune one for it"
        )
    entries = config_of(config)
    dynamic = entries.get("use_dynamic_shifting") and not entries.get("plans")
    schedule = facts_of(config).schedule if dynamic else schedule_of(config)
    if type(plan.schedule) is not type(schedule):
        raise ValueError(
            f"plan was made for another family: its noise schedule is {plan.schedule!r}, the pipeline's is {schedule!r}"
        )
    received = [getattr(one, "network_input", "sigma") for one in (plan.schedule, schedule)]
    if received[0] != received[1] and ("1 - sigma" in received or schedule.shift is None):
        raise ValueError(
            f"plan was made for a network that receives {received[0]}, the pipeline's network receives {received[1]}: "
            "make or tune one for it"
        )
    if plan.schedule.sigma_data != schedule.sigma_data:
        raise ValueError(
            f"plan was made for sigma_data={plan.schedule.sigma_data}, the pipeline's network has "
            f"sigma_data={schedule.sigma_data}: make or tune one for it"
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
