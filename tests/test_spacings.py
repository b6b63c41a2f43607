import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from diffusers.schedulers.scheduling_utils import AysSchedules

from time_tuner import (
    SPACINGS,
    NoiseScheduleFlow,
    NoiseScheduleVE,
    NoiseScheduleVP,
    make_plan,
    named_betas,
    rescale_zero_terminal_snr,
)
from time_tuner.schedules import NoiseSchedule
from time_tuner.spacings import spacing_of
from time_tuner.spacings.by_snr import AYS
from time_tuner.spacings.dmn import bound

SCHEDULES = {
    "discrete": NoiseScheduleVP(betas=torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)),
    "short": NoiseScheduleVP(betas=[0.05] * 24),
    "linear": NoiseScheduleVP("linear"),
    "cosine": NoiseScheduleVP("cosine"),
    "zero": NoiseScheduleVP(alphas_cumprod=rescale_zero_terminal_snr(named_betas("scaled_linear"))),
    "flow": NoiseScheduleFlow(shift=3.0),
    "ve": NoiseScheduleVE(),
}
BY_LEVELS = {"linspace", "leading", "trailing"}  # which a VE schedule has none of
LISTS = {"ays"}  # of one model each
DISCRETE = SCHEDULES["discrete"]
COUNTS = [*range(2, 24), 25, 33, 50, 64, 99, 100, 250, 500, 501, 999]


def times_of_levels(n: list[int], end: float, N: int = 1000) -> list[float]:
    return [*((i + 1) / N for i in n), end]


FORMULAS: dict[str, Callable[[int], list[float]]] = {
    "linspace": lambda K: times_of_levels([int(n) for n in np.linspace(0, 999, K)][::-1], 0.0),
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
def test_lam_is_even_in_lambda_and_meets_its_ends(schedule: NoiseSchedule) -> None:
    times = SPACINGS["logsnr"](schedule, 12)
    steps = schedule.at(times).lam.diff()
    steps = steps[steps.isfinite()]  # the first is not, from alpha = 0
    assert len(steps) == 12 - int(schedule.at(schedule.T).alpha == 0)
    torch.testing.assert_close(steps, steps.mean().expand(len(steps)), rtol=1e-9, atol=0)
    assert (float(times[0]), float(times[-1])) == (schedule.T, schedule.t_min)


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES.keys())
def test_grids_fall_strictly_within_the_trained_range(spacing: str, schedule: NoiseSchedule) -> None:
    if spacing in LISTS or (spacing in BY_LEVELS and isinstance(schedule, NoiseScheduleVE)):
        with pytest.raises(ValueError, match=r"this spacing goes by the levels|spacing ays has the list of sd15"):
            make_plan("ddim", schedule, calls=7, spacing=spacing)
        return
    counts = [2, 5, 12, 64] if spacing == "dmn" else COUNTS  # it is searched for
    for steps in [1, *(n for n in counts if n < schedule.total_N)]:
        times = SPACINGS[spacing](schedule, steps)
        assert times.dtype == torch.float64 and times.shape == (steps + 1,)
        assert (times.diff() < 0).all(), steps
        assert times[0] <= schedule.T and times[-2] >= schedule.t_min * (1 - 1e-12), steps
        assert times[-1] == 0 or float(times[-1]) == pytest.approx(schedule.t_min, rel=1e-12), steps
    assert len(make_plan("ddim", schedule, calls=7, spacing=spacing)) == 7


@pytest.mark.parametrize("spacing", sorted(SPACINGS.keys() - {"leading"} - LISTS))
def test_as_many_steps_as_levels_use_every_level_once(spacing: str) -> None:
    times = SPACINGS[spacing](SCHEDULES["short"], 24)
    assert (times.diff() < 0).all() and times[0] == 1


@pytest.mark.parametrize("spacing", sorted(SPACINGS.keys() - {"leading"} - LISTS))
@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES.keys())
def test_one_step_starts_from_pure_noise(spacing: str, schedule: NoiseSchedule) -> None:
    if spacing in BY_LEVELS and isinstance(schedule, NoiseScheduleVE):
        return
    assert float(SPACINGS[spacing](schedule, 1)[0]) == pytest.approx(schedule.T, abs=1e-15)


