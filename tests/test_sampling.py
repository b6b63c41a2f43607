import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from helpers import seeded
from torch import Tensor

from time_tuner import (
    SAMPLERS,
    NoiseScheduleVP,
    Plan,
    SeededNoise,
    exact,
    make_plan,
    model_wrapper,
    sample,
    trajectory,
)
from time_tuner.models.thresholding import clipped
from time_tuner.noise import DATA, HELD_OUT, NOISE, STEPS, TEACHER, first_seed
from time_tuner.sampling import sample_in_turn

LINEAR = NoiseScheduleVP("linear")


@pytest.fixture(scope="module")
def plan(discrete: NoiseScheduleVP) -> Plan:
    return make_plan("dpmpp", discrete, calls=4)


def shrink(x: Tensor, t: Tensor, tau: Tensor) -> Tensor:
    return torch.tanh(x) * tau


# --- SeededNoise ---


@pytest.mark.parametrize("shape", [(3,), (2, 4, 4)])
def test_a_sample_has_its_stream_whatever_its_batch(shape: tuple[int, ...]) -> None:
    together, alone, reversed_ = SeededNoise([7, 8, 9]), SeededNoise([9]), SeededNoise([9, 8, 7])
    for _ in range(3):  # every call draws on
        batch = together(torch.zeros(3, *shape))
        assert torch.equal(batch[2:], alone(torch.zeros(1, *shape)))
        assert torch.equal(batch.flip(0), reversed_(torch.zeros(3, *shape)))
        assert not torch.equal(batch[0], batch[1])


def test_a_number_means_consecutive_seeds() -> None:
    x = torch.zeros(3, 5)
    by_number, by_list = SeededNoise(40), SeededNoise([40, 41, 42])
    for _ in range(2):
        assert torch.equal(by_number(x), by_list(x))
    assert torch.equal(SeededNoise()(x), SeededNoise(0)(x))
    assert not torch.equal(SeededNoise(40)(x), SeededNoise(41)(x))


def test_noise_is_standard_normal_in_the_dtype_of_its_argument() -> None:
    z = SeededNoise()(torch.zeros(4, 20_000))
    assert z.mean().abs() < 4 / 80_000**0.5 and (z.std() - 1).abs() < 4 / 160_000**0.5
    assert SeededNoise()(torch.zeros(0, 3)).shape == (0, 3)
    for dtype in (torch.float64, torch.bfloat16):
        assert SeededNoise()(torch.zeros(2, 3, dtype=dtype)).dtype == dtype
    single = SeededNoise()(torch.zeros(2, 3))
    assert torch.equal(SeededNoise()(torch.zeros(2, 3, dtype=torch.bfloat16)), single.bfloat16())


def test_each_purpose_has_seeds_of_its_own() -> None:
    purposes = (NOISE, DATA, HELD_OUT, NOISE + STEPS, HELD_OUT + STEPS, TEACHER)
    starts = sorted(first_seed(seed, purpose) for purpose in purposes for seed in range(256))
    assert all(b - a >= 2**20 for a, b in pairwise(starts))  # a million seeds each
    assert starts[0] >= 2**28 and starts[-1] + 2**20 <= 2**32  # the caller's own lie below; a generator reads 32 bits
    assert first_seed(3, NOISE) + first_seed(0, STEPS) == first_seed(3, NOISE + STEPS)


def test_seeds_must_be_as_many_as_samples() -> None:
    with pytest.raises(ValueError, match="SeededNoise has 2 seeds, but x has a batch of 3"):
        SeededNoise([1, 2])(torch.zeros(3, 1))


# --- sample and trajectory ---


def test_sample_is_the_last_state_of_the_trajectory(discrete: NoiseScheduleVP) -> None:
    plan, x = make_plan("ddpm", discrete, calls=5, spacing="linspace"), seeded(3, 2)
    states = list(trajectory(shrink, plan, x, SeededNoise(1)))
    assert [state.shape for state in states] == [x.shape] * 5
    assert torch.equal(sample(shrink, plan, x, SeededNoise(1)), states[-1])
    assert not torch.equal(sample(shrink, plan, x, SeededNoise(2)), states[-1])


