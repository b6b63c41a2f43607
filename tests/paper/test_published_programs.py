"""The six programs of the paper's README, as they are written there save for its slips (a missing comma, a name that
does not exist), on the bundled digits network; and that network as every type under every guidance."""

# ruff: noqa: C408 - dict() as the README has it

from collections.abc import Callable
from functools import cache
from itertools import pairwise
from typing import Any

import pytest
import torch
from helpers import seeded
from published import SCALE, guidances, noting_first, types
from sklearn.datasets import load_digits
from torch import Tensor
from torch.nn.functional import interpolate
from torch.utils.data import DataLoader, Dataset

from time_tuner import NoiseScheduleVP, TimeTuner, model_wrapper
from time_tuner.digits.classifier import load_noisy_classifier
from time_tuner.digits.networks import digits_network

pytestmark = [
    pytest.mark.filterwarnings("ignore:the tuned timesteps are the optimum:UserWarning"),
    pytest.mark.usefixtures("short_runs"),
]

NONE = 10
betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
alpha_bar = torch.cumprod(1 - betas, 0)
model_kwargs = dict(return_dict=False)
classifier_kwargs = dict(temperature=1.5)
guidance_scale = SCALE
condition = torch.tensor([7, 2])
uncond_condition = torch.tensor([NONE])
eta = 0.0
t_ratios = torch.linspace(0.93, 1.02, 10)
lr, total_iters = 2e-3, 1

network = cache(digits_network)
noisy_classifier = cache(load_noisy_classifier)


def model(x: Tensor, t: Tensor, cond: Tensor | None = None, **options: Any) -> Tensor:
    labels = torch.full((len(x),), NONE) if cond is None else cond
    return network()(x, t, class_labels=labels, **options)[0]


def classifier(x: Tensor, t: Tensor, cond: Tensor, temperature: float) -> Tensor:
    logits = noisy_classifier()(x, t) / temperature
    return logits.log_softmax(1).gather(1, cond[:, None])[:, 0]


class Digits(Dataset[dict[str, Any]]):
    """A few of scikit-learn's handwritten digits, in the size and range of the network's."""

    def __init__(self) -> None:
        pictures, self.labels = load_digits(return_X_y=True)
        small = torch.from_numpy(pictures[:2]).float().view(-1, 1, 8, 8) / 8 - 1
        self.pictures = interpolate(small, (28, 28), mode="bilinear")

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, index: int) -> dict[str, Any]:
        data_dict = dict()
        data_dict.update(image=self.pictures[index])
        data_dict.update(label=int(self.labels[index]))
        return data_dict


# --- what they should give, written out ---


def noise_of(guidance: str, x: Tensor, n: float, level_received: float, cond: Tensor = condition) -> Tensor:
    """The noise in x at level n, where the network and the classifier receive another level."""
    level, no_label = torch.full((len(x),), level_received), torch.full((len(x),), NONE)
    with torch.no_grad():
        of_all = network()(x, level, no_label).sample
        of_class = network()(x, level, cond).sample
    if guidance == "uncond":
        return of_all
    if guidance == "classifier-free":
        return of_all + guidance_scale * (of_class - of_all)
    x = x.clone().requires_grad_()
    (slope,) = torch.autograd.grad(classifier(x, level, cond, **classifier_kwargs).sum(), x)
    sigma = torch.sqrt(1 - alpha_bar[round(n)]).float()
    return of_class - guidance_scale * sigma * slope


def ddim(guidance: str, x: Tensor, levels: list[int], ratios: Tensor, cond: Tensor = condition) -> Tensor:
    for (n, after), ratio in zip(pairwise(levels), ratios.double(), strict=True):
        level_received = float(ratio * (n + 1) - 1)
        a, b = alpha_bar[n].float(), alpha_bar[after].float()
        eps = noise_of(guidance, x, n, level_received, cond)
        x = b.sqrt() * (x - (1 - a).sqrt() * eps) / a.sqrt() + (1 - b).sqrt() * eps
    return x


TEN = [901, 801, 701, 601, 501, 401, 301, 201, 101, 1, 0]


def assert_is_ddim(guidance: str, x: Tensor, x_T: Tensor) -> None:
    torch.testing.assert_close(x, ddim(guidance, x_T, TEN, t_ratios), rtol=1e-3, atol=2e-3)
    assert (x - ddim(guidance, x_T, TEN, torch.ones(10))).abs().max() > 0.02  # the ratios matter


