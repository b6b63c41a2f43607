from collections.abc import Callable

import numpy as np
import pytest
import torch

from time_tuner import SPACINGS, NoiseScheduleVP, make_plan

SCHEDULES = {
    "discrete": NoiseScheduleVP(betas=torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)),
    "short": NoiseScheduleVP(betas=[0.05] * 24),
    "linear": NoiseScheduleVP("linear"),
    "cosine": NoiseScheduleVP("cosine"),
}
COUNTS = [*range(2, 24), 25, 33, 50, 64, 99, 100, 250, 500, 501, 999]


def times_of_levels(n: list[int], end: float, N: int = 1000) -> list[float]:
    return [*((i + 1) / N for i in n), end]


FORMULAS: dict[str, Callable[[int], list[float]]] = {
    "seed": lambda K: times_of_levels([int(n) for n in np.linspace(0, 999, K)][::-1], 0.0),
    "leading": lambda K: times_of_levels([1 + i * (1000 // K) for i in range(K - 1, -1, -1)], 0.001),
    "trailing": lambda K: times_of_levels([round(1000 - i * 1000 / K) - 1 for i in range(K)], 0.0),
    "uniform": lambda K: [1 + (0.001 - 1) * i / K for i in range(K + 1)],
    "quadratic": lambda K: [(1 + (0.001**0.5 - 1) * i / K) ** 2 for i in range(K + 1)],
}


@pytest.mark.parametrize("name", FORMULAS)
@pytest.mark.parametrize("K", [2, 5, 7, 10, 64, 333])
def test_published_formulas(name: str, K: int, discrete: NoiseScheduleVP) -> None:
    expected = torch.tensor(FORMULAS[name](K), dtype=torch.float64)
    torch.testing.assert_close(SPACINGS[name](discrete, K), expected, rtol=0, atol=1e-15)
    # The continuous schedules go by 1000 levels too.
    torch.testing.assert_close(SPACINGS[name](NoiseScheduleVP("linear"), K), expected, rtol=0, atol=1e-15)


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES.keys())
def test_lam_is_even_in_lambda_and_meets_its_ends(schedule: NoiseScheduleVP) -> None:
    times = SPACINGS["lam"](schedule, 12)
    steps = schedule.at(times).lam.diff()
    torch.testing.assert_close(steps, steps.mean().expand(12), rtol=1e-9, atol=0)
    assert (float(times[0]), float(times[-1])) == (schedule.T, schedule.t_min)


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES.keys())
def test_grids_fall_strictly_within_the_trained_range(spacing: str, schedule: NoiseScheduleVP) -> None:
    for steps in [1, *(n for n in COUNTS if n < schedule.total_N)]:
        times = SPACINGS[spacing](schedule, steps)
        assert times.dtype == torch.float64 and times.shape == (steps + 1,)
        assert (times.diff() < 0).all(), steps
        assert times[0] <= schedule.T and times[-2] >= schedule.t_min * (1 - 1e-12), steps
        assert times[-1] == 0 or float(times[-1]) == pytest.approx(schedule.t_min, rel=1e-12), steps
    assert len(make_plan("ddim", schedule, calls=7, spacing=spacing)) == 7


@pytest.mark.parametrize("spacing", sorted(SPACINGS.keys() - {"leading"}))
def test_as_many_steps_as_levels_use_every_level_once(spacing: str) -> None:
    times = SPACINGS[spacing](SCHEDULES["short"], 24)
    assert (times.diff() < 0).all() and times[0] == 1


@pytest.mark.parametrize("spacing", sorted(SPACINGS.keys() - {"leading"}))
@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES.keys())
def test_one_step_starts_from_pure_noise(spacing: str, schedule: NoiseScheduleVP) -> None:
    assert float(SPACINGS[spacing](schedule, 1)[0]) == pytest.approx(schedule.T, abs=1e-15)


def test_leading_has_no_grid_of_as_many_steps_as_levels() -> None:
    """Its offset of one level leaves N - 1 of them."""
    with pytest.raises(ValueError, match=r"times must lie in the trained range .* got 1.04167"):
        make_plan("ddim", SCHEDULES["short"], calls=24, spacing="leading")
