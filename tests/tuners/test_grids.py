"""Spacings that look at a model: optimal among all grids of few steps, and right where the path is known."""

from itertools import combinations, pairwise
from typing import Any

import numpy as np
import pytest
import torch
from helpers import seeded
from torch import Tensor

from time_tuner import NoiseScheduleFlow, NoiseScheduleVE, NoiseScheduleVP, SeededNoise, evaluate, exact, make_plan
from time_tuner.plans.build import reference_plan
from time_tuner.sampling import sample
from time_tuner.tuners import own_plan
from time_tuner.tuners.grids import MODEL_SPACINGS, curvature, gits, oss, path_of

SCHEDULE = NoiseScheduleVP("linear")
DATA = exact.Mixture(seeded(6, 3), 0.1)
MODEL = DATA.eps(SCHEDULE)
SMALL: dict[str, Any] = {"samples": 20, "steps": 9}
SCHEDULES = [SCHEDULE, NoiseScheduleVP("cosine"), NoiseScheduleVE(), NoiseScheduleFlow()]


def grids(path: Any, steps: int) -> list[tuple[int, ...]]:
    last = len(path.times) - 1
    return [(0, *inner, last) for inner in combinations(range(1, last), steps - 1)]


def places(times: Tensor, path: Any) -> tuple[int, ...]:
    return tuple(int((path.times - t).abs().argmin()) for t in times)


@pytest.mark.parametrize("steps", [2, 3, 5])
@pytest.mark.parametrize("coefficient", [1.0, 1.15])
def test_gits_has_the_least_sum_of_all_grids(steps: int, coefficient: float) -> None:
    path = path_of(MODEL, 20, 0, 9, None, None)
    costs = {i: path.errors(i, path.states[i], path.data[i])[1] for i in range(9)}

    def total(grid: tuple[int, ...]) -> float:
        each = [float(costs[i][j - i - 1]) for i, j in pairwise(grid)]
        return sum(coefficient**k * cost for k, cost in enumerate(each))

    found = places(gits(MODEL, coefficient, **SMALL)(SCHEDULE, steps), path)
    assert total(found) == pytest.approx(min(map(total, grids(path, steps))), rel=1e-9)


def test_oss_ends_nearest_to_the_teacher_of_all_grids_of_two_steps() -> None:
    path = path_of(MODEL, 20, 0, 9, None, None)
    noise = SeededNoise(range(20))(torch.empty(20, 3))

    def error(grid: tuple[int, ...]) -> float:
        plan = make_plan("ddim", SCHEDULE, times=path.times[list(grid)])
        return float((sample(MODEL, plan, plan.initial_state(noise)) - path.states[-1]).norm(dim=1).mean())

    errors = {grid: error(grid) for grid in grids(path, 2)}
    found = places(oss(MODEL, **SMALL)(SCHEDULE, 2), path)
    assert errors[found] == pytest.approx(min(errors.values()), rel=1e-6)


def test_even_steps_of_curvature_have_a_closed_form_on_a_gaussian() -> None:
    """For N(0, 1) X = sqrt(1 + s^2) z, so that eps = s z / sqrt(1 + s^2) and |d eps / ds| = (1 + s^2)^(-3/2) |z|."""
    model = exact.Gaussian(torch.zeros(4), torch.ones(4)).eps(SCHEDULE)
    times = curvature(model, samples=8, steps=400)(SCHEDULE, 6)
    p = SCHEDULE.at(times)
    s = np.linspace(0, 200, 2_000_001)
    sums = np.concatenate([[0], ((1 + s**2) ** -0.75)[:-1].cumsum()]) * s[1]
    each = -np.diff(np.interp((p.sigma / p.alpha).numpy(), s, sums))
    np.testing.assert_allclose(each, each.mean(), rtol=0.05)


@pytest.mark.parametrize("name", MODEL_SPACINGS)
@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
def test_times_fall_from_the_start_to_the_end(name: str, schedule: Any) -> None:
    model = DATA.eps(schedule)
    spacing = MODEL_SPACINGS[name](model, samples=4, steps=12)
    for steps in (1, 2, 5):
        for end in (None, 0.0, schedule.t_min + 0.1 * (schedule.T - schedule.t_min)):
            times = spacing(schedule, steps, end=end)
            assert times.shape == (steps + 1,) and times.dtype == torch.float64 and (times.diff() < 0).all()
            assert float(times[0]) == pytest.approx(schedule.T, rel=1e-9)
            assert float(times[-1]) == pytest.approx(schedule.t_min if end is None else end, rel=1e-9)


@pytest.mark.parametrize("name", MODEL_SPACINGS)
def test_ddim_is_nearer_on_them_than_on_even_times(name: str) -> None:
    spacing, noise = MODEL_SPACINGS[name](MODEL), SeededNoise(10**6)(torch.empty(200, 3))

    def distance(grid: Any) -> float:
        plan = make_plan("ddim", SCHEDULE, 5, grid)
        many = reference_plan(SCHEDULE, float(plan.t[-1]), 200)
        ends, exact_ends = (sample(MODEL, one, one.initial_state(noise)) for one in (plan, many))
        return float((ends - exact_ends).norm(dim=1).mean())

    assert distance(spacing) < distance("uniform")


def test_texts_name_them_where_there_is_a_model() -> None:
    plan = own_plan(MODEL, 4, "ddim", "gits(samples=20, steps=9)")
    assert torch.equal(plan.t, make_plan("ddim", SCHEDULE, 4, gits(MODEL, **SMALL)).t)
    assert plan.provenance["spacing"] == "gits(samples=20, steps=9)"
    report = evaluate(MODEL, against=["ddim@oss(steps=9)"], calls=[3], samples=4, budget=None)
    assert report.runs[0].name == "ddim@oss(steps=9):3"


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: gits(MODEL, 0.0), "coefficient of gits must be positive"),
        (lambda: oss(MODEL, samples=0), "samples must be a whole number of at least 1"),
        (lambda: gits(MODEL, steps=5)(SCHEDULE, 6), "steps must be at most those of the teacher, 5, got 6"),
        (lambda: gits(MODEL)(NoiseScheduleFlow(), 3), "another noise schedule"),
        (lambda: own_plan(MODEL, 4, "ddim", "gits(step=3)"), "did you mean 'steps'"),
    ],
)
def test_errors_name_the_argument(call: Any, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        call()
