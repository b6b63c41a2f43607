"""Checks of samplers."""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import is_dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from ..models.base import Model
from ..models.exact import Gaussian, Mixture
from ..noise import SeededNoise
from ..plans.build import make_plan
from ..plans.plan import Plan
from ..samplers import Evaluation, Noise, Sampler
from ..sampling import coefficients, sample, trajectory
from ..schedules import NoiseSchedule, NoiseScheduleFlow, NoiseScheduleVP, Point, as_float64
from ._assertions import close, holds, seeded

SMOOTH = NoiseScheduleVP("linear")
MIXTURE = Mixture([-1.0, 0.5, 1.5], 0.4, [0.3, 0.3, 0.4])
GRIDS = ([1.0, 0.8, 0.55, 0.3, 0.1, 0.0], [0.95, 0.7, 0.5, 0.3, 0.12, 0.04])
"""A grid that ends at 0, and one that ends above."""

STEPS = 128
"""The number of steps from which an order of convergence is measured: so many that the highest order shows alone."""


def check_sampler(sampler: Sampler) -> None:
    """Check that a sampler does what every sampler of the library does.

    Its order of convergence on a problem with a known flow is the declared one within 0.3; one of order 0 keeps the
    distribution of exact data. Run as rows it is the sampler itself, with and without corrections, and its coefficient
    table reproduces the run. It draws noise exactly at the calls that use it. The network receives exactly the plan's
    times, and is not called at sigma = 0. A sample does not depend on its batch; the dtype of the state is kept; the
    loop reads no number of a state. Gradients reach times, tau and corrections. A run may start at alpha = 0. Plans
    survive JSON exactly.

    Args:
        sampler: a sampler of a class in `SAMPLERS`.

    Raises:
        AssertionError: names what does not hold.
    """
    holds(is_dataclass(sampler), "a sampler is a frozen dataclass of its options")
    check_order(sampler)
    for times in GRIDS:
        plan = _varied(sampler, times)
        _check_rows(plan)
        _check_rows(plan.with_corrections(None))
        _check_calls(plan, times)
        _check_table(plan)
        _check_gradients(plan)
        again = Plan.from_dict(json.loads(json.dumps(plan.with_provenance(scale=1 / 3).to_dict())))
        holds(again == plan.with_provenance(scale=1 / 3) and again.sampler == sampler, "a plan survives JSON exactly")
        holds(torch.equal(coefficients(again), coefficients(plan)), "a plan's coefficients survive JSON exactly")
    _check_tuned(sampler)
    _check_batches(sampler)
    _check_dtypes(sampler)
    _check_no_reading(sampler)
    _check_start_without_data(sampler)


def check_order(sampler: Sampler) -> None:
    """Check that the order of convergence is the declared one, `sampler.convergence`, within 0.3."""
    if sampler.convergence == 0:
        check_distribution(sampler)
        return
    order = measured_order(sampler, graded)
    holds(
        abs(order - sampler.convergence) <= 0.3,
        f"the order of convergence of {sampler!r} is {order:.2f}, declared is {sampler.convergence}",
    )


def measured_order(sampler: Sampler, grid: Callable[[int], Tensor]) -> float:
    """The logarithm to base 2 of the ratio of the errors on two grids, of 128 and of twice as many steps, times
    (steps + 1,)."""
    plans = [make_plan(sampler, SMOOTH, times=grid(steps)) for steps in (STEPS, 2 * STEPS)]
    error = _error_of_moments if plans[0].stochastic else _error_of_states
    return math.log2(error(plans[0]) / error(plans[1]))


def _varied(sampler: Sampler, times: Sequence[float]) -> Plan:
    """A plan with other conditioning times, and with corrections."""
    plan = make_plan(sampler, SMOOTH, times=times)
    ratios = torch.linspace(0.93, 1.04, len(plan), dtype=torch.float64)
    corrections = 0.5 / len(plan) * seeded(len(plan), len(plan)).tril(-1)  # of a size that many calls bear, too
    tau = (plan.tau * ratios).clamp(max=SMOOTH.T)
    return plan.with_tau(tau).with_corrections(corrections)


def _run(plan: Plan, x: Tensor, eps: Callable[..., Tensor] | Model | None = None) -> Tensor:
    return torch.stack(list(trajectory(eps or MIXTURE.eps(SMOOTH), plan, x, SeededNoise(5))))


def graded(steps: int) -> Tensor:
    """From t = 0.8 to 0.2, with steps in lam that grow from short ones and shrink to short ones again.

    On even steps the first and the last, at which samplers lower their order, would hide that of all others.
    """
    u = torch.linspace(0, 1, steps + 1, dtype=torch.float64)
    first, last = SMOOTH.at([0.8, 0.2]).lam
    times = SMOOTH.inverse_lambda(first + (last - first) * u**2 * (3 - 2 * u))
    times[0], times[-1] = 0.8, 0.2
    return times


