"""Predicted data kept in its range: the formulas, diffusers' own, and whatever model it is put around."""

from typing import Any

import pytest
import torch
from diffusers import DDPMScheduler, DPMSolverMultistepScheduler
from helpers import seeded
from torch import Tensor

from time_tuner import NoiseScheduleFlow, NoiseScheduleVP, make_plan, model_wrapper, sample, trajectory, tune
from time_tuner.models.exact import Gaussian, Mixture
from time_tuner.models.thresholding import clipped, dynamically_thresholded
from time_tuner.samplers import SAMPLERS

N = 1000
WIDE = Mixture(seeded(4, 2, 3), std=0.5)  # data that reaches far beyond 1


def x0_of(eps: Any, schedule: Any, x: Tensor, t: float) -> Tensor:
    p = schedule.at(t)
    return (x - p.sigma * eps(x, t)) / p.alpha


def test_x0_is_clipped(linear: NoiseScheduleVP) -> None:
    x, eps = seeded(8, 2, 3), WIDE.eps(linear)
    for t in (1.0, 0.5, 0.01):
        before = x0_of(eps, linear, x, t)
        assert before.abs().max() > 0.7
        torch.testing.assert_close(x0_of(clipped(eps, 0.7), linear, x, t), before.clamp(-0.7, 0.7))
        torch.testing.assert_close(clipped(eps, 0.7).x0(x, t), before.clamp(-0.7, 0.7))
        torch.testing.assert_close(clipped(eps, 100)(x, t), eps(x, t))  # what is in range stays


def test_x0_is_computed_at_t_and_not_at_tau(linear: NoiseScheduleVP) -> None:
    x, eps, p = seeded(8, 2, 3), WIDE.eps(linear), linear.at(0.4)
    expected = ((x - p.sigma * eps(x, 0.4, 0.3)) / p.alpha).clamp(-1, 1)
    torch.testing.assert_close(clipped(eps)(x, 0.4, 0.3), (x - p.alpha * expected) / p.sigma)


def test_dynamic_thresholding_is_of_each_sample(linear: NoiseScheduleVP) -> None:
    x, eps, t = seeded(5, 3, 4, 4), Gaussian(0.0, 2.0).eps(linear), 0.3
    before = x0_of(eps, linear, x, t)
    after = x0_of(dynamically_thresholded(eps, 0.9, limit=1.5), linear, x, t)
    scales = set()
    for one, bounded in zip(before, after, strict=True):
        ranked = one.abs().flatten().sort().values  # the quantile of 48 numbers: between the 43rd and the 44th
        s = max(1.5, float(ranked[42] + 0.3 * (ranked[43] - ranked[42])))
        torch.testing.assert_close(bounded, one.clamp(-s, s) / s * 1.5)
        scales.add(s)
    assert len(scales) > 2
    most = x0_of(dynamically_thresholded(eps, 0.9, limit=1.5, maximum=1.6), linear, x, t)
    assert not torch.allclose(most, after)
    torch.testing.assert_close(
        x0_of(dynamically_thresholded(eps, 0.9, 1.5, 1.5), linear, x, t), before.clamp(-1.5, 1.5)
    )


# --- diffusers ---


def theirs_and_ours(theirs: Any, sampler: Any, bounded: Any, times: list[float], **options: Any) -> None:
    schedule, x = NoiseScheduleVP(alphas_cumprod=theirs.alphas_cumprod), seeded(6, 2, 3, seed=1, dtype=torch.float32)
    eps, y = WIDE.eps(schedule), x
    for n in theirs.timesteps:
        y = theirs.step(eps(y, (n.double() + 1) / N), n, y, **options).prev_sample
    draw = torch.Generator().manual_seed(2)
    got = sample(
        bounded(eps), make_plan(sampler, schedule, times=times), x, lambda x: torch.randn(x.shape, generator=draw)
    )
    torch.testing.assert_close(got, y, rtol=0, atol=1e-5)
    plain = sample(eps, make_plan(sampler, schedule, times=times), x, lambda x: torch.zeros_like(x))
    assert not torch.allclose(plain, y, atol=0.1)


THRESHOLDING = {"thresholding": True, "dynamic_thresholding_ratio": 0.8, "sample_max_value": 1.3}
BOUNDS = pytest.mark.parametrize(
    ("settings", "bounded"),
    [
        ({"clip_sample": True, "clip_sample_range": 0.6}, lambda eps: clipped(eps, 0.6)),
        (THRESHOLDING, lambda eps: dynamically_thresholded(eps, 0.8, maximum=1.3)),
    ],
    ids=["static", "dynamic"],
)


@BOUNDS
def test_it_is_that_of_diffusers_ddpm(settings: dict[str, Any], bounded: Any) -> None:
    theirs = DDPMScheduler(variance_type="fixed_small", **({"clip_sample": False} | settings))
    nodes = [999, 700, 500, 301, 120, 50, 11, 0]
    theirs.set_timesteps(timesteps=nodes)
    times = [*((n + 1) / N for n in nodes), 0.0]
    sampler = SAMPLERS["ddpm"](variance="small")
    theirs_and_ours(theirs, sampler, bounded, times, generator=torch.Generator().manual_seed(2))


