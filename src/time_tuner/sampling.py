"""Running a plan: from noise to a sample, with seeded noise."""

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import Tensor

from ._checks import accepts
from .plans.plan import Plan
from .plans.rows import HALF, Call
from .samplers import Noise

Eps: TypeAlias = Callable[..., Tensor]
"""`eps(x, t, tau)`: the noise in the batch x (B, ...) at the solver's time t, the network being told tau.

It may also have `.x0(x, t, tau)`, the data, which is what is asked for where the noise does not tell it (see `rows`).
"""


class HookedModel:
    """A model, and `look(unit, x, t, said)` at everything that it says; unit is "eps" or "x0"."""

    def __init__(self, eps: Eps, look: Callable[[str, Tensor, Any, Tensor], None]) -> None:
        self.eps, self.look = eps, look

    def __call__(self, x: Tensor, t: Any, tau: Any = None) -> Tensor:
        return self._asked("eps", self.eps, x, t, tau)

    def __getattr__(self, name: str) -> Any:
        if name == "eps":  # while it is being copied
            raise AttributeError(name)
        found = getattr(self.eps, name)  # what it tells of itself, where it does
        return partial(self._asked, "x0", found) if name == "x0" else found

    def _asked(self, unit: str, say: Eps, x: Tensor, t: Any, tau: Any = None) -> Tensor:
        said = say(x, t, tau)
        self.look(unit, x, t, said)
        return said


def predict(eps: Eps, plan: Plan, k: int, x: Tensor, tau: Tensor | None = None, t: Tensor | None = None) -> Tensor:
    """What the network says of x at call k, told `tau`, at the solver's `t` (by default the plan's): eps, or x0 where
    the row has that.

    Raises:
        ValueError: it answers with another shape than that of x, or is asked for x0 at alpha = 0 and has none.
    """
    p = plan.point(k)
    say = getattr(eps, "x0", None) if plan.rows[k].predicts == "x0" else eps
    if say is None and p.alpha == 0:
        raise ValueError(
            f"eps has no .x0, which is needed at call {k}: at t = {float(p.t):.4g} alpha is 0 and the noise tells "
            "nothing of the data; give a model from model_wrapper, or start the run a little later (times=)"
        )
    said = (eps if say is None else say)(x, p.t if t is None else t, plan.taus[k] if tau is None else tau)
    if not isinstance(said, Tensor) or said.shape != x.shape:
        got = f"shape {tuple(said.shape)}" if isinstance(said, Tensor) else type(said).__name__
        raise ValueError(
            f"eps must return a tensor of the shape of x, {tuple(x.shape)}, got {got} at call {k} "
            "(a network with learned variance returns twice the channels: model_wrapper keeps the first half)"
        )
    return (x - p.sigma * said) / p.alpha if say is None else said


def trajectory(eps: Eps, plan: Plan, x: Tensor, noise: Noise | None = None) -> Iterator[Tensor]:
    """The state after every call of the plan, len(plan) tensors of the shape of x; grad mode is the caller's.

    Args:
        eps: `eps(x, t, tau)`, see `Eps`.
        x: the state at `plan.t[0]`, (B, ...): `plan.initial_state(noise)`, which on a variance-preserving schedule is standard
            normal noise itself.
        noise: what a stochastic sampler draws from, a callable of x; `torch.randn_like` by default.
    """
    check_model(eps)
    check_schedule(eps, plan)
    past: tuple[Call, ...] = ()
    noise = noise or torch.randn_like
    for k in range(len(plan)):
        x, past = advance(plan, k, past, x, predict(eps, plan, k, x), noise)
        yield x


@torch.no_grad()
def sample(eps: Eps, plan: Plan, x: Tensor, noise: Noise | None = None) -> Tensor:
    """The state at the end of the plan; arguments as for `trajectory`.

    Raises:
        ValueError: the network answers with NaN or infinity (the message names the call), or with a wrong shape, or
            the plan was made for another noise schedule than that of `eps`.
    """
    end = x
    for end in trajectory(eps, plan, x, noise):  # noqa: B007 - the last state is what is wanted
        pass
    # What is broken once stays broken: one look at the end keeps the loop free of waiting for the device.
    if not _finite(end):
        raise ValueError(_what_broke(eps, plan, x, noise))
    return end


