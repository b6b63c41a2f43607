"""What a plan is tuned on: data and noise, from seeds of their own."""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from numbers import Integral
from os import PathLike
from typing import Any

import torch
from torch import Tensor

from .._checks import accepts, check_device, check_int
from .._distributed import gathered, num_processes, rank, share, summed
from ..models.base import Model, as_model, check_prediction, check_state, own_share
from ..models.batching import BatchedModel
from ..models.counting import CostLog
from ..noise import DATA, HELD_OUT, NOISE, STEPS, Constraint, SeededNoise, first_seed
from ..plans.build import reference_plan
from ..plans.plan import Plan
from ..sampling import ModelLike, check_schedule, finite
from ..schedules import NoiseSchedule, Point
from .units import Units, runs

OWN_CALLS = 50  # of the runs that draw the model's own samples
ANSWERS = 100  # numbers of a prediction, by which a model is recognised,
ANSWERED = 16  # for so many samples


@dataclass(frozen=True)
class CalibrationBatch:
    """Data x0 and noise, both (B, ...), that a loss is averaged over, and the model under the conditions of the data.

    Of several processes that share work each has some of the samples, see `of_share`.

    Attributes:
        first: the seed of sample 0 for the noise of stochastic samplers.
        condition, unconditional: conditions (B, ...) for step functions of the user's, or None.
        constraint: of the noise, see `SeededNoise`.
        count: the samples of all processes; None where each has them all.
    """

    model: Model
    x0: Tensor
    noise: Tensor
    first: int
    condition: Any = None
    unconditional: Any = None
    constraint: Constraint | None = None
    count: int | None = None

    def __len__(self) -> int:
        """The number of samples, of all processes together."""
        return len(self.x0) if self.count is None else self.count

    def mean(self, losses: Tensor) -> Tensor:
        """The mean () of the losses of its samples (B,), over all processes; its gradient is that of this process's
        part of the mean, see `summed`."""
        if self.count is None:
            return losses.mean()
        if not losses.requires_grad:
            return gathered(losses, self.count).mean()
        own = losses.sum() * ((rank() < self.count) / self.count)  # a process more than samples has one of another
        return own + (summed(own) - own.detach())

    def mean_gradient(self, gradient: Tensor) -> Tensor:
        """The gradient of a `mean`, of its part in this process."""
        return gradient if self.count is None else summed(gradient)

    def at(self, p: Point) -> Tensor:
        """The state alpha x_0 + sigma eps, (B, ...)."""
        return p.alpha * self.x0 + p.sigma * self.noise

    def step_noise(self, k: int) -> Tensor:
        """The noise that a stochastic sampler draws at call k, (B, ...): the same in every run."""
        first = self.first + first_seed(0, STEPS) + (k + 1) * len(self)
        return SeededNoise(self.seeds(first), self.constraint)(self.x0)

    def seeds(self, first: int) -> int | list[int]:
        """The seeds of its samples, where that of sample 0 is `first`."""
        return first if self.count is None else (first + share(self.count)).tolist()


