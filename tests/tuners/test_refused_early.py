"""What tuning will need is checked before its first long work: a fault is refused within a few network calls."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import seeded
from joint_problem import ZERO_SNR
from torch import Tensor

from time_tuner import (
    Joint,
    LeastSquares,
    NoiseScheduleVP,
    Plan,
    Sequential,
    exact,
    make_plan,
    model_wrapper,
    named_betas,
    sample,
    tune,
    tune_several,
)
from time_tuner.models.base import HookedModel, Model, as_model
from time_tuner.plans.build import reference_plan
from time_tuner.schedules import NoiseSchedule
from time_tuner.tuners import Calibration, ReferenceDistance, estimate
from time_tuner.tuners.joint.teacher import usual_teacher

SCHEDULE = NoiseScheduleVP(betas=named_betas())
OTHER = NoiseScheduleVP("linear")
POINTS = exact.Mixture(seeded(6, 2, seed=3), 0.2)
PLAN, RANDOM = make_plan("ddim", SCHEDULE, 4), make_plan("ddpm", SCHEDULE, 4)
LATER = make_plan("ddim", ZERO_SNR, times=[0.95, 0.7, 0.4, 0.1])
EVERY = ("sequential", "parallel", "joint", "least_squares")
MOST = 10
"""Network calls: tuning makes hundreds, own samples 50, a reference run 100."""


@dataclass
class Fault:
    """The arguments of `tune` with one fault, and what the message says."""

    says: str
    tuners: tuple[Any, ...] = ("sequential",)
    model: Callable[[], Any] = lambda: POINTS.eps(SCHEDULE)
    plan: Plan | None = None
    how: Callable[[Path], dict[str, Any]] = lambda path: {}
    more: dict[str, Any] = field(default_factory=dict)


def without_x0(schedule: NoiseSchedule) -> Any:
    """A function, which does not determine the data at alpha = 0."""
    eps = POINTS.eps(schedule)
    return as_model(lambda x, t, tau: eps(x, t, tau), schedule, (2,))


def broken_at_T() -> Any:
    """A network that was never trained at the last levels."""
    eps = POINTS.eps(SCHEDULE)
    return as_model(lambda x, t, tau: eps(x, t, tau) * (1 if t < 0.99 else torch.nan), SCHEDULE, (2,))


def without_gradient() -> Any:
    eps = POINTS.eps(SCHEDULE)
    return as_model(torch.no_grad()(lambda x, t, tau: eps(x, t, tau)), SCHEDULE, (2,))


def with_a_detached_time() -> Any:
    """A network with weights that have gradients, and a time that has none."""
    layer = torch.nn.Linear(2, 2)
    return model_wrapper(lambda x, n: layer(x) * n.detach()[:, None] / 1000, SCHEDULE, shape=(2,)).bind()


def of_conditions(count: int) -> Any:
    def network(x: Tensor, n: Tensor, c: Tensor) -> Tensor:
        return x * (n / 1000)[:, None].sqrt() + 0.1 * c[:, None]

    made = model_wrapper(network, SCHEDULE, guidance_type="classifier-free", shape=(2,))
    return made.bind(torch.arange(count).float())


def with_rows() -> Any:
    """A network with arguments for a batch of one size, which no other batch fits."""
    made = model_wrapper(
        lambda x, n, y: x * n[:, None] / 1000 + y[:, None], SCHEDULE, model_kwargs={"y": torch.zeros(16)}, shape=(2,)
    )
    return made.bind()


def file_of(path: Path, text: str = "[]") -> Path:
    path.write_text(text)
    return path


def judge(schedule: NoiseSchedule = SCHEDULE, end: float = 1e-3, count: int = 8) -> ReferenceDistance:
    return ReferenceDistance(POINTS.eps(schedule), schedule, end, seeded(count, 2).float(), calls=10)


def cache_of(path: Path, plan: Plan, seed: int = 0) -> str:
    """A teacher's runs in a file."""
    name = str(path / "runs.safetensors")
    tune(
        POINTS.eps(SCHEDULE),
        plan,
        Joint(pairs=8, iterations=1, candidates=1, teacher_cache=name),
        seed=seed,
        guard=False,
    )
    return name


