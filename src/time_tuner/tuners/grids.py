"""Spacings that look at a model: by the path of a teacher, one table.

Each is made for a model, and is then a spacing as any other: `make_plan("ddim", schedule, 5, gits(model))`. They need
forward calls only, once for all numbers of steps: `samples` x 60 evaluations, `oss` so many more for every step. On the
command line and in texts of runs they are named as in `MODEL_SPACINGS`: "ipndm:5@gits".

With X = x / alpha and s = sigma / alpha, a step of DDIM from i to j is X_j = X_i + (s_j - s_i) eps_i (Song et al.,
2021).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .._checks import check_int
from .._distributed import decided
from .._dtypes import like, squared_norms
from .._spec import build, parse_call
from ..models.base import Model, as_model
from ..models.batching import BatchedModel
from ..noise import SeededNoise
from ..plans.build import make_plan
from ..samplers.unipc import UniPC
from ..sampling import ModelLike, trajectory
from ..schedules import NoiseSchedule, as_float64
from ..schedules.base import even_grid
from ..spacings import SPACINGS, Spacing
from ..spacings.by_snr import noise_at

__all__ = ["MODEL_SPACINGS", "curvature", "gits", "oss"]

STEPS, SAMPLES, BATCH = 60, 64, 256


@dataclass(frozen=True)
class Path:
    """The path of a teacher: times (N + 1,), states (N + 1, n, ...), and the data predicted in all but the last."""

    model: Model
    times: Tensor
    states: Tensor
    data: Tensor

    @property
    def schedule(self) -> NoiseSchedule:
        return self.model.schedule

    def noise(self, i: int) -> Tensor:
        """The noise predicted in state i, (n, ...)."""
        p = self.schedule.at(self.times[i])
        return (self.states[i] - like(p.alpha, self.states) * self.data[i]) / like(p.sigma, self.states)

    def errors(self, i: int, x: Tensor, data: Tensor) -> tuple[Tensor, Tensor]:
        """Of a step from the state x (n, ...) at point i, with this prediction, to each later point: the state there,
        (N - i, n, ...), and its mean distance |X - X_j| from the path, (N - i,)."""
        p, q = self.schedule.at(self.times[i]), self.schedule.at(self.times[i + 1 :])
        noise = (x - like(p.alpha, x) * data) / like(p.sigma, x)
        alpha, sigma = (like(one, x).reshape(-1, *[1] * x.dim()) for one in (q.alpha, q.sigma))
        ends = alpha * data + sigma * noise
        apart = squared_norms((ends - self.states[i + 1 :]).flatten(0, 1)).sqrt().reshape(len(ends), -1)
        return ends, apart.mean(1) / q.alpha

    @torch.no_grad()
    def predict(self, i: int, x: Tensor) -> Tensor:
        """The data predicted in the state x (n, ...) at point i."""
        return self.model.x0(x, self.times[i], self.times[i])


@torch.no_grad()
def path_of(model: ModelLike, samples: int, seed: int, steps: int, start: float | None, end: float | None) -> Path:
    """The path of UniPC(3) from the noise of these seeds, on even steps in sqrt(t)."""
    made = as_model(model)
    if made.shape is None:
        raise ValueError("model must have the shape of a sample: model_wrapper(..., shape=(3, 32, 32)), or as_model")
    network, schedule = BatchedModel(made, made.max_batch or BATCH), made.schedule
    steps = min(steps, schedule.levels or steps)
    times = schedule.even_times(steps, start, end)
    plan = make_plan(UniPC(3), schedule, steps, times=times)
    noise = SeededNoise(range(seed, seed + samples))(torch.empty(samples, *made.shape, device=made.device))
    x = plan.initial_state(noise)
    states = torch.stack([x, *trajectory(network, plan, x)])
    path = Path(network, times, states, states[:0])
    return Path(network, times, states, torch.stack([path.predict(i, states[i]) for i in range(steps)]))


def gits(
    model: ModelLike, coefficient: float = 1.15, samples: int = SAMPLES, seed: int = 0, steps: int = STEPS
) -> Spacing:
    """The grid with the least sum of errors of single DDIM steps on a teacher's path, by dynamic programming (GITS;
    Chen et al., 2024, https://arxiv.org/abs/2405.11326).

    Args:
        model: with the shape of a sample.
        coefficient: by which the errors of the steps that follow count more, or less, with every step.
        samples: that the errors are averaged over.
        seed: of their noise.
        steps: of the teacher, among whose times the grid is chosen.

    Returns:
        The spacing.
    """
    if not 0 < coefficient < math.inf:
        raise ValueError(f"coefficient of gits must be positive, got {coefficient!r}")

    def choose(path: Path, count: int) -> list[int]:
        last = len(path.times) - 1
        costs = np.full((last + 1, last + 1), np.inf)
        for i in range(last):
            costs[i, i + 1 :] = path.errors(i, path.states[i], path.data[i])[1]
        left, following = costs[:, last].copy(), []  # the least sum from each point in the steps left
        for _ in range(count - 1):
            sums = costs + coefficient * left
            following.append(sums.argmin(1))
            left = sums.min(1)
        places = [0]
        for step in reversed(following):
            places.append(int(step[places[-1]]))
        return [*places, last]

    return _spacing(model, choose, samples, seed, steps)


def oss(model: ModelLike, samples: int = SAMPLES, seed: int = 0, steps: int = STEPS) -> Spacing:
    """The grid on which DDIM ends nearest to a teacher, by dynamic programming over its own states (OSS; Pei et al.,
    2025, https://arxiv.org/abs/2503.21774).

    For each number of steps and each point, the run that is nearest to the teacher there is kept. Arguments as for
    `gits`; each step of the grid costs as many evaluations as the teacher.

    Args:
        model: with the shape of a sample.
        samples: that the errors are averaged over.
        seed: of their noise.
        steps: of the teacher, among whose times the grid is chosen.

    Returns:
        The spacing.
    """

    def choose(path: Path, count: int) -> list[int]:
        last = len(path.times) - 1
        states, before = {0: path.states[0]}, list[dict[int, int]]()
        for _ in range(count):
            best, reached, came = np.full(last + 1, np.inf), dict[int, Tensor](), dict[int, int]()
            for i, x in states.items():
                if i == last:
                    continue
                ends, errors = path.errors(i, x, path.predict(i, x))
                for j, (end, error) in enumerate(zip(ends, errors.tolist(), strict=True), i + 1):
                    if error < best[j]:
                        best[j], reached[j], came[j] = error, end, i
            states, before = reached, [*before, came]
        places = [last]
        for came in reversed(before):
            places.append(came[places[-1]])
        return places[::-1]

    return _spacing(model, choose, samples, seed, steps)


def curvature(model: ModelLike, samples: int = SAMPLES, seed: int = 0, steps: int = STEPS) -> Spacing:
    r"""Even steps in int |d eps / d s|^{1/2} ds along a teacher's path, which gives all steps of DDIM the same error.

    The error of a step of length h is |d eps / ds| h^2 / 2. Arguments as for `gits`.

    Args:
        model: with the shape of a sample.
        samples: that the errors are averaged over.
        seed: of their noise.
        steps: of the teacher, among whose times the grid is chosen.

    Returns:
        The spacing.
    """

    def choose(path: Path, count: int) -> Tensor:
        s = torch.stack([noise_at(path.schedule, t) for t in path.times])
        noise = torch.stack([path.noise(i) for i in range(len(path.times) - 1)])
        turned = squared_norms(noise.diff(dim=0).flatten(0, 1)).sqrt().reshape(len(noise) - 1, -1).mean(1)
        turned = torch.cat([turned, turned[-1:]])  # there is no prediction at the end
        lengths = (turned * -s.diff()).clamp(min=0).sqrt()
        if not float(lengths.sum()) > 1e-9 * float(s[0]):  # straight paths: any grid will do
            return as_float64(np.linspace(0, len(s) - 1, count + 1))
        sums = np.concatenate([[0.0], lengths.cumsum(0).numpy()])
        return as_float64(np.interp(np.linspace(0, sums[-1], count + 1), sums, np.arange(len(sums))))

    return _spacing(model, choose, samples, seed, steps)


MODEL_SPACINGS: dict[str, Callable[..., Spacing]] = {"curvature": curvature, "gits": gits, "oss": oss}
"""Every spacing that looks at a model, by its name in texts."""


def spacing_for(model: Model, spacing: str | Spacing) -> str | Spacing:
    """The spacing of a text for a model, where it is one that looks at models; else the spacing as it is."""
    if not isinstance(spacing, str):
        return spacing
    name, options = parse_call(spacing)
    if name not in MODEL_SPACINGS or name in SPACINGS:
        return spacing
    return build("spacing", {name: partial(MODEL_SPACINGS[name], model)}, name, options)


def _spacing(model: ModelLike, choose: Callable[[Path, int], Any], samples: int, seed: int, steps: int) -> Spacing:
    """The spacing that chooses places, whole or between two points, on a teacher's path."""
    samples, steps = check_int("samples", samples, 1), check_int("steps", steps, 2)
    seed, path = check_int("seed", seed), cache(partial(path_of, model, samples, seed, steps))

    def spacing(schedule: NoiseSchedule, steps: int, start: float | None = None, end: float | None = None) -> Tensor:
        if schedule != as_model(model).schedule:
            raise ValueError("the spacing is made for a model on another noise schedule: make one for the model")
        if steps == 1:
            return even_grid(schedule, 1, start, end, torch.sqrt, torch.square)
        found = path(start, end)
        if steps >= len(found.times):
            raise ValueError(f"steps must be at most those of the teacher, {len(found.times) - 1}, got {steps}")
        places = np.asarray(choose(found, steps), dtype=np.float64)
        return as_float64(decided(np.interp(places, np.arange(len(found.times)), found.times.numpy()).tolist()))

    return spacing
