"""Models by name: bundled digits as pixels or as latents, the tutorial's Gaussian, or a function of the user's own."""

import importlib
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .digits.networks import NULL_LABEL, _pixel_network, linear_betas
from .models.base import Model, as_model
from .models.exact import Gaussian
from .models.wrapper import model_wrapper
from .schedules import NoiseScheduleVP


def load_model(name: str, label: int | Sequence[int] | Tensor | None = None, guidance_scale: float = 1.0) -> Model:
    """A model by name.

    Args:
        name: "digits": the bundled network for 28 x 28 digits in [-1, 1]; "latent-digits": the one for their latents
            (4, 7, 7), which `time_tuner.digits.latent` decodes; "gaussian": the tutorial's exact N(5, 2^2);
            "package.module:function": a function of yours that takes no arguments (or `label` and `guidance_scale`,
            if it names them) and returns a `Model` with a shape, or a function eps(x, t, tau) that carries `schedule`
            and `shape`.
        label: for digits, 0 to 9, or several, which samples have in turn; None draws digits of every kind.
        guidance_scale: classifier-free guidance, w in eps_u + w (eps_c - eps_u); needs a label unless 1.

    Raises:
        ValueError: names the argument, what was got and the way out.
    """
    if name == "digits":
        return _digits(_pixel_network(), (1, 28, 28), label, guidance_scale)
    if name == "latent-digits":
        from .digits.latent import load_latent_digits

        model = load_latent_digits()
        return _digits(model.network, model.shape, label, guidance_scale, model.embed)
    if name == "gaussian":
        if label is not None or guidance_scale != 1:
            raise ValueError("model 'gaussian' has no labels: leave out label and guidance_scale")
        schedule = NoiseScheduleVP("discrete", betas=linear_betas())
        return Gaussian(5.0, 2.0).eps(schedule)
    if ":" in name:
        return _from_function(name, label, guidance_scale)
    raise ValueError(
        f"model must be 'digits', 'latent-digits', 'gaussian' or 'package.module:function' (on the "
        f"command line also the folder of a diffusers pipeline), got {name!r}"
    )


def _digits(
    network: Callable[..., Tensor],
    shape: tuple[int, ...],
    label: int | Sequence[int] | Tensor | None,
    guidance_scale: float,
    embed: Callable[[Tensor], Tensor] | None = None,
) -> Model:
    """A network of digits, without guidance where no label is given."""
    no_label = torch.tensor([NULL_LABEL])
    if label is None:
        if guidance_scale != 1:
            raise ValueError(f"guidance_scale={guidance_scale} needs label=, the digit to guide to (0 to 9)")
        labels = no_label
    else:
        labels = torch.as_tensor(label)
        if labels.is_floating_point() or labels.dim() > 1 or not ((labels >= 0) & (labels <= 9)).all():
            raise ValueError(f"label must be a digit 0 to 9, or one for each sample, got {label!r}")
    schedule = NoiseScheduleVP("discrete", betas=linear_betas())
    wrapped = model_wrapper(
        network,
        schedule,
        guidance_type="classifier-free",
        guidance_scale=guidance_scale,
        cond_process_fn=embed,
        shape=shape,
    )
    return wrapped.bind(labels, no_label)


def _from_function(name: str, label: Any, guidance_scale: float) -> Model:
    module, _, function = name.partition(":")
    try:
        make = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"model {name!r} cannot be imported: {error}") from error
    if not callable(make):
        raise ValueError(f"model {name!r} must be a function, got {type(make).__name__}")
    takes = inspect.signature(make).parameters
    given = {"label": (label, None), "guidance_scale": (guidance_scale, 1.0)}
    for option, (value, default) in given.items():
        if value != default and option not in takes:
            raise ValueError(f"model {name!r} takes no {option}: leave it out, or give the function that argument")
    left = [p.name for p in takes.values() if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    if wanted := [one for one in left if one not in given]:
        raise ValueError(
            f"model {name!r} wants the argument {wanted[0]!r}: a function that returns a model is given label and "
            "guidance_scale, where it names them, and nothing else"
        )
    made = make(**{option: value for option, (value, _) in given.items() if option in takes})
    try:
        model = as_model(made)
    except ValueError as error:
        raise ValueError(f"model {name!r} returned no model: {error}") from None
    if model.shape is None:
        raise ValueError(
            f"model {name!r} must return a model that knows the shape of a sample, got {type(made).__name__} without "
            "one: model_wrapper(..., shape=(3, 32, 32)), or give the function the attributes schedule and shape"
        )
    return model
