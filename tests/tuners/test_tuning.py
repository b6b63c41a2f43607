"""The work of `tune` around a tuner: budgets, batches, objectives, and runs that are interrupted and continued."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from clock import Clock
from helpers import tune_by
from mixture_runs import DATA, EPS, METHODS, SCHEDULE, Counted, Interrupt, quadratic, tuned
from torch import Tensor

from time_tuner import TUNERS, Sequential, exact, make_plan, model_wrapper, sample, tune
from time_tuner.models.base import HookedModel
from time_tuner.noise import DATA as DATA_SEEDS
from time_tuner.noise import TEACHER, first_seed
from time_tuner.tuners import OBJECTIVES, Budget, Calibration, Objective, Progress, ReferenceDistance, Step
from time_tuner.tuners.timesteps.objectives import step_loss
from time_tuner.tuners.timesteps.runs import PlanRun, direct_state, first_state

# --- batches ---


@pytest.mark.parametrize("sampler", ["ddim", "dpmpp", "unipc", "heun", "ddpm"])
@pytest.mark.parametrize("objective", ["published", "noise", "substeps"])
def test_steps_tuned_together_have_the_ratios_of_steps_tuned_alone(sampler: str, objective: str) -> None:
    if sampler == "ddpm" and objective == "substeps":
        pytest.skip("it is for samplers without noise")
    plan = make_plan(sampler, SCHEDULE, 6, "leading")
    alone, together = Counted(), Counted()
    one = tuned(alone, plan, "parallel", objective=objective)
    all_ = tuned(together, plan, "parallel", objective=objective, batch=10**6)
    torch.testing.assert_close(all_.tau, one.tau, rtol=0, atol=1e-6)
    assert one.tuned
    assert alone.largest == 64 and together.largest == 64 * 5
    assert together.calls < alone.calls
    assert together.evaluations == alone.evaluations + 6, "and those that show whether it accepts times"


def one_time_only(x: Tensor, t: Any, tau: Any = None) -> Tensor:
    assert torch.as_tensor(tau).dim() == 0
    return EPS(x, t, tau)


def first_time_only(x: Tensor, t: Any, tau: Any = None) -> Tensor:
    return EPS(x, *(torch.as_tensor(one).flatten()[0] for one in (t, tau)))


@pytest.mark.parametrize("eps", [one_time_only, first_time_only])
def test_a_model_of_one_time_is_tuned_one_step_after_the_other(eps: Any) -> None:
    plan = tuned(eps, method="parallel", batch=10**6)
    assert torch.equal(plan.tau, tuned(method="parallel").tau)


def test_no_call_is_larger_than_the_batch() -> None:
    for method in ("sequential", "parallel"):
        model = Counted()
        tuned(model, method=method, batch=24, guard=True, data=None)
        assert model.largest == 24


def test_where_memory_is_short_the_batch_is_halved() -> None:
    largest = 0

    def small(x: Tensor, t: Any, tau: Any = None) -> Tensor:
        nonlocal largest
        if len(x) > 20:
            raise torch.OutOfMemoryError("too much")
        largest = max(largest, len(x))
        return EPS(x, t, tau)

    assert torch.equal(tuned(small).tau, tuned().tau)
    assert largest == 16
    with pytest.raises(torch.OutOfMemoryError):
        tuned(lambda x, t, tau: small(torch.cat([x] * 21), t, tau))


@pytest.mark.parametrize("method", ["sequential", "parallel"])
@pytest.mark.parametrize("batch", [24, 10**6])
def test_samples_keep_their_own_conditions_in_every_batch(method: str, batch: int) -> None:
    """A network whose noise depends on the condition of the sample, one by one; inside another model as well."""

    def network(x: Tensor, t: Tensor, c: Tensor) -> Tensor:
        return torch.where(c[:, None] == 1, EPS(x, (t.double() + 1) / 1000), 0.5 * x)

    made = model_wrapper(network, SCHEDULE, guidance_type="classifier-free", guidance_scale=1.5)
    eps = made.bind(torch.arange(64) % 2, torch.tensor([1]))
    expected = tuned(eps, method=method, batch=64, objective="published")
    for model in (eps, HookedModel(eps, lambda *_: None)):
        got = tuned(model, method=method, batch=batch, objective="published")
        torch.testing.assert_close(got.tau, expected.tau, rtol=0, atol=1e-5)
    assert expected.tuned


# --- budgets ---


def test_budgets_have_several_forms() -> None:
    assert Budget.parse("20000calls") == Budget.parse(20000) == Budget(calls=20000)
    assert Budget.parse("60s") == Budget(seconds=60)
    assert Budget.parse("2m") == Budget(seconds=120) and Budget.parse(" 1.5 h ") == Budget(seconds=5400)
    assert Budget.parse(None) == Budget() == Budget.parse(Budget())
    message = "budget must be written as in 20000calls, 60s or 2m, and more than 0, got"
    for wrong in ("", "20", "calls", "1.5calls", "60 parsecs", "-3s", "0s", 2.5):
        with pytest.raises(ValueError, match=message):
            Budget.parse(wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"calls of a budget must be positive, got 0"):
        Budget.parse(0)


@METHODS
@pytest.mark.parametrize("how", [{}, {"batch": 10**6}, {"batch": 20}, {"objective": "substeps"}, {"optimizer": "adam"}])
def test_a_budget_is_kept_and_the_best_so_far_returned(method: str, how: dict[str, Any]) -> None:
    how = {"iterations": 10, **how} if "optimizer" in how else how
    free = Counted()
    whole = tuned(free, method=method, **how)
    for share in (0.3, 0.7):
        model, budget = Counted(), int(share * free.calls)
        plan = tuned(model, method=method, budget=budget, **how)
        spent = {purpose: cost["calls"] for purpose, cost in plan.provenance["cost"].items()}
        assert spent["tuning"] <= budget and sum(spent.values()) == model.calls
        assert spent.get("sizing", 0) <= 10, "whether time has an effect, and a gradient for Adam"
        assert spent["tuning"] > budget / 3 or how.get("batch") == 10**6, "steps tuned together spend much at a time"
        assert plan.provenance["stopped"].startswith(f"the budget of {budget} calls was spent")
        if "optimizer" not in how:
            loss = plan.provenance["loss"]
            assert all(a <= b for a, b in zip(loss["tuned"], loss["untuned"], strict=True))
    assert tuned(method=method, budget=free.calls + 200, **how).tau.equal(whole.tau)
    assert "stopped" not in whole.provenance


def test_a_budget_of_time_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch, 1e-4)
    before = clock.now
    plan = tuned(clock(EPS), budget="0.1s")
    assert 0.05 < clock.now - before <= 0.1 + 0.01
    assert "0.1 s" in plan.provenance["stopped"]


def test_cost_grows_linearly_with_the_calls() -> None:
    each = []
    for calls in (5, 10, 20, 40):
        model = Counted()
        tuned(model, quadratic(calls))
        each.append(model.calls / (calls - 1))
    assert max(each) < 2 * min(each)


# --- objectives ---


def own(step: Step, x: Tensor) -> Tensor:
    noise = step.batch.model(x, step.q.t, step.q.t)
    return (noise - step.untuned_noise).square().sum(1)


@METHODS
@pytest.mark.parametrize("objective", [*OBJECTIVES, own])
@pytest.mark.parametrize("sampler", ["ddim", "heun"])
def test_each_ratio_is_the_lowest_of_a_fine_grid(method: str, objective: Any, sampler: str) -> None:
    plan = make_plan(sampler, SCHEDULE, 6, "leading")
    found = tuned(plan=plan, method=method, objective=objective, last=True)
    goal = OBJECTIVES["published"] if objective is own else OBJECTIVES[objective]
    batch = Calibration(EPS, SCHEDULE, DATA, 64).fixed(EPS)
    run = PlanRun(found)
    state = first_state(run, batch)
    untuned = 0
    for k in range(6):
        t = plan.t[k]
        state = state if method == "sequential" else direct_state(run, k, batch)
        written_out = {"published": EPS(state[1], t, t), "noise": batch.noise, own: EPS(state[1], t, t)}
        target = written_out[objective] if objective in written_out else goal.target(Step(run, k, state, batch))
        at = [
            float(step_loss(run, k, state, t * r, batch, target, goal))
            for r in torch.linspace(0.8, 1.2, 81)
            if t * r <= 1
        ]
        value = float(step_loss(run, k, state, found.tau[k], batch, target, goal))
        assert value <= min(at) * 1.002 + 1e-6 * at[0]
        assert value == pytest.approx(found.provenance["loss"]["tuned"][k], rel=1e-5)
        untuned += int(found.tau[k] == t)
        state = run.step(k, state, found.tau[k], batch)
    assert untuned <= 2


def test_a_function_of_ones_own_is_an_objective() -> None:
    for optimizer in ({}, {"optimizer": "adam", "iterations": 5}):
        a, b = tuned(objective=own, **optimizer), tuned(objective="published", **optimizer)
        torch.testing.assert_close(a.tau, b.tau, rtol=0, atol=1e-9)


def test_the_target_of_substeps_is_near_the_exact_solution() -> None:
    """Sub-steps of second order are much nearer to it than the step is; both calls of Heun begin where it does."""
    for sampler in ("ddim", "heun"):
        plan = make_plan(sampler, SCHEDULE, 10, "logsnr")
        run, batch = PlanRun(plan), Calibration(EPS, SCHEDULE, DATA, 64).fixed(EPS)
        state = direct_state(run, 4, batch)
        ks = (4,) if sampler == "ddim" else (4, 5)
        times = torch.linspace(float(plan.t[4]), float(plan.t[ks[-1] + 1]), 101)
        truth = sample(EPS, make_plan("dpmpp", SCHEDULE, times=times), state[1])
        for k in ks:
            target = OBJECTIVES["substeps"].target(Step(run, k, state, batch))
            state = run.step(k, state, plan.t[k], batch)
        assert (target - truth).norm() < 0.2 * (state[1] - truth).norm()


def test_an_objective_without_noise_refuses_samplers_with_noise() -> None:
    with pytest.raises(ValueError, match=r"objective='substeps' compares with a run without noise.*'published'"):
        tuned(plan=make_plan("ddpm", SCHEDULE, 5), objective="substeps")
    with pytest.raises(
        ValueError, match=r"objective must be one of published, noise, substeps, or a function .*, got 'best'"
    ):
        tuned(objective="best")


def test_the_last_ratio_is_tuned_with_last() -> None:
    fixed, free = tuned(), tuned(last=True)
    assert fixed.tau[-1] == fixed.t[-2] and free.tau[-1] != free.t[-2]
    assert torch.equal(fixed.tau[:-1], free.tau[:-1])
    to_zero = make_plan("ddim", SCHEDULE, 4, "trailing")
    with pytest.raises(ValueError, match=r"last=True needs an end before sigma = 0"):
        tuned(plan=to_zero, last=True, objective="published")
    assert tuned(plan=to_zero, last=True, objective="substeps").tau[-1] != to_zero.t[-2]


def test_the_guard_finds_where_the_objective_alone_does_harm() -> None:
    plan = make_plan("ddim", SCHEDULE, 5, "leading")
    notes = tuned(plan=plan, guard=True, objective="published").provenance
    assert (
        notes["distance"]["unguarded"] > notes["distance"]["untuned"] >= notes["distance"]["tuned"]
        and notes["reverted_calls"]
    )


@pytest.mark.parametrize("optimizer", ["search", "adam"])
def test_an_objective_that_returns_no_number_for_each_sample_is_refused(optimizer: str) -> None:
    for objective, got in (
        (lambda step, x: 1.0, "float"),
        (lambda step, x: x.square().mean(), r"shape \(\)"),
        (lambda step, x: x.square(), r"shape \(2, 2\)"),
        (Objective(lambda step: step.batch.noise, loss=lambda noise, target: (noise - target).mean()), r"shape \(\)"),
    ):
        model = Counted()
        with pytest.raises(ValueError, match=rf"objective must return .* of shape \(2,\), got {got}"):
            tuned(model, objective=objective, optimizer=optimizer, data=None)
        assert model.evaluations <= 10, "before own samples are drawn"


@pytest.mark.parametrize("shape", ["a", 4, (), (2, -1), (2.0,)])
def test_a_shape_that_is_none_is_named(shape: Any) -> None:
    with pytest.raises(ValueError, match=r"shape must be that of one sample, as in \(3, 32, 32\), got"):
        tuned(data=None, shape=shape)


def test_unknown_options_are_named() -> None:
    with pytest.raises(ValueError, match=r"tuner 'sequential' has no option 'step'; its options: optimizer, objective"):
        tune(EPS, quadratic(), "sequential(step=3)")


def test_several_plans_are_tuned_on_one_calibration() -> None:
    model = Counted()
    calibration = Calibration(model, SCHEDULE, samples=32)
    plans = [tune(model, quadratic(calls), "sequential", calibration, guard=False) for calls in (3, 4)]
    assert plans == [
        tune(EPS, quadratic(calls), "sequential", samples=32, shape=(2,), guard=False).with_provenance(
            cost=plan.provenance["cost"]
        )
        for calls, plan in zip((3, 4), plans, strict=True)
    ]
    costs = [plan.provenance["cost"] for plan in plans]
    assert model.calls - sum(cost[name]["calls"] for cost in costs for name in ("sizing", "tuning")) == 50


# --- refused before any long work ---


def still(x: Tensor, t: Any, tau: Any = None) -> Tensor:
    with torch.no_grad():
        return EPS(x, t, tau)


def reference(end: float) -> ReferenceDistance:
    return ReferenceDistance(EPS, SCHEDULE, end, torch.zeros(2, 2), 5)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"data": "pictures"}, r"got the path 'pictures': time_tuner\.data\.load_data\(path, shape\) reads folders"),
        ({"data": Path("pictures")}, "got the path 'pictures'"),
        ({"data": torch.zeros(8, 2, dtype=torch.complex64)}, "data must hold real numbers, got torch.complex64"),
        ({"device": "cuda:99"}, "device must be one that torch can use here, got 'cuda:99'"),
        ({"device": "gpu"}, "device must be one that torch can use here, got 'gpu'"),
        ({"guard": reference(0.0)}, "plan must end where the reference run does, at t = 0"),
        ({"checkpoint": "/proc/none/partial"}, "cannot be written"),
        ({"checkpoint": 5}, "checkpoint must be a path, got 5"),
        ({"method": "joint", "teacher_cache": "/proc/none/teacher.safetensors"}, "cannot be written"),
        ({"method": "joint", "teacher": make_plan("ddim", SCHEDULE, 3)}, "teacher must make no fewer calls"),
        ({"method": "joint", "plan": make_plan("ddpm", SCHEDULE, 3)}, "joint tuning needs a plan without noise"),
        ({"method": "joint", "gradients": True, "eps": still}, "gradients=True needs a network with a gradient"),
        ({"method": "joint", "distance": lambda x, y: x - y}, "distance must return a tensor with a number"),
        ({"optimizer": "adam", "eps": still}, "optimizer='adam' needs a network with a gradient in its time"),
        ({"objective": "substeps", "plan": make_plan("ddpm", SCHEDULE, 3)}, "compares with a run without noise"),
        (
            {"objective": "published", "last": True, "plan": make_plan("ddim", SCHEDULE, 3, "trailing")},
            "last=True needs",
        ),
        ({"lr": 0.1}, "lr and iterations are options of optimizer='adam'"),
        ({"progress": 1}, "progress must be True, False or a function, got 1"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",  # no addresses, which differ by process
)
def test_what_cannot_be_used_is_refused_before_own_samples_are_drawn(wrong: dict[str, Any], message: str) -> None:
    model = Counted()
    eps = wrong.get("eps", EPS)
    model.predict = lambda x, t, tau: eps(x, t, tau)
    with pytest.raises(ValueError, match=message):
        tuned(model, data=wrong.get("data"), **{name: wrong[name] for name in wrong if name not in ("eps", "data")})
    assert model.evaluations <= 30


@pytest.mark.parametrize("name", TUNERS)
@pytest.mark.parametrize("guard", [True, False])
def test_conditions_are_dealt_in_turn(name: str, guard: bool) -> None:
    """To more samples than there are conditions, also to those of the guard; whatever the batch."""
    seen: set[tuple[float, int]] = set()

    def network(x: Tensor, t: Tensor, c: Tensor) -> Tensor:
        # Each sample of the first states has a condition of its own, for ever.
        seen.update(zip(x[:, 0].tolist(), c.tolist(), strict=True))
        return EPS(x + 0.1 * c[:, None], (t.double() + 1) / 1000)

    model = model_wrapper(network, SCHEDULE, guidance_type="classifier-free").bind(torch.arange(3))
    how: dict[str, Any] = {
        "joint": {"pairs": 16, "iterations": 2, "candidates": 1},
        "least_squares": {"pairs": 16},
    }.get(name, {"objective": "noise"})
    plans = []
    for batch in (None, 7):
        plans.append(
            tune_by(model, quadratic(3), name, samples=20, shape=(2,), guard=guard, batch=batch, **how).with_provenance(
                cost=None
            )
        )
    torch.testing.assert_close(plans[0].tau, plans[1].tau, rtol=0, atol=1e-4)
    first = first_states(name, guard)
    assert {seen_with for seen_with in seen if seen_with[0] in first} == {(value, i % 3) for value, i in first.items()}
    with pytest.raises(ValueError, match="samples must be at least as many as the model has conditions, 3, got 2"):
        tune_by(model, quadratic(3), name, samples=2, shape=(2,))


def first_states(name: str, guard: bool) -> dict[float, int]:
    """The first number of each first state, of own samples or a teacher and of the guard, and the state's place."""
    noise = Calibration(EPS, SCHEDULE, samples=20, shape=(2,))
    by_teacher = not TUNERS[name].uses_data
    first = first_seed(0, TEACHER if by_teacher else DATA_SEEDS)
    starts = [noise.states(range(first, first + (16 if by_teacher else 20)))] + [noise.held_out()] * guard
    return {value: i for states in starts for i, value in enumerate(states[:, 0].tolist())}