class Calibration:
    """Data x_0 and noise to tune on, and noise for the guard, which has seeds of its own.

    Args:
        eps: a model, or a function `eps(x, t, tau)`.
        schedule: its noise schedule.
        data: x_0 as a tensor (n, ...), or an iterable of samples or of batches; a batch may also be a mapping with an
            `image`, or a tuple that begins with one. None: the ends of 50-call runs of the model, its own samples.
        samples: the number of samples to tune on, and of those for the guard.
        seed: of all noise.
        shape: of one sample; needed where neither the data nor the model have one.
        device: where the model is.
        cost_log: where the network calls for own samples are counted.
        noise: maps standard normal noise (B, ...) to the noise of the model, see `SeededNoise`; None for the same.

    Attributes:
        teacher_runs: the runs of a teacher, for plans that are tuned on the same ones.
        units: where own samples, the teacher's runs and the reference run are kept as they are made; None for nowhere.

    Raises:
        ValueError: unusable data, shape or device.
    """

    def __init__(
        self,
        eps: ModelLike,
        schedule: NoiseSchedule,
        data: Any = None,
        samples: int = 256,
        seed: int = 0,
        shape: tuple[int, ...] | None = None,
        device: torch.device | str = "cpu",
        cost_log: CostLog | None = None,
        noise: Constraint | None = None,
    ) -> None:
        self.samples, self.seed = check_int("samples", samples, 2), check_int("seed", seed)
        sizes = shape if isinstance(shape, Sequence) else ()
        if shape is not None and not (sizes and all(isinstance(size, Integral) and size > 0 for size in sizes)):
            raise ValueError(f"shape must be that of one sample, as in (3, 32, 32), got {shape!r}")
        model = as_model(eps, schedule, shape)
        self.model = model if isinstance(model, BatchedModel) else BatchedModel(model, samples)
        self.schedule, self.device, self.cost_log = schedule, check_device(device), cost_log or CostLog()
        self.teacher_runs: dict[str, Any] = {}
        self.units: Units | None = None
        known = self.model.shape if shape is None else shape
        self._data = None if data is None else _gather(data, samples, None if known is None else tuple(known))
        if self._data is not None:
            known = self._data.shape[1:]
        if known is None:
            raise ValueError("shape= of one sample is needed: neither data nor eps.shape has it")
        self.shape, self.constraint = tuple(known), noise
        if noise is not None:
            self._check_constraint(noise)

    def states(self, seeds: Sequence[int]) -> Tensor:
        """Noise (n, ...), a sample for each of these seeds: standard normal, under the constraint."""
        return SeededNoise(seeds, self.constraint)(torch.empty(len(seeds), *self.shape, device=self.device))

    def _noise(self, purpose: int, count: int) -> Tensor:
        first = first_seed(self.seed, purpose)
        return self.states(range(first, first + count))

    @contextmanager
    def keeping(self, units: Units | None, cost_log: CostLog, owner: str = "") -> Iterator[None]:
        """Own samples, the teacher's runs and the reference run are kept in these units, and counted in this log, in
        the block. Units that were made for another owner cost nothing."""
        before, self.units = self.units, units
        if units is not None:
            units.cost_log, units.owner, units.counted = cost_log, owner, {}
        try:
            yield
        finally:
            self.units = before

    def held_out(self, times: int = 1) -> Tensor:
        """Noise for the guard, (times * samples, ...), on which nothing is tuned; that for fewer times is its first."""
        return self._noise(HELD_OUT, times * self.samples)

    def trial(self, model: Model) -> CalibrationBatch:
        """Two samples, of noise in place of data: for calls that only show whether something works."""
        x0 = self._noise(DATA, 2)
        first = first_seed(self.seed, NOISE)
        return CalibrationBatch(model, x0, SeededNoise(first, self.constraint)(x0), first, constraint=self.constraint)

    def check(self, model: Model, plan: Plan) -> None:
        """Raise a ValueError if the data are too few for the conditions of the model, or the calibration is made for
        another schedule than that of the plan."""
        check_schedule(self.schedule, plan)
        count = self.samples if self._data is None else min(self.samples, len(self._data))
        if model.num_conditions is not None and model.num_conditions > count:
            name = "samples" if count == self.samples else "data"
            raise ValueError(
                f"{name} must be at least as many as the model has conditions, {model.num_conditions}, got {count}"
            )

    @torch.no_grad()
    def try_run(self, name: str, model: Model, plan: Plan) -> None:
        """Raise a ValueError if a run of the model cannot begin, found by a call with two samples."""
        begins = f"the {name} begins at t = {float(plan.t[0]):.4g}, where"
        x = plan.initial_state(self.trial(model).noise)
        try:
            prediction = model.predict(plan.rows[0].predicts, x, plan.t[0], plan.taus[0])
        except ValueError as error:
            raise ValueError(f"{begins} the model cannot be called: {error}") from error
        if not finite(check_prediction(prediction, x)):
            raise ValueError(f"{begins} eps returned NaN or infinity")

    @cached_property
    def x0(self) -> Tensor:
        """Data to tune on, (samples, ...); fewer where fewer were given."""
        if self._data is None:
            x, plan = self._noise(DATA, self.samples), reference_plan(self.schedule, 0.0, OWN_CALLS)
            with self.cost_log.purpose("data"):
                return runs(self.units, "own samples", self.model, plan, x, self.model.batch)
        order = torch.randperm(len(self._data), generator=torch.Generator().manual_seed(first_seed(self.seed, DATA)))
        return self._data[order[: self.samples]].to(self.device)

    @property
    def own(self) -> bool:
        """Whether the data are the model's own samples."""
        return self._data is None

    @property
    def drawn(self) -> bool:
        """Whether there are data: given ones, or own samples that have been drawn."""
        return not self.own or "x0" in self.__dict__

    @property
    def fingerprint(self) -> str:
        """A text that differs between data."""
        if self._data is None:
            return "own samples"
        numbers = self._data.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
        return hashlib.sha256(numbers.tobytes()).hexdigest()[:16]

    @torch.no_grad()
    def answer(self, model: Model, samples: int = ANSWERED) -> list[float]:
        """Some numbers of a model's prediction for so many samples of noise, by which the model is recognised."""
        p = self.schedule.at(torch.tensor(self.schedule.T / 2, dtype=torch.float64))
        prediction = model(float(p.scale) * self.states(range(samples)), p.t, p.t)
        prediction = prediction.cpu().double().flatten().nan_to_num()
        return [float(f"{value:.4g}") for value in prediction[:: max(1, len(prediction) // ANSWERS)][:ANSWERS]]

    def fixed(self, model: Model) -> CalibrationBatch:
        """The data with noise, the same at every call."""
        return self._batch(model, self.x0, first_seed(self.seed, NOISE))

    def batch(self, model: Model, i: int, size: int) -> CalibrationBatch:
        """Batch i of an endless stream: data drawn with replacement from all there are, with fresh noise."""
        pool = self.x0 if self._data is None else self._data
        first = first_seed(self.seed, NOISE) + (i + 1) * size
        pick = torch.randint(len(pool), (size,), generator=torch.Generator().manual_seed(first))
        return self._batch(model, pool[pick].to(self.device), first)

    def _batch(self, model: Model, x0: Tensor, first: int) -> CalibrationBatch:
        count = None if num_processes() == 1 else len(x0)
        model, rows = own_share(model, len(x0))
        batch = CalibrationBatch(model, x0[rows], x0[rows], first, constraint=self.constraint, count=count)
        return replace(batch, noise=SeededNoise(batch.seeds(first), self.constraint)(batch.x0))

    def _check_constraint(self, noise: Constraint) -> None:
        """Raise a ValueError unless it maps noise to noise of the same shape, the same at every call."""
        if not accepts(noise, 1):
            raise ValueError(f"noise must be a function of noise (B, ...), got {noise!r}")
        drawn = SeededNoise(0)(torch.empty(2, *self.shape, device=self.device))
        first, again = (noise(drawn.clone()) for _ in range(2))
        if not isinstance(first, Tensor) or first.shape != drawn.shape or not torch.equal(first, again):
            got = f"shape {tuple(first.shape)}" if isinstance(first, Tensor) else type(first).__name__
            got = "another result at the second call" if got == f"shape {tuple(drawn.shape)}" else got
            raise ValueError(
                f"noise must map noise that was drawn, {tuple(drawn.shape)}, to noise of this shape, without drawing "
                f"any itself, as in lambda z: z - z.mean(1, keepdim=True), got {got}"
            )
        if not torch.allclose(noise(drawn[:1].clone()), first[:1], rtol=1e-4, atol=1e-5):
            raise ValueError(
                "noise must map each sample on its own, whatever the batch, as in lambda z: z - z.mean(1, "
                "keepdim=True), got another result for a sample alone than in a batch of two"
            )


def losses_of(name: str, values: Any, samples: int, mean: bool = False) -> Tensor:
    """The losses (B,) that a function of the user's returned, or their mean () where that will do, in float64; a
    ValueError for anything else."""
    if isinstance(values, Tensor) and (values.shape == (samples,) or (mean and not values.dim())):
        return values.cpu().double()
    got = f"shape {tuple(values.shape)}" if isinstance(values, Tensor) else type(values).__name__
    raise ValueError(
        f"{name} must return a tensor with a number for each sample, of shape ({samples},), "
        f"{'or their mean, ' if mean else ''}got {got}"
    )


def _gather(data: Any, samples: int, shape: tuple[int, ...] | None) -> Tensor:
    """At least so many samples (n, ...) of the data, all of a tensor, in floating point."""
    if isinstance(data, str | PathLike):
        raise ValueError(
            f"data must be a tensor (n, ...) or an iterable of x0, got the path {str(data)!r}: "
            "time_tuner.data.load_data(path, shape) reads folders of images and .npz files"
        )
    if not isinstance(data, Iterable):
        raise ValueError(f"data must be a tensor (n, ...) or an iterable of x0, got {type(data).__name__}")
    parts: list[Tensor] = []
    for item in () if isinstance(data, Tensor) else data:
        if isinstance(item, Mapping):
            if "image" not in item:
                raise ValueError(f"data yields mappings without 'image', with {sorted(item)}")
            item = item["image"]
        elif isinstance(item, list | tuple):
            item = item[0]
        x = torch.as_tensor(item)
        parts.append(x[None] if x.shape == shape else x)
        if sum(map(len, parts)) >= samples:
            break
    if not (parts or isinstance(data, Tensor)):
        raise ValueError("data is empty: give at least one batch of x0")
    gathered = data if isinstance(data, Tensor) else torch.cat(parts)
    if gathered.dim() < 2 or not len(gathered) or (shape is not None and gathered.shape[1:] != shape):
        wanted = "(n, ...)" if shape is None else str(("n", *shape)).replace("'", "")
        way_out = "; with shape= of one sample single samples are known from batches" if shape is None else ""
        raise ValueError(f"data must have shape {wanted} with n >= 1, got {tuple(gathered.shape)}{way_out}")
    if not torch.isfinite(gathered).all():
        raise ValueError("data must be finite, got NaN or infinity in it")
    numbers = gathered if gathered.is_floating_point() or gathered.is_complex() else gathered.float()
    return check_state("data", numbers, real=True)
