"""Networks that ignore their time: conditioning times have no effect on them."""

import logging
import math
from typing import Any

import pytest
import torch
from helpers import seeded
from torch import Tensor

from time_tuner import Joint, NoiseScheduleVP, exact, make_plan, model_wrapper, named_betas, tune
from time_tuner.models.base import HookedModel, Model
from time_tuner.tuners import Calibration
from time_tuner.tuners.network_times import ignores_time

SCHEDULE = NoiseScheduleVP(betas=named_betas())
PLAN = make_plan("ddim", SCHEDULE, 4)
TYPES = ("noise", "x_start", "v", "flow")
POINTS = exact.Mixture(seeded(6, 2, seed=3), 0.2)


def blind(model_type: str, calls: list[Any] | None = None) -> Model:
    """A network that receives a time and does not use it."""
    made = model_wrapper(lambda x, n: torch.tanh(x), SCHEDULE, model_type, shape=(2,)).bind()
    return made if calls is None else HookedModel(made, lambda *call: calls.append(call))


def sees(model: Model, plan: Any = PLAN) -> bool:
    return not ignores_time(model, plan, Calibration(model, SCHEDULE, samples=4))


@pytest.mark.parametrize("sampler", ["ddim", "dpmpp", "heun"])
@pytest.mark.parametrize("model_type", TYPES)
def test_time_is_ignored_whatever_the_network_predicts(model_type: str, sampler: str) -> None:
    """The noise that follows from data or v depends on the solver's t, which is the same in both calls."""
    model = blind(model_type)
    x = seeded(2, 2).float()
    assert model_type == "noise" or not torch.equal(model(x, 0.9), model(x, 0.2))
    for calls in (2, 8):
        assert not sees(model, make_plan(sampler, SCHEDULE, calls))


@pytest.mark.parametrize("model_type", TYPES)
def test_a_small_effect_of_time_is_seen(model_type: str) -> None:
    def network(x: Tensor, n: Tensor) -> Tensor:
        return torch.tanh(x) * (1 + 1e-4 * n[:, None] / 1000)

    assert sees(model_wrapper(network, SCHEDULE, model_type, shape=(2,)).bind())
    assert sees(POINTS.eps(SCHEDULE))


def test_equal_predictions_at_both_ends_are_not_all() -> None:
    def network(x: Tensor, n: Tensor) -> Tensor:
        return torch.tanh(x) * (1 + torch.sin(math.pi * n / 999)[:, None])

    assert sees(model_wrapper(network, SCHEDULE, shape=(2,)).bind())


def test_nan_is_no_sign_of_an_ignored_time() -> None:
    assert sees(model_wrapper(lambda x, n: x * math.nan, SCHEDULE, shape=(2,)).bind())


@pytest.mark.parametrize("tuner", ["sequential", "parallel", "sequential(optimizer=adam)", "joint(parts=tau)"])
@pytest.mark.parametrize("model_type", TYPES)
def test_tuning_conditioning_times_alone_is_refused_at_once(tuner: str, model_type: str) -> None:
    calls: list[Any] = []
    with pytest.raises(ValueError, match=r"needs? a network that uses its time.*: take '.*' (or|and) '.*'"):
        tune(blind(model_type, calls), PLAN, tuner, samples=16)
    assert 0 < len(calls) < 8


def test_joint_tuning_leaves_conditioning_times_out_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    model = blind("x_start")
    with caplog.at_level(logging.INFO, "time_tuner"):
        tuned = tune(model, PLAN, Joint(pairs=16, iterations=4, candidates=1), samples=16)
    assert tuned.provenance["parts"] == ["times", "corrections"] and tuned.provenance["left_out"] == ["tau"]
    assert "the network predicts the same at every conditioning time: tau is not tuned" in caplog.text
    ratios = tuned.tau / tuned.t[:-1]
    torch.testing.assert_close(ratios, torch.ones_like(ratios), rtol=0, atol=1e-12)
    without = tune(model, PLAN, Joint(("times", "corrections"), pairs=16, iterations=4, candidates=1), samples=16)
    assert torch.equal(without.t, tuned.t) and "left_out" not in without.provenance


def test_joint_tuning_of_one_call_has_nothing_left() -> None:
    calls: list[Any] = []
    with pytest.raises(ValueError, match=r"of a plan for 1 calls need a network that uses its time"):
        tune(blind("noise", calls), make_plan("ddim", SCHEDULE, 1), "joint(pairs=16)", samples=16)
    assert len(calls) < 8


def test_least_squares_tune_what_is_left() -> None:
    distance = tune(blind("x_start"), PLAN, "least_squares(pairs=64)", samples=64).provenance["distance"]
    assert distance["tuned"] <= distance["untuned"]