def test_joint_tuning_has_no_data_in_its_provenance() -> None:
    how: dict[str, Any] = {"pairs": 16, "iterations": 2, "candidates": 1, "samples": 8, "guard": False}
    assert "data" not in tune_by(EPS, quadratic(3), "joint", **how).provenance
    assert tuned(data=None).provenance["data"] == "own samples" and tuned().provenance["data"] == "given"


# --- interrupted and continued ---


def stopped_after(steps: int, **options: Any) -> None:
    def stop(progress: Progress) -> None:
        if progress.step == steps:
            raise Interrupt

    with pytest.raises(Interrupt):
        tuned(progress=stop, **options)


@pytest.mark.parametrize(
    "how",
    [
        {},
        {"objective": "noise"},
        {"objective": "substeps", "last": True},
        {"method": "parallel"},
        {"method": "parallel", "batch": 10**6, "objective": "published"},
        {"optimizer": "adam", "iterations": 5},
    ],
)
@pytest.mark.parametrize("budget", [None, 40])
def test_an_interrupted_run_finds_the_same_plan(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, how: dict[str, Any], budget: int | None
) -> None:
    partial = tmp_path / "partial"
    caplog.set_level("INFO")
    how = {**how, "budget": budget and 3 * budget if "optimizer" in how else budget}
    expected = tuned(**how)
    for steps in (1, 2):
        stopped_after(steps, checkpoint=partial, **how)
        assert json.loads(partial.read_text())
    seen: list[Progress] = []
    caplog.clear()
    assert tuned(checkpoint=partial, progress=seen.append, **how) == expected
    assert caplog.messages[0] == f"continuing from {partial}"
    assert all(each.step > 2 or not each.step for each in seen) or how.get("batch")
    model = Counted()
    assert tuned(model, checkpoint=partial, **how) == expected
    assert model.calls == 1, "the plan is kept, too: the model is called once, to see that it is the same"


