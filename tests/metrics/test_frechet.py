import math

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm
from sklearn.datasets import load_digits
from torch import Tensor
from torch.nn.functional import interpolate, pad

from time_tuner.digits.classifier import load_classifier, load_noisy_classifier, read_asset
from time_tuner.digits.metrics import digit_accuracy, digit_frechet
from time_tuner.metrics import distance, frechet_between, frechet_distance, moments


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def rotation(seed: int, size: int) -> Tensor:
    return torch.linalg.qr(normal(seed, size, size)).Q


def covariance(seed: int, size: int, rank: int) -> Tensor:
    root = normal(seed, size, rank)
    return root @ root.T


@pytest.fixture(scope="module")
def scanned() -> tuple[Tensor, Tensor]:
    """1797 digits of another data set, 8 x 8 of 17 greys, brought to the size and place MNIST gives its digits."""
    digits = load_digits()
    images = torch.from_numpy(digits.images).float()[:, None] / 16
    images = interpolate(images, (20, 16), mode="bicubic", antialias=False).clamp(0, 1)
    return pad(images, (6, 6, 4, 4)) * 2 - 1, torch.from_numpy(digits.target)


# --- Frechet distance ---


def test_commuting_covariances_have_a_closed_form() -> None:
    basis, a, b = rotation(0, 6), torch.tensor([4.0, 1, 0.25, 0, 9, 0]), torch.tensor([1.0, 1, 4, 2, 0, 0])
    a, b = a.double(), b.double()
    mean_a, mean_b = normal(1, 6), normal(2, 6)
    expected = (mean_a - mean_b).square().sum() + (a.sqrt() - b.sqrt()).square().sum()
    got = frechet_distance(mean_a, basis * a @ basis.T, mean_b, basis * b @ basis.T)
    assert got == pytest.approx(float(expected), rel=1e-12)


def test_agrees_with_the_matrix_square_root() -> None:
    a, b, mean = covariance(0, 5, 9), covariance(1, 5, 9), torch.zeros(5)
    expected = np.trace(a.numpy() + b.numpy() - 2 * sqrtm(a.numpy() @ b.numpy()).real)
    assert frechet_distance(mean, a, mean, b) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("rank", [1, 7, 30])
def test_zero_of_itself_also_where_singular(rank: int) -> None:
    mean, cov = normal(3, 20), covariance(4, 20, rank)
    assert 0 <= frechet_distance(mean, cov, mean, cov) < 1e-11 * float(cov.trace())


@pytest.mark.parametrize("rank", [3, 20])
def test_symmetric_and_unmoved_by_a_common_rotation(rank: int) -> None:
    a, b, turn = (normal(5, 20), covariance(6, 20, rank)), (normal(7, 20), covariance(8, 20, 20)), rotation(9, 20)
    there = frechet_distance(*a, *b)
    assert there > 1
    assert frechet_distance(*b, *a) == pytest.approx(there, rel=1e-9)
    turned = [(turn @ mean, turn @ cov @ turn.T) for mean, cov in (a, b)]
    assert frechet_distance(*turned[0], *turned[1]) == pytest.approx(there, rel=1e-6)


def test_of_single_points_it_is_the_squared_distance() -> None:
    zero = torch.zeros(3, 3)
    assert frechet_distance([0.0, 0, 0], zero, [1.0, 2, 2], zero) == pytest.approx(9)


def test_moments_are_those_of_numpy_in_float64() -> None:
    x = normal(10, 50, 2, 3).float() + 100
    mean, cov = moments(x)
    flat = x.double().flatten(1).numpy()
    np.testing.assert_allclose(mean, flat.mean(0), rtol=1e-12)
    np.testing.assert_allclose(cov, np.cov(flat.T), rtol=1e-10, atol=1e-12)


def test_between_sample_sets() -> None:
    x = normal(11, 40, 2, 3)
    assert frechet_between(x, x.flip(0)) == pytest.approx(0, abs=1e-12)
    assert frechet_between(x, x + 2) == pytest.approx(4 * 6)  # every one of the 6 numbers moved by 2
    assert frechet_between(x, 3 * x) == pytest.approx(float(4 * (x.var(0).sum() + x.mean(0).square().sum())))