def _exact_flow(x: Tensor, plan: Plan) -> Tensor:
    """Where the probability-flow ODE takes x: in one dimension it keeps every quantile."""

    def cumulative(x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        deviation = (alpha**2 * MIXTURE.std**2 + sigma**2).sqrt()
        parts = torch.special.ndtr((x - alpha * MIXTURE.means[:, 0]) / deviation)
        total: Tensor = (MIXTURE.weights * parts).sum(1, keepdim=True)
        return total

    p, q = plan.point(0), plan.point(len(plan))
    quantile, low, high = cumulative(x, p.alpha, p.sigma), torch.full_like(x, -9), torch.full_like(x, 9)
    for _ in range(60):
        middle = (low + high) / 2
        below = cumulative(middle, q.alpha, q.sigma) < quantile
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    return (low + high) / 2


def _error_of_states(plan: Plan) -> float:
    x = torch.linspace(-1.5, 1.5, 7, dtype=torch.float64)[:, None]
    end = sample(MIXTURE.eps(SMOOTH), plan, x)
    return float((end - _exact_flow(x, plan)).square().mean().sqrt())


MEAN, STD = 1.5, 0.5


def _deviation(p: Point) -> Tensor:
    """The deviation of the states at p of data from N(MEAN, STD^2)."""
    return (p.alpha**2 * STD**2 + p.sigma**2).sqrt()


def _error_of_moments(plan: Plan) -> float:
    """The error of mean and deviation at the end of a run with the exact prediction for N(MEAN, STD^2)."""
    return _errors_of_moments(plan, lambda mean: Gaussian(mean, STD).eps(plan.schedule))[-1]


def _errors_of_moments(plan: Plan, model_of: Callable[[Tensor], Model]) -> list[float]:
    """The error of mean and deviation after each call of a run on data from N(MEAN, STD^2). With predictions that are
    affine in the state the loop itself carries both: a state is its weights on 1, x_T and each of the draws, and
    `model_of` gives the model for the mean as weights."""
    unit, p = torch.eye(len(plan) + 2, dtype=torch.float64), plan.point(0)
    mean, draws = MEAN * unit[0], iter(unit[2:])
    start = p.alpha * mean + _deviation(p) * unit[1]
    errors = []
    for k, x in enumerate(trajectory(model_of(mean), plan, start[None], lambda x: next(draws)[None])):
        q = plan.point(k + 1)
        errors.append(math.hypot(float(x[0, 0] - q.alpha * MEAN), float(x[0, 1:].norm() - _deviation(q))))
    return errors


class _Consistent(Model):
    """A perfect consistency model, which predicts the end of the probability flow: mean + STD (x - alpha mean) / d,
    with d the deviation of x."""

    def __init__(self, schedule: NoiseSchedule, mean: Tensor) -> None:
        self.schedule, self.mean = schedule, mean

    def predict(self, quantity: str, x: Tensor, t: Any, tau: Any = None) -> Tensor:
        p = self.schedule.at(t if tau is None else tau)
        data = self.mean + STD * (x - p.alpha * self.mean) / _deviation(p)
        return data if quantity == "x0" else (x - p.alpha * data) / p.sigma


def check_distribution(sampler: Sampler) -> None:
    """Check that every state of a run has the distribution of its time where the predicted data have that of the data,
    as those of a perfect consistency model."""
    for schedule in (SMOOTH, NoiseScheduleFlow()):  # which begins at alpha = 0
        for times in ([1.0, 0.0], [1.0, 0.5, 0.2], *GRIDS):
            plan = make_plan(sampler, schedule, times=times)
            worst = max(_errors_of_moments(plan, partial(_Consistent, schedule)))
            holds(worst < 1e-9, f"{sampler!r} keeps the distribution of exact data, it is off by {worst:.2g}")


def _by_hand(plan: Plan, x: Tensor, eps: Model, noise: Noise) -> Tensor:
    """The run as the papers write it: tensors go through `step` and `correct`, and everything is kept."""
    past: list[Evaluation] = []
    predictions: list[Tensor] = []
    states: list[Tensor] = []
    seen = k = 0
    for step, calls in enumerate(plan.steps):
        for stage in range(calls):
            p, q, b = plan.point(k), plan.point(k + 1), plan.point(k - stage)
            e = Evaluation(x, eps(x, plan.t[k], plan.tau[k]), p, stage=stage)
            predictions.append(e.eps)
            past.append(e)
            if k and (better := plan.sampler.correct(tuple(past[-seen - 1 :]))) is not None:
                past[-1] = Evaluation(better, (better - p.alpha * e.x0) / p.sigma, p, stage=stage)  # x0 stays
            seen = plan.sampler.look_back(step, stage, len(plan.steps))
            x = past[-1].x0 if q.sigma == 0 else plan.sampler.step(tuple(past[-seen:]), q, noise)
            if plan.corrections is not None:
                gamma = q.sigma - q.alpha / b.alpha * b.sigma
                for j in range(k):
                    x = x + gamma * plan.corrections[k, j] * (predictions[j] - predictions[k])
            states.append(x)
            k += 1
    return torch.stack(states)


def _check_rows(plan: Plan) -> None:
    x = seeded(5, 1)
    got = _run(plan, x)
    holds(bool(got.isfinite().all()), "every state of a run is finite")
    expected = _by_hand(plan, x, MIXTURE.eps(SMOOTH), SeededNoise(5))
    close(got, expected, "a plan's rows are the sampler itself", rtol=1e-9, atol=1e-10)


def _check_calls(plan: Plan, times: Sequence[float]) -> None:
    calls: list[tuple[float, float]] = []

    def eps(x: Tensor, t: Tensor, tau: Tensor) -> Tensor:
        calls.append((float(t), float(tau)))
        holds(float(SMOOTH.at(t).sigma) > 0, "the network is never called at sigma = 0")
        return torch.tanh(x)

    _run(plan, seeded(2, 1), eps)
    holds([tau for _, tau in calls] == plan.tau.tolist(), "the network receives exactly the plan's tau")
    holds([t for t, _ in calls] == plan.t[:-1].tolist(), "the solver stands at exactly the plan's t")
    holds(sum(plan.steps) == len(plan) == len(calls), "a plan of K calls makes K calls")
    close(plan.step_times, as_float64(times), "a plan's steps end at the given times")


def _check_table(plan: Plan) -> None:
    x, predictions, drawn, source = seeded(6, 1), list[Tensor](), dict[int, Tensor](), SeededNoise(5)

    def eps(x: Tensor, t: Tensor, tau: Tensor) -> Tensor:
        predictions.append(MIXTURE.eps(SMOOTH)(x, t, tau))
        return predictions[-1]

    def noise(x: Tensor) -> Tensor:
        k = len(predictions) - 1
        holds(k not in drawn, "a sampler draws noise at most once a call")
        drawn[k] = source(x)
        return drawn[k]

    states = torch.stack(list(trajectory(eps, plan, x, noise)))
    draws = [drawn.get(k, torch.full_like(x, 1e6)) for k in range(len(plan))]
    table = coefficients(plan)
    got = torch.einsum("kj,jbc->kbc", table, torch.stack([x, *predictions, *draws]))
    close(got, states, "the coefficient table reproduces the run", rtol=1e-7, atol=1e-7)
    first = plan.alpha[1:] / plan.alpha[0]
    close(table[:, 0], first, "the table's first column is alpha_{k+1} / alpha_0", rtol=1e-12, atol=0)
    later = table[:, 1:].triu(1)[:, : len(plan)]
    holds(not later.any(), "a state depends on no prediction that was not made yet")
    used = table[:, 1 + len(plan) :].any(0).nonzero().flatten().tolist()
    holds(used == sorted(drawn), "noise is drawn at the calls that use it, and at no others")
    holds(plan.stochastic == bool(drawn), "a plan is stochastic if and only if its run draws noise")


def _check_tuned(sampler: Sampler) -> None:
    plan, x = make_plan(sampler, SMOOTH, times=GRIDS[0]), seeded(4, 1)
    untuned, zero = _run(plan, x), torch.zeros(len(plan), len(plan), dtype=torch.float64)
    close(_run(plan.with_corrections(zero), x), untuned, "corrections of 0 change nothing", rtol=1e-13, atol=1e-13)
    zero[2, 0] = 0.1
    holds(not torch.allclose(_run(plan.with_corrections(zero), x), untuned), "a correction changes the run")
    other = plan.with_tau(plan.tau * 0.8)
    holds(not torch.allclose(_run(other, x), untuned), "tau changes the run of a network that uses its time")
    timeless = [_run(each, x, lambda x, t, tau: torch.tanh(x)) for each in (plan, other)]
    holds(torch.equal(*timeless), "tau changes nothing for a network that ignores its time")


def _check_gradients(plan: Plan) -> None:
    x = seeded(4, 1)
    assert plan.corrections is not None
    leaves = [value.clone().requires_grad_() for value in (plan.tau, plan.step_times, plan.corrections)]

    def loss(tau: Tensor, times: Tensor, corrections: Tensor) -> Tensor:
        moved = plan.with_times(times).with_tau(tau).with_corrections(corrections)
        return _run(moved, x)[-1].square().sum()

    to_tau, to_times, to_corrections = torch.autograd.grad(loss(*leaves), leaves)
    lower = torch.ones_like(to_corrections).tril(-1).bool()
    for name, gradient in (("tau", to_tau), ("times", to_times[:-1]), ("corrections", to_corrections[lower])):
        finite = bool(gradient.isfinite().all()) and bool((gradient != 0).all())
        holds(finite, f"the gradient by the {name} is finite and not 0")
    for i, gradient in enumerate((to_tau, to_times)):
        values = [leaf.detach().clone() for leaf in leaves]
        values[i][2] += 1e-5
        up = loss(*values)
        values[i][2] -= 2e-5
        close(gradient[2], (up - loss(*values)) / 2e-5, "gradients are the slopes", rtol=1e-4, atol=1e-6)


def _check_batches(sampler: Sampler) -> None:
    plan, eps, x = _varied(sampler, GRIDS[0]), Gaussian(1.0, 0.5).eps(SMOOTH), seeded(8, 3)
    together = sample(eps, plan, x, SeededNoise(range(8)))
    alone = torch.cat([sample(eps, plan, x[i : i + 1], SeededNoise([i])) for i in range(8)])
    close(alone, together, "a sample does not depend on its batch", rtol=1e-13, atol=1e-13)


def _check_dtypes(sampler: Sampler) -> None:
    eps, plan = Gaussian(1.0, 0.5).eps(SMOOTH), _varied(sampler, GRIDS[1])
    for dtype, precision in ((torch.float32, 2e-5), (torch.bfloat16, 0.1)):
        x, single = seeded(16, 3).float().to(dtype), SeededNoise(5)  # float64 has draws of its own
        received: set[torch.dtype] = set()

        def watched(x: Tensor, t: Tensor, tau: Tensor, received: set[torch.dtype] = received) -> Tensor:
            received.add(x.dtype)
            return eps(x, t, tau)

        got = sample(watched, plan, x, SeededNoise(5))
        holds({got.dtype, *received} == {dtype}, f"states keep their dtype, {dtype}")
        exact = sample(eps, plan, x.double(), _in_double(single))
        close(got.double(), exact, f"states in {dtype} are those in float64", rtol=precision, atol=precision)
    for dtype in (torch.bfloat16, torch.float16):

        def half(x: Tensor, t: Tensor, tau: Tensor, dtype: torch.dtype = dtype) -> Tensor:
            return torch.tanh(x.to(dtype)) * tau.to(dtype)

        x = seeded(16, 3).float()
        got = _run(plan, x, half)
        same = torch.equal(got, _run(plan, x, lambda x, t, tau, half=half: half(x, t, tau).float()))
        holds(got.dtype == torch.float32 and same, f"states stay in float32 with a network in {dtype}")


def _check_no_reading(sampler: Sampler) -> None:
    plan, x = _varied(sampler, GRIDS[0]), seeded(4, 2).float()

    def end() -> Tensor:
        *_, last = trajectory(lambda x, t, tau: torch.tanh(x), plan, x, lambda x: torch.full_like(x, 0.1))
        return last

    before = end()  # the plan's own numbers, on the CPU, are read in its first run
    with NoReading():
        again = end()
    holds(torch.equal(again, before), "a run is repeatable")


def _check_start_without_data(sampler: Sampler) -> None:
    """At alpha = 0, where lam is infinite: with short steps the run ends where the exact flow does."""
    flow = NoiseScheduleFlow()
    plan = make_plan(sampler, flow, times=torch.linspace(1, 0.1, 41, dtype=torch.float64))
    x = torch.linspace(-1.5, 1.5, 7, dtype=torch.float64)[:, None]
    end = sample(MIXTURE.eps(flow), plan, x, SeededNoise(5))
    holds(bool(end.isfinite().all()) and float(end.abs().max()) < 4, "a run may start at alpha = 0")
    if not plan.stochastic:
        close(end, _exact_flow(x, plan), "a run from alpha = 0 follows the exact flow", rtol=0, atol=0.06)


def _in_double(noise: Noise) -> Noise:
    return lambda x: noise(x.float()).double()


class NoReading(TorchFunctionMode):
    """A mode in which whatever brings a number of a tensor to Python, or waits for its device, is an AssertionError: it
    would break a CUDA graph of the loop and leave the device idle."""

    READERS = ("item", "tolist", "cpu", "numpy", "__float__", "__bool__", "__int__", "__index__", "nonzero", "equal")

    def __torch_function__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        name = getattr(func, "__name__", "")
        mask = name == "__getitem__" and isinstance(args[1], Tensor)
        to_cpu = name == "to" and any(str(a) == "cpu" for a in (*args[1:], *(kwargs or {}).values()))
        holds(not (name in self.READERS or mask or to_cpu), f"the loop reads no number of a state, {name} does")
        return func(*args, **(kwargs or {}))