# --- sampling ---


def test_sampling_without_guidance() -> None:
    x_T = seeded(2, 1, 28, 28, dtype=torch.float32)

    noise_schedule = NoiseScheduleVP(schedule="discrete", betas=betas)
    model_fn = model_wrapper(
        model,
        noise_schedule,
        model_type="noise",
        model_kwargs=model_kwargs,
        guidance_type="uncond",
    )
    time_tuner = TimeTuner(model_fn, noise_schedule)
    x = time_tuner.ddim_sample(x=x_T, num_steps=10, t_ratios=t_ratios, eta=eta)

    assert_is_ddim("uncond", x, x_T)


def test_sampling_with_classifier_guidance() -> None:
    x_T = seeded(2, 1, 28, 28, dtype=torch.float32)

    noise_schedule = NoiseScheduleVP(schedule="discrete", betas=betas)
    model_fn = model_wrapper(
        model,
        noise_schedule,
        model_type="noise",
        guidance_type="classifier",
        guidance_scale=guidance_scale,
        classifier_fn=classifier,
        model_kwargs=model_kwargs,
        classifier_kwargs=classifier_kwargs,
    )
    time_tuner = TimeTuner(model_fn, noise_schedule)
    x = time_tuner.ddim_sample(x=x_T, num_steps=10, t_ratios=t_ratios, eta=eta, condition=condition)

    assert_is_ddim("classifier", x, x_T)


def test_sampling_with_classifier_free_guidance() -> None:
    x_T = seeded(2, 1, 28, 28, dtype=torch.float32)

    noise_schedule = NoiseScheduleVP(schedule="discrete", betas=betas)
    model_fn = model_wrapper(
        model,
        noise_schedule,
        model_type="noise",
        guidance_type="classifier-free",
        guidance_scale=guidance_scale,
        model_kwargs=model_kwargs,
    )
    time_tuner = TimeTuner(model_fn, noise_schedule)
    x = time_tuner.ddim_sample(
        x=x_T,
        num_steps=10,
        t_ratios=t_ratios,
        eta=eta,
        condition=condition,
        uncond_condition=uncond_condition,
    )

    assert_is_ddim("classifier-free", x, x_T)


# --- tuning ---


def assert_descends(guidance: str, ratios: Tensor, shown: Tensor) -> None:
    """One iteration of Adam goes the length of the learning rate down the published loss."""
    assert ratios.shape == (10,) and ratios[-1] == 1
    torch.testing.assert_close((ratios[:-1] - 1).abs(), torch.full((9,), lr).double(), rtol=1e-2, atol=0)
    cond = torch.tensor([Digits()[i]["label"] for i in range(2)])
    before = noise_of(guidance, shown, 901, 901, cond)

    def loss(ratio: float) -> float:
        x = ddim(guidance, shown, [901, 801], torch.tensor([ratio]), cond)
        return float((before - noise_of(guidance, x, 801, 801, cond)).double().square().sum())

    assert (loss(1.0002) - loss(0.9998)) * float(ratios[0] - 1) < 0  # the network sees waves a few levels long


def test_tuning_without_guidance() -> None:
    noted, shown = noting_first(model)
    data_loader = DataLoader(Digits(), batch_size=2)

    noise_schedule = NoiseScheduleVP(schedule="discrete", betas=betas)
    model_fn = model_wrapper(
        noted,
        noise_schedule,
        model_type="noise",
        model_kwargs=model_kwargs,
        guidance_type="uncond",
    )
    time_tuner = TimeTuner(model_fn, noise_schedule)
    step_fn = time_tuner.ddim_step_fn
    step_fn_kwargs = dict(eta=eta)
    tune_type = "sequential"
    t_ratios = time_tuner.optimize_timesteps(
        data_loader=data_loader,
        step_fn=step_fn,
        num_steps=10,
        tune_type=tune_type,
        lr=lr,
        total_iters=total_iters,
        verbose=True,
        **step_fn_kwargs,
    )

    assert_descends("uncond", t_ratios, shown[0])


