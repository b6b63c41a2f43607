"""TimeTuner (Xia et al., CVPR 2024): what the network is told at each call, one number at a time.

At call k the solver stands at t_k and the network is told tau_k = r_k t_k. The loss is

L_k(r) = E |eps(x_k, t_k, t_k) - eps(x_{k+1}(r), t_{k+1}, t_{k+1})|^2,

where x_{k+1}(r) is reached from x_k with the prediction eps(x_k, t_k, r t_k): the noise seen after the step should be
the noise seen before it. The last ratio stays 1. *Sequential*: x_k is reached from x_T = alpha_T x_0 + sigma_T eps
through the calls tuned so far. *Parallel*: x_k = alpha_k x_0 + sigma_k eps, and every call stands alone.
"""

import math
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor
from tqdm import tqdm

from ..plan import Plan
from ..rows import Call, advance
from ..samplers import Noise
from ..sampling import Eps, told
from .calibration import Calibration
from .search import minimise

State: TypeAlias = tuple[tuple[Call, ...], Tensor]
"""What the calls before left behind, and the state they lead to."""


@dataclass(frozen=True)
class Draws:
    """Data and noise that a loss is averaged over: x_0, the noise in it (both (B, ...)), and a draw for each call."""

    x0: Tensor
    eps: Tensor
    z: tuple[Tensor | None, ...]

    @classmethod
    def of(cls, plan: Plan, x0: Tensor, noise: Noise) -> "Draws":
        return cls(x0, noise(x0), tuple(noise(x0) if row.draws else None for row in plan.rows))

    def at(self, plan: Plan, k: int) -> Tensor:
        """x_k = alpha_k x_0 + sigma_k eps."""
        return plan.alpha[k] * self.x0 + plan.sigma[k] * self.eps

    def step(self, plan: Plan, k: int, state: State, said: Tensor) -> State:
        """The state after call k, in which the network said `said`."""
        past, x = state
        x, past = advance(plan, k, past, x, said, lambda _: self._drawn(k))
        return past, x

    def _drawn(self, k: int) -> Tensor:
        z = self.z[k]
        assert z is not None
        return z


def loss(eps: Eps, plan: Plan, k: int, draws: Draws, state: State, tau: Tensor, before: Tensor) -> Tensor:
    """L_k for the network told `tau`; `before` is what it says at t_k. The sum over dimensions, the mean over samples."""
    _, x = draws.step(plan, k, state, told(eps, plan, k, state[1], tau))
    after = told(eps, plan, k + 1, x, plan.t[k + 1])
    return (before - after).double().square().flatten(1).sum(1).mean()


def start(plan: Plan, draws: Draws) -> State:
    """The sequential strategy's first state; it is that of T also where the plan starts later, as published."""
    p = plan.schedule.at(plan.schedule.T)
    return (), p.alpha * draws.x0 + p.sigma * draws.eps


def direct(eps: Eps, plan: Plan, k: int, draws: Draws) -> State:
    """The parallel strategy's state at call k; what it looks back on are such states too, and untuned."""
    first = k + 1 - min(plan.rows[k].reach, k + 1)
    states = [draws.at(plan, j) for j in range(first, k)]
    past = tuple(Call(x, told(eps, plan, j, x, plan.t[j]), x) for j, x in enumerate(states, first))
    return past, draws.at(plan, k)


