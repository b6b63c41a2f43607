"""The bundled colour model draws pictures like those that it was trained on."""

from importlib.resources import files

import pytest
import torch
from torch import Tensor

from time_tuner import SeededNoise, evaluate, load_model, make_plan, sample
from time_tuner.pictograms import PictogramNetwork, coarse_features, load_pictograms, pictogram_frechet

PICTURES = load_pictograms()


def noise(count: int) -> Tensor:
    return SeededNoise(0)(torch.empty(count, 3, 24, 24))


def nearest(x: Tensor) -> float:
    """The mean distance of coarse pictures to the nearest of the training pictures."""
    return float(torch.cdist(coarse_features(x), coarse_features(PICTURES)).min(1).values.mean())


@pytest.fixture(scope="module")
def drawn() -> Tensor:
    model = load_model("pictograms")
    plan = make_plan("dpmpp", model.schedule, 12, "trailing")
    return sample(model, plan, plan.initial_state(noise(16)))


def test_samples_are_near_to_the_pictures_of_training(drawn: Tensor) -> None:
    apart = torch.cdist(coarse_features(PICTURES), coarse_features(PICTURES)).mean()
    assert nearest(drawn) < 0.5 * apart, "nearer than two of the pictures are to one another"
    assert nearest(drawn) < 0.5 * nearest(noise(16).clamp(-1, 1))
    assert pictogram_frechet(drawn) < 0.2 * pictogram_frechet(noise(16).clamp(-1, 1))


def test_samples_have_colours_on_white_and_differ(drawn: Tensor) -> None:
    corners = drawn[:, :, [0, 0, -1, -1], [0, -1, 0, -1]]
    assert (corners - 1).abs().mean() < 0.15
    assert (drawn.amax(1) - drawn.amin(1)).flatten(1).amax(1).median() > 1, "red, green and blue differ somewhere"
    assert torch.pdist(coarse_features(drawn)).min() > 1


def test_a_picture_and_its_mirror_image_are_both_there() -> None:
    assert PICTURES.shape[1:] == (3, 24, 24) and PICTURES.min() >= -1 and PICTURES.max() == 1
    one, other = PICTURES.chunk(2)
    assert torch.equal(one, other.flip(3)) and len(one) > 100


def test_frechet_distance_of_the_pictures_themselves_is_zero_and_grows_with_damage() -> None:
    values = [pictogram_frechet(PICTURES + level * SeededNoise(1)(PICTURES)) for level in (0.0, 0.5, 1.0)]
    assert values[0] == pytest.approx(0, abs=1e-6)
    assert values == sorted(values)


def test_the_network_computes_in_float32_and_has_no_conditions() -> None:
    assert {value.dtype for value in PictogramNetwork().parameters()} == {torch.float32}
    assert load_model("pictograms").num_conditions is None
    with pytest.raises(ValueError, match="model 'pictograms' has no label: leave it out"):
        load_model("pictograms", label=3)


@pytest.mark.parametrize("function", [coarse_features, pictogram_frechet])
def test_other_shapes_are_refused(function) -> None:
    with pytest.raises(ValueError, match=r"pictures must .*, got"):
        function(torch.zeros(2, 3, 4, 4))


def test_evaluate_compares_pictograms_in_their_own_features() -> None:
    found = evaluate("pictograms", against=["ddim"], calls=[2], data=PICTURES, samples=4, budget=None)
    assert found.facts["features"] == "pictograms"


def test_the_licence_of_the_pictures_is_with_them() -> None:
    text = (files("time_tuner.pictograms") / "assets" / "LICENSE").read_text()
    assert "MIT License" in text and "Microsoft Corporation" in text