def test_without_a_source_of_noise_torch_draws_it(discrete: NoiseScheduleVP) -> None:
    plan, x = make_plan("ddpm", discrete, calls=5, spacing="linspace"), seeded(3, 2)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        first = sample(shrink, plan, x)
        torch.manual_seed(3)
        assert torch.equal(sample(shrink, plan, x, torch.randn_like), first)


def test_grad_mode_belongs_to_the_caller_of_trajectory(plan: Plan) -> None:
    x = seeded(2, 3).requires_grad_()
    *_, last = trajectory(shrink, plan, x)
    (gradient,) = torch.autograd.grad(last.sum(), x)
    assert gradient.isfinite().all() and (gradient != 0).all()
    with torch.no_grad():
        assert not any(state.requires_grad for state in trajectory(shrink, plan, x))
    assert not sample(shrink, plan, x).requires_grad
    assert torch.is_grad_enabled()
    modes = []
    sample(lambda *a: (modes.append(torch.is_grad_enabled()), shrink(*a))[1], plan, x)
    assert modes == [False] * 4


def test_the_state_given_is_not_written_to(plan: Plan) -> None:
    x = seeded(2, 3)
    kept = x.clone()
    states = list(trajectory(shrink, plan, x))
    copies = [state.clone() for state in states]
    assert torch.equal(x, kept)
    list(trajectory(shrink, plan, states[0]))
    assert all(torch.equal(a, b) for a, b in zip(states, copies, strict=True))


def test_half_precision_is_rounded_once_a_call(discrete: NoiseScheduleVP) -> None:
    """From t = 1 to 0 the step is (x - sigma eps) / alpha, which loses 8 bits where the two nearly cancel."""
    plan, x = make_plan("ddim", discrete, times=[1.0, 0.0]), seeded(50, 2, dtype=torch.bfloat16)
    said = 0.99 * x
    got = sample(lambda x, t, tau: said, plan, x)
    expected = (x.double() - plan.sigma[0] * said.double()) / plan.alpha[0]
    torch.testing.assert_close(got.double(), expected, rtol=2**-8, atol=1e-4)


# --- errors ---


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("when", [0, 2, 3])
def test_a_broken_prediction_names_its_call(bad: float, when: int, plan: Plan) -> None:
    def eps(x: Tensor, t: Tensor, tau: Tensor) -> Tensor:
        out = shrink(x, t, tau)
        if tau == plan.tau[when]:
            out[1, 2] = bad
        return out

    says = rf"eps returned NaN or infinity at call {when} \(t = {float(plan.t[when]):.4g}, tau = "
    with pytest.raises(ValueError, match=says):
        sample(eps, plan, seeded(2, 3))


def test_a_failure_outside_the_prediction_is_distinguished(plan: Plan) -> None:
    large = 6e4 * torch.ones(1, 3, dtype=torch.float16)
    with pytest.raises(ValueError, match=r"the state became NaN or infinite at call 0 .* torch.float16 overflows"):
        sample(lambda x, t, tau: -x, plan, large)
    once = iter([math.nan])
    with pytest.raises(ValueError, match="but not when the run was repeated to find where"):
        sample(lambda x, t, tau: shrink(x, t, tau) + next(once, 0.0), plan, seeded(2, 3))


def test_large_numbers_are_not_taken_for_broken_ones(plan: Plan) -> None:
    x = torch.full((2, 3), 1e38)
    assert not x.sum().isfinite()
    tiny = make_plan("ddim", plan.schedule, times=[0.2, 0.19])
    assert sample(lambda x, t, tau: 0 * x, tiny, x).isfinite().all()


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (
            lambda x: torch.cat([x, x], 1),
            r"of the shape of x, \(2, 3\), got shape \(2, 6\) at call 0 .*learned variance",
        ),
        (lambda x: x[:1], r"got shape \(1, 3\) at call 0"),
        (lambda x: (x, x), "got tuple at call 0"),
        (lambda x: None, "got NoneType at call 0"),
    ],
)
def test_an_answer_of_another_shape_is_refused(answer, says: str, plan: Plan) -> None:
    for run in (sample, lambda *a: list(trajectory(*a))):
        with pytest.raises(ValueError, match=says):
            run(lambda x, t, tau: answer(x), plan, seeded(2, 3))


