"""`check_plan` finds plans that fit a model, plans that do not, and says when few samples do not tell."""

import math
from pathlib import Path

import pytest
import torch
from helpers import seeded
from typer.testing import CliRunner

from time_tuner import NoiseScheduleFlow, NoiseScheduleVP, Plan, exact, make_plan, tune
from time_tuner.cli.app import app
from time_tuner.models.base import as_model
from time_tuner.models.fingerprint import fingerprint_of
from time_tuner.models.wrapper import model_wrapper
from time_tuner.tuners import PlanCheck, check_plan, own_plan
from time_tuner.tuners.check import RIVALS, SELF

SCHEDULE = NoiseScheduleVP("linear")
MODEL = as_model(exact.Mixture([[-2.0, 1.0], [1.0, -2.0]], std=0.3).eps(SCHEDULE), shape=(2,))


def test_a_harmful_plan_does_not_fit() -> None:
    plan = make_plan("dpmpp", SCHEDULE, 8)
    found = check_plan(MODEL, plan.with_ratios(torch.full((8,), 0.6)))
    assert found.fits is False and found.gain < -found.error < 0
    assert "does not fit" in found.verdict and found.rival in found.verdict
    assert set(found.distances) == {"the plan", SELF, *(f"{name} on {s}" for name, s in rivals(8))}


def rivals(calls: int) -> list[tuple[str, str]]:
    """Those of the rivals that differ from dpmpp on its own grid, and their spacings."""
    return [(name, own_plan(MODEL, calls, name).provenance["spacing"]) for name in RIVALS if name != "dpmpp"]


def test_a_tuned_plan_fits_the_model_that_it_was_tuned_for() -> None:
    """On noise that it was not tuned on; its corrections are a least-squares fit to a run of many calls."""
    tuned = tune(MODEL, make_plan("ddim", SCHEDULE, 4), "least_squares(pairs=128)", guard=False, samples=128)
    found = check_plan(MODEL, tuned, 128, seed=10_000)
    assert found.fits and found.gain > found.error > 0
    assert "the plan fits" in found.verdict and found.differences == []


def test_a_plan_equal_to_a_rival_is_undecided_or_worse_and_counts_once() -> None:
    plan = make_plan("dpmpp", SCHEDULE, 8)
    found = check_plan(MODEL, plan)
    assert not any(name.startswith("dpmpp on") for name in found.distances)
    assert SELF not in found.distances


@pytest.mark.parametrize(
    ("gain", "error", "fits", "text"),
    [
        (0.2, 0.1, True, "the plan fits"),
        (-0.2, 0.1, False, "does not fit"),
        (0.05, 0.1, None, "undecided on 4"),
    ],
)
def test_verdict_needs_more_than_the_standard_error(gain: float, error: float, fits: bool | None, text: str) -> None:
    far, near, own = torch.full((4,), 3.0), torch.full((4,), 2.0), torch.full((4,), 2.0 - gain)
    found = PlanCheck([], {"the plan": own, "far": far, "near": near}, gain, error)
    assert found.fits is fits and found.rival == "near" and text in found.verdict


def test_stochastic_plans_are_compared_with_themselves() -> None:
    plan = make_plan("ddpm", SCHEDULE, 8)
    found = check_plan(MODEL, plan.with_ratios(torch.full((8,), 0.7)), 32)
    assert set(found.distances) == {"the plan", SELF} and math.isfinite(found.error)
    with pytest.raises(ValueError, match="nothing to compare it with"):
        check_plan(MODEL, plan)


def test_rivals_end_where_the_plan_does() -> None:
    plan = make_plan("ddim", SCHEDULE, 6, end=0.2)
    assert len(check_plan(MODEL, plan, 4).distances) >= 4


def test_rivals_have_guidance_at_the_same_calls() -> None:
    class Network(torch.nn.Module):
        def forward(self, x: torch.Tensor, time: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
            return torch.tanh(x + label.reshape(-1, 1))

    evaluated: list[int] = []
    network = Network()
    network.register_forward_hook(lambda module, args, output: evaluated.append(len(output)))
    wrapped = model_wrapper(network, SCHEDULE, guidance_type="classifier-free", guidance_scale=3.0, shape=(2,))
    model, plan = wrapped.bind(torch.tensor([1.0]), torch.tensor([0.0])), make_plan("ddim", SCHEDULE, 6, guided=2)
    found = check_plan(model, plan, 2, reference_calls=10)
    assert sum(evaluated) == 2 * (2 * 10 + (6 + 2) * len(found.distances))


def test_another_schedule_and_a_missing_shape_are_refused() -> None:
    with pytest.raises(ValueError, match="another noise schedule"):
        check_plan(MODEL, make_plan("ddim", NoiseScheduleFlow(), 4))
    with pytest.raises(ValueError, match="shape= is needed"):
        check_plan(lambda x, t, tau: x, make_plan("ddim", SCHEDULE, 4))


def test_differences_come_with_the_verdict() -> None:
    class Network(torch.nn.Module):
        def __init__(self, seed: int) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(seeded(2, 2, seed=seed).float())
            self.other = torch.nn.Parameter(seeded(2, 2, seed=seed + 10).float())

        def forward(self, x: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
            return torch.tanh(x @ self.weight) + x @ self.other

    own, other = (model_wrapper(Network(seed), SCHEDULE, shape=(2,)).bind() for seed in (0, 1))
    plan = make_plan("ddim", SCHEDULE, 5).with_ratios([0.9] * 5).with_provenance(made_for=fingerprint_of(own))
    assert check_plan(own, plan, 4).differences == []
    assert [one.what for one in check_plan(other, plan, 4).differences] == ["weights"]


# --- the command ---


def test_command_prints_distances_and_a_verdict(tmp_path: Path) -> None:
    """The tutorial's Gaussian: a plan with a harmful tau does not fit; the exit code tells."""
    plan = Plan.load("digits/ddim-5")
    wrong = plan.with_ratios(torch.full((5,), 0.3)).with_provenance(made_for={"shape": [1, 8, 8]})
    wrong.save(tmp_path / "wrong.json")
    result = CliRunner().invoke(app, ["check", str(tmp_path / "wrong.json"), "--model", "gaussian", "-n", "8"])
    assert result.exit_code == 1
    assert "does not fit" in result.output and SELF in result.output
    missing = CliRunner().invoke(app, ["check", "nothing.json", "--model", "gaussian"])
    assert missing.exit_code == 2
