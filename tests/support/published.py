"""Class-conditional data on which every prediction is known in closed form, and the published procedure written out a
second time, without the library's loop."""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from time_tuner import NoiseScheduleVP, model_wrapper
from time_tuner.models.exact import Mixture
from time_tuner.models.wrapper import GUIDANCE_TYPES

BETAS = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
DISCRETE, LINEAR = NoiseScheduleVP("discrete", betas=BETAS), NoiseScheduleVP("linear")
CLASSES = (Mixture([[-1.0, 0.5], [-0.2, -1.2]], 0.3), Mixture([[1.5, 1.0], [0.8, -0.4]], 0.3))
ANY = Mixture(torch.cat([part.means for part in CLASSES]), 0.3)
THREE = Mixture([[-1.0, 0.5], [1.5, 1.0], [-0.2, -1.2]], 0.3)  # data that tuning is good for
NONE, SCALE = 2, 1.7  # "no class", and the weight of guidance

strategies = pytest.mark.parametrize("tune_type", ["sequential", "parallel"])
types = pytest.mark.parametrize("model_type", ["noise", "x_start", "v", "score"])
guidances = pytest.mark.parametrize("guidance", GUIDANCE_TYPES)


# --- the exact network, and what it is under guidance, written out ---


def eps_of(c: Tensor | None, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    if c is None:
        return ANY.noise(x, alpha, sigma)
    each = torch.stack([model.noise(x, alpha, sigma) for model in (*CLASSES, ANY)])
    return each[c, torch.arange(len(x))]


def from_network_time(schedule: NoiseScheduleVP, t_input: Tensor) -> Tensor:
    assert t_input.dim() == 1 and t_input.dtype == torch.float32
    t = t_input[0].double()
    return (t + 1) / schedule.total_N if schedule.schedule == "discrete" else t


def network(schedule: NoiseScheduleVP, model_type: str = "noise") -> Callable[..., Tensor]:
    """A network of this type, exact at the time that it receives, for each class and for all data."""

    def predict(x: Tensor, t_input: Tensor, cond: Tensor | None = None) -> Tensor:
        p = schedule.at(from_network_time(schedule, t_input))
        eps = eps_of(cond, x, p.alpha, p.sigma)
        x0 = (x - p.sigma * eps) / p.alpha
        return {"noise": eps, "x_start": x0, "v": p.alpha * eps - p.sigma * x0, "score": -eps / p.sigma}[model_type]

    return predict


def classifier(schedule: NoiseScheduleVP) -> Callable[..., Tensor]:
    """log p(c | x), exact at the time that it receives."""

    def log_p(x: Tensor, t_input: Tensor, cond: Tensor) -> Tensor:
        p = schedule.at(from_network_time(schedule, t_input))
        v = p.alpha**2 * 0.3**2 + p.sigma**2
        near = [-(x[:, None] - p.alpha * c.means.to(x)).square().sum(2) / (2 * v) for c in CLASSES]
        return torch.stack([part.logsumexp(1) for part in near], 1).log_softmax(1)[torch.arange(len(x)), cond]

    return log_p


def wrapped(schedule: NoiseScheduleVP, model_type: str = "noise", guidance: str = "uncond", **options: Any) -> Any:
    return model_wrapper(
        network(schedule, model_type),
        schedule,
        model_type=model_type,
        guidance_type=guidance,
        guidance_scale=SCALE,
        classifier_fn=classifier(schedule),
        **options,
    )


def by_hand(schedule: NoiseScheduleVP, model_type: str = "noise", guidance: str = "uncond", c: Any = None) -> Any:
    """eps(x, t, tau) of it in closed form: the prediction at tau, read at t."""

    def eps(x: Tensor, t: Any, tau: Any) -> Tensor:
        p, q = schedule.at(t), schedule.at(tau)

        def read(predicted: Tensor) -> Tensor:
            x0 = (x - q.sigma * predicted) / q.alpha
            return {
                "noise": predicted,
                "x_start": (x - p.alpha * x0) / p.sigma,
                "v": p.alpha * (q.alpha * predicted - q.sigma * x0) + p.sigma * x,
                "score": predicted * p.sigma / q.sigma,
            }[model_type]

        of_all = eps_of(None, x, q.alpha, q.sigma)
        if guidance == "uncond":
            return read(of_all)
        of_class = eps_of(c, x, q.alpha, q.sigma)
        if guidance == "classifier":
            return read(of_class) - SCALE * p.sigma * (of_all - of_class) / q.sigma
        return read(of_all) + SCALE * (read(of_class) - read(of_all))

    return eps


def ddim_step(schedule: NoiseScheduleVP, eps: Any, x: Tensor, t: Any, s: Any, ratio: Any, eta: float = 0, z: Any = 0):
    """(x_s, x0): one step of DDIM in which the network receives ratio t."""
    p, q = schedule.at(t), schedule.at(s)
    predicted = eps(x, t, ratio * t)
    x0 = (x - p.sigma * predicted) / p.alpha
    beta = 1 - p.alpha**2 / q.alpha**2
    deviation = eta * torch.sqrt(q.sigma**2 / p.sigma**2 * beta)
    return q.alpha * x0 + torch.sqrt(q.sigma**2 - deviation**2) * predicted + deviation * z, x0


def leading(calls: int, levels: int = 1000) -> Tensor:
    """The published grid: times of the calls and the end."""
    n = [1 + i * (levels // calls) for i in reversed(range(calls))]
    return torch.tensor([*((level + 1) / levels for level in n), 1 / levels], dtype=torch.float64)


def loader(batches: int = 4, size: int = 32, **more: Any) -> list[dict[str, Any]]:
    """Data of both classes, float64, in the same order at every pass."""
    out = []
    for i in range(batches):
        label = torch.arange(size) % 2
        halves = torch.stack([part.sample(size, seed=i) for part in CLASSES])
        out.append({"image": halves[label, torch.arange(size)], "label": label, **more})
    return out


def images(batches: list[dict[str, Any]]) -> Tensor:
    return torch.cat([batch["image"] for batch in batches])


# --- models that remember ---


def recording(model: Callable[..., Tensor]) -> tuple[Callable[..., Tensor], list[float]]:
    """The network, and the list of the times that it receives."""
    received: list[float] = []
    return lambda x, t_input, *rest: (received.append(float(t_input[0])), model(x, t_input, *rest))[1], received


def noting_first(model: Callable[..., Tensor]) -> tuple[Callable[..., Tensor], list[Tensor]]:
    """The model, and the first state that it will have been shown."""
    shown: list[Tensor] = []
    return lambda x, *rest, **options: (shown or shown.append(x), model(x, *rest, **options))[1], shown


# --- steps and their optimum ---


def euler(model_fn: Any, schedule: NoiseScheduleVP) -> Callable[..., tuple[Tensor, Tensor]]:
    """Euler's step in u = x / alpha over sigma / alpha, where du = eps d(sigma / alpha)."""

    def step_fn(x: Tensor, t: Any, s: Any, t_ratio: Any = 1.0, **conditions: Any) -> tuple[Tensor, Tensor]:
        (p, q), predicted = (schedule.at(t), schedule.at(s)), model_fn(x, t, t_ratio * t, **conditions)
        u = x / p.alpha + (q.sigma / q.alpha - p.sigma / p.alpha) * predicted
        return q.alpha * u, (x - p.sigma * predicted) / p.alpha

    return step_fn


def midpoint(model_fn: Any, schedule: NoiseScheduleVP) -> Callable[..., tuple[Tensor, Tensor]]:
    """DPM-Solver-2: a first-order step to the middle in lam, then the whole step with the prediction there."""

    def step_fn(x: Tensor, t: Any, s: Any, t_ratio: Any = 1.0, **conditions: Any) -> tuple[Tensor, Tensor]:
        p, q = schedule.at(t), schedule.at(s)
        h = q.lam - p.lam
        m = schedule.at(schedule.inverse_lambda(p.lam + h / 2))
        predicted = model_fn(x, t, t_ratio * t, **conditions)
        middle = m.alpha / p.alpha * x - m.sigma * torch.expm1(h / 2) * predicted
        there = model_fn(middle, m.t, t_ratio * m.t, **conditions)
        return q.alpha / p.alpha * x - q.sigma * torch.expm1(h) * there, (x - p.sigma * predicted) / p.alpha

    return step_fn


def assert_optimal(
    ratios: Tensor, tune_type: str, step: Any, eps: Any, schedule: NoiseScheduleVP, x0: Tensor, first: Tensor
) -> None:
    """Every ratio is a minimum of the published loss, or ends the trained range; the first state tells the noise."""
    times = leading(len(ratios))
    p = schedule.at(times[0] if tune_type == "parallel" else 1.0)
    x, noise = first, (first - p.alpha * x0) / p.sigma
    assert abs(float(noise.mean())) < 0.3 and abs(float(noise.std()) - 1) < 0.2
    assert ratios.dtype == torch.float64 and ratios[-1] == 1
    for k, (t, s) in enumerate(pairwise(times[:-1])):
        if tune_type == "parallel":
            p = schedule.at(t)
            x = p.alpha * x0 + p.sigma * noise
        before = eps(x, t, t)

        def loss(ratio: float, x: Tensor = x, t: Tensor = t, s: Tensor = s, before: Tensor = before) -> float:
            return float((before - eps(step(x, t, s, t_ratio=ratio)[0], s, s)).square().sum(1).mean())

        near = [float(ratios[k]) + shift for shift in (-0.03, -0.01, 0.01, 0.03)]
        inside = [ratio for ratio in near if schedule.t_min <= ratio * t <= max(schedule.T, t)]
        assert loss(float(ratios[k])) <= 1.01 * min(map(loss, [1.0, *inside]))
        x, _ = step(x, t, s, t_ratio=ratios[k])


def exact_end(eps: Any, x: Tensor) -> Tensor:
    fine = leading(500)
    for t, s in pairwise(fine):
        x, _ = ddim_step(DISCRETE, eps, x, t, s, 1.0)
    return x
