"""States with a constraint, such as particles whose centre stays at 0: no state, noise or datum breaks it in tuning."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from time_tuner import NoiseScheduleVP, SeededNoise, make_plan, model_wrapper, sample, tune
from time_tuner.tuners import Calibration, ReferenceDistance, tune_several

SCHEDULE = NoiseScheduleVP("linear")
SHAPE = (5, 3)


def centred(z: Tensor) -> Tensor:
    """Noise of particles whose centre stays at 0."""
    return z - z.mean(1, keepdim=True)


def balanced(z: Tensor) -> Tensor:
    """Noise of numbers whose sum is known."""
    return z - z.mean(-1, keepdim=True)


def masked(z: Tensor) -> Tensor:
    """Noise in three of five particles alone."""
    return z * torch.tensor([1.0, 1.0, 1.0, 0.0, 0.0])[:, None]


def model_of(constraint: Callable[[Tensor], Tensor]) -> Any:
    """A model whose network fails on states that break the constraint."""

    def network(x: Tensor, t: Tensor) -> Tensor:
        assert (x - constraint(x)).abs().max() < 1e-4, "the state breaks the constraint"
        return x * (0.5 + 0.3 * torch.sin(3 * t)).view(-1, 1, 1)

    return model_wrapper(network, SCHEDULE).bind()


@pytest.mark.parametrize(
    ("constraint", "tuner", "sampler", "given"),
    [
        (centred, "sequential", "ddim", True),
        (balanced, "sequential", "ddpm", False),
        (masked, "sequential(optimizer=adam, iterations=2)", "ddim", True),
        (masked, "parallel", "dpmpp", False),
        (balanced, "parallel", "ddim(eta=1)", True),
        (centred, "parallel", "dpmpp", False),
        (centred, "joint(pairs=16, iterations=2)", "ddim", False),
        (balanced, "joint(pairs=16, iterations=2)", "ddim", False),
        (masked, "joint(pairs=16, iterations=2, parts=tau)", "unipc", False),
    ],
)
@pytest.mark.usefixtures("short_runs")
def test_no_state_breaks_the_constraint(
    constraint: Callable[[Tensor], Tensor], tuner: str, sampler: str, given: bool
) -> None:
    data = constraint(torch.randn(16, *SHAPE, generator=torch.Generator().manual_seed(1))) if given else None
    plan = make_plan(sampler, SCHEDULE, 4)
    tuned = tune(model_of(constraint), plan, tuner, data, samples=8, shape=SHAPE, noise=constraint)
    assert len(tuned) == 4 and "distance" in tuned.provenance


@pytest.mark.parametrize("tuner", ["sequential", "joint(pairs=16, iterations=2)"])
def test_without_it_the_network_fails(tuner: str) -> None:
    with pytest.raises(AssertionError, match="the state breaks the constraint"):
        tune(model_of(centred), make_plan("ddim", SCHEDULE, 4), tuner, samples=8, shape=SHAPE)


def test_several_plans_and_a_calibration_have_it() -> None:
    plans = [make_plan("ddim", SCHEDULE, calls) for calls in (3, 4)]
    tuned = tune_several(model_of(centred), plans, "sequential", samples=8, shape=SHAPE, noise=centred)
    assert [len(plan) for plan in tuned] == [3, 4]
    calibration = Calibration(model_of(centred), SCHEDULE, samples=8, shape=SHAPE, noise=centred)
    assert torch.equal(tune(model_of(centred), plans[0], "sequential", data=calibration).tau, tuned[0].tau)
    with pytest.raises(ValueError, match="noise= is part of the Calibration"):
        tune(model_of(centred), plans[0], "sequential", data=calibration, noise=centred)


def test_drawn_noise_is_that_of_the_seeds_under_the_constraint() -> None:
    x = torch.empty(4, *SHAPE)
    z = SeededNoise(3, centred)(x)
    assert torch.equal(z, centred(SeededNoise(3)(x)))
    plan = make_plan("ddpm", SCHEDULE, 4)
    end = sample(model_of(centred), plan, plan.initial_state(z), SeededNoise(9, centred))
    torch.testing.assert_close(end, centred(end))
    judge = ReferenceDistance(model_of(centred), SCHEDULE, float(plan.t[-1]), z, 10, noise=centred)
    ends = sample(model_of(centred), plan, plan.initial_state(z), SeededNoise(0, centred))
    assert judge(plan) == pytest.approx(float(judge.of_ends(ends, stochastic=True).mean()))


def test_an_identity_changes_nothing() -> None:
    model, plan = model_of(lambda x: x), make_plan("ddim", SCHEDULE, 3)
    first, second = (
        tune(model, plan, "sequential", samples=8, shape=SHAPE, noise=noise) for noise in (None, lambda z: z)
    )
    assert torch.equal(first.tau, second.tau)
    assert first.provenance["distance"] == second.provenance["distance"]


@pytest.mark.parametrize(
    ("noise", "got"),
    [
        (lambda z: centred(torch.randn_like(z)), "another result at the second call"),
        (lambda z: z[:, :1], r"got shape \(2, 1, 3\)"),
        (lambda z: 0, "got int"),
        (5, "noise must be a function"),
    ],
    ids=["draws", "another shape", "a number", "no function"],
)
def test_what_is_no_map_of_noise_is_refused(noise: Any, got: str) -> None:
    with pytest.raises(ValueError, match=got):
        tune(model_of(centred), make_plan("ddim", SCHEDULE, 3), samples=8, shape=SHAPE, noise=noise)


def test_a_checkpoint_of_other_noise_is_not_continued(tmp_path: Path) -> None:
    model, plan = model_of(lambda x: x), make_plan("ddim", SCHEDULE, 3)
    plans = [
        tune(model, plan, "sequential", samples=8, shape=SHAPE, noise=noise, checkpoint=tmp_path / "partial")
        for noise in (centred, masked)
    ]
    assert plans[0].provenance["distance"] != plans[1].provenance["distance"]