def test_leading_has_no_grid_of_as_many_steps_as_levels() -> None:
    """Its offset of one level leaves N - 1 of them."""
    with pytest.raises(ValueError, match=r"times must lie in the trained range .* got 1.04167"):
        make_plan("ddim", SCHEDULES["short"], calls=24, spacing="leading")


# --- grids by the noise ---


def noise_of(schedule: NoiseSchedule, times: torch.Tensor) -> torch.Tensor:
    p = schedule.at(times)
    return p.sigma / p.alpha


@pytest.mark.parametrize(
    ("spacing", "even"),
    [
        ("exponential", torch.log),
        ("karras", lambda s: s ** (1 / 7)),
        ("karras(rho=3)", lambda s: s ** (1 / 3)),
        ("kl_optimal", torch.arctan),
        ("kl_optimal(std=0.5)", lambda s: torch.arctan(s / 0.5)),
    ],
)
@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES.keys())
def test_grids_by_the_noise_are_even_in_what_they_say(spacing: str, even: Callable, schedule: NoiseSchedule) -> None:
    times = spacing_of(spacing)(schedule, 9)
    assert times[-1] == 0 and times[0] == schedule.T and float(times[-2]) == schedule.t_min
    infinite = bool(schedule.at(schedule.T).alpha == 0)
    steps = even(noise_of(schedule, times[infinite:-1])).diff()
    torch.testing.assert_close(steps, steps.mean().expand(len(steps)), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("power", [1.0, 2.0])
@pytest.mark.parametrize("steps", [5, 10, 20])
def test_dmn_has_a_smaller_bound_than_even_steps_and_is_a_minimum(power: float, steps: int) -> None:
    lam = DISCRETE.at(spacing_of(f"dmn(power={power})")(DISCRETE, steps)).lam
    even = torch.linspace(float(lam[0]), float(lam[-1]), steps + 1, dtype=torch.float64)
    least = float(bound(lam, power))
    assert least < 0.99 * float(bound(even, power))
    gap = float(even[1] - even[0])
    assert (lam.diff() > 0.49 * gap).all() and (lam.diff() < 2.01 * gap).all()
    for i in range(1, steps):
        for shift in (-0.02, 0.02):
            moved = lam.clone()
            moved[i] += shift
            allowed = (moved.diff() >= gap / 2).all() and (moved.diff() <= 2 * gap).all()
            assert not allowed or float(bound(moved, power)) > 0.995 * least


def test_the_bound_of_dmn_is_that_of_its_multistep_weights() -> None:
    """The weights follow once more from interpolation and quadrature."""
    lam = np.array([-2.0, -1.2, -0.1, 0.5, 1.1, 1.9])
    weights = np.zeros(5)
    u, gauss = np.polynomial.legendre.leggauss(20)
    for i, order in enumerate([1, 2, 3, 2, 1]):
        nodes = lam[i - order + 1 : i + 1]
        x = lam[i] + (u + 1) / 2 * (lam[i + 1] - lam[i])
        for j, node in enumerate(nodes):
            others = np.delete(nodes, j)
            basis = np.prod((x[:, None] - others) / (node - others), axis=1)
            weights[i - order + 1 + j] += (gauss * np.exp(x - lam[-1]) * basis).sum() * (lam[i + 1] - lam[i]) / 2
    linear = NoiseScheduleVP("linear")
    p = linear.at(linear.inverse_lambda(torch.from_numpy(lam[:-1])))
    for power in (1.0, 2.0):
        expected = (np.abs(weights) * (p.sigma**power / p.alpha).numpy()).sum()
        assert float(bound(torch.from_numpy(lam), power)) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(("model", "betas"), [("sd15", True), ("sdxl", True), ("svd", False)])
def test_ays_are_the_published_lists(model: str, betas: bool) -> None:
    sd = NoiseScheduleVP(betas=named_betas("scaled_linear", 1000, 0.00085, 0.012))
    schedule = sd if betas else NoiseScheduleVE(0.002, 700)
    ten = spacing_of(f"ays(model={model})")(schedule, 10)
    assert ten[-1] == 0
    torch.testing.assert_close(noise_of(schedule, ten[:-1]), torch.tensor(AYS[model][:-1]).double(), rtol=1e-4, atol=0)
    theirs = {"sd15": "StableDiffusionSigmas", "sdxl": "StableDiffusionXLSigmas", "svd": "StableDiffusionVideoSigmas"}
    assert list(AYS[model][:-1]) == AysSchedules[theirs[model]][:-1]
    twenty = spacing_of(f"ays(model={model})")(schedule, 20)  # every other one is the geometric mean of its neighbours
    torch.testing.assert_close(twenty[:-1:2], ten[:-1], rtol=1e-9, atol=0)
    s = noise_of(schedule, twenty[:-1])
    torch.testing.assert_close(s[1:-1:2] ** 2, s[0:-2:2] * s[2::2], rtol=1e-3, atol=0)


# --- what is taken when nothing is asked for ---


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES.keys())
@pytest.mark.parametrize("sampler", ["ddim", "dpmpp"])
def test_the_default_is_the_one_that_is_said(sampler: str, schedule: NoiseSchedule) -> None:
    elsewhere = {"ddim": "kl_optimal", "dpmpp": "logsnr"}[sampler]
    kinds = {NoiseScheduleVP: "quadratic", NoiseScheduleFlow: "trailing", NoiseScheduleVE: elsewhere}
    assert make_plan(sampler, schedule, calls=7) == make_plan(sampler, schedule, calls=7, spacing=kinds[type(schedule)])


