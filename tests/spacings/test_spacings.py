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
    Plan,
    exact,
    make_plan,
    named_betas,
    rescale_zero_terminal_snr,
    sample,
)
from time_tuner.plans.grid import check_noise
from time_tuner.schedules import NoiseSchedule
from time_tuner.spacings import spacing_of
from time_tuner.spacings.by_snr import AYS

SCHEDULES = {
    "discrete": NoiseScheduleVP(betas=torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)),
    "short": NoiseScheduleVP(betas=[0.05] * 24),
    "linear": NoiseScheduleVP("linear"),
    "cosine": NoiseScheduleVP("cosine"),
    "zero": NoiseScheduleVP(alphas_cumprod=rescale_zero_terminal_snr(named_betas("scaled_linear"))),
    "flow": NoiseScheduleFlow(shift=3.0),
    "ve": NoiseScheduleVE(),
}
BY_LEVELS = {"linspace", "leading", "trailing"}  # which a VE schedule lacks
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
def test_logsnr_is_even_in_lambda_and_meets_its_ends(schedule: NoiseSchedule) -> None:
    times = SPACINGS["logsnr"](schedule, 12)
    steps = schedule.at(times).lam.diff()
    steps = steps[steps.isfinite()]  # the first is not, from alpha = 0
    assert len(steps) == 12 - int(schedule.at(schedule.T).alpha == 0)
    torch.testing.assert_close(steps, steps.mean().expand(len(steps)), rtol=1e-9, atol=0)
    assert (float(times[0]), float(times[-1])) == (schedule.T, schedule.t_min)


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES.keys())
def test_grids_fall_strictly_within_the_trained_range(spacing: str, schedule: NoiseSchedule) -> None:
    if spacing in LISTS or (spacing in BY_LEVELS and schedule.levels is None):
        with pytest.raises(ValueError, match=r"has no noise levels to choose from|spacing ays has the list of sd15"):
            make_plan("ddim", schedule, calls=7, spacing=spacing)
        return
    for steps in [1, *(n for n in COUNTS if n < (schedule.levels or 1000))]:
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
    if spacing in BY_LEVELS and schedule.levels is None:
        return
    assert float(SPACINGS[spacing](schedule, 1)[0]) == pytest.approx(schedule.T, abs=1e-15)


def test_leading_has_no_grid_of_as_many_steps_as_levels() -> None:
    """Its offset of one level leaves N - 1 of them."""
    for schedule in (SCHEDULES["short"], DISCRETE):
        calls = schedule.levels
        message = rf"calls={calls} with spacing='leading': this spacing does not divide {calls - 1} noise levels"
        with pytest.raises(ValueError, match=rf"{message}.* into {calls} steps: take fewer calls or another spacing"):
            make_plan("ddim", schedule, calls=calls, spacing="leading")


# --- from start to end ---

RANGES = sorted(SPACINGS.keys() - BY_LEVELS - LISTS)


@pytest.mark.parametrize("spacing", [*RANGES, "karras(rho=3)", "kl_optimal(std=0.5)"])
@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES.keys())
def test_part_of_a_grid_is_the_grid_of_that_part(spacing: str, schedule: NoiseSchedule) -> None:
    whole = spacing_of(spacing)(schedule, 12)
    for first, last in ((0, 5), (1, 9), (3, 11)):
        start, end = float(whole[first]), float(whole[last])
        part = spacing_of(spacing)(schedule, last - first, start if first else None, end)
        assert (float(part[0]), float(part[-1])) == (start, end)
        torch.testing.assert_close(part, whole[first : last + 1], rtol=1e-7, atol=0)


@pytest.mark.parametrize("spacing", RANGES)
@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES.keys())
def test_an_end_of_0_follows_the_least_trained_time(spacing: str, schedule: NoiseSchedule) -> None:
    start = 0.7 * schedule.T
    to_least = SPACINGS[spacing](schedule, 6, start, schedule.t_min)
    to_zero = SPACINGS[spacing](schedule, 7, start, 0.0)
    assert torch.equal(to_zero, torch.cat([to_least, torch.zeros(1)]))
    assert SPACINGS[spacing](schedule, 1, start, 0.0).tolist() == [start, 0]


