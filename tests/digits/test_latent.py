"""Latent diffusion from end to end: images are encoded and tuned on, samples are guided by embedded labels, decoded."""

import runpy
import sys
from collections.abc import Callable
from importlib import import_module
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from time_tuner import SeededNoise, TimeTuner, load_model, make_plan, model_wrapper, sample
from time_tuner.digits.latent import LatentDigits, load_latent_digits
from time_tuner.digits.metrics import digit_accuracy
from time_tuner.digits.networks import NULL_LABEL
from time_tuner.metrics import distance

EXAMPLE = str(Path(__file__).parents[2] / "examples" / "latent.py")


@pytest.fixture(scope="module")
def model() -> LatentDigits:
    return load_latent_digits()


@pytest.fixture(scope="module")
def drawn(model: LatentDigits) -> tuple[Tensor, Tensor]:
    """Latents of 100 digits, 10 of each, in 20 calls at guidance 2, and their labels."""
    labels = torch.arange(100) % 10
    return run(load_model("latent-digits", labels, 2.0), model, labels), labels


@pytest.fixture(scope="module")
def scans() -> dict[str, Tensor]:
    """32 handwritten digits that were scanned, in the frame of the model's own."""
    items = runpy.run_path(EXAMPLE)["scans"](32)
    return {"image": torch.stack([item["image"] for item in items]), "label": torch.tensor([i["label"] for i in items])}


def run(eps: Any, model: LatentDigits, labels: Tensor) -> Tensor:
    plan = make_plan("dpmpp", model.schedule, calls=20)
    return sample(eps, plan, SeededNoise(0)(torch.empty(len(labels), *model.shape)))


class Counted:
    """A function that remembers how large the batches were that it was given."""

    def __init__(self, function: Callable[[Any], Tensor]) -> None:
        self.function, self.sizes = function, []

    def __call__(self, values: Any) -> Tensor:
        result = self.function(values)
        self.sizes.append(len(result))
        return result


@pytest.mark.parametrize("tune_type", ["sequential", "parallel"])
def test_tuned_on_images_and_decoded(
    monkeypatch: pytest.MonkeyPatch, model: LatentDigits, scans: dict[str, Tensor], tune_type: str
) -> None:
    monkeypatch.setattr(import_module("time_tuner.tuners.tune"), "REFERENCE_CALLS", 20)  # to save time
    embed, encode, calls = Counted(model.embed), Counted(model.encode), 4
    wrapped = model_wrapper(
        model.network, model.schedule, guidance_type="classifier-free", guidance_scale=1.5, cond_process_fn=embed
    )
    tuner = TimeTuner(wrapped, model.schedule)
    levels = make_plan("ddim", model.schedule, calls, "quadratic").t[:-1] * model.schedule.total_N - 1
    batches = [{name: values[i : i + 16] for name, values in scans.items()} for i in range(0, 32, 16)]
    ratios = tuner.optimize_timesteps(
        batches, encode_fn=encode, timesteps=levels, tune_type=tune_type, samples=32, uncond_condition=NULL_LABEL
    )
    assert encode.sizes == [16, 16]  # every image once
    assert sorted(embed.sizes) == [1, 32]  # no label, and the labels to tune on, which also serve to judge
    assert ratios.shape == (calls,) and ratios[-1] == 1 and ratios[0] != 1

    noise = SeededNoise(1000)(torch.empty(40, *model.shape))
    labels = torch.arange(40) % 10
    embed.sizes.clear()
    ends = {
        name: tuner.ddim_sample(noise, t_ratios=given, condition=labels, uncond_condition=NULL_LABEL, **grid)
        for name, given, grid in (
            ("untuned", None, {"timesteps": levels}),
            ("tuned", ratios, {"timesteps": levels}),
            ("many", None, {"num_steps": 25}),
        )
    }
    assert embed.sizes in ([40], [40, 1])  # the same labels are not embedded again
    images = model.decode(ends["tuned"])
    assert images.shape == (40, 1, 28, 28) and -1 <= images.min() < -0.9 and 0.9 < images.max() <= 1
    apart = {name: distance(x, ends["many"]).mean() for name, x in ends.items()}
    assert apart["tuned"] < 0.97 * apart["untuned"]


