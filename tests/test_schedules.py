import json
import math

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler
from hypothesis import given
from hypothesis import strategies as st

from time_tuner import NoiseScheduleVP
from time_tuner.schedules import schedule_from_dict

SHORT = [0.01, 0.05, 0.2, 0.4]
SCHEDULES = {
    "discrete": NoiseScheduleVP(betas=torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)),
    "short": NoiseScheduleVP(betas=SHORT),
    "linear": NoiseScheduleVP("linear"),
    "constant": NoiseScheduleVP("linear", continuous_beta_0=2.0, continuous_beta_1=2.0),
    "cosine": NoiseScheduleVP("cosine"),
}
each = pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES.keys())


def test_discrete_is_exact_at_the_levels_and_log_linear_between() -> None:
    schedule = NoiseScheduleVP(betas=SHORT)
    alpha = np.sqrt(np.cumprod(1 - np.array(SHORT)))
    np.testing.assert_allclose(schedule.at([0.25, 0.5, 0.75, 1.0]).alpha, alpha, rtol=1e-15)
    middle = np.sqrt(np.concatenate([[1.0], alpha[:-1]]) * alpha)  # of the logarithms; the first with alpha(0) = 1
    np.testing.assert_allclose(schedule.at([0.125, 0.375, 0.625, 0.875]).alpha, middle, rtol=1e-15)


def test_linear_is_the_integral_of_its_beta() -> None:
    schedule, t = NoiseScheduleVP("linear", continuous_beta_0=0.3, continuous_beta_1=7.0), 0.8
    s = (torch.arange(2000, dtype=torch.float64) + 0.5) * t / 2000  # the midpoint rule is exact for a linear beta
    integral = (0.3 + s * (7.0 - 0.3)).mean() * t
    assert float(schedule.at(t).alpha) == pytest.approx(math.exp(-0.5 * integral), rel=1e-13)


def test_cosine_has_its_closed_form() -> None:
    schedule, s = NoiseScheduleVP("cosine"), 0.008
    for t in (0.1, 0.5, 0.99):
        alpha = math.cos(math.pi / 2 * (t + s) / (1 + s)) / math.cos(math.pi / 2 * s / (1 + s))
        assert float(schedule.at(t).alpha) == pytest.approx(alpha, rel=1e-13)


@each
@given(data=st.data())
def test_variance_is_preserved_and_lambda_is_inverted(schedule: NoiseScheduleVP, data: st.DataObject) -> None:
    t = data.draw(st.floats(1e-4, schedule.T))
    p = schedule.at(t)
    assert float(p.alpha**2 + p.sigma**2) == pytest.approx(1, abs=1e-15)
    assert float(p.lam) == pytest.approx(float(torch.log(p.alpha / p.sigma)), abs=1e-13)
    assert float(schedule.inverse_lambda(p.lam)) == pytest.approx(t, rel=1e-9)


@given(betas=st.lists(st.floats(1e-6, 0.999), min_size=1, max_size=30))
def test_any_levels_give_a_falling_lambda_that_is_inverted(betas: list[float]) -> None:
    schedule = NoiseScheduleVP(betas=betas)
    t = torch.linspace(0.01, 1, 50, dtype=torch.float64)
    lam = schedule.at(t).lam
    assert (lam.diff() < 0).all()
    torch.testing.assert_close(schedule.inverse_lambda(lam), t, rtol=1e-7, atol=0)


@each
def test_no_noise_at_time_zero(schedule: NoiseScheduleVP) -> None:
    t = torch.tensor([0.0, 0.3], dtype=torch.float64, requires_grad=True)
    p = schedule.at(t)
    assert [float(value.detach()[0]) for value in (p.alpha, p.sigma, p.lam)] == [1, 0, math.inf]
    for value in (p.alpha, p.sigma):
        (gradient,) = torch.autograd.grad(value.sum(), t, retain_graph=True)
        assert gradient.isfinite().all() and gradient[1] != 0
    assert torch.autograd.grad(p.sigma[0], t)[0][0] == 0


@each
def test_gradients_to_time_are_those_of_finite_differences(schedule: NoiseScheduleVP) -> None:
    t = torch.tensor([0.1103, 0.4607, 0.8301], dtype=torch.float64, requires_grad=True)  # between the levels
    assert torch.autograd.gradcheck(lambda t: (schedule.at(t).alpha, schedule.at(t).sigma, schedule.at(t).lam), (t,))
    assert torch.autograd.gradcheck(lambda t: schedule.inverse_lambda(schedule.at(t).lam), (t,))


