"""Every entry of every table does what its kind has to do. A new entry is covered with nothing edited; samplers also
with the options that `tables.OPTIONS` names."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from tables import (
    AROUND,
    DISCRETE,
    EVERY,
    EVERY_SCHEDULE,
    FLOW,
    INNER,
    LINEAR,
    MIXTURE,
    VE,
    ZERO_SNR,
    wrapped,
)
from torch import Tensor
from typer.testing import CliRunner

from time_tuner import (
    SAMPLERS,
    SCHEDULES,
    SPACINGS,
    TUNERS,
    Plan,
    load_model,
    make_plan,
    model_wrapper,
    sample,
    tune,
)
from time_tuner.cli.app import app
from time_tuner.models.base import ModelAround
from time_tuner.models.batching import BatchedModel
from time_tuner.models.predictions import PREDICTIONS, Prediction
from time_tuner.models.thresholding import clipped
from time_tuner.samplers import DDIM, Evaluation, Noise, Sampler
from time_tuner.schedules import NoiseSchedule, Point
from time_tuner.testing import (
    check_model,
    check_prediction,
    check_sampler,
    check_schedule,
    check_spacing,
    check_tuner,
)
from time_tuner.testing.samplers import NoReading

GUIDE = Path(__file__).parents[1] / "docs" / "extending.md"
EXAMPLE = GUIDE.read_text().partition("```python\n")[2].partition("```")[0]
exec(compile(EXAMPLE, GUIDE, "exec"), {"__name__": "guide"})  # which enters its sampler into the table
DOCUMENTED = SAMPLERS.pop("ab2")

# --- samplers ---


@pytest.mark.parametrize("sampler", [*EVERY, DOCUMENTED()], ids=repr)
def test_samplers_conform(sampler: Sampler, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SAMPLERS, "ab2", DOCUMENTED)  # the sampler of the guide is in the table here alone
    check_sampler(sampler)


def test_the_documented_sampler_is_short() -> None:
    assert len(EXAMPLE.strip().splitlines()) <= 30


def test_the_documented_sampler_is_on_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SAMPLERS, "ab2", DOCUMENTED)
    plan = tmp_path / "plan.json"
    for command in (
        ["tune", "--sampler", "ab2", "--calls", "3", "--samples", "8", "--method", "sequential", "--out", str(plan)],
        ["sample", "--plan", str(plan), "-n", "2", "--out", str(tmp_path / "plan.npz")],
        ["sample", "--sampler", "ab2()", "--calls", "3", "-n", "2", "--out", str(tmp_path / "untuned.npz")],
        ["compare", "ab2:3@quadratic", "-n", "8", "--out", str(tmp_path / "runs.png")],
    ):
        result = CliRunner().invoke(app, [*command, "--model", "gaussian"])
        assert result.exit_code == 0, result.output
    assert Plan.load(plan).sampler == DOCUMENTED()


@dataclass(frozen=True)
class Wrong(DDIM):
    """DDIM with one thing wrong."""

    def step(self, past: tuple[Evaluation, ...], q: Point, noise: Noise) -> Tensor:
        return self.spoil(super().step(past, q, noise), past, q, noise)

    def spoil(self, x: Tensor, past: tuple[Evaluation, ...], q: Point, noise: Noise) -> Tensor:
        raise NotImplementedError


class Biased(Wrong):
    def spoil(self, x: Tensor, past: tuple[Evaluation, ...], q: Point, noise: Noise) -> Tensor:
        return x + 0.01 * q.sigma * past[-1].eps


class Noisy(Wrong):
    def spoil(self, x: Tensor, past: tuple[Evaluation, ...], q: Point, noise: Noise) -> Tensor:
        noise(x)
        return x


class Rescaled(Wrong):
    """A sampler of distilled models with too little noise."""

    convergence = 0

    def spoil(self, x: Tensor, past: tuple[Evaluation, ...], q: Point, noise: Noise) -> Tensor:
        return q.alpha * past[-1].x0 + 0.9 * q.sigma * noise(x)


class Overrated(DDIM):
    @property
    def convergence(self) -> int:
        return 2


@pytest.mark.parametrize(
    ("kind", "property_"),
    [
        (Biased, "order of convergence"),
        (Overrated, "order of convergence"),
        (Noisy, "noise"),
        (Rescaled, "keeps the distribution of exact data"),
    ],
)
def test_a_wrong_sampler_is_noticed(kind: type[Sampler], property_: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SAMPLERS, "wrong", kind)
    with pytest.raises(AssertionError, match=f"does not hold.*{property_}|draws no noise"):
        check_sampler(kind())


@pytest.mark.parametrize(
    "read",
    [
        *(float, bool, int, Tensor.item, Tensor.tolist, Tensor.cpu, Tensor.numpy, torch.nonzero),
        *(lambda x: x.to("cpu"), lambda x: x[x > 0], lambda x: torch.equal(x, x), lambda x: 1 if x > 0 else 0),
    ],
)
def test_reading_a_state_is_noticed(read: Callable[[Tensor], object]) -> None:
    with pytest.raises(AssertionError, match="reads no number"), NoReading():
        read(torch.ones(()))


# --- models ---


@pytest.mark.parametrize("name", INNER)
def test_models_conform(name: str) -> None:
    check_model(INNER[name]())


@pytest.mark.parametrize("inner", ["classifier-free, six conditions", "classifier, one condition", "Mixture"])
@pytest.mark.parametrize("name", AROUND)
def test_models_around_models_conform(name: str, inner: str) -> None:
    check_model(AROUND[name](INNER[inner]()))


@pytest.mark.parametrize("inner", INNER)
@pytest.mark.parametrize("name", AROUND)
def test_a_model_around_a_model_survives_the_choice_of_rows(name: str, inner: str) -> None:
    around = AROUND[name](INNER[inner]())
    part = around.select(torch.tensor([1, 0]))
    assert type(part) is type(around)
    x = torch.randn(2, 2, generator=torch.Generator().manual_seed(0))
    by_hand = AROUND[name](INNER[inner]().select(torch.tensor([1, 0])))
    t = 0.6 * around.schedule.T
    torch.testing.assert_close(part(x, t), by_hand(x, t))


def test_a_batch_of_a_clipped_model_is_clipped() -> None:
    model = clipped(wrapped("classifier-free", True), 0.5)
    x = 3 * torch.randn(6, 2, generator=torch.Generator().manual_seed(0))
    for batch in (1, 2, 4, None):
        part = BatchedModel(model, batch)
        assert part.x0(x, 0.9).abs().max() <= 0.5
        torch.testing.assert_close(part(x, 0.5), model(x, 0.5))


def test_bundled_models_conform() -> None:
    for name in ("digits", "latent-digits", "pictograms", "gaussian"):
        labelled = {} if name in ("pictograms", "gaussian") else {"label": [3, 1, 4, 1], "guidance_scale": 2.0}
        check_model(load_model(name, **labelled), precision=2e-4)


class Unbatched(ModelAround):
    def predict(self, quantity: str, x: Tensor, t: Any, tau: Any = None) -> Tensor:
        return self.inner.predict(quantity, x, t, tau) + 0.01 * x.mean()


class Forgetful(ModelAround):
    def predict(self, quantity: str, x: Tensor, t: Any, tau: Any = None) -> Tensor:
        return self.inner.predict(quantity, x, t, tau).clamp(-0.5, 0.5)

    def select(self, rows: Tensor) -> Any:
        return self.inner.select(rows)


@pytest.mark.parametrize("kind", [Unbatched, Forgetful])
def test_a_wrong_model_is_noticed(kind: type[ModelAround]) -> None:
    with pytest.raises(AssertionError, match="does not hold"):
        check_model(kind(wrapped("classifier-free", True)))


# --- schedules, spacings, predictions ---


@pytest.mark.parametrize("schedule", [*EVERY_SCHEDULE, ZERO_SNR], ids=repr)
def test_schedules_conform(schedule: NoiseSchedule) -> None:
    check_schedule(schedule)


@pytest.mark.parametrize("schedule", [DISCRETE, LINEAR, FLOW, VE], ids=repr)
@pytest.mark.parametrize("name", [name for name in SPACINGS if name != "ays"])  # its lists are of three models alone
def test_spacings_conform(name: str, schedule: NoiseSchedule) -> None:
    if schedule.levels is None and name in ("linspace", "leading", "trailing"):
        with pytest.raises(ValueError, match="levels"):
            SPACINGS[name](schedule, 5)
    else:
        check_spacing(name, schedule)


@pytest.mark.parametrize("schedule", [DISCRETE, FLOW, VE], ids=repr)
@pytest.mark.parametrize("name", PREDICTIONS)
def test_predictions_conform(name: str, schedule: NoiseSchedule) -> None:
    if name.startswith("edm") and schedule.sigma_data is None:
        with pytest.raises(ValueError, match="preconditioning"):
            PREDICTIONS[name].on(schedule)
    else:
        check_prediction(PREDICTIONS[name], schedule)


class Half(Prediction):
    """Half of the noise: a type that nobody trains."""

    def noise(self, output: Tensor, x: Tensor, p: Point) -> Tensor:
        return 2 * output

    def output(self, x0: Tensor, eps: Tensor, p: Point) -> Tensor:
        return eps / 2

    determines_data = False


def test_a_prediction_type_is_one_class_and_one_entry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PREDICTIONS, "half", Half())
    check_prediction(PREDICTIONS["half"], DISCRETE)
    exact = MIXTURE.eps(DISCRETE)

    def half(x: Tensor, n: Tensor) -> Tensor:
        return exact(x, DISCRETE.from_network_time(n[0])) / 2

    model = model_wrapper(half, DISCRETE, "half", shape=(2,)).bind()
    check_model(model)
    plan = make_plan("unipc", DISCRETE, 6)
    x = torch.randn(8, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    torch.testing.assert_close(sample(model, plan, x), sample(exact, plan, x), rtol=1e-4, atol=1e-4)
    tuned, expected = (tune(eps, plan, "sequential", samples=8, shape=(2,)) for eps in (model, exact))
    torch.testing.assert_close(tuned.tau, expected.tau, rtol=1e-3, atol=1e-4)


def test_a_wrong_prediction_is_noticed() -> None:
    class Wrong(Half):
        def output(self, x0: Tensor, eps: Tensor, p: Point) -> Tensor:
            return eps

    with pytest.raises(AssertionError, match="inverts output"):
        check_prediction(Wrong(), DISCRETE)


@dataclass(frozen=True)
class Cubic(NoiseSchedule):
    """alpha = 1 - t^3 / 2, a schedule that nobody uses."""

    T = 1.0
    t_min = 0.01

    def at(self, t: Any) -> Point:
        t = torch.as_tensor(t, dtype=torch.float64)
        alpha = 1 - t**3 / 2
        return Point(t, alpha, torch.sqrt(1 - alpha**2))

    def inverse_lambda(self, lam: Any) -> Tensor:
        alpha = torch.sigmoid(2 * torch.as_tensor(lam, dtype=torch.float64)).sqrt()
        return (2 * (1 - alpha)) ** (1 / 3)

    def network_time(self, t: Any) -> Tensor:
        return torch.as_tensor(t, dtype=torch.float64)

    from_network_time = network_time

    def to_dict(self) -> dict[str, Any]:
        return {"name": "cubic"}


def test_a_schedule_is_one_class_and_one_entry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SCHEDULES, "cubic", Cubic)
    schedule = Cubic()
    check_schedule(schedule)
    for sampler in SAMPLERS:
        plan = make_plan(sampler, schedule, 8)
        assert Plan.from_dict(json.loads(json.dumps(plan.to_dict()))) == plan
        assert sample(MIXTURE.eps(schedule), plan, torch.randn(4, 2)).isfinite().all()
    for tuner in TUNERS:
        budget = "400calls"
        assert len(tune(MIXTURE.eps(schedule), make_plan("ddim", schedule, 4), tuner, samples=16, budget=budget)) == 4


def test_a_wrong_schedule_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    class Wrong(Cubic):
        def inverse_lambda(self, lam: Any) -> Tensor:
            return 1.01 * super().inverse_lambda(lam)

    monkeypatch.setitem(SCHEDULES, "cubic", Wrong)
    with pytest.raises(AssertionError, match="inverse_lambda"):
        check_schedule(Wrong())


def cubed(schedule: NoiseSchedule, steps: int, start: float | None = None, end: float | None = None) -> Tensor:
    """Even steps in the cube root of time."""
    start, end = schedule.T if start is None else start, schedule.t_min if end is None else end
    times = torch.linspace(start ** (1 / 3), end ** (1 / 3), steps + 1, dtype=torch.float64) ** 3
    times[0], times[-1] = start, end
    return times


def test_a_spacing_is_one_function_and_one_entry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SPACINGS, "cubed", cubed)
    check_spacing("cubed", DISCRETE)
    plan = make_plan("ddim", DISCRETE, 6, "cubed")
    torch.testing.assert_close(plan.t, cubed(DISCRETE, 6))


# --- tuners ---


@pytest.mark.parametrize("name", TUNERS)
def test_tuners_conform(name: str) -> None:
    options = {"joint": {"pairs": 32, "iterations": 20}, "least_squares": {"pairs": 64}}
    check_tuner(TUNERS[name](**options.get(name, {})))
