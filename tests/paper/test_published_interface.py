"""The published interface, sampling and its step functions, against what is written out in `published`."""

import math
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from helpers import seeded
from published import (
    ANY,
    DISCRETE,
    LINEAR,
    NONE,
    assert_optimal,
    by_hand,
    ddim_step,
    euler,
    guidances,
    images,
    leading,
    loader,
    midpoint,
    network,
    noting_first,
    recording,
    strategies,
    types,
    wrapped,
)
from torch import Tensor

from time_tuner import SAMPLERS, NoiseScheduleVP, Plan, SeededNoise, TimeTuner, make_plan, model_wrapper
from time_tuner.models.exact import Gaussian

# On data like these the published loss does harm as often as good, and the tuner warns; the warning is tested apart.
pytestmark = pytest.mark.filterwarnings("ignore:the tuned timesteps are the optimum:UserWarning")

# --- the schedule's published names ---


@pytest.mark.parametrize(
    "schedule", [DISCRETE, LINEAR, NoiseScheduleVP("cosine")], ids=["discrete", "linear", "cosine"]
)
def test_a_schedule_has_its_published_names(schedule: NoiseScheduleVP) -> None:
    t = torch.linspace(1e-3, schedule.T, 7, dtype=torch.float64)
    alpha, sigma = schedule.marginal_alpha(t), schedule.marginal_std(t)
    torch.testing.assert_close(alpha**2 + sigma**2, torch.ones(7, dtype=torch.float64), rtol=1e-14, atol=0)
    torch.testing.assert_close(schedule.marginal_log_mean_coeff(t).exp(), alpha, rtol=1e-14, atol=0)
    torch.testing.assert_close(schedule.marginal_lambda(t), torch.log(alpha / sigma), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(schedule.inverse_lambda(schedule.marginal_lambda(t)), t, rtol=1e-9, atol=0)
    assert (schedule.total_N, schedule.T) == (1000, 0.9946 if schedule.schedule == "cosine" else 1.0)


# --- sampling ---


@guidances
@types
def test_sampling_is_ddim_written_out(model_type: str, guidance: str) -> None:
    x, c, ratios = seeded(6, 2), torch.tensor([0, 1, 1, 0, 1, 0]), torch.linspace(0.9, 1.05, 5)
    tuner = TimeTuner(wrapped(DISCRETE, model_type, guidance), DISCRETE)
    got = tuner.ddim_sample(x=x, num_steps=5, t_ratios=ratios, condition=c, uncond_condition=torch.tensor([NONE]))
    eps, times = by_hand(DISCRETE, model_type, guidance, c), leading(5)
    for k in range(5):
        x, _ = ddim_step(DISCRETE, eps, x, times[k], times[k + 1], float(ratios[k]))
    torch.testing.assert_close(got, x, rtol=2e-4, atol=2e-4)  # the network's time is a float32


@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
def test_eta_scales_the_noise_that_is_added(eta: float) -> None:
    x, draw, times = seeded(6, 2), SeededNoise(3), leading(4)
    tuner = TimeTuner(wrapped(DISCRETE), DISCRETE)
    got = tuner.ddim_sample(x, num_steps=4, eta=eta, noise=SeededNoise(3))
    for k in range(4):
        z = draw(x) if eta else 0
        x, _ = ddim_step(DISCRETE, by_hand(DISCRETE), x, times[k], times[k + 1], 1.0, eta, z)
    torch.testing.assert_close(got, x, rtol=2e-4, atol=2e-4)


def test_eta_is_zero_by_default_or_that_of_the_plan() -> None:
    x, tuner = seeded(6, 2), TimeTuner(ANY.eps(DISCRETE), DISCRETE)
    assert torch.equal(tuner.ddim_sample(x, num_steps=4), tuner.ddim_sample(x, num_steps=4, eta=0))
    plan = tuner.plan(4, eta=0.5)
    ends = [tuner.ddim_sample(x, t_ratios=plan, noise=SeededNoise(1), **eta) for eta in ({}, {"eta": 0.5})]
    assert torch.equal(*ends)
    assert not torch.equal(ends[0], tuner.ddim_sample(x, num_steps=4))


def test_timesteps_are_labels_of_the_network_in_any_order() -> None:
    net, received = recording(network(DISCRETE))
    tuner = TimeTuner(model_wrapper(net, DISCRETE), DISCRETE)
    x = seeded(3, 2)
    falling = tuner.ddim_sample(x, timesteps=[900, 500, 20])
    assert received == pytest.approx([900, 500, 20], abs=1e-3)
    for timesteps in ([20, 900, 500], torch.tensor([500, 20, 900]), np.array([20, 500, 900])):
        assert torch.equal(tuner.ddim_sample(x, num_steps=3, timesteps=timesteps), falling)
    assert tuner.plan(timesteps=[900, 500, 20]).t.tolist() == pytest.approx([0.901, 0.501, 0.021, 0.001])
    assert tuner.plan(timesteps=[900, 0]).t.tolist() == pytest.approx([0.901, 0.001, 0])


def test_timesteps_are_times_on_a_continuous_schedule() -> None:
    net, received = recording(network(LINEAR))
    tuner = TimeTuner(model_wrapper(net, LINEAR), LINEAR)
    tuner.ddim_sample(seeded(3, 2), timesteps=[0.02, 0.9, 0.5])
    assert received == pytest.approx([0.9, 0.5, 0.02])
    assert tuner.plan(timesteps=[0.02, 0.9, 0.5]).t.tolist() == pytest.approx([0.9, 0.5, 0.02, 1e-3])


@pytest.mark.parametrize("container", [list, tuple, np.array, torch.tensor])
def test_ratios_come_in_any_container_or_as_a_plan(container: Any) -> None:
    x, tuner, ratios = seeded(3, 2), TimeTuner(ANY.eps(DISCRETE), DISCRETE), [0.9, 0.95, 1.0]
    got = tuner.ddim_sample(x, num_steps=3, t_ratios=container(ratios))
    plan = tuner.plan(3, t_ratios=ratios)
    assert isinstance(plan, Plan) and (plan.tau / plan.t[:-1]).tolist() == pytest.approx(ratios)
    torch.testing.assert_close(got, tuner.ddim_sample(x, t_ratios=plan), rtol=1e-5, atol=1e-5)
    assert (got - tuner.ddim_sample(x, num_steps=3)).abs().max() > 0.01


@pytest.mark.parametrize(
    ("t_ratios", "message"),
    [
        ([1.0, 1.0], r"t_ratios must be 3 positive numbers, one for each call, got \[1.0, 1.0\]"),
        ([1.0, 0.0, 1.0], "t_ratios must be 3 positive numbers"),
        ([1.0, math.nan, 1.0], "t_ratios must be 3 positive numbers"),
        ([1.0, math.inf, 1.0], "tau of a plan must be finite"),
        (1.0, r"t_ratios must be a list of numbers, got shape \(\)"),
        ([[1.0, 1.0, 1.0]], r"t_ratios must be a list of numbers, got shape \(1, 3\)"),
        (["1", "1", "1"], "t_ratios must be a list of numbers, got list"),
        (make_plan("ddim", DISCRETE, calls=4), "num_steps must be that of the plan given as t_ratios, 4, got 3"),
        (make_plan("dpmpp", DISCRETE, calls=3), r"t_ratios is a plan of DPMSolverPP.*, but DDIM\(eta=0.0\) was asked"),
        (make_plan("ddim", LINEAR, calls=3), "plan was made for another noise schedule"),
    ],
)
def test_wrong_ratios_are_named(t_ratios: Any, message: str) -> None:
    for model_fn in (ANY.eps(DISCRETE), lambda x, t, tau: x):  # one that knows its schedule, and one that does not
        with pytest.raises(ValueError, match=message):
            TimeTuner(model_fn, DISCRETE).ddim_sample(seeded(3, 2), num_steps=3, t_ratios=t_ratios)


def test_wrong_steps_are_named() -> None:
    tuner, x = TimeTuner(ANY.eps(DISCRETE), DISCRETE), seeded(3, 2)
    for options, message in (
        ({}, "num_steps= is needed, the number of network calls, or timesteps="),
        ({"timesteps": [5, 5]}, "times must fall strictly"),
        ({"timesteps": [1000]}, "times must lie in the trained range"),
        ({"timesteps": "all"}, "timesteps must be a list of numbers, got str"),
        ({"timesteps": [9, 5], "num_steps": 3}, "times must hold 4 step ends for calls=3, got 3"),
        ({"timesteps": [9, 5], "t_ratios": tuner.plan(2)}, "timesteps belong to the plan given as t_ratios"),
        ({"num_steps": 0}, "calls must be a whole number"),
        ({"num_steps": 2, "eta": 2}, "eta of DDIM must be a number from 0"),
        ({"num_steps": 2, "t_ratios": tuner.plan(2), "eta": 0.5}, "t_ratios is a plan of DDIM"),
        ({"num_steps": 2, "condition": torch.zeros(3)}, "condition= needs a model_fn made by model_wrapper"),
    ):
        with pytest.raises(ValueError, match=message):
            tuner.ddim_sample(x, **options)


def test_a_model_of_another_schedule_is_refused() -> None:
    with pytest.raises(ValueError, match="plan was made for another noise schedule"):
        TimeTuner(wrapped(LINEAR), DISCRETE).ddim_sample(seeded(3, 2), num_steps=3)


@pytest.mark.parametrize(("sampler", "calls"), [("ddim", 4), ("ddpm", 4), ("dpmpp", 4), ("unipc", 4), ("heun", 4)])
def test_intermediates_are_the_states_and_the_predictions_in_them(sampler: str, calls: int) -> None:
    x, tuner = seeded(6, 2), TimeTuner(wrapped(DISCRETE), DISCRETE)
    options = {"num_steps": calls, "t_ratios": [0.97, 1.02, 0.95, 1.0], "sampler": sampler}
    end, seen = tuner.sample(x, return_intermediates=True, noise=SeededNoise(1), **options)
    assert torch.equal(end, tuner.sample(x, noise=SeededNoise(1), **options))
    assert set(seen) == {"x_t", "x0_pred"} and len(seen["x_t"]) == len(seen["x0_pred"]) == calls + 1
    assert torch.equal(seen["x_t"][0], x) and torch.equal(seen["x0_pred"][0], x) and torch.equal(seen["x_t"][-1], end)
    plan, eps = tuner.plan(t_ratios=options["t_ratios"], num_steps=calls, sampler=sampler), by_hand(DISCRETE)
    for k in range(calls):
        p, state = plan.point(k), seen["x_t"][k]
        x0 = (state - p.sigma * eps(state, p.t, plan.tau[k])) / p.alpha
        torch.testing.assert_close(seen["x0_pred"][k + 1], x0, rtol=1e-3, atol=1e-3)


def test_intermediates_of_ddim_lead_to_one_another() -> None:
    tuner, times = TimeTuner(ANY.eps(DISCRETE), DISCRETE), leading(5)
    _, seen = tuner.ddim_sample(seeded(6, 2), num_steps=5, return_intermediates=True)
    for k in range(5):
        x, x0 = ddim_step(DISCRETE, ANY.eps(DISCRETE), seen["x_t"][k], times[k], times[k + 1], 1.0)
        torch.testing.assert_close(seen["x_t"][k + 1], x)
        torch.testing.assert_close(seen["x0_pred"][k + 1], x0)


def test_verbose_shows_progress(capsys: pytest.CaptureFixture[str]) -> None:
    tuner, x = TimeTuner(ANY.eps(DISCRETE), DISCRETE), seeded(3, 2)
    quiet = tuner.ddim_sample(x, num_steps=7)
    tuner.optimize_timesteps(loader(), num_steps=3)
    assert capsys.readouterr() == ("", "")
    assert torch.equal(tuner.ddim_sample(x, num_steps=7, verbose=True), quiet)
    assert "7/7" in capsys.readouterr().err
    tuner.optimize_timesteps(loader(), num_steps=3, verbose=True)
    assert "100%" in capsys.readouterr().err


def test_dpm_solver_inference_is_of_second_order() -> None:
    """On Gaussian data the flow is known: x - alpha m shrinks as the deviation does."""
    data, x = Gaussian(0.7, 0.5), seeded(6, 1)
    tuner, error = TimeTuner(data.eps(LINEAR), LINEAR), {}
    for sampler, options in (("dpmpp", {"order": 2}), ("dpmpp", {"order": 1}), ("ddim", {})):
        for calls in (20, 40):
            times = LINEAR.inverse_lambda(torch.linspace(*LINEAR.at([0.9, 0.2]).lam.tolist(), calls + 1).double())
            plan = make_plan(type(SAMPLERS["dpmpp"]())(**options) if options else "ddim", LINEAR, times=times)
            p, q = plan.point(0), plan.point(calls)
            deviation = [torch.sqrt(point.alpha**2 * 0.5**2 + point.sigma**2) for point in (p, q)]
            exact = q.alpha * 0.7 + (x - p.alpha * 0.7) * deviation[1] / deviation[0]
            got = tuner.sample(x, sampler, t_ratios=plan, **options)
            error[sampler, *options.values(), calls] = float((got - exact).norm())
    assert 1.6 < math.log2(error["dpmpp", 2, 20] / error["dpmpp", 2, 40]) < 2.4
    assert 0.8 < math.log2(error["ddim", 20] / error["ddim", 40]) < 1.2
    assert error["dpmpp", 1, 20] == pytest.approx(error["ddim", 20])
    x_T = seeded(6, 1)
    assert torch.equal(tuner.sample(x_T, num_steps=10), tuner.sample(x_T, "dpmpp", 10, order=2))  # the default


# --- step functions ---


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_sampler_offers_its_step(name: str) -> None:
    """For one point of data the noise in a state is known, and a step keeps it: x_s = alpha_s c + sigma_s eps."""
    c, t, s = torch.tensor([0.3, -0.8]).double(), 0.6, 0.35
    p, q = LINEAR.at(t), LINEAR.at(s)

    def eps(x: Tensor, t: Any, tau: Any = None) -> Tensor:
        at = LINEAR.at(t)
        return (x - at.alpha * c) / at.sigma

    step, noise = TimeTuner(eps, LINEAR).step_fn(name), seeded(6, 2)
    x_s, x0 = step(p.alpha * c + p.sigma * noise, t, s, noise=SeededNoise(0))
    torch.testing.assert_close(x0, c.expand(6, 2), rtol=1e-12, atol=1e-12)
    if make_plan(name, LINEAR, times=[t, s]).stochastic:
        again = step(p.alpha * c + p.sigma * noise, t, s, noise=SeededNoise(9))
        assert not torch.equal(again[0], x_s) and torch.equal(again[1], x0)
    else:
        torch.testing.assert_close(x_s, q.alpha * c + q.sigma * noise, rtol=1e-10, atol=1e-10)


@guidances
def test_the_step_of_ddim_is_the_step_written_out(guidance: str) -> None:
    x, c, z = seeded(6, 2), torch.tensor([0, 1, 1, 0, 1, 0]), SeededNoise(4)(seeded(6, 2))
    step = TimeTuner(wrapped(DISCRETE, "v", guidance), DISCRETE).ddim_step_fn
    conditions = {"condition": c, "uncond_condition": torch.tensor([NONE])}
    for eta in (0.0, 0.7):
        got = step(x, 0.7, 0.4, t_ratio=0.9, eta=eta, noise=SeededNoise(4), **conditions)
        expected = ddim_step(DISCRETE, by_hand(DISCRETE, "v", guidance, c), x, 0.7, 0.4, 0.9, eta, z)
        for ours, other in zip(got, expected, strict=True):
            torch.testing.assert_close(ours, other, rtol=2e-4, atol=2e-4)


@strategies
@guidances
@pytest.mark.parametrize("how", [{}, {"lr": 5e-3, "total_iters": 6}], ids=["search", "adam"])
def test_a_euler_step_of_the_users_gets_the_ratios_of_ddim(guidance: str, tune_type: str, how: dict[str, Any]) -> None:
    model_fn = wrapped(DISCRETE, "noise", guidance)
    tuner = TimeTuner(model_fn, DISCRETE)
    options = dict(num_steps=4, tune_type=tune_type, uncond_condition=torch.tensor([NONE]), **how)
    own_step = euler(model_fn, DISCRETE)
    if guidance == "uncond":
        options.pop("uncond_condition")  # a step function gets what it is given, and this one needs none
    got = tuner.optimize_timesteps(loader(8), own_step, **options)
    torch.testing.assert_close(got, tuner.optimize_timesteps(loader(8), **options), rtol=0, atol=1e-4)
    assert (got[:-1] - 1).abs().min() > 1e-3


@strategies
def test_a_second_order_step_of_the_users_is_tuned_as_it_stands(tune_type: str) -> None:
    model_fn, shown = noting_first(ANY.eps(DISCRETE))
    step, data = midpoint(model_fn, DISCRETE), loader()
    ratios = TimeTuner(model_fn, DISCRETE).optimize_timesteps(data, step, num_steps=4, tune_type=tune_type)
    assert_optimal(ratios, tune_type, step, ANY.eps(DISCRETE), DISCRETE, images(data), shown[0])
    first_order = TimeTuner(model_fn, DISCRETE).optimize_timesteps(data, num_steps=4, tune_type=tune_type)
    assert (ratios - first_order).abs().max() > 0.05  # it is the user's own step that was tuned


def test_the_users_steps_have_their_orders() -> None:
    """The step tuned above is the one that it is meant to be."""
    data, x = Gaussian(0.7, 0.5), seeded(6, 1)
    p, q = LINEAR.at(0.9), LINEAR.at(0.2)
    exact = q.alpha * 0.7 + (x - p.alpha * 0.7) * ((q.alpha / 2) ** 2 + q.sigma**2).sqrt() / (
        ((p.alpha / 2) ** 2 + p.sigma**2).sqrt()
    )
    for make, order in ((euler, 1), (midpoint, 2)):
        step, errors = make(data.eps(LINEAR), LINEAR), []
        for calls in (24, 48):
            times, state = LINEAR.inverse_lambda(torch.linspace(float(p.lam), float(q.lam), calls + 1).double()), x
            for t, s in pairwise(times):
                state, _ = step(state, t, s)
            errors.append(float((state - exact).norm()))
        assert math.log2(errors[0] / errors[1]) == pytest.approx(order, abs=0.3)


@pytest.mark.parametrize(
    ("step", "message"),
    [
        (lambda x, t, s, t_ratio: x, r"step_fn must return \(x_s, x0_pred\), got Tensor"),
        (lambda x, t, s, t_ratio: (x[:1], x), r"x_s of the shape of x, \(128, 2\), got \(1, 2\) at step 0"),
    ],
)
def test_a_step_that_returns_something_else_is_refused(step: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TimeTuner(ANY.eps(DISCRETE), DISCRETE).optimize_timesteps(loader(), step, num_steps=3)


def test_a_step_with_times_for_each_sample_is_tuned_all_the_same() -> None:
    """Steps written for one time a sample, t of shape (B,), are as common as those for one time."""
    model_fn = wrapped(DISCRETE, "v", "classifier-free")

    def vector_step(x: Tensor, t: Any, s: Any, t_ratio: Any = 1.0, **conditions: Any) -> tuple[Tensor, Tensor]:
        p, q, many = DISCRETE.at(t), DISCRETE.at(s), t.expand(len(x))
        predicted = model_fn(x, many, t_ratio * many, **conditions)
        x0 = (x - p.sigma * predicted) / p.alpha
        return q.alpha * x0 + q.sigma * predicted, x0

    tuner, uncond = TimeTuner(model_fn, DISCRETE), torch.tensor([NONE])
    got = tuner.optimize_timesteps(loader(), vector_step, num_steps=3, uncond_condition=uncond)
    expected = tuner.optimize_timesteps(loader(), num_steps=3, uncond_condition=uncond)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-4)
    with pytest.raises(ValueError, match=r"t must be one time, or one for each sample of x, 6, got shape \(2,\)"):
        model_fn(seeded(6, 2), torch.tensor([0.5, 0.4]), 0.5, torch.tensor([0]), uncond)