def tune_conditioning(
    eps: Eps,
    plan: Plan,
    calibration: Calibration,
    strategy: str,
    optimizer: str = "search",
    lr: float = 2e-3,
    iterations: int = 500,
    batch: int = 64,
    verbose: bool = False,
) -> Plan:
    """The plan with its conditioning times tuned, from untuned.

    Args:
        eps, plan, calibration: the model, the plan to tune, and what to tune it on.
        strategy: "sequential" or "parallel".
        optimizer: "search", or "adam" for the published procedure, to which the next three belong.
        lr, iterations, batch: of Adam, for each ratio; every iteration has a fresh batch and fresh noise.
    """
    if optimizer not in ("search", "adam"):
        raise ValueError(f"optimizer must be 'search' or 'adam', got {optimizer!r}")
    untuned = plan.with_tau(plan.t[:-1])
    if optimizer == "adam":
        for name, value in (("lr", lr), ("iterations", iterations), ("batch", batch)):
            if not value > 0:
                raise ValueError(f"{name} must be positive, got {value}")
        tuned = _adam(eps, untuned, calibration, strategy, lr, iterations, batch, verbose)
        return tuned.with_provenance(lr=lr, iterations=iterations, batch=batch)
    return _search(eps, untuned, calibration, strategy, verbose)


@torch.no_grad()
def _search(eps: Eps, plan: Plan, calibration: Calibration, strategy: str, verbose: bool) -> Plan:
    """Each ratio by a search in one number, on the same draws throughout; the network is only called forward."""
    draws = Draws.of(plan, calibration.x0, calibration.noise())
    low, high = plan.schedule.t_min, plan.schedule.T
    tau = plan.tau.clone()
    losses: list[tuple[float, float]] = []
    state = start(plan, draws)
    for k in (bar := tqdm(range(len(plan) - 1), desc=strategy, unit="step", disable=not verbose)):
        if strategy == "parallel":
            state = direct(eps, plan, k, draws)
        t = plan.t[k]
        before = told(eps, plan, k, state[1], t)

        def objective(ratio: float, k: int = k, state: State = state, before: Tensor = before) -> float:
            return float(loss(eps, plan, k, draws, state, plan.t[k] * ratio, before))

        untuned = objective(1.0)
        if not math.isfinite(untuned):
            raise ValueError(f"eps returned NaN or infinity at call {k} or {k + 1} (t = {float(t):.4g}) while tuning")
        ratio, tuned = minimise(objective, 1.0, low / float(t), max(high / float(t), 1.0))
        tau[k] = t * ratio
        losses.append((untuned, tuned))
        bar.set_postfix_str(f"loss {untuned:.4g} -> {tuned:.4g}, told {ratio:.3f} t")
        if strategy == "sequential":
            state = draws.step(plan, k, state, told(eps, plan, k, state[1], tau[k]))
    return plan.with_tau(tau).with_provenance(
        loss_before=[before for before, _ in losses], loss_after=[after for _, after in losses]
    )


def _adam(
    eps: Eps, plan: Plan, calibration: Calibration, strategy: str, lr: float, iterations: int, batch: int, verbose: bool
) -> Plan:
    """The published procedure: Adam on each ratio in turn, from 1; the states are computed anew for every batch."""
    tau = plan.tau.clone()
    for k in (bar := tqdm(range(len(plan) - 1), desc=f"{strategy}, Adam", unit="step", disable=not verbose)):
        ratio = torch.ones((), dtype=torch.float64, requires_grad=True)
        optimizer = torch.optim.Adam([ratio], lr=lr, betas=(0.9, 0.999))
        for i in range(iterations):
            draws = Draws.of(plan, *calibration.batch(k * iterations + i, batch))
            with torch.no_grad():
                state = direct(eps, plan, k, draws) if strategy == "parallel" else start(plan, draws)
                for j in range(k if strategy == "sequential" else 0):
                    state = draws.step(plan, j, state, told(eps, plan, j, state[1], tau[j]))
                before = told(eps, plan, k, state[1], plan.t[k])
            with torch.enable_grad():
                value = loss(eps, plan, k, draws, state, plan.t[k] * ratio, before)
                optimizer.zero_grad(set_to_none=True)
                value.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        tau[k] = plan.t[k] * ratio.detach()
        bar.set_postfix_str(f"loss {float(value):.4g}, told {float(ratio):.3f} t")
    return plan.with_tau(tau)