@pytest.mark.parametrize("spacing", sorted(BY_LEVELS))
@pytest.mark.parametrize("schedule", [s for s in SCHEDULES.values() if s.levels], ids=repr)
@pytest.mark.parametrize(("from_share", "to_share"), [(1.0, 0.3), (0.75, 0.0), (0.75, 0.3), (0.61, 0.21)])
def test_levels_are_chosen_between_start_and_end(
    spacing: str, schedule: NoiseSchedule, from_share: float, to_share: float
) -> None:
    start, end = from_share * schedule.T, to_share * schedule.T
    levels = torch.linspace(schedule.t_min, schedule.T, schedule.levels, dtype=torch.float64)
    levels = levels[(levels > end + 1e-9) & (levels < start + 1e-9)]
    within = len(levels)
    for steps in [1, 2, 3, within // 3, within // 2]:
        times = SPACINGS[spacing](schedule, steps, start, end)
        assert len(times) == steps + 1 and (times.diff() < 0).all() and float(times[-1]) == end
        assert ((times[:-1, None] - levels).abs().amin(1) < 1e-12).all()
        if spacing != "leading":
            assert abs(times[0] - levels[-1]) < 1e-12
    with pytest.raises(ValueError, match=f"does not divide {within} noise levels.* into {within + 1} steps"):
        SPACINGS[spacing](schedule, within + 1, start, end)


@pytest.mark.parametrize("spacing", RANGES)
def test_a_start_below_the_end_is_named(spacing: str) -> None:
    with pytest.raises(ValueError, match=r"start must lie above end .* got start=0.2, end=0.5"):
        SPACINGS[spacing](DISCRETE, 3, 0.2, 0.5)


def test_part_of_a_list_of_align_your_steps_is_on_its_curve() -> None:
    sd = NoiseScheduleVP(betas=named_betas("scaled_linear", 1000, 0.00085, 0.012))
    whole = SPACINGS["ays"](sd, 10)
    part = SPACINGS["ays"](sd, 5, float(whole[2]), float(whole[7]))
    torch.testing.assert_close(part, whole[2:8], rtol=1e-9, atol=0)


# --- where a run begins ---


@pytest.mark.parametrize("sampler", ["ddim", "heun"])
@pytest.mark.parametrize("schedule", [s for s in SCHEDULES.values() if s.levels], ids=repr)
def test_a_run_that_would_begin_in_data_is_refused(sampler: str, schedule: NoiseSchedule) -> None:
    calls = {"ddim": 1, "heun": 2}[sampler]
    begins = float(SPACINGS["leading"](schedule, 1)[0])
    message = (
        rf"calls={calls} with spacing='leading': the run would begin at t = {begins:.4g}, .* take more calls or another"
    )
    with pytest.raises(ValueError, match=message):
        make_plan(sampler, schedule, calls, "leading")
    image_to_image = make_plan(sampler, schedule, times=SPACINGS["leading"](schedule, 1))
    assert float(image_to_image.t[0]) == begins


@pytest.mark.parametrize("spacing", sorted(SPACINGS.keys() - LISTS))
@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES.keys())
def test_a_run_of_several_calls_begins_in_noise(spacing: str, schedule: NoiseSchedule) -> None:
    if spacing in BY_LEVELS and schedule.levels is None:
        return
    for steps in (n for n in COUNTS if n < (schedule.levels or 1000)):
        check_noise(SPACINGS[spacing](schedule, steps), schedule)


def test_a_schedule_that_ends_in_data_is_run_from_its_end() -> None:
    weak = NoiseScheduleVP(betas=[0.05] * 4)
    assert weak.at(weak.T).alpha > weak.at(weak.T).sigma
    assert len(make_plan("ddim", weak, 2)) == 2