DATA = POINTS.sample(16).float()
FAULTS: dict[str, Fault] = {
    # the reference run and own samples
    "a reference run from alpha = 0 of a function": Fault(
        r"the (reference run|teacher).* begins at t = 1, where the model cannot be called: eps has no .x0",
        EVERY,
        lambda: without_x0(ZERO_SNR),
        LATER,
    ),
    "a reference run of a network that is NaN at T": Fault(
        "the reference run of the guard begins at t = 1, where eps returned NaN",
        EVERY,
        broken_at_T,
        make_plan("ddim", SCHEDULE, times=[0.95, 0.7, 0.4, 0.1]),
    ),
    # the teacher
    "a teacher that is NaN at T": Fault(
        "the teacher begins at t = 1, where eps returned NaN",
        ("joint", "least_squares"),
        broken_at_T,
        make_plan("ddim", SCHEDULE, times=[0.95, 0.7, 0.4, 0.1]),
        more={"guard": False},
    ),
    "a teacher on another schedule": Fault(
        "teacher must be on the plan's schedule",
        tuple(kind(teacher=make_plan("ddim", OTHER, 20)) for kind in (Joint, LeastSquares)),
    ),
    "a teacher that ends elsewhere": Fault(
        "teacher must be a deterministic plan that ends where the plan does",
        tuple(kind(teacher=reference_plan(SCHEDULE, 0.01, 20)) for kind in (Joint, LeastSquares)),
    ),
    "a teacher that draws noise": Fault(
        "teacher must be a deterministic plan",
        tuple(kind(teacher=make_plan("ddpm", SCHEDULE, 20)) for kind in (Joint, LeastSquares)),
    ),
    "a teacher of fewer calls": Fault(
        "teacher must make no fewer calls than the plan, 4",
        tuple(kind(teacher=make_plan("ddim", SCHEDULE, 3)) for kind in (Joint, LeastSquares)),
    ),
    "a teacher that begins late": Fault(
        "teacher must begin no later than the plan's second call",
        (LeastSquares(teacher=make_plan("ddim", SCHEDULE, times=[0.1 - 0.02 * i for i in range(5)] + [1e-3])),),
    ),
    "a warm start on another schedule": Fault(
        "warm_starts must be deterministic plans", (Joint(warm_starts=[make_plan("ddim", OTHER, 4)]),)
    ),
    # gradients
    "no gradient in the states": Fault(
        "gradients=True needs a network with a gradient", ("joint(gradients=true)",), without_gradient
    ),
    "no gradient in the time": Fault(
        "needs a network with a gradient in its time", ("sequential(optimizer=adam)",), without_gradient
    ),
    "a gradient in the weights alone": Fault(
        "needs a network with a gradient in its time", ("sequential(optimizer=adam)",), with_a_detached_time
    ),
    "a distance of another shape": Fault(
        "distance must return a tensor with a number for each sample", (Joint(distance=lambda x, y: x - y),)
    ),
    "a distance without a gradient": Fault(
        "distance must have a gradient in its first argument", (Joint(distance=lambda x, y: y.square().sum(1)),)
    ),
    # the guard
    "a guard to another end": Fault(
        "plan must end where the reference run does", EVERY, more={"guard": judge(end=0.1)}
    ),
    "a guard on another schedule": Fault(
        "plan was made for another noise schedule", EVERY, more={"guard": judge(OTHER)}
    ),
    "a guard of one sample for a plan that draws noise": Fault(
        "x must hold at least two samples to measure a plan that draws noise",
        plan=RANDOM,
        more={"guard": judge(count=1)},
    ),
    # data and conditions
    "fewer samples than conditions": Fault(
        "samples must be at least as many as the model has conditions, 20, got 16", EVERY, lambda: of_conditions(20)
    ),
    "fewer data than conditions": Fault(
        "data must be at least as many as the model has conditions, 8, got 5",
        model=lambda: of_conditions(8),
        more={"data": DATA[:5]},
    ),
    "arguments of a whole batch": Fault(
        r"model_kwargs\['y'\] has 16 rows, and a batch may hold other samples", EVERY, with_rows
    ),
    "data of another shape": Fault("data must have shape", more={"data": seeded(16, 3)}),
    "data with NaN": Fault("data must be finite", more={"data": DATA * torch.nan}),
    "data for joint tuning": Fault("data must be left out", ("joint", "least_squares"), more={"data": DATA}),
    "a calibration on another schedule": Fault(
        "plan was made for another noise schedule",
        how=lambda path: {"data": Calibration(POINTS.eps(OTHER), OTHER, samples=16)},
    ),
    "a plan on another schedule": Fault(
        "plan was made for another noise schedule", EVERY, plan=make_plan("ddim", OTHER, 4)
    ),
    "a prediction of another shape": Fault(
        "eps must return a tensor of the shape of x",
        EVERY,
        lambda: as_model(lambda x, t, tau: x[:, :1], SCHEDULE, (2,)),
    ),
    # files
    "a checkpoint that is a folder": Fault("is a folder: name a file", EVERY, how=lambda path: {"checkpoint": path}),
    "a checkpoint below a file": Fault(
        "cannot be written", EVERY, how=lambda path: {"checkpoint": file_of(path / "file") / "plan.partial"}
    ),
    "a checkpoint that is another file": Fault(
        "is no partial plan", EVERY, how=lambda path: {"checkpoint": file_of(path / "plan.json")}
    ),
    "a cache that is a folder": Fault(
        "is a folder: name a file", how=lambda path: {"tuner": Joint(teacher_cache=path)}
    ),
    "a cache that is another file": Fault(
        "is no teacher file", how=lambda path: {"tuner": LeastSquares(teacher_cache=file_of(path / "x.safetensors"))}
    ),
    "a cache of another seed": Fault(
        "holds runs with another seed", how=lambda path: {"tuner": Joint(teacher_cache=cache_of(path, PLAN)), "seed": 1}
    ),
    "a cache of another teacher": Fault(
        "holds runs with another teacher",
        how=lambda path: {
            "tuner": Joint(teacher_cache=cache_of(path, PLAN), teacher=reference_plan(SCHEDULE, 1e-3, 30))
        },
    ),
    "a cache without a path": Fault(
        "another grid of the plan", how=lambda path: {"tuner": LeastSquares(teacher_cache=cache_of(path, PLAN))}
    ),
    # noise and losses
    "noise of another shape": Fault("noise must map noise that was drawn", EVERY, more={"noise": lambda z: z[:, :1]}),
    "noise that is drawn": Fault("another result at the second call", EVERY, more={"noise": torch.randn_like}),
    "noise that depends on the batch": Fault(
        "noise must map each sample on its own", EVERY, more={"noise": lambda z: z - z.mean(0, keepdim=True)}
    ),
    "an objective of another shape": Fault(
        "objective must return a tensor", (Sequential(objective=lambda step, x: x),)
    ),
    "an objective that is NaN": Fault(
        "or the objective, returned NaN", (Sequential(objective=lambda step, x: x.sum(1) * torch.nan),)
    ),
    # numbers and names
    "a budget": Fault("budget must be written as in", EVERY, more={"budget": "soon"}),
    "one sample": Fault("samples must be", EVERY, more={"samples": 1}),
    "an empty batch": Fault("batch must be", EVERY, more={"batch": 0}),
    "a device": Fault("device", EVERY, more={"device": "abacus"}),
}


