"""The teacher of joint tuning: a many-step run of the same model, whose ends the plan's runs are to reach."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..._files import replacing
from ...models.base import for_rows
from ...models.batching import BatchedModel
from ...models.counting import Cost
from ...noise import TEACHER, first_seed
from ...plans.build import reference_plan
from ...plans.plan import Plan
from ...samplers.unipc import UniPC
from ...sampling import sample
from ..base import TuningRun
from ..budget import forward

CALLS, ORDER = 40, 3  # on digits these end nearer than 60 of DPM-Solver++(2M), and tuning sees every error of an end
AT_ONCE = 64  # runs
FEWEST, MOST = 8, 2048  # pairs; long tuning on few pairs fits them alone, more than so many gain little
SHARE = 0.25  # of a budget of seconds that the teacher takes at most


@dataclass(frozen=True)
class Pairs:
    """Noise x and the ends y of the teacher's runs from it, both (N, ...)."""

    x: Tensor
    y: Tensor

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, rows: Tensor | slice) -> "Pairs":
        return Pairs(self.x[rows], self.y[rows])


def usual_teacher(plan: Plan) -> Plan:
    """The teacher of a plan by default: 40 calls of UniPC(3), or as many as the plan has."""
    return reference_plan(plan.schedule, float(plan.t[-1]), max(CALLS, len(plan)), UniPC(ORDER))


def teacher_cost(pairs: int, calls: int, batch: int | None) -> Cost:
    """The cost of so many pairs of a teacher of so many calls."""
    return forward(pairs, min(AT_ONCE, batch or AT_ONCE)) * calls


@torch.no_grad()
def teach(
    model: BatchedModel, teacher: Plan, run: TuningRun, pairs: int | None = None, cache: Path | None = None
) -> Pairs:
    """Pairs of a teacher. Pair i is from the i-th seed of the calibration, and under condition i modulo the number of
    conditions of the model.

    There are at most `pairs`, 2048 by default. In a budget of seconds no run begins that is not expected to end within
    a quarter of them, by the pace so far. The cache is a .safetensors file that keeps the ends: an interrupted run
    continues from there, and a finished one makes a single run again, to check that the model is the same; a ValueError
    if it was made by another teacher, from another seed, or with another model.
    """
    calibration, first = run.calibration, first_seed(run.calibration.seed, TEACHER)
    made = {"teacher": described(teacher), "first": str(first), "shape": str(calibration.shape)}

    def end(begin: int, stop: int) -> Tensor:
        rows, x = torch.arange(begin, stop), calibration.states(range(first + begin, first + stop))
        return sample(for_rows(model, rows), teacher, teacher.initial_state(x))

    batch, most = model.batch, MOST if pairs is None else pairs
    at_once = AT_ONCE // batch * batch if batch and batch < AT_ONCE else AT_ONCE
    limit = None if run.state else run.budget.seconds  # a continued run makes the pairs that it had
    ends = calibration.states(range(0))
    with run.cost_log.purpose("teacher"):
        if cache is not None and cache.exists():
            ends = _read(cache, made).to(ends)[:most]
            if not torch.allclose(end(0, 1), ends[:1], rtol=1e-2, atol=1e-2):
                raise ValueError(f"{cache} was made with another model, or under other conditions: name another file")
        done, seconds, count = len(ends), run.seconds, at_once
        while len(ends) < most:
            if limit is not None:
                new, before, seconds = len(ends) - done, seconds, run.seconds
                done, pace = len(ends), (seconds - before) / max(new, 1)  # of the runs just made
                if not new or done < FEWEST:
                    count = FEWEST if seconds < limit else 0
                else:
                    left = int((SHARE * limit - seconds) / max(pace, 1e-9))
                    # A quarter of what is left at a time: a machine that becomes four times as slow is in time.
                    count = max(0, min(at_once, left, max(FEWEST, left // 4)))
            if not count:
                break
            ends = torch.cat([ends, end(len(ends), min(len(ends) + count, most))])
            if cache is not None:
                _write(cache, ends, made)
    return Pairs(calibration.states(range(first, first + len(ends))), ends)


def described(plan: Plan) -> str:
    """A text by which a plan is recognised."""
    return f"{plan.sampler!r} at {[round(float(t), 9) for t in plan.t]}"


def _read(path: Path, made: dict[str, str]) -> Tensor:
    from safetensors import SafetensorError, safe_open

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
    from safetensors.torch import save

    with replacing(path) as file:
        file.write(save({"ends": ends.cpu().contiguous()}, metadata=made))