def test_tuning_with_classifier_guidance() -> None:
    noted, shown = noting_first(model)
    data_loader = DataLoader(Digits(), batch_size=2)

    noise_schedule = NoiseScheduleVP(schedule="discrete", betas=betas)
    model_fn = model_wrapper(
        noted,
        noise_schedule,
        model_type="noise",
        guidance_type="classifier",
        guidance_scale=guidance_scale,
        classifier_fn=classifier,
        model_kwargs=model_kwargs,
        classifier_kwargs=classifier_kwargs,
    )
    time_tuner = TimeTuner(model_fn, noise_schedule)
    step_fn = time_tuner.ddim_step_fn
    step_fn_kwargs = dict(eta=eta)
    tune_type = "sequential"
    t_ratios = time_tuner.optimize_timesteps(
        data_loader=data_loader,
        step_fn=step_fn,
        num_steps=10,
        tune_type=tune_type,
        lr=lr,
        total_iters=total_iters,
        verbose=True,
        **step_fn_kwargs,
    )

    assert_descends("classifier", t_ratios, shown[0])


def test_tuning_with_classifier_free_guidance() -> None:
    noted, shown = noting_first(model)
    data_loader = DataLoader(Digits(), batch_size=2)

    noise_schedule = NoiseScheduleVP(schedule="discrete", betas=betas)
    model_fn = model_wrapper(
        noted,
        noise_schedule,
        model_type="noise",
        guidance_type="classifier-free",
        guidance_scale=guidance_scale,
        model_kwargs=model_kwargs,
    )
    time_tuner = TimeTuner(model_fn, noise_schedule)
    step_fn = time_tuner.ddim_step_fn
    step_fn_kwargs = dict(eta=eta, uncond_condition=uncond_condition)
    tune_type = "sequential"
    t_ratios = time_tuner.optimize_timesteps(
        data_loader=data_loader,
        step_fn=step_fn,
        num_steps=10,
        tune_type=tune_type,
        lr=lr,
        total_iters=total_iters,
        verbose=True,
        **step_fn_kwargs,
    )

    assert_descends("classifier-free", t_ratios, shown[0][:2])


# --- every type of prediction under every guidance ---


def as_type(model_type: str) -> Callable[..., Tensor]:
    """The network as one that was trained to predict something else."""

    def predict(x: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        eps, a = model(x, t, cond), alpha_bar[int(t[0].round())].float()
        x0 = (x - (1 - a).sqrt() * eps) / a.sqrt()
        v = a.sqrt() * eps - (1 - a).sqrt() * x0
        return {"noise": eps, "x_start": x0, "v": v, "score": -eps / (1 - a).sqrt()}[model_type]

    return predict


@guidances
@types
def test_the_network_as_every_type_under_every_guidance(model_type: str, guidance: str) -> None:
    x_T = seeded(2, 1, 28, 28, dtype=torch.float32)
    schedule = NoiseScheduleVP("discrete", betas=betas)
    model_fn = model_wrapper(
        as_type(model_type),
        schedule,
        model_type=model_type,
        guidance_type=guidance,
        guidance_scale=guidance_scale,
        classifier_fn=classifier,
        classifier_kwargs=classifier_kwargs,
    )
    x = TimeTuner(model_fn, schedule).ddim_sample(
        x_T, timesteps=[901, 601, 201], condition=condition, uncond_condition=uncond_condition
    )
    torch.testing.assert_close(x, ddim(guidance, x_T, [901, 601, 201, 0], torch.ones(3)), rtol=1e-3, atol=5e-3)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@guidances
def test_it_all_runs_on_cuda(guidance: str) -> None:
    schedule = NoiseScheduleVP("discrete", betas=betas)
    unet, judge = digits_network().cuda(), load_noisy_classifier().cuda()
    model_fn = model_wrapper(
        lambda x, t, cond=None: unet(x, t, torch.full((len(x),), NONE).to(x.device) if cond is None else cond).sample,
        schedule,
        guidance_type=guidance,
        guidance_scale=guidance_scale,
        classifier_fn=judge.log_prob,
    )
    tuner, x_T = TimeTuner(model_fn, schedule, device="cuda"), seeded(2, 1, 28, 28, dtype=torch.float32)
    for how in ({}, {"lr": lr, "total_iters": 1}):
        ratios = tuner.optimize_timesteps(
            DataLoader(Digits(), batch_size=2), num_steps=3, uncond_condition=uncond_condition, **how
        )
        x = tuner.ddim_sample(
            x_T.cuda(), num_steps=3, t_ratios=ratios, condition=condition, uncond_condition=uncond_condition
        )
        assert x.is_cuda and x.isfinite().all()
