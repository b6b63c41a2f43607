"""Samplers, one file a family. To add one, write a frozen dataclass and name it in the table."""

from collections.abc import Mapping
from dataclasses import Field, fields, is_dataclass, replace
from typing import Any

from .._checks import check_options
from .._spec import build, parse_call
from .base import Evaluation, Noise, Sampler
from .ddim import DDIM
from .ddpm import DDPM
from .deis import DEIS
from .dpm import DPMSolver, DPMSolverPPSingle
from .dpmpp import DPMSolverPP, SDEDPMSolverPP
from .heun import Heun
from .lcm import LCM
from .pndm import IPNDM, PNDM
from .unipc import UniPC

__all__ = [
    "SAMPLERS",
    "Evaluation",
    "Noise",
    "Sampler",
    "sampler_from_dict",
    "sampler_of",
    "sampler_text",
    "sampler_to_dict",
]

SAMPLERS: dict[str, type[Sampler]] = {
    "ddpm": DDPM,
    "ddim": DDIM,
    "heun": Heun,
    "dpm": DPMSolver,
    "dpmpp": DPMSolverPP,
    "dpmpp_single": DPMSolverPPSingle,
    "sde_dpmpp": SDEDPMSolverPP,
    "unipc": UniPC,
    "deis": DEIS,
    "ipndm": IPNDM,
    "pndm": PNDM,
    "lcm": LCM,
}
"""Every sampler by its name in texts and in plan files."""

SAME = {"euler": "ddim(eta=0)", "euler_ancestral": "ddim(eta=1)"}
"""Names that other libraries have for samplers of the table."""


def sampler_of(sampler: Sampler | str, **options: Any) -> Sampler:
    """The sampler of a text `name(option=value, ...)`, such as "ddim(eta=0.5)", or the given sampler itself.

    Args:
        sampler: a sampler, or the text of one.
        **options: options that replace those of the sampler.

    Returns:
        The sampler.

    Raises:
        ValueError: another text, an unknown name or option, or a value that the option does not take.
    """
    if isinstance(sampler, str):
        name, written = parse_call(sampler)
        return _build(name, written | options)
    if not isinstance(sampler, Sampler):
        raise ValueError(f"sampler must be a sampler or a text such as 'ddim(eta=0.5)', got {sampler!r}")
    check_options(type(sampler).__name__, options, _options_of(type(sampler)))
    return replace(sampler, **options) if options else sampler  # type: ignore[type-var]


def sampler_to_dict(sampler: Sampler) -> dict[str, Any]:
    """The name of the sampler in the table and its options, as plain JSON values.

    Args:
        sampler: a sampler whose class is in the table.

    Returns:
        The entry `name` and one entry for each option.

    Raises:
        ValueError: the sampler's class is not in the table.
    """
    for name, kind in SAMPLERS.items():
        if type(sampler) is kind:
            return {"name": name} | {option: getattr(sampler, option) for option in _options_of(kind)}
    raise ValueError(f"{type(sampler).__name__} is not in SAMPLERS: add it there, SAMPLERS['my-name'] = its class")


def sampler_text(sampler: Sampler) -> str:
    """The text from which `sampler_of` makes this sampler, with the options that are not usual, such as
    "ddim(eta=0.5)"; of a sampler that is not in the table its class.

    Args:
        sampler: any sampler.

    Returns:
        The text.
    """
    name = next((name for name, kind in SAMPLERS.items() if kind is type(sampler)), type(sampler).__name__)
    known: tuple[Field[Any], ...] = fields(sampler) if is_dataclass(sampler) else ()
    given = [f"{f.name}={getattr(sampler, f.name)}" for f in known if getattr(sampler, f.name) != f.default]
    return f"{name}({', '.join(given)})" if given else name


def sampler_from_dict(values: Mapping[str, Any]) -> Sampler:
    """The inverse of `sampler_to_dict`; options that are left out have their defaults.

    Args:
        values: the entry `name` and the options.

    Returns:
        The sampler.

    Raises:
        ValueError: an unknown name or option, or a value that the option does not take.
    """
    return _build(values.get("name"), {option: value for option, value in values.items() if option != "name"})


def _build(name: Any, options: Mapping[str, Any]) -> Sampler:
    if isinstance(name, str) and name in SAME.keys() - SAMPLERS.keys():
        raise ValueError(f"there is no sampler {name!r}: take {SAME[name]}, which is the same")
    if any("churn" in option for option in options):
        raise ValueError(
            f"sampler {name!r} has no churn: it would call the network at noise that the plan has no point for; "
            "for fresh noise at every step take ddim with eta, or ddpm"
        )
    return build("sampler", SAMPLERS, name, options)


def _options_of(kind: type[Sampler]) -> list[str]:
    return [field.name for field in fields(kind)] if is_dataclass(kind) else []