@pytest.mark.parametrize(
    ("x", "message"),
    [
        ({"pos": torch.zeros(2, 3)}, r"x must be one tensor of states \(B, ...\), got dict: torch.cat the parts"),
        ([torch.zeros(2, 3), torch.zeros(2, 4)], "x must be one tensor of states .* got list"),
        (torch.zeros(2, 3).numpy(), "x must be one tensor of states .* got ndarray"),
        (torch.zeros(2, 3).long(), r"x must hold real or complex numbers, got torch.int64: give x.float\(\)"),
        (torch.zeros(()), "x must have a batch"),
    ],
)
def test_a_state_of_another_kind_is_refused(x: Any, message: str, plan: Plan) -> None:
    for run in (sample, lambda *a: next(trajectory(*a))):
        with pytest.raises(ValueError, match=message):
            run(shrink, plan, x)


def test_complex_states_are_refused_where_numbers_must_be_real() -> None:
    x = torch.zeros(2, 3, dtype=torch.complex64)
    with pytest.raises(ValueError, match=r"eps must return real numbers for real states, got torch.complex64"):
        sample(lambda x, t, tau: x.to(torch.complex64), make_plan("ddim", LINEAR, 3), torch.zeros(2, 3))
    with pytest.raises(ValueError, match=r"data are kept in a range of real numbers, got states of torch.complex64"):
        clipped(exact.Gaussian(0.0, 0.5).eps(LINEAR))(x, 0.5)


@pytest.mark.parametrize("name", SAMPLERS)
def test_complex_states_are_sampled_as_their_parts_are(name: str) -> None:
    """The noise of a spectrogram has variance 1 in all, as `torch.randn` draws it."""
    eps, plan = exact.Gaussian(0.0, 0.5).eps(LINEAR), make_plan(name, LINEAR, 8, "quadratic")

    def noise(x: Tensor) -> Tensor:
        z = SeededNoise(3)(torch.zeros(*x.shape[:2], 2, dtype=torch.float64))
        return torch.view_as_complex(z) if x.is_complex() else z

    parts = seeded(4, 3, 2)
    got = sample(eps, plan, torch.view_as_complex(parts), noise)
    torch.testing.assert_close(torch.view_as_real(got), sample(eps, plan, parts, noise), rtol=1e-9, atol=1e-9)
    single = sample(eps, plan, torch.view_as_complex(parts).to(torch.complex64), SeededNoise(5))
    assert single.dtype == torch.complex64 and single.isfinite().all()
    with pytest.raises(ValueError, match=r"eps returned NaN or infinity at call [1-9]"):
        sample(lambda x, t, tau: x * (math.nan if t < 0.5 else 0.5), plan, torch.view_as_complex(parts), noise)


def test_complex_noise_has_variance_one_in_two_parts() -> None:
    z = SeededNoise()(torch.zeros(4, 20_000, dtype=torch.complex64))
    assert z.dtype == torch.complex64 and abs(float(z.abs().square().mean()) - 1) < 0.02
    assert abs(float(z.real.var()) - 0.5) < 0.02 and abs(float((z.real * z.imag).mean())) < 0.01


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_broken_start_is_refused(bad: float, plan: Plan) -> None:
    with pytest.raises(ValueError, match="x must be finite"):
        sample(shrink, plan, torch.tensor([[0.0, bad]]))


