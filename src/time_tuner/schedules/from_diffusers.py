"""The noise schedule of a diffusers scheduler, of its configuration, or of alphas_cumprod."""

import math
from collections.abc import Mapping
from functools import cache
from inspect import signature
from logging import getLogger
from typing import Any

import torch
from torch import Tensor

from .._checks import choose
from .._files import one_line
from .base import NoiseSchedule, as_float64
from .betas import BETA_SCHEDULES, MOST_LEVELS, checked_levels, named_betas, rescaled_to_zero_snr
from .flow import NoiseScheduleFlow, mu_of
from .scheduler_classes import MARKS, REFUSED, SCHEDULER_CLASSES
from .ve import NoiseScheduleVE
from .vp import NoiseScheduleVP

SMALLEST = 2.0**-24
"""What diffusers' solvers in sigma / alpha put for the alphas_cumprod of 0 at zero terminal SNR."""

OURS = "TimeTunerScheduler"
"""The class in `time_tuner.diffusers` whose configuration holds that of the scheduler which it replaced."""

COSMOS2 = "FlowMatchEulerDiscreteScheduler"
"""The class that makes the grid of Cosmos 2, with entries of EDM's beside its own."""

COSMOS2_ENTRIES = ("sigma_min", "sigma_max", "sigma_data", "final_sigmas_type")

WAY_OUT = "give the schedule of its network, NoiseScheduleVP, NoiseScheduleVE or NoiseScheduleFlow, or alphas_cumprod"


def schedule_from(config: Any, tokens: int | None = None, mu: float | None = None) -> NoiseSchedule:
    """The noise schedule that a diffusers scheduler, its configuration, or a list of alphas_cumprod describes.

    Of a configuration that names its class, as `scheduler_config.json` does, diffusers makes the scheduler, with the
    defaults of the class. The noise is read from the scheduler: its alphas_cumprod, EDM's sigmas, or the shift of a
    rectified flow. The scheduler's grid is not; see `SchedulerFacts.times`. A configuration without a class is read
    where its entries determine the noise. For a distilled model a warning is logged once.

    Args:
        config: a scheduler object (one with a `config`), its configuration (a mapping), or alphas_cumprod (N,).
        tokens: the number of patches of the image, for a scheduler whose shift depends on it (`use_dynamic_shifting`);
            see `resolution_shift`, which is the rule of Flux.1.
        mu: that shift itself, as pipelines pass it to `set_timesteps`, instead of tokens.

    Returns:
        The noise schedule.

    Raises:
        ValueError: a class that is not known, or is for models of another kind; entries that do not determine the
            noise; a dynamic shift without tokens or mu.
    """
    entries = getattr(config, "config", config)
    if not isinstance(entries, Mapping):
        if isinstance(entries, Tensor) or (hasattr(entries, "__len__") and not isinstance(entries, str)):
            return NoiseScheduleVP(alphas_cumprod=entries)
        raise ValueError(
            f"config must be a scheduler, its configuration or alphas_cumprod (N,), got {type(entries).__name__}"
        )
    _check_entries(entries)
    name = class_name(config)
    scheduler = scheduler_of(config, name) if name else None
    try:
        if name and scheduler is not None:
            schedule = schedule_of_class(scheduler, name, tokens, mu)
        else:
            schedule = _schedule_of_entries(entries, tokens, mu)
    except (TypeError, RuntimeError, ArithmeticError, AttributeError, KeyError) as error:  # entries of another kind
        raise ValueError(f"config has an entry that cannot be used ({one_line(error)}): {WAY_OUT}") from None
    if entries.get("invert_sigmas") and schedule.shift is not None:
        raise ValueError(
            "invert_sigmas=True is for a network that receives 1 - sigma and predicts the velocity towards the data: "
            "wrap it so that it receives sigma and predicts the noise minus the data, and give the configuration "
            "without invert_sigmas"
        )
    if reason := distilled(config):
        _warn(reason)
    return schedule


