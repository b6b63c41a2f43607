"""Networks whose time is a whole level: they are tuned on levels, and receive what the plan says."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from clock import Clock
from helpers import seeded
from torch import Tensor, nn

from time_tuner import TUNERS, NoiseScheduleVP, Plan, exact, make_plan, model_wrapper, named_betas, sample, tune
from time_tuner.models.base import Model, ModelAround, as_model
from time_tuner.models.batching import BatchedModel
from time_tuner.schedules import NoiseSchedule
from time_tuner.testing import check_model
from time_tuner.tuners import Budget, Calibration, Joint
from time_tuner.tuners.calibration import CalibrationBatch
from time_tuner.tuners.joint.levels import LevelSteps
from time_tuner.tuners.network_times import received
from time_tuner.tuners.timesteps.minimize import minimize_levels, send
from time_tuner.tuners.timesteps.objectives import find_objective, step_loss
from time_tuner.tuners.timesteps.runs import PlanRun, direct_state, first_state

FEW = NoiseScheduleVP(betas=torch.linspace(0.005, 0.5, 20, dtype=torch.float64))
MANY = NoiseScheduleVP(betas=named_betas())
POINTS = exact.Mixture(seeded(12, 4, seed=3), 0.15)
QUICK = {"joint": "joint(pairs=32, iterations=24, candidates=1)", "least_squares": "least_squares(pairs=32)"}


def of_levels(schedule: NoiseSchedule, calls: list[float] | None = None) -> Model:
    """The exact prediction at a whole level, which notes the levels that it receives."""
    eps, calls = POINTS.eps(schedule), [] if calls is None else calls

    def network(x: Tensor, level: Tensor) -> Tensor:
        assert level.dtype == torch.int64
        calls.append(float(level[0]))
        return eps(x, schedule.from_network_time(level))

    return model_wrapper(network, schedule, time_dtype="int", shape=(4,)).bind()


def search(
    loss: Callable[[float], float], start: int, low: int, high: int, stride: int, most: int = 24
) -> dict[float, float]:
    """The values of a search among levels."""
    running, values = minimize_levels(start, low, high, stride, most), dict[float, float]()
    place: float | None = next(running)
    while place is not None:
        assert place not in values, "a value is computed once"
        assert low <= place <= high and place == int(place)
        values[place] = loss(place)
        place = send(running, values[place])
    return values


@pytest.mark.parametrize("stride", [1, 7, 40])
@pytest.mark.parametrize("seed", range(10))
def test_the_search_ends_at_a_level_whose_neighbours_are_no_better(seed: int, stride: int) -> None:
    """On any loss, with as many minima as it may have."""
    losses = seeded(60, seed=seed).tolist()
    for start in (0, 1, 30, 58, 59):
        values = search(lambda level: losses[int(level)], start, 0, 59, stride, most=60)
        best = min(values, key=lambda level: values[level])
        neighbours = [level for level in (best - 1, best + 1) if 0 <= level <= 59]
        assert all(level in values and values[best] <= values[level] for level in neighbours)
        assert values[best] <= losses[start]


@pytest.mark.parametrize("power", [1, 2, 4])
def test_the_lowest_level_of_a_bowl_is_found_in_few_values(power: int) -> None:
    for least in (0, 1, 333, 480, 499, 500, 507, 560, 998, 999):
        values = search(lambda level, n=least: abs(level - n - 0.3) ** power, 500, 0, 999, 20)  # type: ignore[misc]
        assert min(values, key=lambda level: values[level]) == least
        assert len(values) <= 22


def test_a_search_among_one_or_two_levels_ends() -> None:
    assert search(lambda level: 1.0, 3, 3, 3, 5) == {3: 1.0}
    assert search(lambda level: level, 4, 3, 4, 5) == {3: 3, 4: 4}
    assert search(lambda level: -level, 3, 3, 4, 5) == {3: -3, 4: -4}


def test_most_values_are_the_most() -> None:
    assert len(search(lambda level: (level - 700) ** 2, 100, 0, 999, 1, most=5)) == 5


def test_a_model_says_whether_it_takes_whole_levels() -> None:
    model = of_levels(FEW)
    assert model.whole_levels and ModelAround(model).whole_levels and BatchedModel(model).whole_levels
    assert model_wrapper(nn.Identity(), FEW, time_dtype="int").whole_levels
    for other in ("float32", "bfloat16"):
        assert not model_wrapper(lambda x, n: x, FEW, time_dtype=other).bind().whole_levels
    assert not as_model(POINTS.eps(FEW)).whole_levels


@pytest.mark.parametrize("schedule", [FEW, MANY], ids=["20 levels", "1000 levels"])
@pytest.mark.parametrize("guard", [True, False])
@pytest.mark.parametrize("method", TUNERS)
def test_the_network_receives_the_levels_of_the_plan(method: str, guard: bool, schedule: NoiseSchedule) -> None:
    calls: list[float] = []
    model, plan = of_levels(schedule, calls), make_plan("ddim", schedule, 4)
    tuned = tune(model, plan, QUICK.get(method, method), samples=16, guard=guard)
    tuned = Plan.from_dict(json.loads(json.dumps(tuned.to_dict())))
    levels = schedule.network_time(tuned.tau)
    torch.testing.assert_close(levels, levels.round(), rtol=0, atol=1e-9)
    calls.clear()
    sample(model, tuned, seeded(3, 4))
    assert calls == levels.round().tolist()


@pytest.mark.parametrize("objective", ["published", "substeps"])
@pytest.mark.parametrize("method", ["sequential", "parallel"])
@pytest.mark.parametrize("batch", [64, 1000])
def test_no_neighbouring_level_has_a_lower_loss(method: str, objective: str, batch: int) -> None:
    model, plan = of_levels(FEW), make_plan("ddim", FEW, 5)
    text = f"{method}(objective={objective})"
    tuned = tune(model, plan, text, data=POINTS.sample(64), samples=64, batch=batch, guard=False)
    assert not torch.equal(tuned.tau, received(model, plan).tau)
    run, found = PlanRun(tuned), find_objective(objective)
    data = Calibration(model, FEW, POINTS.sample(64), 64).fixed(model)
    state = first_state(run, data)
    for k in range(4):
        state = state if method == "sequential" else direct_state(run, k, data)
        target = target_of(run, k, state, data, objective)

        def loss(tau: Any, k: int = k, state: Any = state, target: Any = target) -> float:
            return float(step_loss(run, k, state, torch.as_tensor(tau), data, target, found))

        level = round(float(FEW.network_time(tuned.tau[k])))
        near = [FEW.from_network_time(n) for n in (level - 1, level + 1) if 0 <= n <= 19]
        assert all(loss(tuned.tau[k]) <= loss(tau) for tau in near)
        state = run.step(k, state, tuned.tau[k], data)


def target_of(run: PlanRun, k: int, state: Any, data: CalibrationBatch, objective: str) -> Any:
    from time_tuner.tuners.timesteps.objectives import Step

    return find_objective(objective).target(Step(run, k, state, data))


def test_levels_alone_are_tuned_to_where_no_neighbour_is_better_on_the_pairs() -> None:
    """A sweep knows nothing of the loss but its values."""
    plan = make_plan("ddim", FEW, 4)
    plan = received(of_levels(FEW), plan)
    wanted = torch.tensor([17, 14, 6, 1])

    def loss(plan: Plan) -> float:
        return float((FEW.network_time(plan.tau) - wanted).square().sum())

    steps = LevelSteps(plan)
    for _ in range(30):
        plan = steps.sweep(plan, loss)
        if steps.settled:
            break
    assert steps.settled and FEW.network_time(plan.tau).round().tolist() == wanted.tolist()


def test_joint_tuning_of_levels_alone_gains_and_ends_by_itself() -> None:
    calls: list[float] = []
    model = of_levels(FEW, calls)
    plan = make_plan("ddim", FEW, 4)
    tuned = tune(model, plan, "joint(parts=tau, pairs=64)", budget=100_000, guard=False)
    loss = tuned.provenance["validation_loss"]
    assert loss["tuned"] < loss["untuned"]
    assert torch.equal(tuned.t, plan.t) and tuned.corrections is None
    assert "stopped" not in tuned.provenance and tuned.provenance["iterations"] < 40


def test_joint_tuning_on_levels_gains_more_than_levels_alone() -> None:
    model, plan = of_levels(FEW), make_plan("ddim", FEW, 4)
    every, levels = (
        tune(model, plan, Joint(parts, pairs=64, iterations=50, candidates=1), guard=False).provenance[
            "validation_loss"
        ]
        for parts in (("times", "tau", "corrections"), "tau")
    )
    assert every["tuned"] < levels["tuned"] < levels["untuned"] == every["untuned"]


@pytest.mark.parametrize("parts", [("tau",), ("times", "tau", "corrections")])
def test_an_interrupted_run_on_levels_continues_to_the_same_plan(
    parts: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from time_tuner.tuners.joint import sizing

    monkeypatch.setattr(sizing, "FIRST_LOOK", 3)
    calls, limit = list[float](), 10**9

    class InterruptedRunError(Exception):
        pass

    def model() -> Model:
        inner = of_levels(FEW, calls)

        class Stopping(ModelAround):
            def predict(self, *args: Any) -> Tensor:
                if len(calls) >= limit:
                    raise InterruptedRunError
                return super().predict(*args)

        return Stopping(inner)

    tuner, plan = Joint(parts, pairs=32, iterations=10, candidates=1), make_plan("ddim", FEW, 3)
    whole = tune(model(), plan, tuner, guard=False)
    limit, path = int(0.7 * len(calls)), tmp_path / "plan.partial"
    calls.clear()
    with pytest.raises(InterruptedRunError):
        tune(model(), plan, tuner, guard=False, checkpoint=path)
    assert json.loads(path.read_text())["state"]["levels"], "it was interrupted after a look"
    limit = 10**9
    again = tune(model(), plan, tuner, guard=False, checkpoint=path)
    torch.testing.assert_close(again.tau, whole.tau, rtol=0, atol=1e-12)
    torch.testing.assert_close(again.t, whole.t, rtol=0, atol=1e-9)


def test_a_budget_of_calls_is_kept_on_levels() -> None:
    for budget in (150, 500):
        tuned = tune(of_levels(FEW), make_plan("ddim", FEW, 3), Joint(pairs=16), budget=Budget(budget), guard=False)
        assert tuned.provenance["cost"]["tuning"]["calls"] <= budget


def test_adam_is_refused_on_levels_before_own_samples() -> None:
    calls: list[float] = []
    with pytest.raises(ValueError, match=r"optimizer='adam' needs a gradient in the time.*: take 'search'"):
        tune(of_levels(FEW, calls), make_plan("ddim", FEW, 4), "sequential(optimizer=adam)", samples=8)
    assert len(calls) < 10


def test_an_embedding_table_is_tuned() -> None:
    """It has no gradient in its time, and knows no level between two others."""

    class Table(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Embedding(20, 4)
            with torch.no_grad():
                alpha, sigma = (FEW.at(FEW.from_network_time(torch.arange(20))).__dict__[n] for n in ("alpha", "sigma"))
                self.scale.weight.copy_((sigma / (0.25 * alpha**2 + sigma**2))[:, None].expand(20, 4))

        def forward(self, x: Tensor, level: Tensor) -> Tensor:
            scale: Tensor = self.scale(level)
            return x * scale.to(x)

    model = model_wrapper(Table(), FEW, time_dtype="int", shape=(4,)).bind()
    for tuner in ("sequential", "joint(pairs=32, iterations=20, candidates=1)"):
        distance = tune(model, make_plan("ddim", FEW, 4), tuner, samples=32).provenance["distance"]
        assert distance["tuned"] < distance["untuned"]


def test_a_schedule_without_such_levels_is_refused() -> None:
    """The network time of this schedule is t itself, whose only whole values are 0 and 1."""
    schedule = NoiseScheduleVP("linear")
    model = model_wrapper(lambda x, n: x / (1 + n[:, None]), schedule, time_dtype="int", shape=(2,)).bind()
    with pytest.raises(
        ValueError, match=r"takes whole levels alone, 1 to 1 in .* got level 0 at call .*time_dtype='int'"
    ):
        tune(model, make_plan("ddim", schedule, 4), "sequential", samples=4)


@pytest.mark.parametrize("method", ["sequential", "joint"])
def test_a_plan_holds_what_a_network_of_half_precision_receives(method: str) -> None:
    calls: list[float] = []
    eps = POINTS.eps(MANY)

    def network(x: Tensor, level: Tensor) -> Tensor:
        calls.append(float(level[0].detach()))
        return eps(x, MANY.from_network_time(level.double()))

    model = model_wrapper(network, MANY, time_dtype="bfloat16", shape=(4,)).bind()
    tuned = tune(model, make_plan("ddim", MANY, 4), QUICK.get(method, method), samples=16)
    calls.clear()
    sample(model, tuned, seeded(2, 4))
    assert calls == pytest.approx(MANY.network_time(tuned.tau).tolist(), rel=1e-6, abs=1e-6)


def test_a_rejected_sweep_is_made_again_with_shorter_strides_until_there_are_none() -> None:
    """A loss that falls with every level has no lowest one; the caller rejects every sweep."""
    plan = received(of_levels(MANY), make_plan("ddim", MANY, 3))
    steps, count = LevelSteps(plan), 0
    while not steps.settled:
        steps.sweep(plan, lambda plan: float(plan.tau.sum()))
        steps.halve()
        count += 1
    assert count <= 8 and steps.strides == [1, 1, 1]


def test_levels_alone_need_no_gradient() -> None:
    model = of_levels(FEW)
    predict = torch.no_grad()(model.predict)
    model.predict = predict  # type: ignore[method-assign]
    tuned = tune(model, make_plan("ddim", FEW, 3), "joint(parts=tau, pairs=32)", budget=20_000, guard=False)
    assert tuned.provenance["validation_loss"]["tuned"] < tuned.provenance["validation_loss"]["untuned"]


def test_a_model_of_whole_levels_rounds_to_them() -> None:
    check_model(of_levels(FEW))

    class Wrong(ModelAround):
        def rounded_times(self, tau: Any) -> Tensor:
            return torch.as_tensor(tau, dtype=torch.float64)

    with pytest.raises(AssertionError, match="a model of whole levels rounds times to whole network times"):
        check_model(Wrong(of_levels(FEW)))


def test_a_sweep_ends_where_the_budget_does() -> None:
    """With what it has found until then."""
    plan, left = received(of_levels(MANY), make_plan("ddim", MANY, 4)), 3
    values: list[float] = []

    def loss(plan: Plan) -> float:
        values.append(float(plan.tau.sum()))
        return values[-1]

    found = LevelSteps(plan).sweep(plan, loss, lambda: len(values) < left)
    assert len(values) == left and float(found.tau.sum()) == min(values) < values[0]


def test_a_budget_of_seconds_is_kept_on_levels(monkeypatch: pytest.MonkeyPatch) -> None:
    """A sweep of twelve calls would take longer than all iterations of this budget."""
    clock = Clock(monkeypatch, 0.01)
    model = of_levels(MANY)
    network = model.network  # type: ignore[attr-defined]
    slow = clock(lambda x, level, _: network(x, level))
    model.network = lambda x, level: slow(x, level)  # type: ignore[attr-defined]
    before = clock.now
    tuned = tune(model, make_plan("ddim", MANY, 12), Joint("tau", pairs=16), budget="20s", guard=False)
    assert tuned.provenance["iterations"] and 15 < clock.now - before < 23