# --- lists, and text ---


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES.keys())
def test_times_come_in_any_unit(schedule: NoiseSchedule) -> None:
    times = torch.tensor([0.9, 0.5, 0.2], dtype=torch.float64) * schedule.T
    p = schedule.at(times)
    sigma = p.sigma if isinstance(schedule, NoiseScheduleFlow) else p.sigma / p.alpha
    for unit, values in (("t", times), ("label", schedule.network_time(times)), ("sigma", sigma), ("lam", p.lam)):
        plan = make_plan("ddim", schedule, times=values.tolist(), unit=unit)
        torch.testing.assert_close(plan.t, times, rtol=1e-9, atol=1e-12)
    for unit, end in (("sigma", 0.0), ("lam", math.inf)):
        values = {"sigma": sigma, "lam": p.lam}[unit]
        assert make_plan("ddim", schedule, times=[*values.tolist(), end], unit=unit).t[-1] == 0


def test_what_is_out_of_range_by_rounding_is_its_end() -> None:
    sd = NoiseScheduleVP(betas=named_betas("scaled_linear", 1000, 0.00085, 0.012))
    assert make_plan("ddim", sd, times=[14.615, 1.0, 0.0], unit="sigma").t[0] == 1
    with pytest.raises(ValueError, match="times must lie in the trained range"):
        make_plan("ddim", sd, times=[14.7, 1.0, 0.0], unit="sigma")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"spacing": "karras(rho=0)"}, "rho of karras must be positive, got 0"),
        ({"spacing": "kl_optimal(std=-1)"}, "std of kl must be positive, got -1"),
        ({"spacing": "karras(sigma=1)"}, "spacing 'karras' has no option 'sigma'; its options: rho"),
        ({"spacing": "lam(rho=1)"}, "spacing 'lam' has no option 'rho'; its options: none"),
        ({"spacing": "karras(7)"}, "an option is written NAME=VALUE"),
        ({"spacing": "karas"}, "spacing must be one of seed, .* got 'karas'"),
        ({"spacing": "karras(rho=7"}, "spacing must be one of seed, .* got"),
        ({"spacing": "ays(model=sd3)"}, "model of ays must be one of sd15, sdxl, svd, got 'sd3'"),
        ({"times": [1.0, 0.5], "unit": "n"}, "unit must be one of t, label, sigma, lam, got 'n'"),
        ({"times": [1.0, -0.5], "unit": "sigma"}, "times in sigma must not be negative, got -0.5"),
        ({"times": "abc", "unit": "lam"}, "times must be numbers"),
    ],
)
def test_what_is_wrong_is_named(options: dict, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        make_plan("ddim", DISCRETE, calls=None if "times" in options else 5, **options)
