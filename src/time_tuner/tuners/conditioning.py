"""TimeTuner (Xia et al., CVPR 2024): what the network is told at each call, one number at a time.

At call k the solver stands at t_k and the network is told tau_k = r_k t_k. The loss is

L_k(r) = E |eps(x_k, t_k, t_k) - eps(x_{k+1}(r), t_{k+1}, t_{k+1})|^2,

where x_{k+1}(r) is reached from x_k with the prediction eps(x_k, t_k, r t_k): the noise seen after the step should be
the noise seen before it. The last ratio stays 1. *Sequential*: x_k is reached from x_T = alpha_T x_0 + sigma_T eps
through the calls tuned so far. *Parallel*: x_k = alpha_k x_0 + sigma_k eps, and every call stands alone.
"""

import math
from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor
from tqdm import tqdm

from ..plan import Plan
from ..rows import Call, advance
from ..sampling import Eps, told
from ..schedules import NoiseSchedule, Point
from .calibration import Calibration, Draws
from .search import minimise

State: TypeAlias = tuple[tuple[Call, ...], Tensor]
"""What the calls before left behind, and the state they lead to."""


class Run:
    """A run whose conditioning is tuned, of K calls (or steps of a user's own) over K + 1 points of a schedule."""

    def __init__(self, schedule: NoiseSchedule, points: Point) -> None:
        self.schedule, self.points = schedule, points

    def __len__(self) -> int:
        return len(self.points.t) - 1

    def point(self, k: int) -> Point:
        """Point k = 0 .. K."""
        return Point(self.points.t[k], self.points.alpha[k], self.points.sigma[k])

    def reach(self, k: int) -> int:
        """How many calls call k looks back on, itself included."""
        return 1

    def step(self, k: int, state: State, tau: Tensor, draws: Draws) -> State:
        """The state after call k, at which the network is told tau."""
        raise NotImplementedError

    def recalled(self, k: int, draws: Draws) -> Call:
        """Call k as a later one looks back on it, in the state alpha x_0 + sigma eps and untuned."""
        raise NotImplementedError


class PlanRun(Run):
    """The run of a plan."""

    def __init__(self, plan: Plan) -> None:
        super().__init__(plan.schedule, Point(plan.t, plan.alpha, plan.sigma))
        self.plan = plan

    def reach(self, k: int) -> int:
        return self.plan.rows[k].reach

    def step(self, k: int, state: State, tau: Tensor, draws: Draws) -> State:
        past, x = state
        x, past = advance(self.plan, k, past, x, told(draws.model, self.plan, k, x, tau), lambda _: draws.z(k))
        return past, x

    def recalled(self, k: int, draws: Draws) -> Call:
        p = self.point(k)
        x = draws.at(p)
        return Call(x, told(draws.model, self.plan, k, x, p.t), x)


def start(run: Run, draws: Draws) -> State:
    """The sequential strategy's first state; it is that of T also where the run starts later, as published."""
    p = run.schedule.at(run.schedule.T)
    return (), float(run.point(0).scale / p.scale) * draws.at(p)


def direct(run: Run, k: int, draws: Draws) -> State:
    """The parallel strategy's state at call k; what it looks back on are such states too, and untuned."""
    past = tuple(run.recalled(j, draws) for j in range(max(0, k + 1 - run.reach(k)), k))
    return past, draws.at(run.point(k))


def loss(run: Run, k: int, state: State, tau: Tensor, draws: Draws, before: Tensor) -> Tensor:
    """L_k for the network told `tau`, summed over dimensions; `before` is what it says at t_k."""
    q = run.point(k + 1)
    _, x = run.step(k, state, tau, draws)
    return (before - draws.model(x, q.t, q.t)).double().square().flatten(1).sum(1).mean()


