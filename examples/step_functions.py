"""Tuning a sampler of your own: write one step as a function, and `optimize_timesteps` tunes its ratios.

    python examples/step_functions.py

The data are eight blurred points on a circle. The model is exact at every time: a run of many steps has no error, and
the error of few steps is that of the sampler.
"""

import math
from itertools import pairwise

import torch
from torch import Tensor

from time_tuner import NoiseScheduleVP, SeededNoise, TimeTuner, make_plan
from time_tuner.models.exact import Mixture

STEPS = 4
data = Mixture([[math.cos(i * math.pi / 4), math.sin(i * math.pi / 4)] for i in range(8)], std=0.2)
schedule = NoiseScheduleVP("discrete", betas=torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64))
model_fn = data.eps(schedule)  # for a network: model_wrapper(network, schedule, ...)
tuner = TimeTuner(model_fn, schedule)


def euler(x: Tensor, t: Tensor, s: Tensor, t_ratio: Tensor | float = 1.0) -> tuple[Tensor, Tensor]:
    """Euler's step from t to s for du/dv = eps, with u = x / alpha and v = sigma / alpha."""
    p, q = schedule.at(t), schedule.at(s)
    eps = model_fn(x, t, t_ratio * t)
    u = x / p.alpha + (q.sigma / q.alpha - p.sigma / p.alpha) * eps
    return q.alpha * u, (x - p.sigma * eps) / p.alpha


def dpm_solver_2(x: Tensor, t: Tensor, s: Tensor, t_ratio: Tensor | float = 1.0) -> tuple[Tensor, Tensor]:
    """DPM-Solver-2 (Lu et al., 2022, https://arxiv.org/abs/2206.00927, alg. 1): a step to the middle in lam, then the
    whole step with the noise predicted there. Both calls use one ratio."""
    p, q = schedule.at(t), schedule.at(s)
    h = q.lam - p.lam
    m = schedule.at(schedule.inverse_lambda(p.lam + h / 2))
    eps = model_fn(x, t, t_ratio * t)
    middle = m.alpha / p.alpha * x - m.sigma * torch.expm1(h / 2) * eps
    eps_m = model_fn(middle, m.t, t_ratio * m.t)
    return q.alpha / p.alpha * x - q.sigma * torch.expm1(h) * eps_m, (x - p.sigma * eps) / p.alpha


def run(step_fn, times: Tensor, ratios: Tensor, x: Tensor) -> Tensor:
    """The state (B, 2) at the end of the run from x."""
    for (t, s), ratio in zip(pairwise(times), ratios, strict=True):
        x, _ = step_fn(x, t, s, t_ratio=ratio)
    return x


def main() -> None:
    loader = [{"image": data.sample(64, seed=i)} for i in range(4)]
    times = make_plan("ddim", schedule, calls=STEPS, spacing="logsnr").t
    labels = schedule.network_time(times[:-1])

    noise = SeededNoise(10**6)(torch.empty(500, 2, dtype=torch.float64))  # nothing was tuned on this noise
    truth = run(dpm_solver_2, make_plan("ddim", schedule, calls=250, spacing="quadratic").t, torch.ones(250), noise)

    print(f"{STEPS} steps, even in lam; mean distance of their ends to the exact flow\n")
    print(f"{'step_fn':14} {'untuned':>8} {'tuned':>8}   ratios")
    for name, step_fn in (("ddim_step_fn", tuner.ddim_step_fn), ("euler", euler), ("dpm_solver_2", dpm_solver_2)):
        ratios = tuner.optimize_timesteps(loader, step_fn, timesteps=labels)
        ends = [run(step_fn, times, used, noise) for used in (torch.ones(STEPS), ratios)]
        before, after = ((end - truth).norm(dim=1).mean() for end in ends)
        print(f"{name:14} {before:8.4f} {after:8.4f}   {' '.join(f'{ratio:.3f}' for ratio in ratios)}")
    print(
        "\nEuler's step in these variables is DDIM and has the same ratios. DPM-Solver-2 makes two calls in each step."
    )


if __name__ == "__main__":
    main()