def test_a_spacing_of_ones_own_that_begins_in_data_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(
        SPACINGS, "late", lambda schedule, steps, start=None, end=None: torch.linspace(0.1, 0, steps + 1)
    )
    with pytest.raises(ValueError, match=r"calls=4 with spacing='late': the run would begin at t = 0.1"):
        make_plan("ddim", DISCRETE, 4, "late")


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
def test_grids_by_the_noise_are_even_in_their_measure(spacing: str, even: Callable, schedule: NoiseSchedule) -> None:
    times = spacing_of(spacing)(schedule, 9)
    assert times[-1] == 0 and times[0] == schedule.T and float(times[-2]) == schedule.t_min
    infinite = bool(schedule.at(schedule.T).alpha == 0)
    steps = even(noise_of(schedule, times[infinite:-1])).diff()
    torch.testing.assert_close(steps, steps.mean().expand(len(steps)), rtol=1e-6, atol=1e-9)


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


# --- the default ---


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES.keys())
@pytest.mark.parametrize("sampler", ["ddim", "dpmpp"])
def test_the_default_is_the_documented_spacing(sampler: str, schedule: NoiseSchedule) -> None:
    on_ve = {"ddim": "kl_optimal", "dpmpp": "logsnr"}[sampler]
    on_vp = "logsnr" if sampler == "dpmpp" else "leading" if (schedule.levels or 0) >= 70 else "uniform"
    kinds = {NoiseScheduleVP: on_vp, NoiseScheduleFlow: "quadratic", NoiseScheduleVE: on_ve}
    assert make_plan(sampler, schedule, calls=7) == make_plan(sampler, schedule, calls=7, spacing=kinds[type(schedule)])


# --- lists, and text ---


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES.keys())
def test_times_come_in_any_unit(schedule: NoiseSchedule) -> None:
    times = torch.tensor([0.9, 0.5, 0.2], dtype=torch.float64) * schedule.T
    p = schedule.at(times)
    sigma = p.sigma if isinstance(schedule, NoiseScheduleFlow) else p.sigma / p.alpha
    levels = schedule.network_time(times)
    for unit, values in (("t", times), ("network_time", levels), ("sigma", sigma), ("lam", p.lam)):
        plan = make_plan("ddim", schedule, times=values.tolist(), unit=unit)
        torch.testing.assert_close(plan.t, times, rtol=1e-9, atol=1e-12)
    for unit, end in (("sigma", 0.0), ("lam", math.inf)):
        values = {"sigma": sigma, "lam": p.lam}[unit]
        assert make_plan("ddim", schedule, times=[*values.tolist(), end], unit=unit).t[-1] == 0


SD = NoiseScheduleVP(betas=named_betas("scaled_linear", 1000, 0.00085, 0.012))
PUBLISHED = [14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152, 0.029]  # as published


def test_a_published_list_is_taken_with_its_three_digits() -> None:
    for times in (PUBLISHED, [*PUBLISHED, 0.0]):
        plan = make_plan("ddim", SD, times=times, unit="sigma")
        assert plan.t[0] == 1 and plan.t[10] == SD.t_min
        torch.testing.assert_close(SD.sigma_ratio(plan.t[:11]), torch.tensor(PUBLISHED).double(), rtol=6e-3, atol=0)