@METHODS
@pytest.mark.parametrize("batch", [64, 10**6])
def test_a_run_that_was_almost_finished_costs_no_more(tmp_path: Path, method: str, batch: int) -> None:
    how = {"method": method, "batch": batch, "checkpoint": tmp_path / "partial"}
    stopped_after(4, **how)
    assert tuned(**how) == tuned(method=method, batch=batch)


def test_other_arguments_start_anew_and_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    partial = tmp_path / "partial"
    for what, other in (("seed", {"seed": 1}), ("last", {"last": True}), ("plan", {"plan": quadratic(6)}),
                        ("data", {"data": DATA + 1}), ("tuner", {"method": "parallel"}), ("guard", {"guard": True}),
                        ("objective", {"objective": own}), ("objective", {"objective": lambda step, x: own(step, x)}),
                        ("samples", {"samples": 32}), ("objective, another last", {"objective": own, "last": True}),
                        ("model", {"eps": exact.Mixture(DATA[:9] + 1, 0.2).eps(SCHEDULE)})):  # fmt: skip
        stopped_after(2, checkpoint=partial)
        caplog.clear()
        plan = tuned(checkpoint=partial, **other)
        assert caplog.messages == [f"{partial} was made with another {what}: starting anew"]
        assert plan == tuned(**other)
    partial.write_text('{"format": "time-tuner partial plan", "inputs": [1]}')
    caplog.clear()
    assert tuned(checkpoint=partial) == tuned()
    assert caplog.messages == [f"{partial} was made with another version: starting anew"]


