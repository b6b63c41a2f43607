"""Betas of a DDPM on some of its levels."""

from typing import Any

import numpy as np
import pytest
import torch
from helpers import seeded
from hypothesis import given
from hypothesis import strategies as st

from time_tuner import NoiseScheduleVP, SeededNoise, make_plan, respaced_betas, sample
from time_tuner.models.exact import Gaussian

BETAS = np.linspace(1e-4, 0.02, 1000)
TEN = np.linspace(0, 999, 10, dtype=np.int16)
GRIDS = {
    "ten": TEN,
    "all": np.arange(1000),
    "two": np.array([0, 999]),
    "one": np.array([411]),
    "uneven": np.array([0, 1, 2, 250, 251, 998]),
}
each_grid = pytest.mark.parametrize("indices", GRIDS.values(), ids=GRIDS.keys())


def by_division(betas: np.ndarray, indices: np.ndarray) -> np.ndarray:
    """One level after the other: what is left of the data here, over what was left at the level before."""
    left = np.cumprod(1 - betas)
    before, respaced = 1.0, []
    for n in indices:
        respaced.append(1 - left[n] / before)
        before = left[n]
    return np.array(respaced)


@each_grid
def test_it_is_the_division_of_neighbouring_levels(indices: np.ndarray) -> None:
    np.testing.assert_allclose(respaced_betas(BETAS, indices), by_division(BETAS, indices), rtol=0, atol=1e-13)


@each_grid
def test_alpha_bar_comes_back(indices: np.ndarray) -> None:
    again = torch.cumprod(1 - respaced_betas(BETAS, indices), 0)
    np.testing.assert_allclose(again, np.cumprod(1 - BETAS)[indices], rtol=0, atol=1e-12)


@given(data=st.data(), betas=st.lists(st.floats(1e-6, 0.999), min_size=1, max_size=40))
def test_alpha_bar_comes_back_for_any_levels(data: st.DataObject, betas: list[float]) -> None:
    indices = sorted(data.draw(st.sets(st.integers(0, len(betas) - 1), min_size=1)))
    respaced = respaced_betas(betas, indices)
    assert respaced.dtype == torch.float64 and respaced.shape == (len(indices),)
    assert ((respaced > 0) & (respaced <= 1)).all()
    np.testing.assert_allclose(
        torch.cumprod(1 - respaced, 0), np.cumprod(1 - np.array(betas))[indices], rtol=0, atol=1e-12
    )


def test_keeping_every_level_changes_nothing() -> None:
    np.testing.assert_allclose(respaced_betas(BETAS, range(1000)), BETAS, rtol=1e-11)


def test_respacing_twice_is_respacing_once() -> None:
    first = respaced_betas(BETAS, np.arange(4, 1000, 5))
    np.testing.assert_allclose(
        respaced_betas(first, [0, 20, 199]), respaced_betas(BETAS, [4, 104, 999]), rtol=0, atol=1e-13
    )


@each_grid
def test_a_schedule_of_them_has_the_alphas_of_the_kept_levels(indices: np.ndarray) -> None:
    whole = NoiseScheduleVP("discrete", betas=BETAS)
    short = NoiseScheduleVP("discrete", betas=respaced_betas(BETAS, indices))
    assert short.total_N == len(indices)
    here = short.at((np.arange(len(indices)) + 1) / len(indices))
    there = whole.at((indices + 1) / 1000)
    torch.testing.assert_close(here.alpha, there.alpha, rtol=1e-10, atol=0)
    torch.testing.assert_close(here.sigma, there.sigma, rtol=1e-10, atol=0)


@pytest.mark.parametrize("sampler", ["ddpm", "ddim", "dpmpp"])
def test_running_all_of_them_is_running_the_kept_levels(sampler: str) -> None:
    """Two ways to the same samples: every level of a respaced schedule, some levels of the whole one."""
    x, model = seeded(5, 1), Gaussian(5.0, 2.0)
    ends = []
    for betas in (BETAS, respaced_betas(BETAS, TEN)):
        schedule = NoiseScheduleVP("discrete", betas=betas)
        plan = make_plan(sampler, schedule, calls=10, spacing="linspace")
        ends.append(sample(model.eps(schedule), plan, x, SeededNoise(3)))
    torch.testing.assert_close(*ends, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("container", [list, tuple, np.array, torch.tensor])
def test_indices_come_in_any_container(container: Any) -> None:
    assert torch.equal(respaced_betas(BETAS, container([3, 500, 999])), respaced_betas(BETAS, np.array([3, 500, 999])))


@pytest.mark.parametrize(
    ("betas", "indices", "says"),
    [
        (BETAS, [0, 5, 5], r"indices must rise strictly and lie in 0 \.\. 999, the levels of betas, got \[0, 5, 5\]"),
        (BETAS, [7, 5], "indices must rise strictly"),
        (BETAS, [-1, 5], r"lie in 0 \.\. 999"),
        (BETAS, [0, 1000], r"lie in 0 \.\. 999"),
        (BETAS, [], "indices must be K whole numbers, K >= 1"),
        (BETAS, 5, r"indices must be K whole numbers, .* got torch.int64 of shape \(\)"),
        (BETAS, [0.0, 5.0], "indices must be K whole numbers, .* got torch.float32"),
        (BETAS, [True, False], "indices must be K whole numbers, .* got torch.bool"),
        (BETAS, "all", "indices must be K whole numbers, got str"),
        ([1.0, 0.1], [0, 1], r"betas must lie in \(0, 1\), got 1.0 at level 0"),
        ([0.1, float("nan")], [0], "betas must be finite"),
    ],
)
def test_bad_values_are_named(betas: Any, indices: Any, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        respaced_betas(betas, indices)
