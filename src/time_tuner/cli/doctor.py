"""What is installed, what is missing, how fast a network is here, and whether the bundled models sample well."""

import importlib.metadata
import os
import platform
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.table import Table

from .. import __version__, data
from .._checks import check_device
from ..digits.metrics import digit_accuracy
from ..evaluation.drawing import decode, draw
from ..loading import load_model
from ..metrics import exact_moments
from ..models.exact import Gaussian
from ..plans.build import make_plan
from . import output
from .threads import best_threads, speeds_by_threads

PACKAGE = "time-tuner"
MODELS = ("latent-digits", "digits")  # of which the second one needs the extra diffusers
DIGITS, CALLS, RECOGNISED = 20, 10, 0.8  # samples, calls of a run, and the share that the classifier must recognise
NUMBERS = 4000  # samples of the Gaussian
SURE = 5.0  # standard errors that its moments may be off


@dataclass(frozen=True)
class Check:
    """Something that must hold: its name, whether it holds, and what was found."""

    name: str
    works: bool
    found: str


@dataclass(frozen=True)
class Examination:
    """What `doctor` has found.

    Attributes:
        versions: of time-tuner, Python, the system and the packages that are always needed.
        extras: of each extra, the versions of its packages by name; None for one that is missing or too old.
        machine: device, threads and speed.
        checks: what must hold.
    """

    versions: Mapping[str, str]
    extras: Mapping[str, Mapping[str, str | None]]
    machine: Mapping[str, str]
    checks: tuple[Check, ...]

    @property
    def works(self) -> bool:
        """Whether all holds that must hold. An extra may be missing."""
        return all(check.works for check in self.checks)

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        checks = {check.name: {"works": check.works, "found": check.found} for check in self.checks}
        values = {"versions": self.versions, "extras": self.extras, "machine": self.machine, "checks": checks}
        return values | {"works": self.works}

    def table(self) -> Table:
        """A line for each fact."""
        facts = dict(self.versions)
        for extra, packages in self.extras.items():
            found = ", ".join(f"{name} {version}" for name, version in packages.items() if version)
            missing = ", ".join(name for name, version in packages.items() if not version)
            install = f"missing: {missing}; pip install '{PACKAGE}[{extra}]'"
            facts[f"extra {extra}"] = "; ".join(filter(None, [found, install if missing else ""]))
        facts |= self.machine
        facts |= {check.name: f"{'works' if check.works else 'FAILS'}: {check.found}" for check in self.checks}
        return output.facts_table(facts)


def examine(device: str | None = None) -> Examination:
    """Look at the installation, time the bundled network, and check what it samples.

    Raises:
        ValueError: there is no such device here.
    """
    where = check_device(device)
    requirements = dict(_requirements())
    versions = {PACKAGE: __version__, "python": platform.python_version(), "system": platform.platform()}
    versions |= {name: version or "missing" for name, version in requirements.pop("", {}).items()}
    with output.waiting("timing the network"):
        machine = _machine(where)
    with output.waiting("drawing digits"):
        checks = (_gaussian(where), *_digits(requirements, where), *_places())
    return Examination(versions, requirements, machine, checks)


def _requirements() -> Iterator[tuple[str, dict[str, str | None]]]:
    """The packages of each extra, and those that are always needed under "", with the versions that are installed."""
    found: dict[str, dict[str, str | None]] = {}
    for line in importlib.metadata.requires(PACKAGE) or ():
        name = re.match(r"[\w.-]+", line)[0]  # type: ignore[index]
        extra, least = re.search(r"extra == ['\"](\w+)['\"]", line), re.search(r">=([\d.]+)", line)
        group = extra[1] if extra else ""
        if name != PACKAGE and group not in ("all", "dev"):
            found.setdefault(group, {})[name] = _version(name, least[1] if least else "0")
    yield from found.items()


def _version(package: str, least: str) -> str | None:
    """The version of a package that is installed; None if there is none, or an older one than the least."""
    try:
        version = importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
    numbers = [tuple(map(int, re.findall(r"\d+", text)[:2])) for text in (version, least)]
    return version if numbers[0] >= numbers[1] else None


def _machine(device: torch.device) -> dict[str, str]:
    """Device, threads, and the speed of the bundled network of latents, which needs no extra."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{os.cpu_count()} cores"
    facts = {"device": f"{device}, {name}"}
    if device.type == "cpu":
        facts["other devices"] = "cuda" if torch.cuda.is_available() else "none"
    model = load_model("latent-digits", device=device)
    speeds = speeds_by_threads(model, make_plan("ddim", model.schedule, 2), 16)
    default, best = torch.get_num_threads(), best_threads(speeds)
    facts["threads"] = f"{default}; one thread is faster here: set OMP_NUM_THREADS=1" if best != default else f"{best}"
    torch.set_num_threads(best)  # for the checks that follow
    facts["speed"] = f"{1e3 * speeds[best].evaluation:.1f} ms an evaluation of the network of latent-digits"
    return facts


def _gaussian(device: torch.device) -> Check:
    """The moments of samples are those that follow from the coefficients of the run."""
    model = load_model("gaussian", device=device)
    plan = make_plan("ddim", model.schedule, CALLS, "linspace")
    drawn = draw(model, plan, NUMBERS, 0, NUMBERS, lambda count: None).double()
    distribution = getattr(model, "distribution", None)
    assert isinstance(distribution, Gaussian)
    mean, std = (float(value.mean()) for value in exact_moments(distribution, plan))
    found_mean, found_std = float(drawn.mean()), float(drawn.std())
    error = std / NUMBERS**0.5
    works = abs(found_mean - mean) < SURE * error and abs(found_std - std) < SURE * error / 2**0.5
    return Check(
        "samples of gaussian",
        works,
        f"mean {found_mean:.2f} and standard deviation {found_std:.2f}, exact {mean:.2f} and {std:.2f}",
    )


def _digits(extras: Mapping[str, Mapping[str, str | None]], device: torch.device) -> Iterator[Check]:
    """A classifier that was trained apart recognises the digits that the bundled models were conditioned on."""
    labels = [i % 10 for i in range(DIGITS)]
    for name in MODELS:
        if name == "digits" and None in extras.get("diffusers", {"diffusers": None}).values():
            continue
        model = load_model(name, label=labels, device=device)
        plan = make_plan("ddim", model.schedule, CALLS, "leading")
        drawn = draw(model, plan, DIGITS, 0, DIGITS, lambda count: None)
        share = digit_accuracy(decode(model, drawn, DIGITS), labels)
        found = f"{share:.0%} of {DIGITS} digits are recognised, at least {RECOGNISED:.0%} must be"
        yield Check(f"samples of {name}", share >= RECOGNISED, found)


def _places() -> Iterator[Check]:
    """Plans and caches can be written where they are kept by default."""
    home = Path.home() / ".cache"
    hub = Path(os.environ.get("HF_HOME", home / "huggingface"))
    for name, folder in (
        ("current folder", Path.cwd()),
        ("cache of the Hub", Path(os.environ.get("HF_HUB_CACHE", hub / "hub"))),
        ("cache of torch", Path(os.environ.get("TORCH_HOME", home / "torch"))),
    ):
        try:
            data.check_writable(folder / "file")
        except ValueError as error:
            yield Check(name, False, str(error))
        else:
            yield Check(name, True, f"{folder} can be written")
