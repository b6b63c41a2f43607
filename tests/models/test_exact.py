import math

import pytest
import torch
from helpers import moments, seeded
from torch import Tensor
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal

from time_tuner import SAMPLERS, NoiseScheduleVP, make_plan
from time_tuner.metrics import exact_moments
from time_tuner.models.exact import Gaussian, Mixture

MEAN, STD = torch.tensor([[0.5, -1.0, 2.0]]).double(), torch.tensor([[0.3, 1.0, 2.0]]).double()  # samples of (1, 3)
MEANS, WEIGHTS = seeded(4, 1, 3), torch.tensor([0.1, 0.2, 0.3, 0.4]).double()


def gaussian_log_density(x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    return Normal(alpha * MEAN, (alpha**2 * STD**2 + sigma**2).sqrt()).log_prob(x).flatten(1).sum(1)


def mixture_log_density(x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    parts = Independent(Normal(alpha * MEANS, (alpha**2 * 0.4**2 + sigma**2).sqrt()), 2)
    return MixtureSameFamily(Categorical(WEIGHTS), parts).log_prob(x)


PROBLEMS = {
    "gaussian": (Gaussian(MEAN, STD), gaussian_log_density),
    "mixture": (Mixture(MEANS, 0.4, WEIGHTS), mixture_log_density),
}


@pytest.mark.parametrize("problem", PROBLEMS)
@pytest.mark.parametrize("tau", [1.0, 0.6, 0.1, 0.004])
def test_eps_is_the_score_of_the_diffused_density(problem: str, tau: float, discrete: NoiseScheduleVP) -> None:
    model, log_density = PROBLEMS[problem]
    p, x = discrete.at(tau), seeded(20, 1, 3).requires_grad_()
    (score,) = torch.autograd.grad(log_density(x, p.alpha, p.sigma).sum(), x)
    eps = model.eps(discrete)
    torch.testing.assert_close(eps(x, tau), -p.sigma * score, rtol=1e-9, atol=1e-10)
    assert torch.equal(eps(x, 0.77, tau), eps(x, tau))  # only the time it is told counts


@pytest.mark.parametrize("problem", PROBLEMS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_eps_keeps_the_dtype(problem: str, dtype: torch.dtype, discrete: NoiseScheduleVP) -> None:
    eps, x = PROBLEMS[problem][0].eps(discrete), seeded(5, 1, 3).to(dtype)
    assert eps.shape == (1, 3) and eps(x, 0.5).dtype == dtype
    torch.testing.assert_close(eps(x, 0.5).double(), eps(x.double(), 0.5), rtol=0.05, atol=0.05)


def test_a_mixture_of_one_is_a_gaussian(discrete: NoiseScheduleVP) -> None:
    x = seeded(9, 1)
    one, other = Mixture([1.5], 0.7).eps(discrete), Gaussian(1.5, 0.7).eps(discrete)
    assert one.shape == other.shape == (1,)
    torch.testing.assert_close(one(x, 0.4), other(x, 0.4), rtol=1e-12, atol=0)


def test_a_weight_of_zero_leaves_a_point_out(discrete: NoiseScheduleVP) -> None:
    x = seeded(9, 1)
    with_it, without = Mixture([0.0, 1.0, 5.0], 0.3, [2, 1, 0]), Mixture([0.0, 1.0], 0.3, [2, 1])
    torch.testing.assert_close(with_it.eps(discrete)(x, 0.4), without.eps(discrete)(x, 0.4), rtol=1e-12, atol=0)


@pytest.mark.parametrize("problem", PROBLEMS)
def test_samples_have_the_moments_of_the_data(problem: str) -> None:
    n, model = 40_000, PROBLEMS[problem][0]
    x = model.sample(n, seed=3)
    if problem == "gaussian":
        mean, std = MEAN, STD
    else:
        w = WEIGHTS[:, None, None]
        mean = (w * MEANS).sum(0)
        std = ((w * (MEANS - mean) ** 2).sum(0) + 0.4**2).sqrt()
    assert x.shape == (n, 1, 3) and x.dtype == torch.float64
    assert ((x.mean(0) - mean).abs() < 4 * std / n**0.5).all()
    assert ((x.std(0) - std).abs() < 4 * std / (2 * n) ** 0.5).all()
    assert torch.equal(model.sample(9, seed=3), model.sample(9, seed=3))
    assert not torch.equal(model.sample(9, seed=3), model.sample(9, seed=4))


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("end", [0.0, 0.03])
def test_moments_of_a_run_are_those_of_its_coefficients(name: str, end: float, discrete: NoiseScheduleVP) -> None:
    plan = make_plan(name, discrete, times=[1.0, 0.7, 0.4, 0.1, end])
    plan = plan.with_tau(0.95 * plan.tau).with_corrections(0.1 * seeded(len(plan), len(plan)).tril(-1))
    mean, std = exact_moments(Gaussian(MEAN, STD), plan)
    assert mean.shape == std.shape == MEAN.shape
    for i in range(3):
        expected = moments(plan, float(MEAN[0, i]), float(STD[0, i]))
        assert (float(mean[0, i]), float(std[0, i])) == pytest.approx(expected, rel=1e-11)


def test_scalar_data_has_samples_of_shape_one() -> None:
    assert Gaussian(5.0, 2.0).sample(3).shape == Mixture([0.0, 1.0], 0.1).sample(3).shape == (3, 1)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Gaussian(0.0, 0.0), "std must be positive, got 0.0"),
        (lambda: Gaussian(0.0, [1.0, -2.0]), "std must be positive, got -2.0"),
        (lambda: Gaussian(math.nan), "mean must be finite"),
        (lambda: Mixture([0.0, math.inf], 0.1), "means must be finite"),
        (lambda: Mixture([], 0.1), r"means must have shape \(M, ...\) with M >= 1, got \(0,\)"),
        (lambda: Mixture(1.0, 0.1), r"means must have shape .* got \(\)"),
        (lambda: Mixture([0.0], 0.0), "std must be positive, got 0.0"),
        (lambda: Mixture([0.0], math.nan), "std must be positive, got nan"),
        (lambda: Mixture([0.0, 1.0], 0.1, [1.0]), "weights must be 2 numbers >= 0, not all 0"),
        (lambda: Mixture([0.0, 1.0], 0.1, [1.0, -1.0]), "weights must be 2 numbers"),
        (lambda: Mixture([0.0, 1.0], 0.1, [0.0, 0.0]), "weights must be 2 numbers"),
    ],
)
def test_bad_values_are_named(make, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        make()
