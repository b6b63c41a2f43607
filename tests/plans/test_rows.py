"""Samplers as rows of weights: what is linear compiles, what is not is refused."""

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from helpers import seeded
from torch import Tensor

from time_tuner import SAMPLERS, NoiseScheduleFlow, NoiseScheduleVP, Plan, make_plan, sample, trajectory
from time_tuner.models.exact import Mixture
from time_tuner.samplers import Evaluation, Noise, Sampler
from time_tuner.sampling import coefficients
from time_tuner.schedules import Point

TIMES = [1.0, 0.7, 0.4, 0.2, 0.05]


@dataclass(frozen=True)
class Changed(Sampler):
    """DDIM (eta = 1), in which the state after a step, or the corrected state, is changed."""

    change: Callable[[Tensor], Tensor]
    method: str = "step"
    first: int = 0

    def look_back(self, step: int, stage: int, steps: int) -> int:
        return min(2, step + 1)

    def step(self, past: tuple[Evaluation, ...], q: Point, noise: Noise) -> Tensor:
        x = SAMPLERS["ddim"](eta=1.0).step(past, q, noise)
        return self.change(x) if self.method == "step" and len(past) > self.first else x

    def correct(self, past: tuple[Evaluation, ...]) -> Tensor | None:
        e, p = past[-2], past[-1].p
        x = p.alpha * e.x0 + p.sigma * past[-1].eps
        return self.change(x) if self.method == "correct" else None


def in_place(x: Tensor) -> Tensor:
    return x.mul_(2)


LINEAR = {
    "same": lambda x: x,
    "scaled": lambda x: -3 * x,
    "single precision": lambda x: (x * 0.1).float().double(),
    "in place": in_place,
}

NONLINEAR = {
    "clamp": lambda x: x.clamp(-1, 1),
    "wide clamp": lambda x: x.clamp(-1000, 1000),
    "constant": lambda x: x + 1.0,
    "small constant": lambda x: x + 1e-3,
    "magnitude": lambda x: x.abs(),
    "positive part": lambda x: x.relu(),
    "square": lambda x: x**2,
    "tanh": lambda x: x.tanh(),
    "dead zone": lambda x: torch.nn.functional.softshrink(x, 0.01),
    "half precision": lambda x: x.half().double(),
    "rounded": lambda x: x.round(decimals=3),
    "norm of all": lambda x: x / x.norm(),
    "norm of a sample": lambda x: x / x.flatten(1).norm(dim=1)[:, None],
    "threshold of a sample": lambda x: x / x.abs().flatten(1).quantile(0.99, dim=1).clamp(min=1)[:, None],
    "mean of a sample": lambda x: x - x.flatten(1).mean(1)[:, None],
    "neighbours": lambda x: x + x.roll(1, -1),
    "branch on size": lambda x: 2 * x if x.abs().max() > 0.1 else x,
    "branch on sign": lambda x: 2 * x if x.sum() > 0 else x,
}


@pytest.mark.parametrize("method", ["step", "correct"])
@pytest.mark.parametrize("kind", NONLINEAR)
def test_a_nonlinear_sampler_is_refused(kind: str, method: str, linear: NoiseScheduleVP) -> None:
    plan = make_plan(Changed(NONLINEAR[kind], method), linear, times=TIMES)
    with pytest.raises(ValueError, match=rf"^Changed\.{method} must be linear .*wrapper around the model.*clipped$"):
        _ = plan.rows


@pytest.mark.parametrize("method", ["step", "correct"])
@pytest.mark.parametrize("kind", LINEAR)
def test_a_linear_sampler_is_not_refused(kind: str, method: str, linear: NoiseScheduleVP) -> None:
    plan = make_plan(Changed(LINEAR[kind], method), linear, times=TIMES)
    assert len(plan.rows) == 4
    assert [row.corrected is not None for row in plan.rows] == [False] + [method == "correct"] * 3


@pytest.mark.parametrize("kind", NONLINEAR)
def test_a_nonlinear_branch_is_found_at_the_call_that_takes_it(kind: str, linear: NoiseScheduleVP) -> None:
    sampler = Changed(NONLINEAR[kind], first=1)
    assert len(make_plan(sampler, linear, times=TIMES[:2]).rows) == 1
    with pytest.raises(ValueError, match=r"Changed\.step must be linear"):
        _ = make_plan(sampler, linear, times=TIMES).rows