@torch.no_grad()
def search(run: Run, draws: Draws, strategy: str, verbose: bool = False) -> tuple[Tensor, list[tuple[float, float]]]:
    """The ratios (K,), each by a search in one number on the same draws, with forward calls only; and each loss before
    and after."""
    low, high = run.schedule.t_min, run.schedule.T
    ratios = torch.ones(len(run), dtype=torch.float64)
    losses: list[tuple[float, float]] = []
    state = start(run, draws)
    for k in (bar := tqdm(range(len(run) - 1), desc=strategy, unit="step", disable=not verbose)):
        if strategy == "parallel":
            state = direct(run, k, draws)
        t = run.point(k).t
        objective = _objective(run, k, state, draws)
        untuned = objective(1.0)
        if not math.isfinite(untuned):
            raise ValueError(f"eps returned NaN or infinity at call {k} or {k + 1} (t = {float(t):.4g}) while tuning")
        ratio, tuned = minimise(objective, 1.0, low / float(t), max(high / float(t), 1.0))
        ratios[k] = ratio
        losses.append((untuned, tuned))
        bar.set_postfix_str(f"loss {untuned:.4g} -> {tuned:.4g}, told {ratio:.3f} t")
        if strategy == "sequential":
            state = run.step(k, state, ratio * t, draws)
    return ratios, losses


def _objective(run: Run, k: int, state: State, draws: Draws) -> Callable[[float], float]:
    t = run.point(k).t
    before = draws.model(state[1], t, t)
    return lambda ratio: float(loss(run, k, state, ratio * t, draws, before))


def adam(
    run: Run,
    batches: Callable[[int], Draws],
    strategy: str,
    lr: float = 2e-3,
    iterations: int = 500,
    verbose: bool = False,
) -> Tensor:
    """The ratios (K,) by the published procedure: Adam on each in turn, from 1, a fresh batch at every iteration, the
    states computed anew for it. `batches(i)` gives the draws of iteration i, counted through."""
    for name, number in (("lr", lr), ("iterations", iterations)):
        if not number > 0:
            raise ValueError(f"{name} must be positive, got {number}")
    ratios = torch.ones(len(run), dtype=torch.float64)
    for k in (bar := tqdm(range(len(run) - 1), desc=f"{strategy}, Adam", unit="step", disable=not verbose)):
        t = run.point(k).t
        ratio = torch.ones((), dtype=torch.float64, requires_grad=True)
        optimizer = torch.optim.Adam([ratio], lr=lr, betas=(0.9, 0.999))
        for i in range(iterations):
            draws = batches(k * iterations + i)
            with torch.no_grad():
                state = direct(run, k, draws) if strategy == "parallel" else start(run, draws)
                for j in range(k if strategy == "sequential" else 0):
                    state = run.step(j, state, ratios[j] * run.point(j).t, draws)
                before = draws.model(state[1], t, t)
            with torch.enable_grad():
                value: Tensor = loss(run, k, state, ratio * t, draws, before)
                if not value.requires_grad:
                    raise ValueError(
                        "optimizer='adam' needs a network with a gradient in the time it is told: it has none"
                    )
                optimizer.zero_grad(set_to_none=True)
                value.backward()
            if not torch.isfinite(value):
                raise ValueError(
                    f"eps returned NaN or infinity at call {k} or {k + 1} (t = {float(t):.4g}) while tuning"
                )
            optimizer.step()
        ratios[k] = ratio.detach()
        bar.set_postfix_str(f"loss {float(value.detach()):.4g}, told {float(ratios[k]):.3f} t")
    return ratios


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
        verbose: show progress.
    """
    if optimizer not in ("search", "adam"):
        raise ValueError(f"optimizer must be 'search' or 'adam', got {optimizer!r}")
    untuned = plan.with_tau(plan.t[:-1]).with_corrections(None)
    run = PlanRun(untuned)
    if optimizer == "adam":
        ratios = adam(run, lambda i: calibration.batch(eps, i, batch), strategy, lr, iterations, verbose)
        notes = {"optimizer": "adam", "lr": lr, "iterations": iterations, "batch": batch}
    else:
        ratios, losses = search(run, calibration.draws(eps), strategy, verbose)
        notes = {
            "optimizer": "search",
            "loss_before": [before for before, _ in losses],
            "loss_after": [after for _, after in losses],
        }
    return untuned.with_tau(ratios * untuned.t[:-1]).with_provenance(**notes)