def _check_entries(entries: Mapping[str, Any]) -> None:
    """Raise a ValueError for entries of a stranger's configuration by which arrays of any size would be made."""
    for name in ("_class_name", "made_from"):
        if not isinstance(entries.get(name), str | None):
            raise ValueError(f"{name} of a scheduler must be the name of its class, got {str(entries[name])[:40]}")
    for name in ("num_train_timesteps", "original_inference_steps", "num_inference_steps", "solver_order"):
        value = entries.get(name)
        if value is not None and not (isinstance(value, int | float) and abs(value) <= MOST_LEVELS):
            raise ValueError(f"{name} of a scheduler must be a number up to {MOST_LEVELS}, got {str(value)[:40]}")


def distilled(config: Any) -> str | None:
    """What the model of a scheduler, or of its configuration, was distilled to; None for others, as far as it shows.

    The network of such a model predicts the end of a long step: solvers of an ODE do not converge with it.

    Args:
        config: a scheduler, or its configuration.

    Returns:
        The kind of the distilled model in words, or None.
    """
    entries = getattr(config, "config", config)
    if not isinstance(entries, Mapping):
        return None
    name = class_name(config) or _marked(entries)
    if name in SCHEDULER_CLASSES and SCHEDULER_CLASSES[name].distilled:
        return f"{name} is for {SCHEDULER_CLASSES[name].distilled}"
    if entries.get("stochastic_sampling") and name in (None, "FlowMatchEulerDiscreteScheduler"):
        return "stochastic_sampling=True adds new noise to the predicted data in each step, as distilled models need it"
    return None


def class_name(config: Any) -> str | None:
    """The name of the scheduler class in `SCHEDULER_CLASSES` or `REFUSED` of an object, or the one that a configuration
    names; the class that a scheduler of this library replaced."""
    entries = getattr(config, "config", config)
    names = [entries.get("_class_name")] if entries is config else [kind.__name__ for kind in type(config).__mro__]
    if names[0] == OURS:
        names = [entries.get("made_from")]
    return next((name for name in names if name in SCHEDULER_CLASSES or name in REFUSED), names[0])


def scheduler_of(config: Any, name: str) -> Any:
    """The scheduler itself, or the one that diffusers makes of a configuration; None where diffusers is missing.

    Raises:
        ValueError: a class that is not read, or a configuration that it does not take.
    """
    _check_known(name)
    entries = getattr(config, "config", config)
    if entries is not config and type(config).__name__ != OURS:
        return config
    try:
        import diffusers
    except ImportError:
        return None
    kind = getattr(diffusers, name)
    grid_of = SCHEDULER_CLASSES[name].grid_of
    if grid_of and hasattr(kind, "_backends"):  # a package is missing that its noise needs, and its grid does not
        kind = _stand_in(name, getattr(diffusers, grid_of))
    cosmos2 = COSMOS2_ENTRIES if name == COSMOS2 and entries.get("sigma_data") is not None else ()
    beside = {key: entries[key] for key in cosmos2 if key in entries}
    kept = {key: value for key, value in entries.items() if key not in beside}
    if entries.get("plans"):  # of this library, whose own entries the class does not have
        kept = {key: value for key, value in kept.items() if key in signature(kind).parameters}
    try:
        made = kind.from_config(kept | {"_class_name": name})
        made.register_to_config(**beside)
        return made
    except Exception as error:  # whatever a class raises of its entries, or of a package that it lacks
        line = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise ValueError(f"diffusers makes no {name} of this configuration ({line}): {WAY_OUT}") from None


def schedule_of_class(scheduler: Any, name: str, tokens: int | None = None, mu: float | None = None) -> NoiseSchedule:
    """The noise schedule of a scheduler of this class."""
    entries, kind = own_entries(scheduler, name), SCHEDULER_CLASSES[name]
    if kind.noise == "edm":
        return NoiseScheduleVE(
            entries["sigma_min"], entries["sigma_max"], entries["sigma_data"], kind.network_input or "log"
        )
    if name == COSMOS2 and scheduler.config.get("sigma_data") is not None:
        return _cosmos2(scheduler.config)
    if kind.noise == "flow" or entries.get("use_flow_sigmas"):
        # Where it is a property it may have been set since; elsewhere it is an entry.
        shift = scheduler.shift if isinstance(getattr(type(scheduler), "shift", None), property) else None
        return _flow(scheduler.config, entries, shift, tokens, mu)
    if entries.get("prediction_type") == "flow_prediction":
        raise ValueError(
            f"{name} with prediction_type='flow_prediction' needs use_flow_sigmas=True: the states of a flow are not "
            "those of its betas"
        )
    schedule = _betas(entries, as_float64(scheduler.alphas_cumprod))
    if entries.get("timestep_type") == "continuous" and entries.get("prediction_type") == "v_prediction":
        # Stable Video Diffusion: EDM's preconditioning for data of deviation 1, the network receives log(sigma) / 4.
        least, most = (float(schedule.sigma_ratio(t)) for t in (schedule.t_min, schedule.T))
        return NoiseScheduleVE(entries.get("sigma_min") or least, entries.get("sigma_max") or most, 1.0)
    return schedule


