"""Tuners: the search finds minima, the strategies minimise the published loss, the guard never returns a worse plan."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pytest
import torch
from helpers import tune_by
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_digits
from torch import Tensor

from time_tuner import (
    SAMPLERS,
    NoiseScheduleVP,
    Plan,
    SeededNoise,
    Sequential,
    estimate,
    exact,
    make_plan,
    sample,
    tune,
    tune_several,
)
from time_tuner.models.batching import BatchedModel
from time_tuner.tuners import Calibration, ReferenceDistance, Tuner, TuningRun
from time_tuner.tuners.guard import guarded
from time_tuner.tuners.timesteps.minimize import lowest, minimize, send
from time_tuner.tuners.timesteps.objectives import step_loss
from time_tuner.tuners.timesteps.runs import PlanRun, first_state

SCHEDULE = NoiseScheduleVP("discrete", betas=torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64))
CENTRES = torch.tensor([[2.0, 0.0], [-1.0, 1.5], [0.5, -2.0]])
MIXTURE = exact.Mixture(CENTRES, 0.2)
EPS = MIXTURE.eps(SCHEDULE)
DIGITS = exact.Mixture(torch.tensor(load_digits().data) / 8 - 1, 0.1)  # a real data set's own denoiser
METHODS = pytest.mark.parametrize("method", ["sequential", "parallel"])


def minimise(f: Callable[[float], float], start: float, low: float, high: float) -> tuple[float, float]:
    """The lowest place of a search, and the value there."""
    seen: dict[float, float] = {}
    search = minimize(start, low, high)
    place = next(search, None)
    while place is not None:
        seen[place] = f(place)
        place = send(search, seen[place])
    return lowest(seen, start)


class TestSearch:
    @settings(deadline=None)
    @given(st.floats(-2.0, 4.0), st.floats(0.05, 20.0), st.floats(0.0, 3.0))
    def test_finds_the_minimum_of_a_smooth_function(self, where: float, width: float, skew: float) -> None:
        def f(x: float) -> float:
            u = (x - where) / width
            return math.cosh(u) + skew * (math.exp(u) - 1 - u)

        x, value = minimise(f, 1.0, -3.0, 5.0)
        assert x == pytest.approx(where, abs=0.02 * max(1.0, width))
        assert value == f(x) <= f(1.0)

    @given(st.floats(0.2, 1.0), st.floats(1.0, 3.0))
    @settings(deadline=None)
    def test_stays_in_the_range_and_takes_its_end_where_that_is_lowest(self, low: float, high: float) -> None:
        assert minimise(lambda x: x, 1.0, low, high)[0] == pytest.approx(low, abs=0.02)
        assert minimise(lambda x: -x, 1.0, low, high)[0] == pytest.approx(high, abs=0.02)

    def test_is_never_above_the_start_and_needs_few_values(self) -> None:
        places: list[float] = []

        def rough(x: float) -> float:
            places.append(x)
            return abs(x - 1.3) ** 0.5 + 0.05 * math.sin(80 * x)

        _, value = minimise(rough, 1.0, 0.5, 3.0)
        assert value <= rough(1.0)
        assert len(places) - 1 <= 40
        assert len(set(places[:-1])) == len(places) - 1, "no point is evaluated twice"

    def test_a_parabola_takes_few_evaluations(self) -> None:
        places: list[float] = []
        x, _ = minimise(lambda x: places.append(x) or (x - 1.07) ** 2, 1.0, 0.5, 2.0)
        assert x == pytest.approx(1.07, abs=1e-3)
        assert len(places) <= 7


@METHODS
def test_each_ratio_is_the_lowest_of_a_fine_grid(method: str) -> None:
    plan = make_plan("ddim", SCHEDULE, calls=5, spacing="quadratic")
    data = MIXTURE.sample(200, seed=1).float()
    tuned = tune_by(EPS, plan, method, data=data, samples=200, guard=False, objective="published")
    batch = Calibration(EPS, SCHEDULE, data, 200).fixed(EPS)
    run, state = PlanRun(tuned), first_state(PlanRun(tuned), batch)
    for k in range(4):
        t = plan.t[k]
        state = state if method == "sequential" else ((), batch.at(plan.point(k)))
        before = EPS(state[1], t, t)
        at = [
            float(step_loss(run, k, state, t * r, batch, before)) for r in torch.linspace(0.7, 1.3, 121) if t * r <= 1
        ]
        found = float(step_loss(run, k, state, tuned.tau[k], batch, before))
        assert found <= min(at) * 1.001
        state = run.step(k, state, tuned.tau[k], batch)
    assert tuned.tau[-1] == tuned.t[-2], "the last ratio stays 1"


@METHODS
@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.usefixtures("short_runs")
def test_every_sampler_is_tuned_and_the_guard_never_returns_a_worse_plan(name: str, method: str) -> None:
    plan = make_plan(name, SCHEDULE, calls=6, spacing="leading")
    tuned = tune_by(EPS, plan, method, data=MIXTURE.sample(64, seed=3).float(), samples=64)
    assert (tuned.tau >= SCHEDULE.t_min * (1 - 1e-9)).all() and (tuned.tau <= 1 + 1e-9).all()
    assert tuned.provenance["distance"]["tuned"] <= tuned.provenance["distance"]["untuned"]
    judge = ReferenceDistance(EPS, SCHEDULE, float(plan.t[-1]), SeededNoise(77)(torch.empty(64, 2)))
    assert math.isfinite(judge(tuned))
    assert torch.equal(tuned.t, plan.t) and torch.equal(tuned.alpha, plan.alpha), "the grid is left alone"


def test_the_guard_sets_back_what_harms_and_names_it() -> None:
    plan = make_plan("ddim", SCHEDULE, calls=6, spacing="quadratic")
    bad = plan.with_tau(plan.t[:-1] * torch.tensor([1, 1, 1, 1, 2.5, 1.0], dtype=torch.float64))

    @dataclass(frozen=True)
    class Harmful(Tuner):
        @property
        def tunes(self) -> Sequence[str]:
            return ("tau",)

        def tune(self, model: BatchedModel, plan: Plan, run: TuningRun) -> Plan:
            return bad

    bare = tune(EPS, plan, Harmful(), samples=64, guard=False)
    guarded = tune(EPS, plan, Harmful(), samples=64)
    assert torch.equal(bare.tau, bad.tau)
    assert torch.equal(guarded.tau, plan.tau)
    assert guarded.provenance["reverted_calls"] == [4]
    assert (
        guarded.provenance["distance"]["unguarded"]
        > guarded.provenance["distance"]["untuned"]
        == guarded.provenance["distance"]["tuned"]
    )


class Gains:
    """A distance that each conditioning time off t lowers by its gain, on a hundred samples."""

    calls = 100

    def __init__(self, *gains: Tensor) -> None:
        self.gains = gains

    def per_sample(self, plan: Plan) -> Tensor:
        moved = (plan.tau != plan.t[:-1]).tolist()
        return 1 - sum((gain for gain, is_so in zip(self.gains, moved, strict=True) if is_so), torch.zeros(100))


def test_the_guard_sets_a_call_back_also_where_the_whole_is_better() -> None:
    untuned = make_plan("ddim", SCHEDULE, calls=3)
    tuned = untuned.with_tau(untuned.t[:-1] * 0.99)
    gain, harm = torch.full((100,), 0.5), torch.full((100,), -0.2)
    found = guarded(tuned, untuned, Gains(gain, gain, harm))
    assert torch.equal(found.tau, torch.cat([tuned.tau[:2], untuned.tau[2:]]))
    assert found.provenance["reverted_calls"] == [2]
    assert [found.provenance["distance"][name] for name in ("untuned", "unguarded", "tuned")] == pytest.approx(
        [1, 0.2, 0]
    )


def test_the_guard_sets_back_to_the_conditioning_times_of_the_untuned_plan() -> None:
    plain = make_plan("ddim", SCHEDULE, calls=3)
    rounded = plain.with_tau(plain.t[:-1] * torch.tensor([0.999, 0.998, 1.001], dtype=torch.float64))
    tuned = plain.with_tau(plain.t[:-1] * 0.9)

    class Nearness:
        """A distance that is the larger the farther the last conditioning time lies from that of `rounded`."""

        calls = 100

        def per_sample(self, plan: Plan) -> Tensor:
            return float((plan.tau - rounded.tau).abs()[2]) + 0.1 * (plan.tau[0] == rounded.tau[0]) * torch.ones(100)

    found = guarded(tuned, rounded, Nearness())
    assert torch.equal(found.tau, torch.cat([tuned.tau[:2], rounded.tau[2:]]))


def test_the_untuned_plan_is_the_given_one_unless_that_was_tuned() -> None:
    plan = make_plan("ddim", SCHEDULE, calls=4, spacing="quadratic")
    rounded = plan.with_tau(plan.t[:-1] * torch.tensor([0.99, 0.98, 0.97, 0.96], dtype=torch.float64))
    first, other, again = (
        tune(EPS, start, "sequential", samples=64, seed=1, budget="60calls").provenance["distance"]["untuned"]
        for start in (plan, rounded, rounded.with_provenance(tuner="sequential"))
    )
    assert again == first != other


@pytest.mark.parametrize(("deviation", "kept"), [(0.5, True), (2.0, False)])
def test_a_gain_that_may_be_chance_is_set_back(deviation: float, kept: bool) -> None:
    """The mean of a hundred gains of 0.1 has a tenth of their deviation as its error."""
    untuned = make_plan("ddim", SCHEDULE, calls=3)
    tuned = untuned.with_tau(untuned.tau * torch.tensor([0.99, 1, 1], dtype=torch.float64))
    gain = 0.1 + deviation * torch.tensor([1.0, -1.0]).repeat(50)
    found = guarded(tuned, untuned, Gains(gain, gain, gain))
    assert torch.equal(found.tau, tuned.tau if kept else untuned.tau)
    assert found.provenance["distance"]["unguarded"] < found.provenance["distance"]["untuned"]
    assert found.provenance["reverted_calls"] == ([] if kept else [0, 1, 2])


@pytest.mark.parametrize(("more", "kept"), [(0.1, True), (-0.1, False)])
def test_more_noise_decides_where_the_first_leaves_open_which_plan_is_better(more: float, kept: bool) -> None:
    untuned = make_plan("ddim", SCHEDULE, calls=3)
    tuned = untuned.with_tau(untuned.tau * torch.tensor([0.99, 1, 1], dtype=torch.float64))
    unsure = 0.1 + 2 * torch.tensor([1.0, -1.0]).repeat(50)
    larger = Gains(*[torch.full((100,), more)] * 3)
    found = guarded(tuned, untuned, Gains(unsure, unsure, unsure), more=lambda: larger)
    assert torch.equal(found.tau, tuned.tau if kept else untuned.tau)
    assert found.provenance["distance"]["unguarded"] == pytest.approx(1 - more)


@pytest.mark.parametrize("gain", [0.1, -0.1])
def test_no_more_noise_is_used_where_the_first_decides(gain: float) -> None:
    untuned = make_plan("ddim", SCHEDULE, calls=3)
    tuned = untuned.with_tau(untuned.tau * torch.tensor([0.99, 1, 1], dtype=torch.float64))
    sure = gain + 0.1 * torch.tensor([1.0, -1.0]).repeat(50)

    def unused() -> ReferenceDistance:
        raise AssertionError("more noise was used")

    guarded(tuned, untuned, Gains(sure, sure, sure), more=unused)


@METHODS
def test_tuning_helps_on_noise_and_seeds_it_has_not_seen(method: str) -> None:
    eps = DIGITS.eps(SCHEDULE)
    plan = make_plan("ddim", SCHEDULE, calls=5, spacing="quadratic")
    tuned = tune_by(eps, plan, method, data=DIGITS.sample(256, seed=5).float())
    judge = ReferenceDistance(eps, SCHEDULE, float(plan.t[-1]), SeededNoise(4242)(torch.empty(500, 64)))
    assert judge(tuned) < judge(plan)


@METHODS
def test_a_seed_gives_one_plan_and_the_own_samples_serve_as_data(method: str) -> None:
    plan = make_plan("ddim", SCHEDULE, calls=5, spacing="quadratic")
    a, b = (tune_by(EPS, plan, method, seed=3, samples=64, guard=False) for _ in range(2))
    assert a == b
    other = tune_by(EPS, plan, method, seed=4, samples=64, guard=False)
    assert not torch.equal(a.tau, other.tau)
    given = tune_by(EPS, plan, method, data=MIXTURE.sample(64, seed=9).float(), samples=64, guard=False)
    assert torch.allclose(a.tau, given.tau, rtol=0.1)


@METHODS
def test_the_published_optimiser_goes_to_the_same_place(method: str) -> None:
    eps = DIGITS.eps(SCHEDULE)
    plan = make_plan("ddim", SCHEDULE, calls=4, spacing="quadratic")
    data = DIGITS.sample(1024, seed=2).float()
    searched = tune_by(eps, plan, method, data=data, guard=False, objective="published")
    published = tune_by(eps, plan, method, data=data, guard=False, optimizer="adam", iterations=100, lr=1e-2)
    assert torch.allclose(searched.tau, published.tau, rtol=0.05)
    batch = Calibration(eps, SCHEDULE, DIGITS.sample(1000, seed=8).float(), 1000, seed=8).fixed(eps)
    total = {}
    for name, tuned in (("search", searched), ("published", published)):
        run, state, total[name] = PlanRun(tuned), first_state(PlanRun(tuned), batch), 0.0
        for k in range(3):
            t = plan.t[k]
            state = state if method == "sequential" else ((), batch.at(plan.point(k)))
            total[name] += float(step_loss(run, k, state, tuned.tau[k], batch, eps(state[1], t, t)))
            state = run.step(k, state, tuned.tau[k], batch)
    assert total["search"] <= 1.01 * total["published"]


def test_data_come_as_tensors_samples_batches_mappings_or_pairs() -> None:
    x0 = MIXTURE.sample(40, seed=0).float()
    sources = (
        x0,
        list(x0),
        list(x0.split(16)),
        ({"image": part} for part in x0.split(16)),
        [(part, None) for part in x0.split(16)],
    )
    held = [Calibration(EPS, SCHEDULE, source, samples=40).x0.sort(0).values for source in sources]
    for values in held:
        assert torch.equal(values, x0.sort(0).values)


def test_held_out_noise_is_not_the_noise_tuned_on() -> None:
    calibration = Calibration(EPS, SCHEDULE, samples=50)
    tuned_on = calibration.fixed(EPS).noise
    held_out = calibration.held_out()
    assert not (tuned_on[:, None] == held_out[None]).any()


def _broken(x: torch.Tensor, t: object, tau: object = None) -> torch.Tensor:
    return EPS(x, t, tau) * (float("nan") if float(t) < 0.2 else 1.0)


def test_bad_input_is_named() -> None:
    plan = make_plan("ddim", SCHEDULE, calls=5, spacing="quadratic")
    data = MIXTURE.sample(16, seed=0).float()
    with pytest.raises(ValueError, match=r"tuner must be one of .*sequential.*, got 'guess'"):
        tune(EPS, plan, "guess")
    with pytest.raises(ValueError, match=r"samples must be .* at least 2, got 1"):
        tune(EPS, plan, samples=1)
    with pytest.raises(ValueError, match=r"shape= of one sample is needed"):
        tune(lambda x, t, tau=None: x, plan)
    with pytest.raises(ValueError, match=r"data is empty"):
        tune(EPS, plan, data=[])
    with pytest.raises(ValueError, match=r"data must have shape \(n, 2\).*got \(16, 3\)"):
        tune(EPS, plan, data=torch.zeros(16, 3))
    with pytest.raises(ValueError, match=r"data must be finite"):
        tune(EPS, plan, data=data / 0)
    with pytest.raises(ValueError, match=r"data must be a tensor .* got int"):
        tune(EPS, plan, data=3)
    with pytest.raises(ValueError, match=r"without 'image', with \['x'\]"):
        tune(EPS, plan, data=[{"x": data}])
    with pytest.raises(ValueError, match=r"optimizer must be one of search, adam, got 'sgd'"):
        tune(EPS, plan, "sequential(optimizer=sgd)", data)
    with pytest.raises(ValueError, match=r"iterations must be a whole number of at least 1, got 0"):
        tune(EPS, plan, Sequential(optimizer="adam", iterations=0), data)
    with pytest.raises(ValueError, match=r"NaN or infinity at call \d"):
        tune(_broken, plan, data=data, guard=False)
    with pytest.raises(ValueError, match=r"eps must return a tensor of the shape of x, \(2, 2\), got shape \(2, 1\)"):
        tune(lambda x, t, tau=None: x[:, :1], plan, data=data)
    other = NoiseScheduleVP("cosine")
    with pytest.raises(ValueError, match=r"plan was made for another noise schedule"):
        tune(EPS, make_plan("ddim", other, calls=5), data=data)


def test_a_reference_distance_refuses_a_plan_that_ends_elsewhere() -> None:
    judge = ReferenceDistance(EPS, SCHEDULE, 0.0, torch.randn(4, 2), calls=10)
    with pytest.raises(ValueError, match=r"plan must end where the reference run does"):
        judge(make_plan("ddim", SCHEDULE, calls=5, spacing="quadratic"))


def test_the_distance_of_a_stochastic_plan_compares_the_sets_not_the_pairs() -> None:
    noise = SeededNoise(10)(torch.empty(400, 2))
    judge = ReferenceDistance(EPS, SCHEDULE, 0.0, noise)
    few, many = (judge(make_plan("ddpm", SCHEDULE, calls=calls, spacing="trailing")) for calls in (4, 100))
    assert many < few
    shuffled = judge.reference[torch.randperm(400, generator=torch.Generator().manual_seed(0))]
    assert float(judge.of_ends(shuffled, True).mean()) == pytest.approx(
        float(judge.of_ends(judge.reference, True).mean()), abs=1e-9
    )


def test_a_tuned_plan_has_the_distance_of_its_provenance() -> None:
    plan = make_plan("ddim", SCHEDULE, calls=5, spacing="quadratic")
    calibration = Calibration(EPS, SCHEDULE, samples=64, seed=1)
    judge = ReferenceDistance(EPS, SCHEDULE, float(plan.t[-1]), calibration.held_out())
    tuned = tune(EPS, plan, "sequential", samples=64, seed=1)
    ends = sample(EPS, tuned, calibration.held_out())
    assert float(judge.of_ends(ends).mean()) == pytest.approx(tuned.provenance["distance"]["tuned"], rel=1e-6)


# --- the default ---


def test_the_default_tuner_is_joint_and_another_where_joint_cannot_be_used(caplog: pytest.LogCaptureFixture) -> None:
    plan, data = make_plan("ddim", SCHEDULE, calls=2), MIXTURE.sample(8, seed=0).float()
    stochastic = make_plan("ddpm", SCHEDULE, calls=2)

    def frozen(x: Tensor, t: Tensor, tau: Tensor) -> Tensor:
        return EPS(x, t, tau).detach()

    how = {"samples": 8, "shape": (2,), "guard": False, "budget": "300calls"}
    assert tune(EPS, plan, **how).provenance["tuner"] == "joint"
    assert tune_several(EPS, [plan], **how)[0].provenance["tuner"] == "joint"
    assert estimate(EPS, plan, samples=8).costs.keys() == {
        "teacher",
        "ranking",
        "grids",
        "tuning",
        "reference",
        "guard",
    }
    for model, untuned, x0, name, reason in (
        (EPS, plan, data, "sequential", "data= is given"),
        (frozen, plan, data, "sequential", "data= is given"),
        (EPS, stochastic, None, "sequential", "the plan draws noise"),
    ):
        for run in (tune, lambda model, plan, **how: tune_several(model, [plan], **how)[0]):
            caplog.clear()
            assert run(model, untuned, data=x0, **how).provenance["tuner"] == name
            assert any(f"the tuner is {name}, because {reason}" in message for message in caplog.messages)
    for model, gradients in ((EPS, True), (frozen, False)):
        found = tune(model, plan, **how).provenance
        assert (found["tuner"], found["gradients"]) == ("joint", gradients)