def test_a_corrector_that_depends_on_the_state_is_refused(linear: NoiseScheduleVP) -> None:
    class Sometimes(Changed):
        def correct(self, past: tuple[Evaluation, ...]) -> Tensor | None:
            return past[-1].x if past[-1].x.abs().max() > 0.1 else None

    with pytest.raises(ValueError, match=r"Sometimes\.correct must be linear"):
        _ = make_plan(Sometimes(lambda x: x), linear, times=TIMES).rows


def test_a_product_with_the_noise_is_refused(linear: NoiseScheduleVP) -> None:
    class Product(Sampler):
        def step(self, past: tuple[Evaluation, ...], q: Point, noise: Noise) -> Tensor:
            return past[-1].x + past[-1].eps * noise(past[-1].x)

    with pytest.raises(ValueError, match=r"Product\.step must be linear"):
        _ = make_plan(Product(), linear, times=TIMES).rows


@pytest.mark.parametrize(
    ("change", "got"),
    [
        (lambda x: x.sum(), r"shape \(\)"),
        (lambda x: x[0], r"shape \(\d+,\)"),
        (lambda x: x[..., :1], r"shape \(1, 1\)"),
        (lambda x: None, "NoneType"),
        (lambda x: x.tolist(), "list"),
    ],
)
def test_a_state_of_another_shape_is_refused(change: Callable[[Tensor], Tensor], got: str, linear) -> None:
    plan = make_plan(Changed(change), linear, times=TIMES)
    with pytest.raises(ValueError, match=rf"^Changed\.step must return a tensor of the shape of x, got {got} where"):
        _ = plan.rows


def test_the_error_is_that_of_the_run_and_of_its_gradients(linear: NoiseScheduleVP) -> None:
    plan = make_plan(Changed(lambda x: x.clamp(-1, 1)), linear, times=TIMES)
    moved = plan.with_times(plan.step_times.clone().requires_grad_())
    for run in (lambda: sample(lambda x, t, tau: x, plan, seeded(2, 3)), lambda: coefficients(moved)):
        with pytest.raises(ValueError, match="must be linear"):
            run()


@pytest.mark.parametrize("name", ["ddim", "unipc"])
def test_rows_compile_inside_of_function_transforms(name: str, linear: NoiseScheduleVP) -> None:
    x = seeded(3, 2)

    def run(x: Tensor, plan: Plan | None = None) -> Tensor:
        plan = make_plan(name, linear, times=TIMES) if plan is None else plan  # whose rows are not compiled yet
        return list(trajectory(lambda x, t, tau: x.tanh(), plan, x))[-1]

    expected = run(x)
    torch.testing.assert_close(torch.func.vmap(lambda x: run(x[None])[0])(x), expected)
    ones = torch.ones_like(x)
    value, slope = torch.func.jvp(run, (x,), (ones,))
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(torch.func.grad(lambda x: run(x).sum())(x), slope)
    plan = make_plan(name, linear, times=TIMES)
    torch.func.jacrev(lambda x: run(x, plan))(x)
    assert torch.equal(run(x, plan), expected)  # the rows outlive the transform


@pytest.mark.parametrize("name", SAMPLERS)
def test_the_gradient_of_zero_corrections_is_that_of_small_ones(name: str) -> None:
    """Also of a first call at alpha = 0, which predicts the data: there the noise follows from the state."""
    schedule = NoiseScheduleFlow()
    plan = make_plan(SAMPLERS[name](), schedule, times=[1.0, 0.8, 0.55, 0.3, 0.1, 0.05])
    eps, x = Mixture([-1.0, 0.5, 1.5], 0.4).eps(schedule), seeded(4, 1)
    calls = len(plan)

    def end(c: Tensor) -> Tensor:
        *_, state = trajectory(eps, plan.with_corrections(c), x, lambda x: torch.full_like(x, 0.3))
        return state.sum()

    c = torch.zeros(calls, calls, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(end(c), c)
    for k, j in ((1, 0), (2, 0), (calls - 1, 0), (calls - 1, 1)):
        small = torch.zeros(calls, calls, dtype=torch.float64)
        small[k, j] = 1e-5
        slope = (end(small) - end(-small)) / 2e-5
        torch.testing.assert_close(gradient[k, j], slope, rtol=1e-4, atol=1e-7)
    assert gradient[1:, 0].abs().max() > 0