@pytest.mark.parametrize(
    ("schedule", "unit", "times", "got"),
    [
        (SD, "sigma", [29.2, 1.0, 0.0], r"\[0.0291672, 14.6146\] \(the last may be 0\), got 29.2 at index 0"),
        (SD, "sigma", [14.0, 1.0, 0.028], "got 0.028 at index 2"),
        (SD, "sigma", [14.0, 0.029, 0.0285, 0.0], "got 0.029 at index 1"),  # the last one alone may be rounded
        (SD, "sigma", [math.inf, 1.0, 0.0], "got inf at index 0"),
        (SD, "lam", [-3.0, 0.0, math.inf], r"\[-2.68202, 3.53471\] \(the last may be inf\), got -3 at index 0"),
        (SD, "network_time", [1200.0, 1.0], r"\[0, 999\] \(the last may be -1\), got 1200 at index 0"),
        (NoiseScheduleFlow(3.0), "sigma", [1.2, 0.5], r"\[0, 1\] \(the last may be 0\), got 1.2 at index 0"),
        (NoiseScheduleVE(), "sigma", [90.0, 1.0], r"\[0.002, 80\] \(the last may be 0\), got 90 at index 0"),
    ],
)
def test_times_out_of_range_are_named_in_their_unit(
    schedule: NoiseSchedule, unit: str, times: list[float], got: str
) -> None:
    with pytest.raises(ValueError, match=f"times in {unit} must lie in the trained range .*{got}"):
        make_plan("ddim", schedule, times=times, unit=unit)


@pytest.mark.parametrize(
    ("unit", "times", "message"),
    [
        ("sigma", [14.0, 14.0, 1.0], "fall strictly, got 14 then 14 at index 0"),
        ("lam", [-2.0, -2.5, 1.0], "rise strictly, got -2 then -2.5 at index 0"),
        ("network_time", [500.0, 700.0], "fall strictly, got 500 then 700 at index 0"),
    ],
)
def test_times_that_do_not_fall_are_named_in_their_unit(unit: str, times: list[float], message: str) -> None:
    with pytest.raises(ValueError, match=f"times in {unit} must {message}"):
        make_plan("ddim", SD, times=times, unit=unit)


def test_a_flow_may_end_at_any_noise() -> None:
    flow = NoiseScheduleFlow(3.0)
    sigmas = [1.0, 0.5, 0.01, 1e-5]
    for times in (sigmas, [*sigmas, 0.0]):
        plan = make_plan("ddim", flow, times=times, unit="sigma")
        torch.testing.assert_close(plan.sigma, torch.tensor(times).double(), rtol=1e-6, atol=0)
        assert Plan.from_dict(plan.to_dict()) == plan
        end = sample(exact.Gaussian(1.0, 0.5).eps(flow), plan, torch.randn(4, 2))
        assert end.isfinite().all()
    with pytest.raises(ValueError, match="must lie in the trained range"):
        make_plan("ddim", flow, times=[1.0, 0.5, -1e-5])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"spacing": "karras(rho=0)"}, "rho of karras must be positive, got 0"),
        ({"spacing": "kl_optimal(std=-1)"}, "std of kl_optimal must be positive, got -1"),
        ({"spacing": "karras(sigma=1)"}, "spacing 'karras' has no option 'sigma'; its options: rho"),
        ({"spacing": "logsnr(rho=1)"}, "spacing 'logsnr' has no option 'rho'; its options: none"),
        ({"spacing": "karras(start=0.5)"}, "spacing 'karras' has no option 'start'; its options: rho"),
        ({"spacing": "karras(7)"}, r"must be written name\(option=value, ...\)"),
        ({"spacing": "karas"}, "spacing must be one of linspace, .* got 'karas'"),
        ({"spacing": "karras(rho=7"}, r"must be written name\(option=value, ...\)"),
        ({"spacing": "ays(model=sd3)"}, "model of ays must be one of sd15, sdxl, svd, got 'sd3'"),
        ({"times": [1.0, 0.5], "unit": "n"}, "unit must be one of t, network_time, sigma, lam, got 'n'"),
        (
            {"times": [1.0, -0.5], "unit": "sigma"},
            "times in sigma must lie in the trained range .* got -0.5 at index 1",
        ),
        ({"times": "abc", "unit": "lam"}, "times must be numbers"),
    ],
)
def test_what_is_wrong_is_named(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_plan("ddim", DISCRETE, calls=None if "times" in options else 5, **options)