def cases() -> Iterator[Any]:
    for name, fault in FAULTS.items():
        for tuner in fault.tuners:
            yield pytest.param(fault, tuner, id=f"{name}, {tuner if isinstance(tuner, str) else type(tuner).__name__}")


@pytest.mark.parametrize(("fault", "tuner"), [*cases()])
def test_a_fault_is_refused_within_a_few_network_calls(fault: Fault, tuner: Any, tmp_path: Path) -> None:
    calls: list[Any] = []
    model: Model = HookedModel(as_model(fault.model(), SCHEDULE, (2,)), lambda *call: calls.append(call))
    how = {"tuner": tuner, "samples": 16, "data": None, **fault.more, **fault.how(tmp_path)}
    with pytest.raises(ValueError, match=fault.says):
        tune(model, fault.plan or PLAN, **how)
    assert len(calls) < MOST


def test_a_run_without_a_fault_makes_many_calls() -> None:
    """Without which the limit would show nothing."""
    for tuner in ("sequential", "parallel", "joint(pairs=16, iterations=2)", "least_squares(pairs=16)"):
        cost = tune(POINTS.eps(SCHEDULE), PLAN, tuner, samples=16).provenance["cost"]
        assert sum(one["calls"] for name, one in cost.items() if name != "sizing") > 10 * MOST


@pytest.mark.parametrize(
    ("plans", "how", "says"),
    [
        ([PLAN, make_plan("ddim", OTHER, 6)], {}, "plan was made for another noise schedule"),
        (
            [PLAN, make_plan("ddim", SCHEDULE, times=[1.0, 0.8, 0.6, 0.4, 0.2, 0.1])],
            {"guard": judge()},
            "plan must end",
        ),
    ],
)
def test_a_fault_of_the_second_plan_is_refused_before_the_first_is_tuned(
    plans: list[Plan], how: dict[str, Any], says: str, tmp_path: Path
) -> None:
    calls: list[Any] = []
    model = HookedModel(POINTS.eps(SCHEDULE), lambda *call: calls.append(call))
    with pytest.raises(ValueError, match=says):
        tune_several(model, plans, "sequential", samples=16, **how)
    (tmp_path / "partial-6").mkdir()
    with pytest.raises(ValueError, match="is a folder: name a file"):
        tune_several(
            model, [PLAN, make_plan("ddim", SCHEDULE, 6)], "sequential", samples=16, checkpoint=tmp_path / "partial"
        )
    assert len(calls) < MOST


@pytest.mark.parametrize("levels", [2, 3, 10, 50, 60])
def test_runs_of_tuning_have_a_call_for_each_level_at_most(levels: int) -> None:
    """Own samples have 50 calls, the reference run 100, the teacher 40; or one for each of fewer levels."""
    schedule = NoiseScheduleVP(betas=torch.linspace(0.1 / levels, 0.9, levels, dtype=torch.float64))
    model = POINTS.eps(schedule)
    plan = make_plan("ddim", schedule, 2)
    assert len(usual_teacher(plan)) == min(40, levels)
    tuned = tune(model, plan, "sequential", samples=8)
    cost = tuned.provenance["cost"]
    assert cost["data"]["calls"] == min(50, levels)
    assert cost["reference"]["calls"] == tuned.provenance["reference_calls"] == min(100, levels)
    costs = estimate(model, plan, "sequential", samples=8).costs
    assert costs["reference"][0].calls == min(100, levels)
    assert sample(model, reference_plan(schedule, 0.0), seeded(2, 2)).isfinite().all()