def test_distance_is_that_of_each_sample_unsquared_and_not_in_half_precision() -> None:
    x, y = torch.zeros(2, 1, 2, 2), torch.tensor([1.0, 2]).view(2, 1, 1, 1).expand(2, 1, 2, 2)
    assert distance(x, y).tolist() == [2, 4]
    assert distance(x.half(), 300 * y.half()).tolist() == [600, 1200]  # 300^2 is beyond half precision
    assert distance(x.double(), y).dtype == torch.float64
    still = torch.zeros(2, 3, requires_grad=True)
    distance(still, torch.zeros(2, 3)).sum().backward()
    assert still.grad is not None
    assert still.grad.isfinite().all()


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: moments(torch.zeros(1, 3)), "features .* at least B = 2 .* got shape .1, 3."),
        (lambda: moments(torch.zeros(5)), "features must be"),
        (lambda: moments(torch.tensor([[0.0], [math.nan]])), "features must be finite, got 1 .* of 2"),
        (lambda: frechet_distance(torch.zeros(2), torch.eye(2), torch.zeros(3), torch.eye(3)), "mean_a and mean_b"),
        (lambda: frechet_distance(torch.zeros(2), torch.eye(2), torch.zeros(2), torch.eye(3)), r"cov_b .*\(2, 2\)"),
        (lambda: frechet_distance(torch.zeros(2), math.inf * torch.eye(2), torch.zeros(2), torch.eye(2)), "cov_a"),
        (lambda: frechet_distance([0.0, 0], [[1.0, 2], [0, 1]], [0.0, 0], torch.eye(2)), "cov_a must be symmetric"),
        (lambda: frechet_distance([0.0], [[1.0]], [0.0], [[-1.0]]), "cov_b must have no eigenvalue below zero"),
        (lambda: frechet_between(torch.zeros(4, 2), torch.zeros(4, 3)), "x and y"),
        (lambda: frechet_between(torch.zeros(4, 2), torch.full((4, 2), math.inf)), "y must be finite"),
        (lambda: distance(torch.zeros(4, 2), torch.zeros(1, 2)), "x and y must share one shape"),
        (lambda: distance(torch.zeros(4), torch.zeros(4)), "x and y must share one shape"),
        (lambda: digit_frechet(torch.zeros(4, 28, 28)), r"images .*\(4, 28, 28\); x\[:, None\] adds a channel"),
        (lambda: digit_frechet(torch.zeros(4, 1, 28, 28, dtype=torch.uint8)), "images .* 127.5"),
        (lambda: digit_frechet(torch.zeros(1, 1, 28, 28)), "images must hold at least two"),
        (lambda: digit_frechet(torch.full((2, 1, 28, 28), math.nan)), "images must be finite"),
        (lambda: digit_accuracy(torch.zeros(2, 1, 28, 28), [1]), "labels must be"),
        (lambda: digit_accuracy(torch.zeros(0, 1, 28, 28), []), "labels must be"),
        (lambda: load_noisy_classifier()(torch.zeros(2, 1, 28, 28), torch.zeros(3)), "n must be one noise level"),
        (lambda: load_noisy_classifier().log_prob(torch.zeros(2, 1, 28, 28), 0, [1, 2, 3]), "labels must have shape"),
        (lambda: load_noisy_classifier().log_prob(torch.zeros(1, 1, 28, 28), 0, [10]), "labels must be digits 0 to 9"),
    ],
)
def test_errors_name_the_argument(call, says) -> None:
    with pytest.raises(ValueError, match=says):
        call()


# --- digits ---


def test_classifier_reads_digits_of_another_data_set(scanned: tuple[Tensor, Tensor]) -> None:
    images, labels = scanned[0][:300], scanned[1][:300]
    right = digit_accuracy(images, labels)
    assert right > 0.9  # chance is 0.1
    assert digit_accuracy(images, (labels + 1) % 10) <= 1 - right
    assert digit_accuracy(images[:20].double(), labels[:20].tolist()) == digit_accuracy(images[:20], labels[:20])


