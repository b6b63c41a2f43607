"""What the published code is known to do wrong, one test each: here it works."""

import re

import pytest
import torch
from helpers import seeded
from published import (
    ANY,
    DISCRETE,
    NONE,
    assert_optimal,
    by_hand,
    ddim_step,
    leading,
    loader,
    network,
    noting_first,
    recording,
    wrapped,
)
from torch import Tensor

from time_tuner import NoiseScheduleVP, TimeTuner, model_wrapper
from time_tuner.models.exact import Gaussian

pytestmark = pytest.mark.filterwarnings("ignore:the tuned timesteps are the optimum:UserWarning")


def off(x: Tensor) -> float:
    """How far samples are from the nearest of the data's centres, on average."""
    return float((x[:, None] - ANY.means).norm(dim=2).min(1).values.mean())


def test_the_linear_schedule_runs() -> None:
    """There: an attribute that does not exist."""
    schedule, data = NoiseScheduleVP("linear", continuous_beta_0=0.2, continuous_beta_1=15.0), loader()
    net, shown = noting_first(network(schedule))
    tuner = TimeTuner(model_wrapper(net, schedule), schedule)
    ratios = tuner.optimize_timesteps(data, num_steps=4)
    eps = by_hand(schedule)
    step = lambda x, t, s, t_ratio: ddim_step(schedule, eps, x, t, s, t_ratio)  # noqa: E731
    assert_optimal(ratios, "sequential", step, eps, schedule, torch.cat([b["image"] for b in data]), shown[0])
    noise = seeded(500, 2)
    assert off(tuner.ddim_sample(noise, num_steps=30)) < 1.5 * off(ANY.sample(500)) < 0.8 * off(noise)


def test_velocity_prediction_runs() -> None:
    """There: a tuple for a tensor, from a stray comma."""
    x = seeded(6, 2)
    ends = [
        TimeTuner(wrapped(DISCRETE, model_type), DISCRETE).ddim_sample(x, num_steps=5) for model_type in ("v", "noise")
    ]
    torch.testing.assert_close(*ends, rtol=1e-3, atol=1e-3)  # at the true time both predict the same


@pytest.mark.parametrize("guidance", ["uncond", "classifier-free"])
def test_arguments_of_the_model_reach_it_once(guidance: str) -> None:
    """There: given twice, by name and by position."""

    def biased(x: Tensor, t_input: Tensor, cond: Tensor | None = None, *, scale: float) -> Tensor:
        return scale * network(DISCRETE)(x, t_input, cond)

    x, options = seeded(6, 2), {"condition": torch.tensor([1]), "uncond_condition": torch.tensor([NONE])}
    model_fn = model_wrapper(biased, DISCRETE, model_kwargs={"scale": 0.5}, guidance_type=guidance, guidance_scale=2.0)
    plain = model_wrapper(network(DISCRETE), DISCRETE, guidance_type=guidance, guidance_scale=2.0)
    torch.testing.assert_close(model_fn(x, 0.5, None, **options), 0.5 * plain(x, 0.5, None, **options))
    assert TimeTuner(model_fn, DISCRETE).ddim_sample(x, num_steps=3, **options).isfinite().all()


def test_tuning_without_guidance_takes_eta() -> None:
    """There: an unconditional condition was missed."""
    tuner = TimeTuner(wrapped(DISCRETE), DISCRETE)
    ratios = {
        eta: tuner.optimize_timesteps(loader(), step_fn=tuner.ddim_step_fn, num_steps=4, eta=eta) for eta in (0.0, 0.8)
    }
    assert torch.equal(ratios[0.0], tuner.optimize_timesteps(loader(), num_steps=4))
    assert (ratios[0.8] - ratios[0.0]).abs().max() > 1e-3


def test_ratios_may_be_a_list() -> None:
    """There: a list has no attribute of a tensor."""
    tuner, x = TimeTuner(wrapped(DISCRETE), DISCRETE), seeded(6, 2)
    ratios = [0.9, 0.95, 1.0]
    listed, tensor = (tuner.ddim_sample(x, num_steps=3, t_ratios=r) for r in (ratios, torch.tensor(ratios).double()))
    assert torch.equal(listed, tensor)