def test_other_samples_alone_are_named_where_own_samples_follow(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    partial = tmp_path / "partial"
    for samples in (32, 48):
        caplog.clear()
        tuned(data=None, samples=samples, checkpoint=partial)
    assert caplog.messages == [f"{partial} was made with another samples: starting anew"]


@pytest.mark.parametrize("content", [b"nonsense", b"PK\x03\x04\xff weights", b"[1]", b'{"format": "time-tuner plan"}'])
def test_a_file_that_is_something_else_is_not_written_over(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "weights.pt"
    file.write_bytes(content)
    with pytest.raises(ValueError, match=r"checkpoint '.*weights\.pt' is no partial plan .*: name another file"):
        tuned(checkpoint=file)
    assert file.read_bytes() == content


def test_functions_are_recognised_by_their_code(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Two of one name, and with other numbers around them, differ; one made again is the same."""
    caplog.set_level("INFO")

    def times(factor: float) -> Any:
        return lambda step, x: factor * own(step, x)

    def message_of(objective: Any) -> str:
        caplog.clear()
        tuned(checkpoint=tmp_path / "partial", objective=objective)
        return " ".join(caplog.messages)

    assert message_of(times(2.0)) == ""
    assert "continuing" in message_of(times(2.0))
    assert "another objective" in message_of(times(3.0))
    assert "another objective" in message_of(lambda step, x: own(step, x))
    assert "another objective" in message_of(Objective(lambda step: step.untuned_noise))
    assert "continuing" in message_of(Objective(lambda step: step.untuned_noise)), "of an objective made again, too"


def test_a_run_continues_in_a_larger_budget(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    partial = tmp_path / "partial"
    few = tuned(checkpoint=partial, budget=20)
    caplog.clear()
    caplog.set_level("INFO")
    more = tuned(checkpoint=partial)
    assert "stopped" in few.provenance and caplog.messages == [f"continuing from {partial}"]
    assert torch.equal(more.tau, tuned().tau)


def test_adam_does_not_leave_the_trained_range() -> None:
    """At a learning rate far too high the ratios run anywhere; the network receives times that it was trained at."""
    plan = make_plan("ddim", EPS.schedule, 4, "quadratic")
    tuner = Sequential(optimizer="adam", objective="published", lr=3.0, iterations=3)
    tuned = tune(EPS, plan, tuner, guard=False)
    assert (tuned.tau >= plan.schedule.t_min).all() and (tuned.tau <= plan.schedule.T).all()