def test_it_is_that_of_diffusers_dpmpp() -> None:
    theirs = DPMSolverMultistepScheduler(**THRESHOLDING)
    theirs.set_timesteps(8)
    times = [*((n + 1) / N for n in theirs.timesteps.tolist()), 0.0]
    theirs_and_ours(theirs, SAMPLERS["dpmpp"](), lambda eps: dynamically_thresholded(eps, 0.8, maximum=1.3), times)


# --- whatever it is put around ---


def test_it_keeps_what_the_model_tells_of_itself(linear: NoiseScheduleVP) -> None:
    eps = WIDE.eps(linear)
    bounded = dynamically_thresholded(clipped(eps, 2.0))
    assert bounded.schedule is linear and bounded.shape == eps.shape == (2, 3)
    assert not hasattr(bounded, "colour")
    bare = clipped(lambda x, t, tau=None: eps(x, t, tau), schedule=linear)
    torch.testing.assert_close(bare(seeded(2, 2, 3), 0.5), clipped(eps)(seeded(2, 2, 3), 0.5))


def test_a_wrapped_model_with_guidance_is_sampled_and_tuned(discrete: NoiseScheduleVP) -> None:
    exact = WIDE.eps(discrete)
    wrapped = model_wrapper(
        lambda x, n, c: exact(x, (n[0] + 1) / N) + 0.1 * c[:, None, None], discrete, guidance_type="classifier-free",
        guidance_scale=2.0,
    )  # fmt: skip
    eps = clipped(wrapped.bind(torch.tensor([1.0]), torch.tensor([0.0])), 1.0)
    plan = make_plan("ddim", discrete, calls=4, spacing="trailing")
    assert sample(eps, plan, seeded(16, 2, 3)).abs().max() <= 1 + 1e-9
    tuned = tune(eps, plan, "sequential", shape=(2, 3), samples=32)
    assert sample(eps, tuned, seeded(16, 2, 3)).isfinite().all()


def test_data_is_bounded_where_the_noise_does_not_tell_it() -> None:
    flow = NoiseScheduleFlow()
    eps = model_wrapper(lambda x, t: 3 * torch.ones_like(x), flow, model_type="flow").bind()
    assert (clipped(eps, 0.5).x0(seeded(4, 2), 1.0).abs() <= 0.5).all()
    plan = make_plan("ddim", flow, times=[1.0, 0.0])
    bare = sample(eps, plan, seeded(4, 2))
    torch.testing.assert_close(sample(clipped(eps, 0.5), plan, seeded(4, 2)), bare.clamp(-0.5, 0.5))
    with pytest.raises(ValueError, match=r"eps does not determine the data where alpha is 0"):
        clipped(lambda x, t, tau=None: x, schedule=flow)(seeded(4, 2), 1.0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_single(dtype: torch.dtype, linear: NoiseScheduleVP) -> None:
    x, eps = seeded(32, 6, dtype=torch.float32).to(dtype), lambda x, t, tau=None: x / 2
    got = clipped(eps, 1.0, linear)(x, 0.9)
    assert got.dtype == clipped(eps, 1.0, linear).x0(x, 0.9).dtype == dtype
    p = linear.at(0.9)
    x0 = ((1 - p.sigma / 2) * x.double() / p.alpha).clamp(-1, 1)
    torch.testing.assert_close(got.double(), (x.double() - p.alpha * x0) / p.sigma, rtol=0.01, atol=0.01)
    dynamic = dynamically_thresholded(eps, schedule=linear)  # quantiles are not to be had in half precision
    torch.testing.assert_close(dynamic(x, 0.9).double(), dynamic(x.double(), 0.9), rtol=0.01, atol=0.01)


def test_gradients_go_through(linear: NoiseScheduleVP) -> None:
    plan = make_plan("dpmpp", linear, calls=4)
    tau = plan.tau.clone().requires_grad_()
    *_, end = trajectory(dynamically_thresholded(WIDE.eps(linear)), plan.with_tau(tau), seeded(8, 2, 3))
    (gradient,) = torch.autograd.grad(end.square().sum(), tau)
    assert gradient.isfinite().all() and (gradient != 0).any()


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda eps: clipped(eps, 0.0), "limit must be positive, got 0.0"),
        (lambda eps: dynamically_thresholded(eps, 1.5), r"ratio must be in \(0, 1\], got 1.5"),
        (lambda eps: dynamically_thresholded(eps, limit=2.0, maximum=1.0), "maximum must be at least limit, got 1.0"),
        (lambda eps: clipped(lambda *_: None), "eps has no schedule: give schedule="),
    ],
)
def test_bad_arguments_are_named(make: Any, says: str, linear: NoiseScheduleVP) -> None:
    with pytest.raises(ValueError, match=says):
        make(WIDE.eps(linear))
