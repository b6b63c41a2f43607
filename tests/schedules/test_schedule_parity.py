"""Agreement with diffusers' schedulers for every kind of model they run, on their own grids, in float32."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EDMDPMSolverMultistepScheduler,
    EDMEulerScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    UniPCMultistepScheduler,
)
from helpers import seeded
from torch import Tensor

from time_tuner import (
    NoiseScheduleFlow,
    NoiseScheduleVE,
    NoiseScheduleVP,
    make_plan,
    model_wrapper,
    resolution_shift,
    sample,
    schedule_from,
)
from time_tuner.samplers.ddim import DDIM
from time_tuner.samplers.dpmpp import DPMSolverPP
from time_tuner.schedules import NoiseSchedule
from time_tuner.schedules.betas import BETA_SCHEDULES

X = seeded(6, 3, 4, 4, dtype=torch.float32)
SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


def network(scale: float) -> Callable[..., Tensor]:
    """Some function of the state and of what is told, which matters on the scale of its range."""

    def predict(x: Tensor, told: Tensor) -> Tensor:
        t = torch.as_tensor(told, dtype=torch.float32).reshape(-1, *[1] * (x.dim() - 1)) / scale
        return torch.tanh(0.7 * x + 0.3 * x.roll(1, -1)) + 0.3 * torch.sin(2 * t)

    return predict


def theirs(scheduler: Any, predict: Callable[..., Tensor], steps: int, noise: Tensor, **grid: Any) -> Tensor:
    scheduler.set_timesteps(steps, **grid)
    x = noise * getattr(scheduler, "init_noise_sigma", 1.0)
    for t in scheduler.timesteps:
        shown = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
        x = scheduler.step(predict(shown, t), t, x).prev_sample
    return x


def ours(
    schedule: NoiseSchedule, model_type: str, predict: Callable[..., Tensor], sampler: Any, noise: Tensor, **grid: Any
) -> Tensor:
    plan = make_plan(sampler, schedule, **grid)
    return sample(model_wrapper(predict, schedule, model_type), plan, plan.initial_state(noise))


def assert_same(got: Tensor, expected: Tensor) -> None:
    assert got.dtype == expected.dtype == torch.float32
    assert float((got - expected).norm() / expected.norm()) < 1e-4
    torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-4)


# --- EDM ---


@pytest.mark.parametrize("kind", ["karras", "exponential"])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize(
    ("scheduler", "sampler"), [(EDMEulerScheduler, "ddim"), (EDMDPMSolverMultistepScheduler, "dpmpp")]
)
@pytest.mark.parametrize("steps", [6, 20])
def test_edm(kind: str, prediction: str, scheduler: Any, sampler: str, steps: int) -> None:
    made = scheduler(sigma_schedule=kind, prediction_type=prediction)
    schedule, predict = schedule_from(made), network(2.0)
    assert schedule == NoiseScheduleVE(0.002, 80.0, 0.5)
    model_type = "edm" if prediction == "epsilon" else "edm_v"
    # It lowers its order at the end as theirs does.
    sampler = DDIM() if scheduler is EDMEulerScheduler else DPMSolverPP(lower_order_final=True)
    got = ours(schedule, model_type, predict, sampler, X, calls=steps, spacing=kind)
    expected = theirs(made, predict, steps, X)
    assert_same(got, expected)


def test_video() -> None:
    """Stable Video Diffusion: EDM's preconditioning for unit data, predicting v, from sigma = 700."""
    made = EulerDiscreteScheduler(
        **SD, prediction_type="v_prediction", timestep_type="continuous", use_karras_sigmas=True,
        sigma_min=0.002, sigma_max=700.0, timestep_spacing="leading", steps_offset=1,
    )  # fmt: skip
    schedule, predict = schedule_from(made), network(2.0)
    assert schedule == NoiseScheduleVE(0.002, 700.0, 1.0)
    made.set_timesteps(12)
    assert_same(ours(schedule, "edm_v", predict, "ddim", X, spacing="karras", calls=12), theirs(made, predict, 12, X))


# --- rectified flow ---


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_flow(shift: float) -> None:
    made = FlowMatchEulerDiscreteScheduler(shift=shift)
    schedule, predict = schedule_from(made), network(500.0)
    assert schedule == NoiseScheduleFlow(shift)
    expected = theirs(made, predict, 9, X)
    assert_same(ours(schedule, "flow", predict, "ddim", X, times=made.sigmas, unit="sigma"), expected)
    # A pipeline that gives even sigmas has the trailing grid.
    expected = theirs(made, predict, 10, X, sigmas=[1 - i / 10 for i in range(10)])
    assert_same(ours(schedule, "flow", predict, "ddim", X, calls=10, spacing="trailing"), expected)


@pytest.mark.parametrize("kind", ["exponential", "linear"])
@pytest.mark.parametrize("tokens", [256, 1024, 4096])
def test_a_flow_shifted_by_the_resolution(tokens: int, kind: str) -> None:
    made = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, time_shift_type=kind)
    schedule, predict = schedule_from(made, tokens), network(500.0)
    mu = 0.5 + 0.65 * (tokens - 256) / 3840
    expected = theirs(made, predict, 8, X, sigmas=[1 - i / 8 for i in range(8)], mu=mu)
    assert_same(ours(schedule, "flow", predict, "ddim", X, calls=8, spacing="trailing"), expected)
    if kind == "exponential":
        assert schedule.shift == pytest.approx(resolution_shift(tokens))
    with pytest.raises(ValueError, match="use_dynamic_shifting needs tokens="):
        schedule_from(made)


