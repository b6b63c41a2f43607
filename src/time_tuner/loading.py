"""Models by name: bundled digits as pixels or as latents, bundled pictograms, the tutorial's Gaussian, a function, or a
saved pipeline."""

import importlib
from collections.abc import Callable
from dataclasses import fields
from functools import cache, partial
from inspect import Parameter, signature
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ._checks import check_device, check_options, choose, require
from .digits.networks import NULL_LABEL, PixelNetwork, linear_betas
from .models.base import Model, ModelAround, as_model
from .models.conditions import Conditions
from .models.exact import Gaussian
from .models.wrapper import model_wrapper
from .pictograms.network import SHAPE, PictogramNetwork
from .schedules import NoiseScheduleVP

if TYPE_CHECKING:
    from .digits.latent import LatentDigits


def load_model(name: str, label: Any = None, guidance_scale: float | None = None, **conditions: Any) -> Model:
    """A model by name, with the shape of its samples.

    Args:
        name: "digits": the bundled network for 28 x 28 digits in [-1, 1]; "latent-digits": the one for their latents
            (4, 7, 7), of which the model's `decode` makes digits; "pictograms": the bundled network for 24 x 24 colour
            pictures in [-1, 1], without conditions; "gaussian": the tutorial's exact N(5, 2^2);
            "package.module:function": a function that returns a `Model` with a shape, or a function eps(x, t, tau) with
            the attributes `schedule` and `shape`; it receives those of the conditions that are among its parameters;
            or a diffusers pipeline: the folder that it was saved to, or its id on the Hub.
        label: for digits and pipelines of classes: a label, or several, which samples have in a cycle; None for any.
        guidance_scale: of classifier-free guidance; the model's own by default, which is 1 (none) for digits.
        **conditions: see `Conditions`.

    Returns:
        The model under the given conditions, on the given device.

    Raises:
        ValueError: names the argument, what was got and the way out.
    """
    check_options("load_model", conditions, [field.name for field in fields(Conditions)])
    return loader_of(name)(Conditions(label, guidance_scale=guidance_scale, **conditions))


def loader_of(name: str) -> Callable[[Conditions], Model]:
    """The function that loads a model by name. The name is checked here, and a module of the user's is imported, but no
    network is loaded."""
    if Path(name).suffix == ".py" or ".py:" in name:
        module, _, function = name.partition(":")
        raise ValueError(
            f"model must be package.module:function, got the file {name!r}: in the folder of the file give "
            f"{Path(module).stem}:{function or 'FUNCTION'}, a function in it that returns a model"
        )
    if name in BUNDLED:
        return BUNDLED[name]
    if _is_pipeline(name):
        require("diffusers", "diffusers")
        from .diffusers.loading import check_folder, load_pipeline

        check_folder(name)
        return partial(load_pipeline, name)
    if ":" in name:
        return partial(_from_function, name, imported("model", name))
    other = ("package.module:function", "the folder or Hub id of a diffusers pipeline")
    return BUNDLED[choose("model", name, [*BUNDLED, *other])]


def model_facts(name: str) -> dict[str, Any]:
    """What is known of a model by name, as texts by name; of a pipeline also its parts."""
    if _is_pipeline(name):
        from .diffusers.loading import pipeline_facts

        return pipeline_facts(name)
    model = load_model(name)
    return {"schedule": model.schedule, "shape of a sample": model.shape, "conditions": model.num_conditions}


def _is_pipeline(name: str) -> bool:
    return name not in BUNDLED and (Path(name).is_dir() or ("/" in name and ":" not in name))


class _DecodedModel(ModelAround):
    """A model of latents with their decoder."""

    def __init__(self, inner: Model, decoder: Callable[[Tensor], Tensor]) -> None:
        super().__init__(inner)
        self.decoder, self.has_decoder = decoder, True

    def decode(self, x: Tensor) -> Tensor:
        return self.decoder(x)


def _gaussian(conditions: Conditions) -> Model:
    _check("gaussian", conditions, "device")
    model = Gaussian(5.0, 2.0).eps(NoiseScheduleVP("discrete", betas=linear_betas()))
    model.spacing, model.device = "linspace", check_device(conditions.device)  # the tutorial's own grid
    return model