def test_classifier_is_frozen_and_a_new_copy_each_time() -> None:
    model = load_classifier()
    assert not model.training
    assert all(not value.requires_grad and value.dtype == torch.float32 for value in model.parameters())
    model.head.weight.zero_()
    assert load_classifier().head.weight.any()


def test_reference_statistics_are_a_mean_and_a_covariance_of_the_test_digits() -> None:
    reference = read_asset("mnist-test-features.safetensors")
    assert int(reference["count"]) == 10_000
    assert reference["mean"].shape == (64,)
    assert reference["covariance"].shape == (64, 64)
    assert reference["mean"].dtype == reference["covariance"].dtype == torch.float64
    assert torch.linalg.eigvalsh(reference["covariance"])[0] > -1e-12


def test_digit_frechet_is_the_distance_of_classifier_features(scanned: tuple[Tensor, Tensor]) -> None:
    images = scanned[0][:510]  # more than one batch
    reference = read_asset("mnist-test-features.safetensors")
    features = load_classifier().features(images)
    expected = frechet_distance(*moments(features), reference["mean"], reference["covariance"])
    assert digit_frechet(images) == pytest.approx(expected, rel=1e-4)


def test_digit_frechet_grows_with_damage(scanned: tuple[Tensor, Tensor]) -> None:
    images = scanned[0][:200]
    noise = normal(12, *images.shape).float()
    values = [digit_frechet(images + level * noise) for level in (0.0, 0.3, 1.0)]
    assert values == sorted(values)
    assert digit_frechet(images[:1].repeat(2, 1, 1, 1)) > 2 * values[0]  # one digit alone: no variety


# --- noisy digits ---


def diffuse(x0: Tensor, n: int) -> Tensor:
    alpha_bar = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0)[n]
    return (alpha_bar.sqrt() * x0 + (1 - alpha_bar).sqrt() * normal(13, *x0.shape)).float()


def test_noisy_classifier_knows_less_the_more_noise(scanned: tuple[Tensor, Tensor]) -> None:
    images, labels = scanned[0][:200], scanned[1][:200]
    model = load_noisy_classifier()
    said = [model.log_prob(diffuse(images, n), n, labels).mean() for n in (100, 400, 600, 999)]
    assert said == sorted(said, reverse=True)
    assert said[0] > -1.2
    assert said[-1] == pytest.approx(-math.log(10), abs=0.05)  # nothing is left to see: one in ten
    for wrong in (200, 600):
        assert model.log_prob(diffuse(images, 400), wrong, labels).mean() < said[1]  # told the truth, it does best


def test_noisy_classifier_takes_a_level_for_all_or_for_each(scanned: tuple[Tensor, Tensor]) -> None:
    x, model = diffuse(scanned[0][:3], 300), load_noisy_classifier()
    levels = torch.tensor([300.0, 120.5, 700.0], dtype=torch.float64)
    together = model(x, levels)
    for k in range(3):
        torch.testing.assert_close(model(x[k : k + 1], levels[k]), together[k : k + 1], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(model(x, 300), model(x, torch.full((3,), 300.0)))
    torch.testing.assert_close(model(x, 300).log_softmax(1)[0, 4], model.log_prob(x, 300, [4, 4, 4])[0])


def test_guidance_leads_to_the_wanted_digit_and_carries_gradients_to_the_level(scanned: tuple[Tensor, Tensor]) -> None:
    x, model = diffuse(scanned[0][:20], 300).requires_grad_(), load_noisy_classifier()
    labels, n = (scanned[1][:20] + 1) % 10, torch.tensor(300.0, dtype=torch.float64, requires_grad=True)
    before = model.log_prob(x, n, labels)
    (slope,) = torch.autograd.grad(before.sum(), x, create_graph=True)
    after = model.log_prob(x + 0.5 * slope / slope.flatten(1).norm(dim=1).view(-1, 1, 1, 1), n, labels)
    assert (after > before).all()
    (to_level,) = torch.autograd.grad(slope.square().sum(), n)
    assert to_level.isfinite()
    assert to_level != 0