@pytest.mark.parametrize(
    "other", [NoiseScheduleVP("linear"), NoiseScheduleVP("cosine"), NoiseScheduleVP(betas=[0.1] * 9)]
)
def test_a_plan_for_another_schedule_is_refused(other: NoiseScheduleVP, discrete: NoiseScheduleVP) -> None:
    plan = make_plan("ddim", discrete, times=[0.99, 0.5, 0.2])
    gaussian = exact.Gaussian(0.5, 0.5)
    wrapped = model_wrapper(lambda x, n: x, other).bind()
    for eps in (gaussian.eps(other), wrapped):
        for run in (sample, lambda *a: next(trajectory(*a))):
            with pytest.raises(ValueError, match=r"plan was made for another noise schedule, .*'discrete', N=1000"):
                run(eps, plan, seeded(2, 1))


def test_the_same_levels_in_lower_precision_are_accepted(discrete: NoiseScheduleVP) -> None:
    single = NoiseScheduleVP(betas=torch.linspace(1e-4, 0.02, 1000, dtype=torch.float32))
    assert single != discrete
    plan, model, x = make_plan("ddim", discrete, calls=5), exact.Gaussian(0.5, 0.5), seeded(2, 1)
    torch.testing.assert_close(
        sample(model.eps(single), plan, x), sample(model.eps(discrete), plan, x), rtol=1e-4, atol=1e-4
    )


def test_a_compiled_network_is_compiled_once(discrete: NoiseScheduleVP) -> None:
    """It is told times as tensors: no call has a number of its own to compile for."""
    compiled: list[int] = []

    def backend(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> torch.fx.GraphModule:
        compiled.append(1)
        return graph

    def network(x: Tensor, n: Tensor) -> Tensor:
        return torch.tanh(x) * (n[:, None] + 1) / 1000

    with torch.no_grad():
        fast = torch.compile(network, backend=backend)
        for name in ("ddim", "dpm", "unipc"):
            plan, x = make_plan(name, discrete, calls=7, spacing="trailing"), seeded(3, 2)
            got, expected = (sample(model_wrapper(f, discrete).bind(), plan, x) for f in (fast, network))
            assert torch.equal(got, expected)
    assert len(compiled) == 1


# --- two plans in a row ---


def test_runs_of_one_step_methods_in_turn_are_the_run_on_the_whole_grid(linear: NoiseScheduleVP) -> None:
    eps = exact.Mixture([[-1.0], [0.5]], 0.3).eps(linear)
    whole = make_plan("ddim", linear, times=[1.0, 0.7, 0.4, 0.2, 0.05, 0.001])
    first = make_plan("ddim", linear, times=whole.t[:4])
    second = make_plan("ddim", linear, times=whole.t[3:])
    x = whole.initial_state(seeded(5, 1))
    torch.testing.assert_close(sample_in_turn([(eps, first), (eps, second)], x), sample(eps, whole, x))


def test_the_second_of_two_runs_begins_in_the_state_of_the_first_by_its_own_model(linear: NoiseScheduleVP) -> None:
    base, refiner = (exact.Gaussian(mean, 0.5).eps(linear) for mean in (0.0, 1.0))
    first = make_plan("unipc", linear, 4, end=0.2)
    second = make_plan("dpmpp", linear, times=[0.2, 0.1, 0.0])
    x = first.initial_state(seeded(5, 1))
    between = sample(base, first, x)
    assert torch.equal(sample_in_turn([(base, first), (refiner, second)], x), sample(refiner, second, between))


def test_a_second_plan_that_begins_elsewhere_is_refused(linear: NoiseScheduleVP) -> None:
    eps, first = exact.Gaussian().eps(linear), make_plan("ddim", linear, 4, end=0.2)
    x = first.initial_state(seeded(2, 1))
    with pytest.raises(
        ValueError, match=r"plan 1 of runs must begin where the one before ends, at t = 0\.2 .*got t = 0\.75"
    ):
        sample_in_turn([(eps, first), (eps, make_plan("ddim", linear, 4))], x)
    with pytest.raises(ValueError, match="runs must be pairs of a model and a plan, got none"):
        sample_in_turn([], x)
