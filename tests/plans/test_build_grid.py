"""The grid that a plan takes from a spacing."""

import pytest
from torch import Tensor

from time_tuner import NoiseScheduleVP, make_plan
from time_tuner.spacings import spacing_of


@pytest.mark.parametrize(("sampler", "calls", "steps"), [("ddim", 5, 5), ("heun", 5, 3), ("unipc", 8, 8)])
def test_a_spacing_gives_the_grid_of_the_run_alone(
    discrete: NoiseScheduleVP, sampler: str, calls: int, steps: int
) -> None:
    """Some have no other: the own grid of PNDM with Runge-Kutta steps has none of two steps."""
    wanted: list[int] = []

    def spacing(schedule: NoiseScheduleVP, count: int) -> Tensor:
        wanted.append(count)
        grid: Tensor = spacing_of("trailing")(schedule, count)  # which ends at 0
        return grid

    assert len(make_plan(sampler, discrete, calls, spacing)) == calls
    assert set(wanted) == {steps}


def test_a_sampler_that_cannot_end_where_a_spacing_ends_is_refused(discrete: NoiseScheduleVP) -> None:
    with pytest.raises(ValueError, match="calls of Heun must be odd in a run down to 0, got 10"):
        make_plan("heun", discrete, 10, "trailing")
    with pytest.raises(ValueError, match="calls of Heun must be even in a run down to t > 0, got 9"):
        make_plan("heun", discrete, 9, "quadratic")