def _digits(name: str, conditions: Conditions) -> Model:
    """The bundled network of digits under labels, with guidance: as pixels, or as latents with their decoder."""
    _check(name, conditions, "label", "guidance_scale", "device")
    labels, scale = torch.tensor([NULL_LABEL]), conditions.guidance_scale
    if conditions.label is not None:
        try:
            labels = torch.as_tensor(conditions.label)
        except (TypeError, ValueError, RuntimeError):
            labels = torch.empty(0)
        if labels.is_floating_point() or labels.dim() > 1 or not ((labels >= 0) & (labels <= 9)).all():
            raise ValueError(f"label must be a digit 0 to 9, or several, got {conditions.label!r}")
    elif scale not in (None, 1):
        raise ValueError(f"guidance_scale={scale} needs label=, the digit to guide to (0 to 9)")
    device, schedule = check_device(conditions.device), NoiseScheduleVP("discrete", betas=linear_betas())
    wrapped = partial(
        model_wrapper,
        noise_schedule=schedule,
        guidance_type="classifier-free",
        guidance_scale=1.0 if scale is None else scale,
    )
    unconditional = torch.tensor([NULL_LABEL])
    if name == "digits":
        require("diffusers", "diffusers")
        return wrapped(_pixel_network(device), shape=(1, 28, 28)).bind(labels, unconditional)
    latent = _latent_network(device)
    model = wrapped(latent.network, shape=latent.shape, cond_process_fn=latent.embed).bind(labels, unconditional)
    return _DecodedModel(model, latent.decode)


def _pictograms(conditions: Conditions) -> Model:
    """The bundled network of colour pictures."""
    _check("pictograms", conditions, "device")
    require("diffusers", "diffusers")
    network = _pictogram_network(check_device(conditions.device))
    schedule = NoiseScheduleVP("discrete", betas=linear_betas())
    return model_wrapper(network, schedule, "v", shape=SHAPE).bind()


BUNDLED: dict[str, Callable[[Conditions], Model]] = {
    "digits": partial(_digits, "digits"),
    "latent-digits": partial(_digits, "latent-digits"),
    "pictograms": _pictograms,
    "gaussian": _gaussian,
}
"""The models that come with the library."""


@cache
def _pixel_network(device: torch.device) -> PixelNetwork:
    return PixelNetwork().to(device)


@cache
def _pictogram_network(device: torch.device) -> PictogramNetwork:
    return PictogramNetwork().to(device)


@cache
def _latent_network(device: torch.device) -> "LatentDigits":
    from .digits.latent import load_latent_digits

    return load_latent_digits().to(device)


def imported(argument: str, name: str) -> Callable[..., Any]:
    """The function of a name package.module:function, which is the value of an argument."""
    module, _, function = name.partition(":")
    try:
        made: Any = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"{argument} {name!r} cannot be imported: {error}") from error
    if not callable(made):
        raise ValueError(f"{argument} {name!r} must be a function, got {type(made).__name__}")
    return made  # type: ignore[no-any-return]


def _from_function(name: str, function: Callable[..., Any], conditions: Conditions) -> Model:
    """The model that a function of the user's returns, for the conditions among its parameters."""
    parameters = signature(function).parameters
    _check(name, conditions, *parameters, way_out="leave it out, or give the function that parameter")
    values, given = vars(conditions), conditions.given()
    variable = (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD)
    needed = [p.name for p in parameters.values() if p.default is p.empty and p.kind not in variable]
    if unknown := [one for one in needed if one not in values]:
        raise ValueError(
            f"model {name!r} needs the argument {unknown[0]!r}: a function that returns a model receives "
            f"{', '.join(values)}, where these are among its parameters, and nothing else"
        )
    made = function(**{one: values[one] for one in parameters if one in given or one in needed})
    try:
        model = as_model(made)
    except ValueError as error:
        raise ValueError(f"model {name!r} returned no model: {error}") from None
    if model.shape is None:
        raise ValueError(
            f"model {name!r} must return a model with the shape of a sample, got {type(made).__name__} without one: "
            "model_wrapper(..., shape=(3, 32, 32)), or give the function the attributes schedule and shape"
        )
    return model


def _check(name: str, conditions: Conditions, *known: str, way_out: str = "leave it out") -> None:
    """Raise a ValueError for a condition that the model does not have."""
    for condition in conditions.given():
        if condition not in (*known, "batch"):
            raise ValueError(f"model {name!r} has no {condition}: {way_out}")
