"""Samplers, one file a family. To add one, write a frozen dataclass and name it in the table."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from .base import Evaluation, Noise, Sampler
from .ddim import DDIM
from .ddpm import DDPM
from .deis import DEIS
from .dpm import DPMSolver, DPMSolverPPSingle
from .dpmpp import DPMSolverPP, SDEDPMSolverPP
from .euler import Euler, EulerAncestral
from .heun import Heun
from .pndm import IPNDM, PNDM
from .unipc import UniPC

__all__ = ["SAMPLERS", "Evaluation", "Noise", "Sampler", "sampler_from_dict", "sampler_to_dict"]

SAMPLERS: dict[str, type[Sampler]] = {
    "ddpm": DDPM,
    "ddim": DDIM,
    "euler": Euler,
    "euler_ancestral": EulerAncestral,
    "heun": Heun,
    "dpm": DPMSolver,
    "dpmpp": DPMSolverPP,
    "dpmpp_single": DPMSolverPPSingle,
    "sde_dpmpp": SDEDPMSolverPP,
    "unipc": UniPC,
    "deis": DEIS,
    "ipndm": IPNDM,
    "pndm": PNDM,
}
"""Every sampler by its name on the command line and in plan files."""


def sampler_to_dict(sampler: Sampler) -> dict[str, Any]:
    """Its name in the table and its options, as JSON holds them.

    Raises:
        ValueError: the sampler's class is not in the table.
    """
    for name, kind in SAMPLERS.items():
        if type(sampler) is kind:
            return {"name": name} | {f.name: getattr(sampler, f.name) for f in fields(kind)}  # type: ignore[arg-type]
    raise ValueError(f"{type(sampler).__name__} is not in SAMPLERS: add it there, SAMPLERS['my-name'] = its class")


def sampler_from_dict(values: Mapping[str, Any]) -> Sampler:
    """The inverse of `sampler_to_dict`; options that are left out have their defaults.

    Raises:
        ValueError: an unknown name or option, or a value the option does not take.
    """
    options = dict(values)
    name = options.pop("name", None)
    if not isinstance(name, str) or name not in SAMPLERS:
        raise ValueError(f"sampler must be one of {', '.join(SAMPLERS)}, got {name!r}")
    known = [f.name for f in fields(SAMPLERS[name])]  # type: ignore[arg-type]
    unknown = [option for option in options if option not in known]
    if any("churn" in option for option in unknown):
        raise ValueError(
            f"sampler {name!r} has no churn: it would call the network at noise that the plan has no point for; "
            "for fresh noise on the way take 'ddim' with eta, or 'ddpm'"
        )
    if unknown:
        takes = ", ".join(known) or "none"
        raise ValueError(f"sampler {name!r} has no option {unknown[0]!r}; its options: {takes}")
    return SAMPLERS[name](**options)
