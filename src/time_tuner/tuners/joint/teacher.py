"""What joint tuning learns from: noise, and where a many-step run of the same model takes it."""

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor
from tqdm import tqdm

from ..._files import replacing
from ...models.base import Model, for_rows
from ...models.counting import Cost
from ...noise import SeededNoise
from ...plans.build import reference_plan
from ...plans.plan import Plan
from ...samplers.unipc import UniPC
from ...sampling import sample
from ..base import TuningRun
from ..budget import forward

BATCH = 64
CALLS, ORDER = 40, 3  # on digits these end nearer than 60 of DPM-Solver++(2M), and tuning sees every end that is off


@dataclass(frozen=True)
class Pairs:
    """Noise x and the ends y of the teacher's runs from it, both (N, ...)."""

    x: Tensor
    y: Tensor

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, rows: Tensor) -> "Pairs":
        return Pairs(self.x[rows], self.y[rows])


def usual_teacher(plan: Plan) -> Plan:
    """The many-step plan that a plan learns from unless it is given another one."""
    return reference_plan(plan.schedule, float(plan.t[-1]), max(CALLS, len(plan)), UniPC(ORDER))


def teaching(runs: int, calls: int, batch: int | None) -> Cost:
    """What so many runs of a teacher cost, in network calls of at most `batch` samples, see `teach`."""
    return forward(runs, min(BATCH, batch or BATCH)) * calls


@torch.no_grad()
def teach(
    model: Model,
    plan: Plan,
    first: int,
    like: Tensor,
    run: TuningRun,
    cache: Path | None = None,
    batch: int | None = None,
) -> Pairs:
    """The pairs of the seeds `first`, `first + 1`, ..., as many as `like` (N, ...) has rows; pair i is under condition i
    modulo the number of conditions of the model.

    They are made 64 at a time, or as many of these as fill network calls of `batch` samples. With a `cache` they are on
    disk as soon as they are done: a run that was interrupted goes on from there, and one that has all of it calls the
    model for a single pair, to see that it is still the same model.

    Raises:
        ValueError: the cache was made by another teacher, from other noise, or with another model.
    """
    x = SeededNoise(first)(like)
    made = {"teacher": described(plan), "first": str(first), "shape": str(tuple(x.shape[1:]))}
    ends = x[:0] if cache is None or not cache.exists() else _read(cache, made).to(x)
    bar = tqdm(
        total=len(x), initial=min(len(ends), len(x)), desc="teacher", unit="run", disable=None if run.shown else True
    )
    with bar, run.cost_log.purpose("teacher"):
        if len(ends):
            again = sample(for_rows(model, torch.arange(1)), plan, plan.initial_state(x[:1]))
            if not torch.allclose(again, ends[:1], rtol=1e-2, atol=1e-2):
                raise ValueError(f"{cache} was made with another model, or under other conditions: name another file")
        at_once = BATCH // batch * batch if batch and batch < BATCH else BATCH
        while len(ends) < len(x):
            rows = torch.arange(len(ends), min(len(ends) + at_once, len(x)))
            end = sample(for_rows(model, rows), plan, plan.initial_state(x[rows]))
            ends = torch.cat([ends, end])
            if cache is not None:
                _write(cache, ends, made)
            bar.update(len(rows))
    return Pairs(x, ends[: len(x)])


def described(plan: Plan) -> str:
    """A plan in a line of text, by which it is known again."""
    return f"{plan.sampler!r} at {[round(float(t), 9) for t in plan.t]}"


def _read(path: Path, made: dict[str, str]) -> Tensor:
    try:
        with safe_open(str(path), framework="pt") as file:
            held: dict[str, str] = file.metadata() or {}
            ends: Tensor = file.get_tensor("ends")
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is no teacher file: {error}") from None
    words = {"teacher": "teacher", "first": "seed", "shape": "shape of samples"}
    other = [words[name] for name, value in made.items() if held.get(name) != value]
    if other:
        raise ValueError(f"{path} holds runs with another {', another '.join(other)}: name another file, or remove it")
    return ends


def _write(path: Path, ends: Tensor, made: dict[str, str]) -> None:
    with replacing(path) as file:
        file.write(save({"ends": ends.cpu().contiguous()}, metadata=made))