@each
def test_marginals_are_the_point_in_the_schedules_dtype(schedule: NoiseScheduleVP) -> None:
    t, p = [0.2, 0.7], schedule.at([0.2, 0.7])
    marginals = (
        schedule.marginal_log_mean_coeff,
        schedule.marginal_alpha,
        schedule.marginal_std,
        schedule.marginal_lambda,
    )
    for marginal, expected in zip(marginals, (p.alpha.log(), p.alpha, p.sigma, p.lam), strict=True):
        torch.testing.assert_close(marginal(t), expected, rtol=1e-13, atol=1e-15)
    single = NoiseScheduleVP("linear", dtype=torch.float32)
    assert single.marginal_lambda(0.5).dtype == single.inverse_lambda(0.1).dtype == torch.float32
    assert single.at(0.5).alpha.dtype == torch.float64


@pytest.mark.parametrize("kind", ["linear", "scaled_linear", "squaredcos_cap_v2"])
def test_agrees_with_diffusers(kind: str) -> None:
    theirs = DDPMScheduler(beta_schedule=kind)
    schedule = NoiseScheduleVP(betas=theirs.betas)
    nodes = (torch.arange(1000, dtype=torch.float64) + 1) / 1000
    # Theirs is a product of 1000 factors, each rounded to float32.
    rounding = 1000 * torch.finfo(torch.float32).eps
    torch.testing.assert_close(schedule.at(nodes).alpha ** 2, theirs.alphas_cumprod.double(), rtol=rounding, atol=0)
    exact = NoiseScheduleVP(alphas_cumprod=theirs.alphas_cumprod)
    torch.testing.assert_close(exact.at(nodes).alpha ** 2, theirs.alphas_cumprod.double(), rtol=1e-14, atol=0)


@pytest.mark.parametrize("container", [list, tuple, np.array, torch.tensor, lambda b: np.array(b, dtype=np.float32)])
def test_levels_come_in_any_container(container) -> None:
    got, expected = NoiseScheduleVP(betas=container(SHORT)), NoiseScheduleVP(betas=SHORT)
    torch.testing.assert_close(got.at(0.6).alpha, expected.at(0.6).alpha, rtol=1e-7, atol=0)
    assert (got.total_N, got.t_min, got.T) == (4, 0.25, 1.0)
    cumulative = NoiseScheduleVP(alphas_cumprod=container(np.cumprod(1 - np.array(SHORT)).tolist()))
    torch.testing.assert_close(cumulative.at(0.6).alpha, expected.at(0.6).alpha, rtol=1e-7, atol=0)


@pytest.mark.parametrize(
    "schedule", [*SCHEDULES.values(), NoiseScheduleVP(alphas_cumprod=np.array([0.9, 0.5], dtype=np.float32))], ids=repr
)
def test_json_round_trip(schedule: NoiseScheduleVP) -> None:
    again = schedule_from_dict(json.loads(json.dumps(schedule.to_dict())))
    assert again == schedule
    assert torch.equal(again.at(0.3).sigma, schedule.at(0.3).sigma)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"schedule": "quadratic"}, "schedule must be 'discrete', 'linear' or 'cosine', got 'quadratic'"),
        ({}, "needs either betas= or alphas_cumprod="),
        ({"betas": [0.1], "alphas_cumprod": [0.9]}, "needs either betas= or alphas_cumprod="),
        ({"schedule": "linear", "betas": [0.1]}, "belong to schedule='discrete'"),
        ({"betas": [0.1, math.nan]}, "betas must be finite, got nan"),
        ({"betas": [0.1, math.inf]}, "betas must be finite, got inf"),
        ({"betas": [0.1, 0.0]}, r"betas must lie in \(0, 1\), got 0.0 at level 1"),
        ({"betas": [1.0, 0.1]}, r"betas must lie in \(0, 1\), got 1.0 at level 0"),
        ({"betas": []}, r"betas must have shape \(N,\)"),
        ({"betas": 0.1}, r"betas must have shape \(N,\) with N >= 1, got \(\)"),
        ({"betas": [[0.1], [0.2]]}, r"betas must have shape .* got \(2, 1\)"),
        ({"betas": "0.1"}, "betas must be N numbers, got str"),
        ({"betas": [0.1, None]}, "betas must be N numbers, got list"),
        ({"alphas_cumprod": [0.9, 0.9]}, "alphas_cumprod must lie in .* and fall .* got 0.9 at level 1"),
        ({"alphas_cumprod": [0.9, 1.0]}, "alphas_cumprod must lie in"),
        ({"schedule": "linear", "continuous_beta_0": 0.0}, "continuous_beta_0 and continuous_beta_1 must satisfy"),
        ({"schedule": "linear", "continuous_beta_1": math.inf}, "continuous_beta_0 and continuous_beta_1 must satisfy"),
    ],
)
def test_bad_values_are_named(options: dict, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        NoiseScheduleVP(**options)


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"name": "vx"}, r"schedule name must be one of vp, ve, flow, got 'vx'"),
        ({"schedule": "linear"}, "got None"),
        ({"name": "vp", "gammas": [1]}, "schedule 'vp' does not take these values: .*gammas"),
        ({"name": "vp", "schedule": "linear", "continuous_beta_0": "a"}, "does not take these values"),
    ],
)
def test_bad_dictionaries_are_named(values: dict, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        schedule_from_dict(values)