def _cosmos2(config: Mapping[str, Any]) -> NoiseScheduleVE:
    """The schedule of Cosmos 2, from the configuration of its scheduler.

    Its pipelines run in EDM's sigma: the states are x_0 + sigma eps, the network is that of a flow and receives
    sigma / (1 + sigma), and the pipelines compute the noise from its output.
    """
    if not any(map(config.get, ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas"))):
        raise ValueError(
            f"{COSMOS2} with sigma_data={config['sigma_data']} is the scheduler of Cosmos 2, whose sigmas run from "
            "sigma_max to sigma_min only with use_karras_sigmas=True (or exponential or beta sigmas): set it"
        )
    return NoiseScheduleVE(_entry(config, "sigma_min"), _entry(config, "sigma_max"), None, "flow")


@cache
def _stand_in(name: str, kind: type) -> type:
    """A class of this name with the grid of another class."""
    return type(name, (kind,), {})


def own_entries(scheduler: Any, name: str) -> dict[str, Any]:
    """The entries of a scheduler's configuration that its class reads: the arguments of its constructor."""
    kind = next(kind for kind in type(scheduler).__mro__ if kind.__name__ == name)
    if grid_of := SCHEDULER_CLASSES[name].grid_of:
        import diffusers

        kind = getattr(diffusers, grid_of)
    arguments = signature(kind).parameters.values()
    return {a.name: scheduler.config.get(a.name, a.default) for a in arguments if a.default is not a.empty}


def _marked(config: Mapping[str, Any]) -> str | None:
    """The class that the entries of a configuration without a name belong to, if they belong to a single kind."""
    return next((name for entry, name in MARKS.items() if entry in config), None)


def _check_known(name: str | None) -> None:
    if name in REFUSED:
        raise ValueError(f"{name} {REFUSED[name]}")
    if name is not None and name not in SCHEDULER_CLASSES:
        raise ValueError(f"the scheduler class {name!r} is not known: {WAY_OUT}")


def _schedule_of_entries(config: Mapping[str, Any], tokens: int | None, mu: float | None) -> NoiseSchedule:
    """The noise schedule of a configuration without a class, or without diffusers at hand."""
    if not config.get("_class_name"):
        _check_known(_marked(config))
    if "shift" in config and config.get("sigma_data") is not None:
        return _cosmos2(config)
    if config.get("use_flow_sigmas") or config.get("prediction_type") == "flow_prediction" or "shift" in config:
        if {key for key in config if not key.startswith("_")} == {"shift"}:
            raise ValueError(_lacks("num_train_timesteps", config))
        return _flow(config, config, None, tokens, mu)
    if config.get("sigma_data") is not None:
        cosine = "solver_order" in config and "algorithm_type" not in config  # CosineDPMSolverMultistepScheduler
        low, high, deviation = (_entry(config, name) for name in ("sigma_min", "sigma_max", "sigma_data"))
        return NoiseScheduleVE(low, high, deviation, "arctan" if cosine else "log")
    if config.get("timestep_type") == "continuous" and config.get("prediction_type") == "v_prediction":
        return NoiseScheduleVE(_entry(config, "sigma_min"), _entry(config, "sigma_max"), 1.0)
    if config.get("trained_betas") is not None:
        return _betas(config, None)
    if "beta_schedule" in config or "beta_start" in config:
        if "CogVideoX" in str(config.get("_class_name")):
            _entry(config, "snr_shift_scale")
        name = choose("beta schedule", _entry(config, "beta_schedule"), BETA_SCHEDULES)
        if name != "squaredcos_cap_v2":
            for entry in ("beta_start", "beta_end"):
                _entry(config, entry)
        return _betas(config, None)
    raise ValueError(
        "config has neither betas (beta_start, beta_schedule, trained_betas), nor EDM's sigma_data, nor a flow's "
        f"shift; it has {', '.join(sorted(map(str, config))) or 'nothing'}"
    )


def _entry(config: Mapping[str, Any], name: str) -> Any:
    if config.get(name) is None:
        raise ValueError(_lacks(name, config))
    return config[name]


def _lacks(name: str, config: Mapping[str, Any]) -> str:
    way_out = "install diffusers" if config.get("_class_name") else "give the scheduler itself, or its _class_name too"
    return f"config lacks {name}, whose default depends on the scheduler's class: {way_out}"


def _betas(config: Mapping[str, Any], theirs: Tensor | None) -> NoiseScheduleVP:
    """The schedule of betas, in float64 where the scheduler has rounded the same numbers to float32.

    Args:
        config: the entries.
        theirs: the alphas_cumprod of the scheduler, (N,); None if there is none.
    """
    betas = config.get("trained_betas")
    name = config.get("beta_schedule", "linear")
    if betas is None and name in BETA_SCHEDULES:
        betas = named_betas(
            name,
            config.get("num_train_timesteps", 1000),
            config.get("beta_start", 1e-4),
            config.get("beta_end", 0.02),
        )
    if betas is None:  # a name that diffusers alone has
        return NoiseScheduleVP(alphas_cumprod=theirs)
    shift = config.get("snr_shift_scale", 1.0)
    if shift == 1 and not config.get("rescale_betas_zero_snr"):
        schedule = NoiseScheduleVP(betas=betas)
    else:
        alphas = torch.exp(torch.log1p(-as_float64(checked_levels("betas", betas))).cumsum(0))
        alphas = alphas / (shift + (1 - shift) * alphas)
        if config.get("rescale_betas_zero_snr"):
            alphas = rescaled_to_zero_snr(alphas)
        schedule = NoiseScheduleVP(alphas_cumprod=alphas)
    if theirs is None:
        return schedule
    ours = schedule.at(torch.arange(1, schedule.total_N + 1, dtype=torch.float64) / schedule.total_N).alpha
    same = ours.shape == theirs.shape
    if same:
        near = (ours - theirs.sqrt()).abs() < 1e-5
        near[-1] |= bool(ours[-1] == 0) and bool(theirs[-1] <= SMALLEST)
        same = bool(near.all())
    return schedule if same else NoiseScheduleVP(alphas_cumprod=theirs)


def _flow(
    config: Mapping[str, Any], own: Mapping[str, Any], shift: float | None, tokens: int | None, mu: float | None
) -> NoiseScheduleFlow:
    """The schedule of a flow.

    Args:
        config: all entries: a pipeline reads those of its dynamic shift, whether or not the class has them.
        own: the entries that the class reads.
        shift: the static shift of the scheduler, which may have been set since; None for that of the entries.
        tokens, mu: for a dynamic shift, see `schedule_from`.
    """
    scale, received = float(own.get("num_train_timesteps", 1000)), "1 - sigma" if own.get("invert_sigmas") else "sigma"
    if not own.get("use_dynamic_shifting"):
        entry = own.get("flow_shift") if own.get("use_flow_sigmas") else own.get("shift")
        shift = entry if shift is None else shift
        return NoiseScheduleFlow(1.0 if shift is None else float(shift), scale, received)
    if mu is None and tokens is None:
        raise ValueError(
            "use_dynamic_shifting needs tokens=, the number of patches of the image (4096 for 1024 x 1024), or mu="
        )
    if mu is None:
        mu = mu_of(
            float(tokens or 0),
            config.get("base_shift", 0.5),
            config.get("max_shift", 1.15),
            config.get("base_image_seq_len", 256),
            config.get("max_image_seq_len", 4096),
        )
    return NoiseScheduleFlow(mu if own.get("time_shift_type") == "linear" else math.exp(mu), scale, received)


@cache
def _warn(reason: str) -> None:
    """Log a warning of a distilled model, once each."""
    getLogger("time_tuner").warning(
        "%s: solvers of an ODE do not converge with their networks; for consistency models there is the sampler lcm",
        reason,
    )
