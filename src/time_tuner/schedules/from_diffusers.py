"""The noise schedule of a diffusers scheduler, of its configuration, or of alphas_cumprod."""

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from .base import NoiseSchedule
from .betas import named_betas, rescale_zero_terminal_snr
from .flow import NoiseScheduleFlow, mu_of
from .ve import NoiseScheduleVE
from .vp import NoiseScheduleVP


def schedule_from(config: Any, tokens: int | None = None) -> NoiseSchedule:
    """The noise schedule that a diffusers scheduler, its configuration, or a list of alphas_cumprod describes.

    The entries of the training noise are read: betas with their rescaling, EDM's sigmas, or the shift of a rectified
    flow. The entries of the scheduler's grid are not; a grid is a spacing.

    Args:
        config: a scheduler object (one with a `config`), its configuration (a mapping, as in `scheduler_config.json`),
            or alphas_cumprod (N,).
        tokens: the number of patches of the image, for a configuration whose shift depends on it
            (`use_dynamic_shifting`); see `resolution_shift`.

    Raises:
        ValueError: the configuration describes no known noise, or it has a dynamic shift and there are no tokens.
    """
    config = getattr(config, "config", config)
    if not isinstance(config, Mapping):
        if isinstance(config, Tensor) or (hasattr(config, "__len__") and not isinstance(config, str)):
            return NoiseScheduleVP(alphas_cumprod=config)
        raise ValueError(
            f"config must be a scheduler, its configuration or alphas_cumprod (N,), got {type(config).__name__}"
        )
    if config.get("use_flow_sigmas") or config.get("prediction_type") == "flow_prediction" or "shift" in config:
        return _flow(config, tokens)
    if config.get("sigma_data") is not None and config.get("prediction_type") != "trigflow":
        return NoiseScheduleVE(config.get("sigma_min", 0.002), config.get("sigma_max", 80.0), config["sigma_data"])
    if config.get("timestep_type") == "continuous" and config.get("sigma_max") is not None:
        # Stable Video Diffusion: EDM's preconditioning for data of deviation 1, the network receives log(sigma) / 4.
        return NoiseScheduleVE(config.get("sigma_min") or 0.002, config["sigma_max"], 1.0)
    if config.get("trained_betas") is not None or "beta_start" in config or "beta_schedule" in config:
        return _discrete(config)
    raise ValueError(
        "config has neither betas (beta_start, beta_schedule, trained_betas), nor EDM's sigma_data, nor a flow's "
        f"shift; it has {', '.join(sorted(map(str, config))) or 'nothing'}"
    )


def _discrete(config: Mapping[str, Any]) -> NoiseScheduleVP:
    betas = config.get("trained_betas")
    if betas is None:
        betas = named_betas(
            config.get("beta_schedule", "linear"),
            config.get("num_train_timesteps", 1000),
            config.get("beta_start", 1e-4),
            config.get("beta_end", 0.02),
        )
    if config.get("rescale_betas_zero_snr"):
        return NoiseScheduleVP(alphas_cumprod=rescale_zero_terminal_snr(betas))
    return NoiseScheduleVP(betas=betas)


def _flow(config: Mapping[str, Any], tokens: int | None) -> NoiseScheduleFlow:
    if config.get("invert_sigmas"):
        raise ValueError(
            "invert_sigmas=True is for a network that receives 1 - sigma: wrap it so that it receives sigma, "
            "and give the configuration without invert_sigmas"
        )
    scale = float(config.get("num_train_timesteps", 1000))
    if not config.get("use_dynamic_shifting"):
        return NoiseScheduleFlow(float(config.get("shift") or config.get("flow_shift") or 1.0), scale)
    if tokens is None:
        raise ValueError(
            "use_dynamic_shifting needs tokens=, the number of patches of the image (4096 for 1024 x 1024)"
        )
    mu = mu_of(
        tokens,
        config.get("base_shift", 0.5),
        config.get("max_shift", 1.15),
        config.get("base_image_seq_len", 256),
        config.get("max_image_seq_len", 4096),
    )
    return NoiseScheduleFlow(mu if config.get("time_shift_type") == "linear" else math.exp(mu), scale)