@pytest.mark.parametrize("steps", [2, 3, 6, 7, 9, 13, 300])
def test_num_steps_is_the_number_of_steps(steps: int) -> None:
    """There: 7 gave 8, wherever the steps do not divide the levels."""
    net, received = recording(network(DISCRETE))
    tuner = TimeTuner(model_wrapper(net, DISCRETE), DISCRETE)
    tuner.ddim_sample(seeded(2, 2), num_steps=steps)
    assert received == pytest.approx([1 + i * (1000 // steps) for i in reversed(range(steps))], abs=1e-3)
    torch.testing.assert_close(tuner.plan(steps).t, leading(steps))


def test_a_single_step_of_the_published_grid_is_refused() -> None:
    """There: it went from level 1 to level 0, and returned the noise."""
    tuner = TimeTuner(wrapped(DISCRETE), DISCRETE)
    message = "calls=1 with spacing='leading': the run would begin at t = 0.002, where the state is data"
    with pytest.raises(ValueError, match=re.escape(message)):
        tuner.ddim_sample(seeded(2, 2), num_steps=1)
    assert tuner.ddim_sample(seeded(2, 2), timesteps=[999]).isfinite().all()


@pytest.mark.parametrize("levels", [40, 100, 2000])
def test_a_network_of_any_number_of_levels_receives_its_own(levels: int) -> None:
    """There: times were divided by 1000 whatever the number, so that a network of 100 began near its clean end."""
    schedule = NoiseScheduleVP(betas=torch.linspace(1e-4, 0.02, levels, dtype=torch.float64) * 1000 / levels)
    net, received = recording(network(schedule))
    tuner, x = TimeTuner(model_wrapper(net, schedule), schedule), seeded(6, 2)
    tuner.ddim_sample(x, num_steps=4)
    assert received == pytest.approx([1 + i * (levels // 4) for i in (3, 2, 1, 0)], abs=1e-3)
    received.clear()
    tuner.ddim_sample(x, timesteps=range(levels))
    assert received == pytest.approx(list(range(levels))[::-1], abs=1e-2)


def test_nothing_needs_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    """There: tensors were sent to the first CUDA device."""

    def refuse(*args: object, **options: object) -> None:
        raise AssertionError("cuda() was called")

    for kind in (Tensor, torch.nn.Module):
        monkeypatch.setattr(kind, "cuda", refuse)
    monkeypatch.setattr(torch.cuda, "_lazy_init", refuse)
    tuner = TimeTuner(wrapped(DISCRETE, "noise", "classifier-free"), DISCRETE)
    conditions = {"condition": torch.tensor([1]), "uncond_condition": torch.tensor([NONE])}
    for how in ({}, {"total_iters": 2}):
        ratios = tuner.optimize_timesteps(loader(), num_steps=3, uncond_condition=torch.tensor([NONE]), **how)
        x = tuner.ddim_sample(seeded(2, 2), num_steps=3, t_ratios=ratios, **conditions)
        assert x.device.type == ratios.device.type == "cpu"


def test_a_short_loader_does_not_end_tuning() -> None:
    """There: tuning stopped with the data, in silence."""
    tuner, lr = TimeTuner(Gaussian([2.0, 2.0], 0.3).eps(DISCRETE), DISCRETE), 0.01
    data = [{"image": Gaussian([2.0, 2.0], 0.3).sample(256)}]
    with pytest.warns(UserWarning, match="data_loader has 1 batches, fewer than the 12 of one ratio: it is cycled"):
        ratios = tuner.optimize_timesteps(data, num_steps=3, lr=lr, total_iters=12)
    assert (ratios[:-1] - 1).abs().max() > 3 * lr  # one batch would have moved a ratio by lr


@pytest.mark.parametrize("model_type", ["x_start", "score"])
def test_predictions_are_read_at_the_time_of_the_solver(model_type: str) -> None:
    """There: x0 and score became noise with the alpha and sigma of the tuned time."""
    x, t, tau = seeded(6, 2), 0.7, 0.5
    p, q = DISCRETE.at(t), DISCRETE.at(tau)
    eps = ANY.noise(x, q.alpha, q.sigma)  # what is right at tau
    x0 = (x - q.sigma * eps) / q.alpha
    expected = {"x_start": (x - p.alpha * x0) / p.sigma, "score": p.sigma * eps / q.sigma}[model_type]
    got = wrapped(DISCRETE, model_type)(x, t, tau)
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(got, by_hand(DISCRETE, model_type)(x, t, tau), rtol=1e-5, atol=1e-5)
    assert (got - eps).abs().max() > 0.05  # what it would be, read at the tuned time
