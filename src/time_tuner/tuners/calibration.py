"""What a plan is tuned on: data and noise, drawn from seeds of their own."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from numbers import Integral
from typing import Any

import torch
from torch import Tensor

from .._checks import check_int
from ..models.base import Model, as_model
from ..models.batching import BatchedModel
from ..models.counting import CostLog
from ..noise import DATA, HELD_OUT, NOISE, STEPS, SeededNoise, first_seed
from ..plans.build import reference_plan
from ..sampling import ModelLike, sample
from ..schedules import NoiseSchedule, Point

ANSWERS = 100  # numbers by which a model is known again
OWN_CALLS = 50  # of the runs that the model's own samples are the ends of


@dataclass(frozen=True)
class CalibrationBatch:
    """Data and noise that a loss is averaged over, and the model as it sees them.

    Attributes:
        model: `eps(x, t, tau)`, under the conditions that belong to the data.
        x0, noise: the data and the noise in it, both (B, ...).
        first: seed of sample 0 for the draws of stochastic samplers.
        condition: what belongs to the data, (B, ...), where a step function of the user's asks for it.
    """

    model: Model
    x0: Tensor
    noise: Tensor
    first: int
    condition: Any = None

    def at(self, p: Point) -> Tensor:
        """x = alpha x_0 + sigma eps."""
        return p.alpha * self.x0 + p.sigma * self.noise

    def step_noise(self, k: int) -> Tensor:
        """What a stochastic sampler draws at call k: the same whenever it is asked."""
        return SeededNoise(self.first + first_seed(0, STEPS) + (k + 1) * len(self.x0))(self.x0)


class Calibration:
    """Data x_0 and noise to tune on, and noise to judge on, which has seeds of its own.

    Args:
        eps, schedule: the model.
        data: x_0 as a tensor (n, ...), or an iterable of samples or of batches; a batch may also be a mapping with an
            `image`, or a tuple that starts with one. None: the ends of 50-call runs of the model itself.
        samples: how many to tune on, and to judge on.
        seed: of everything that is drawn.
        shape: of one sample; needed when neither data nor `eps.shape` tells.
        device: where the model is.
        cost_log: where the network calls for the model's own samples are counted.
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
    ) -> None:
        samples, seed = check_int("samples", samples, 2), check_int("seed", seed)
        sizes = shape if isinstance(shape, Sequence) else ()
        if shape is not None and not (sizes and all(isinstance(size, Integral) and size > 0 for size in sizes)):
            raise ValueError(f"shape must be that of one sample, as in (3, 32, 32), got {shape!r}")
        model = as_model(eps, schedule, shape)
        self.model = model if isinstance(model, BatchedModel) else BatchedModel(model, samples)
        self.cost_log = CostLog() if cost_log is None else cost_log
        self.schedule, self.samples, self.seed, self.device = schedule, samples, seed, device
        known = self.model.shape if shape is None else shape
        self.taught: dict[Any, Any] = {}  # runs of a teacher, for plans that are tuned on them one after another
        self._data = None if data is None else _gather(data, samples, None if known is None else tuple(known))
        if self._data is not None:
            if not torch.isfinite(self._data).all():
                raise ValueError("data must be finite, got NaN or infinity in it")
            known = self._data.shape[1:]
        if known is None:
            raise ValueError("shape= of one sample is needed: neither data nor eps.shape tells it")
        self.shape = tuple(known)

    def _empty(self, n: int) -> Tensor:
        return torch.empty(n, *self.shape, device=self.device)

    def held_out(self) -> Tensor:
        """Noise to judge on, (samples, ...): never tuned on."""
        return SeededNoise(first_seed(self.seed, HELD_OUT))(self._empty(self.samples))

    @cached_property
    def x0(self) -> Tensor:
        """Data to tune on, (samples, ...); fewer where fewer were given."""
        if self._data is None:
            x = SeededNoise(first_seed(self.seed, DATA))(self._empty(self.samples))
            plan = reference_plan(self.schedule, 0.0, OWN_CALLS)
            with self.cost_log.purpose("data"):
                return sample(self.model, plan, plan.initial_state(x))
        order = torch.randperm(len(self._data), generator=torch.Generator().manual_seed(first_seed(self.seed, DATA)))
        return self._data[order[: self.samples]].to(self.device)

    @property
    def own(self) -> bool:
        """Whether the data are the model's own samples."""
        return self._data is None

    @property
    def fingerprint(self) -> str:
        """What the data are, in a few letters."""
        if self._data is None:
            return "own samples"
        numbers = self._data.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
        return hashlib.sha256(numbers.tobytes()).hexdigest()[:16]

    @torch.no_grad()
    def answer(self, model: BatchedModel) -> list[float]:
        """Some numbers of what a model says of a batch of noise, by which it is known again."""
        count = min(self.samples, model.batch or self.samples)
        p = self.schedule.at(torch.tensor(self.schedule.T / 2, dtype=torch.float64))
        x = float(p.scale) * SeededNoise(0)(self._empty(count))
        said = model(x, p.t, p.t).double().flatten().nan_to_num()
        return [float(f"{value:.4g}") for value in said[:: max(1, len(said) // ANSWERS)][:ANSWERS]]

    def draws(self, model: Model) -> CalibrationBatch:
        """The data with noise, the same at every call."""
        first = first_seed(self.seed, NOISE)
        return CalibrationBatch(model, self.x0, SeededNoise(first)(self.x0), first)

    def batch(self, model: Model, i: int, size: int) -> CalibrationBatch:
        """Batch number i of an endless stream: data drawn with replacement from all there is, with fresh noise."""
        pool = self.x0 if self._data is None else self._data
        first = first_seed(self.seed, NOISE) + (i + 1) * size
        pick = torch.randint(len(pool), (size,), generator=torch.Generator().manual_seed(first))
        x0 = pool[pick].to(self.device)
        return CalibrationBatch(model, x0, SeededNoise(first)(x0), first)


def _gather(data: Any, samples: int, shape: tuple[int, ...] | None) -> Tensor:
    if isinstance(data, Tensor):
        gathered = data
    elif not isinstance(data, Iterable):
        raise ValueError(f"data must be a tensor (n, ...) or an iterable of x0, got {type(data).__name__}")
    else:
        parts: list[Tensor] = []
        for item in data:
            if isinstance(item, Mapping):
                if "image" not in item:
                    raise ValueError(f"data yields mappings without 'image', with {sorted(item)}")
                item = item["image"]
            elif isinstance(item, list | tuple):
                item = item[0]
            x = torch.as_tensor(item)
            parts.append(x[None] if x.shape == shape else x)
            if sum(len(part) for part in parts) >= samples:
                break
        if not parts:
            raise ValueError("data is empty: give at least one batch of x0")
        gathered = torch.cat(parts)
    if gathered.dim() < 2 or not len(gathered) or (shape is not None and gathered.shape[1:] != shape):
        wanted = "(n, ...)" if shape is None else str(("n", *shape)).replace("'", "")
        way_out = "; shape= of one sample tells single samples from batches" if shape is None else ""
        raise ValueError(f"data must have shape {wanted} with n >= 1, got {tuple(gathered.shape)}{way_out}")
    return gathered if gathered.is_floating_point() else gathered.float()
