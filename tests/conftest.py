import os
from importlib import import_module

import pytest
import torch
from hypothesis import settings

from time_tuner import NoiseScheduleVP

settings.register_profile("suite", deadline=None, derandomize=True, database=None)
settings.load_profile("suite")


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """The tensors here are small: threads only cost, also in processes that a test starts."""
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"


@pytest.fixture(scope="session")
def discrete() -> NoiseScheduleVP:
    """The 1000 levels of DDPM."""
    return NoiseScheduleVP(betas=torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64))


@pytest.fixture(scope="session")
def linear() -> NoiseScheduleVP:
    """A schedule smooth in time."""
    return NoiseScheduleVP("linear")


@pytest.fixture
def short_runs(monkeypatch: pytest.MonkeyPatch) -> int:
    """Runs of 10 calls where tuning draws samples of its own, has a teacher and compares with a reference run: for
    networks whose calls take long, in tests whose truth is not how near plans come to the exact solution."""
    places = {
        "OWN_CALLS": ("calibration", "costs"),
        "REFERENCE_CALLS": ("tune", "costs"),
        "CALLS": ("joint.teacher",),
    }
    for name, module in ((name, module) for name, modules in places.items() for module in modules):
        monkeypatch.setattr(import_module(f"time_tuner.tuners.{module}"), name, 10)
    return 10