def _finite(x: Tensor) -> bool:
    """Whether all of x is; its sum is enough to tell, unless it overflows."""
    return math.isfinite(x.sum(dtype=torch.float32 if x.dtype in HALF else None)) or bool(torch.isfinite(x).all())


def _what_broke(eps: Eps, plan: Plan, x: Tensor, noise: Noise | None) -> str:
    """What was NaN or infinite first in a run that is repeated to find it."""
    if not _finite(x):
        return "x must be finite, got NaN or infinity in it"
    said: list[Tensor] = []
    run = trajectory(HookedModel(eps, lambda unit, x, t, answer: said.append(answer)), plan, x, noise)
    for k, state in enumerate(run):
        where = f"at call {k} (t = {float(plan.t[k]):.4g}, tau = {float(plan.tau[k]):.4g})"
        if not _finite(said.pop()):
            return f"eps returned NaN or infinity {where}"
        if not _finite(state):
            return (
                f"the state became NaN or infinite {where}, and what eps returned did not: {state.dtype} is too short"
            )
    return "the state became NaN or infinite, but not when the run was repeated to find where"


def check_model(eps: Eps) -> None:
    """Raise a ValueError if this is a function that does not take x, t and tau."""
    if not accepts(eps, 3):
        raise ValueError(
            f"eps must be a function eps(x, t, tau), got {eps!r}: wrap a network with model_wrapper(network, schedule)"
        )


def check_schedule(eps: Eps, plan: Plan) -> None:
    """Raise a ValueError if the model says which noise schedule it has, and the plan was made for another one."""
    schedule = getattr(eps, "schedule", None)
    if schedule is None or schedule is plan.schedule or schedule == plan.schedule:
        return
    alpha = schedule.at(plan.t).alpha
    if not torch.allclose(alpha, plan.alpha, rtol=1e-4, atol=1e-6):  # the same betas may come in lower precision
        k = int((alpha - plan.alpha).abs().argmax())
        raise ValueError(
            f"plan was made for another noise schedule, {plan.schedule!r}: at t = {float(plan.t[k]):.4g} it has alpha "
            f"{float(plan.alpha[k]):.5g}, the model's {schedule!r} has {float(alpha[k]):.5g}; make or tune one for it"
        )


def advance(
    plan: Plan, k: int, past: tuple[Call, ...], x: Tensor, eps: Tensor, noise: Noise
) -> tuple[Tensor, tuple[Call, ...]]:
    """The body of every loop: the state after call k, in which the network said `eps` of `x`, and what to remember.

    `past` is what the call before returned; `()` at the first one. `eps` is x0 where that is the row's unit.
    """
    row, dtype = plan.rows[k], x.dtype
    if eps.dtype is not dtype and dtype not in HALF:
        eps = eps.to(dtype)  # once, and not at each use
    kept = past[1 - row.history :] if row.history > 1 else ()
    call = Call(x, eps, None if row.corrected is None else row.corrected((*kept, (x, eps)), dtype))
    calls = (*kept, call)
    return row.next_state((*kept, (*call, noise(x))) if row.uses_noise else calls, dtype), calls


def coefficients(plan: Plan) -> Tensor:
    """The whole run as a table, float64 (K, 1 + 2 K): row k is the state after call k as a combination of x_T,
    eps_0 .. eps_{K-1}, z_0 .. z_{K-1}; of x0_k in place of eps_k where `plan.rows[k].predicts` is "x0".

    It is the loop itself, run on unit vectors.
    """
    calls = len(plan)
    unit = torch.eye(1 + 2 * calls, dtype=torch.float64)
    x, past, states = unit[0], tuple[Call, ...](), list[Tensor]()
    for k in range(calls):
        z = unit[1 + calls + k]
        x, past = advance(plan, k, past, x, unit[1 + k], z.expand_as)
        states.append(x)
    return torch.stack(states)