@pytest.mark.parametrize("scheduler", [DPMSolverMultistepScheduler, UniPCMultistepScheduler])
def test_multistep_solvers_of_a_flow(scheduler: Any) -> None:
    made = scheduler(use_flow_sigmas=True, prediction_type="flow_prediction", flow_shift=3.0, lower_order_final=True)
    schedule, predict = schedule_from(made), network(500.0)
    assert schedule == NoiseScheduleFlow(3.0)
    made.set_timesteps(9)

    def floored(x: Tensor, n: Tensor) -> Tensor:
        return predict(x, torch.floor(torch.as_tensor(n) + 1e-3))  # they cut its fraction off

    sampler = "dpmpp" if scheduler is DPMSolverMultistepScheduler else "unipc"
    start = float(schedule.at(schedule.from_network_time(1000 * made.sigmas[0])).scale)
    got = ours(schedule, "flow", floored, sampler, X / start, times=made.sigmas, unit="sigma")
    assert_same(got, theirs(made, predict, 9, X))


# --- variance preserving ---


@pytest.mark.parametrize("rescale", [False, True])
@pytest.mark.parametrize("spacing", ["trailing", "leading"])
def test_v_prediction_and_zero_terminal_snr(rescale: bool, spacing: str) -> None:
    made = DDIMScheduler(
        **SD, prediction_type="v_prediction", rescale_betas_zero_snr=rescale, timestep_spacing=spacing,
        clip_sample=False, set_alpha_to_one=spacing == "trailing", steps_offset=1 if spacing == "leading" else 0,
    )  # fmt: skip
    schedule, predict = schedule_from(made), network(500.0)
    assert (schedule.at(1.0).alpha == 0) == rescale
    expected = theirs(made, predict, 10, X)
    assert_same(ours(schedule, "v", predict, "ddim", X, calls=10, spacing=spacing), expected)


def test_zero_terminal_snr_as_their_multistep_solvers_have_it() -> None:
    """They put a small alpha in place of 0; from their own list it is the same here."""
    made = DPMSolverMultistepScheduler(
        **SD, prediction_type="v_prediction", rescale_betas_zero_snr=True, timestep_spacing="trailing",
    )  # fmt: skip
    schedule, predict = schedule_from(made.alphas_cumprod), network(500.0)
    assert_same(ours(schedule, "v", predict, "dpmpp", X, calls=10, spacing="trailing"), theirs(made, predict, 10, X))


@pytest.mark.parametrize(
    ("option", "spacing"), [("use_karras_sigmas", "karras"), ("use_exponential_sigmas", "exponential")]
)
@pytest.mark.parametrize(
    ("prediction", "model_type"), [("epsilon", "noise"), ("v_prediction", "v"), ("sample", "x_start")]
)
def test_karras_and_exponential_sigmas(option: str, spacing: str, prediction: str, model_type: str) -> None:
    made = EulerDiscreteScheduler(**SD, prediction_type=prediction, **{option: True})
    schedule, predict = schedule_from(made), network(500.0)
    expected = theirs(made, predict, 10, X)  # in the coordinates x / alpha
    start = float(made.init_noise_sigma * schedule.at(1.0).alpha)
    assert_same(ours(schedule, model_type, predict, "ddim", X * start, calls=10, spacing=spacing), expected)


# --- configurations ---


@pytest.mark.parametrize("name", BETA_SCHEDULES)
@pytest.mark.parametrize("N", [50, 1000])
@pytest.mark.parametrize("rescale", [False, True])
def test_named_betas_are_theirs(name: str, N: int, rescale: bool) -> None:
    made = DDPMScheduler(N, 0.0005, 0.015, name, rescale_betas_zero_snr=rescale)
    schedule = schedule_from(made)
    levels = (torch.arange(N, dtype=torch.float64) + 1) / N
    got = schedule.at(levels).alpha ** 2
    torch.testing.assert_close(got, made.alphas_cumprod.double(), rtol=2e-4, atol=1e-6)
    assert (got[-1] == 0) == rescale
    again = schedule_from(made.alphas_cumprod)
    torch.testing.assert_close(again.at(levels).alpha ** 2, made.alphas_cumprod.double(), rtol=1e-12, atol=1e-18)


def test_a_configuration_may_be_a_dictionary_or_hold_its_betas() -> None:
    made = DDPMScheduler(beta_schedule="squaredcos_cap_v2")
    assert schedule_from(dict(made.config)) == schedule_from(made.config) == schedule_from(made)
    betas = [0.01, 0.02, 0.05]
    assert schedule_from(DDPMScheduler(trained_betas=betas)) == NoiseScheduleVP(betas=betas)
    assert schedule_from([0.9, 0.5, 0.0]) == NoiseScheduleVP(alphas_cumprod=[0.9, 0.5, 0.0])


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({}, "config has neither betas .* it has nothing"),
        ({"steps": 3}, "config has neither betas .* it has steps"),
        ({"beta_schedule": "cubic"}, "beta schedule must be one of linear, .* got 'cubic'"),
        ({"shift": 2.0, "invert_sigmas": True}, "invert_sigmas=True is for a network that receives 1 - sigma"),
        ({"sigma_data": 0.5, "sigma_min": 0.002, "sigma_max": -1.0}, "sigma_min and sigma_max must satisfy"),
        ({"shift": -1.0, "num_train_timesteps": 1000}, "shift must be positive, got -1.0"),
        ("scheduler_config.json", "config must be a scheduler, its configuration or alphas_cumprod .* got str"),
        (None, "config must be a scheduler, .* got NoneType"),
    ],
)
def test_what_is_not_understood_is_named(config: Any, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        schedule_from(config)
