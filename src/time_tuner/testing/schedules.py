"""Checks of schedules, spacings and predictions."""

import json
import math

import torch

from ..models.exact import Gaussian
from ..models.predictions import Prediction
from ..plans.build import make_plan
from ..plans.plan import Plan
from ..sampling import sample
from ..schedules import NoiseSchedule, as_float64, schedule_from_dict
from ..spacings import SPACINGS
from ._assertions import close, holds, seeded


def check_schedule(schedule: NoiseSchedule) -> None:
    """Check that a noise schedule does what every schedule of the library does.

    From T down to t_min the data grows and the noise falls, as float64 tensors of the shape of the times, with finite
    gradients. `inverse_lambda`, `from_network_time` and `from_sigma_ratio` are inverses. The default spacing exists and
    makes plans, which survive JSON.

    Args:
        schedule: a schedule of a class in `SCHEDULES`.

    Raises:
        AssertionError: names what does not hold.
    """
    holds(0 < schedule.t_min < schedule.T < math.inf, "0 < t_min < T, and T is finite")
    inside = torch.linspace(0.98, 0.02, 40, dtype=torch.float64)
    times = (schedule.t_min + inside * (schedule.T - schedule.t_min)).requires_grad_()
    p = schedule.at(times)
    for name in ("t", "alpha", "sigma"):
        value = getattr(p, name)
        holds(value.dtype == torch.float64 and value.shape == times.shape, f"{name} is float64 of the shape of t")
        holds(bool(value.isfinite().all()), f"{name} is finite")
    holds(bool((p.lam.diff() > 0).all()), "lam = log(alpha / sigma) rises as the time falls")
    (gradient,) = torch.autograd.grad(p.lam.sum(), times)
    holds(bool(gradient.isfinite().all()) and bool((gradient < 0).all()), "the gradient of lam by t is finite and < 0")
    times = times.detach()
    tolerance = {"rtol": 1e-6, "atol": 1e-9}
    close(as_float64(schedule.inverse_lambda(p.lam.detach())), times, "inverse_lambda inverts lam", **tolerance)
    network_times = schedule.network_time(times)
    close(schedule.from_network_time(network_times), times, "from_network_time inverts network_time", **tolerance)
    sigmas = schedule.sigma_ratio(times)
    close(schedule.from_sigma_ratio(sigmas), times, "from_sigma_ratio inverts sigma_ratio", **tolerance)
    values = json.loads(json.dumps(schedule.to_dict()))
    holds(schedule_from_dict(values) == schedule, "a schedule survives JSON")
    for order in (0, 1, 2, 3):
        name = schedule.default_spacing(order, 10)
        holds(name in SPACINGS, f"the default spacing is one of {', '.join(SPACINGS)}, got {name!r}")
    even = schedule.even_times(10)
    holds(even.shape == (11,) and bool((even.diff() < 0).all()), "even_times falls, with a time more than steps")
    holds(float(even[0]) == schedule.T and float(even[-1]) == schedule.t_min, "even_times goes from T to t_min")
    plan = make_plan("ddim", schedule, min(6, schedule.levels or 6))
    holds(Plan.from_dict(json.loads(json.dumps(plan.to_dict()))) == plan, "a plan on the schedule survives JSON")
    x = plan.initial_state(seeded(4, 2))
    holds(bool(sample(Gaussian(1.0, 0.5).eps(schedule), plan, x).isfinite().all()), "a run on the schedule is finite")


def check_spacing(name: str, schedule: NoiseSchedule) -> None:
    """Check that a spacing gives grids on a schedule: steps + 1 falling times in its range, from `start` to `end`.

    Args:
        name: in `SPACINGS`.
        schedule: one that the spacing has grids on.

    Raises:
        AssertionError: names what does not hold.
    """
    spacing = SPACINGS[name]
    low, high = schedule.t_min, schedule.T
    for steps in (2, 3, 5, 10, 20):
        times = spacing(schedule, steps)
        holds(times.dtype == torch.float64 and times.shape == (steps + 1,), f"{steps} steps have {steps + 1} times")
        holds(bool((times.diff() < 0).all()), f"the times of {name} fall strictly")
        inside = (times >= low * (1 - 1e-9)) & (times <= high * (1 + 1e-9))
        holds(bool(inside[:-1].all()) and bool(inside[-1] | (times[-1] == 0)), f"the times of {name} are trained ones")
    start, end = low + 0.7 * (high - low), low + 0.2 * (high - low)
    part = spacing(schedule, 4, start, end)
    holds(part.shape == (5,) and bool((part.diff() < 0).all()), f"{name} gives falling times in a range")
    slack = 1e-9 if schedule.levels is None else 1.5 * (high - low) / schedule.levels
    step = (start - end) / 4  # the published "leading" grid begins up to a step late
    holds(start - step - slack <= float(part[0]) <= start + slack, f"{name} begins at start, at most a step late")
    holds(abs(float(part[-1]) - end) <= slack, f"{name} ends at end")


def check_prediction(prediction: Prediction, schedule: NoiseSchedule) -> None:
    """Check that a prediction type converts both ways: from data and noise to an output, and back.

    Args:
        prediction: the prediction type.
        schedule: one that networks of this type are trained on.

    Raises:
        AssertionError: names what does not hold.
    """
    prediction = prediction.on(schedule)
    x0, eps = seeded(4, 3), seeded(4, 3, seed=1)
    for share in (0.05, 0.4, 0.95):
        p = schedule.at(schedule.t_min + share * (schedule.T - schedule.t_min))
        x = p.alpha * x0 + p.sigma * eps
        output = prediction.output(x0, eps, p)
        holds(output.shape == x.shape, "an output has the shape of the state")
        scale = 1e-9 * float(1 + p.sigma / p.alpha + p.alpha / p.sigma)
        close(prediction.noise(output, x, p), eps, "noise() inverts output()", rtol=scale, atol=scale)
        close(prediction.data(output, x, p), x0, "data() inverts output()", rtol=scale, atol=scale)
    first = schedule.at(schedule.T)
    if prediction.determines_data and first.alpha == 0:
        x = first.sigma * eps
        data = prediction.data(prediction.output(x0, eps, first), x, first)
        close(data, x0, "data() inverts output() where alpha = 0", rtol=1e-9, atol=1e-9)