def test_guided_samples_are_recognised(model: LatentDigits, drawn: tuple[Tensor, Tensor]) -> None:
    latents, labels = drawn
    images = model.decode(latents)
    assert digit_accuracy(images, labels) > 0.9
    unguided = model.decode(run(load_model("latent-digits"), model, labels))
    assert digit_accuracy(unguided, labels) < 0.25


def test_decoded_samples_are_encoded_again(model: LatentDigits, drawn: tuple[Tensor, Tensor]) -> None:
    latents, _ = drawn
    images = model.decode(latents)
    again = model.encode(images)
    assert (model.decode(again) - images).square().mean() < 0.005  # of images whose variance is 0.4
    assert (again - latents).square().mean() < 0.1
    torch.testing.assert_close(again.std((0, 2, 3)), torch.ones(4), rtol=0.1, atol=0)


@pytest.mark.parametrize("n", [50, 200, 400, 700])
def test_network_knows_digits(model: LatentDigits, drawn: tuple[Tensor, Tensor], n: int) -> None:
    """A predictor that knows the variance alone predicts sigma x, with an error of E |eps - sigma x|^2 = alpha^2."""
    images, labels = model.decode(drawn[0]), drawn[1]
    p = model.schedule.at((n + 1) / 1000)
    x0 = model.encode(images)
    eps = SeededNoise(2000)(x0)

    def error(labels: Tensor) -> float:
        predicted = model.network(p.alpha * x0 + p.sigma * eps, torch.full((len(x0),), float(n)), model.embed(labels))
        return float((predicted - eps).square().mean())

    assert error(labels) < 0.85 * p.alpha**2
    assert error(labels) < error((labels + 1) % 10)  # it depends on its condition


def test_bundled_model_is_the_wrapped_network(model: LatentDigits) -> None:
    labels = torch.tensor([3, 7])
    bundled = load_model("latent-digits", label=labels, guidance_scale=2.0)
    assert bundled.shape == model.shape and bundled.schedule == model.schedule
    x = SeededNoise(0)(torch.empty(2, *model.shape))
    n = torch.full((2,), 299.0)
    eps_c = model.network(x, n, model.embed(labels))
    eps_u = model.network(x, n, model.embed(NULL_LABEL).expand(2, -1))
    torch.testing.assert_close(bundled(x, 0.3), 2 * eps_c - eps_u)
    torch.testing.assert_close(load_model("latent-digits")(x, 0.3), eps_u)


@pytest.mark.parametrize("name", ["digits", "latent-digits"])
def test_arguments_of_bundled_digits(name: str) -> None:
    for label in (10, -1, 2.5, [[1]]):
        with pytest.raises(ValueError, match="label must be a digit 0 to 9"):
            load_model(name, label=label)
    with pytest.raises(ValueError, match=r"guidance_scale=2\.0 needs label="):
        load_model(name, guidance_scale=2.0)


def test_labels_are_embedded(model: LatentDigits) -> None:
    every = model.embed(torch.arange(11))
    assert every.shape == (11, 64) and len(every.unique(dim=0)) == 11
    assert torch.equal(model.embed(3), every[3:4]) and torch.equal(model.embed([3, 10]), every[[3, 10]])
    for wrong in (11, -1, 0.5, [[1]]):
        with pytest.raises(ValueError, match="labels must be digits 0 to 9, or 10"):
            model.embed(wrong)


def test_assets_are_small_and_plain() -> None:
    assets = {
        file.name: len(file.read_bytes()) for file in (files("time_tuner.digits") / "assets" / "latent").iterdir()
    }
    assert set(assets) == {"model.safetensors", "model.json"} and sum(assets.values()) < 1_500_000


def test_example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    picture = tmp_path / "latent.png"
    monkeypatch.setattr(sys, "argv", ["latent.py", str(picture), "--calls", "4", "--samples", "16"])
    runpy.run_path(EXAMPLE, run_name="__main__")
    assert picture.read_bytes().startswith(b"\x89PNG")
    printed = capsys.readouterr().out
    assert "4 calls:" in printed and "4 calls, tuned:" in printed
