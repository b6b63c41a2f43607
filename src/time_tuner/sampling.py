"""The one loop of the library: from noise to a sample by a plan."""

from cmath import isfinite
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import TypeAlias

import torch
from torch import Tensor

from ._dtypes import HALF
from .models.base import HookedModel, Model, as_model, check_prediction, check_state
from .models.fingerprint import warn_of_mismatch
from .plans.plan import Plan
from .plans.rows import Call
from .samplers import Noise
from .schedules import NoiseSchedule

__all__ = [
    "advance",
    "coefficients",
    "predict",
    "sample",
    "sample_in_turn",
    "trajectory",
]

ModelLike: TypeAlias = Model | Callable[..., Tensor]
"""A model, or a function `eps(x, t, tau)`."""


def predict(model: Model, plan: Plan, k: int, x: Tensor, tau: Tensor | None = None, t: Tensor | None = None) -> Tensor:
    """The prediction of a model in the state x (B, ...) at call k alone: the noise, or the data if the row predicts it.

    A call without guidance evaluates the network under the condition alone; what it reuses of other calls is left out.
    The conditioning time tau and the solver's time t are the plan's by default.

    Args:
        model: the model.
        plan: the plan.
        k: the number of the call, from 0.
        x: the state, (B, ...).
        tau: the conditioning time; the plan's by default.
        t: the solver's time; the plan's by default.

    Returns:
        The prediction, (B, ...).

    Raises:
        ValueError: the prediction has another shape than x, the row predicts x0 and the model cannot, or the plan
            leaves guidance out and the model cannot.
    """
    t, tau, row = plan.point(k).t if t is None else t, plan.taus[k] if tau is None else tau, plan.rows[k]
    if row.guidance is None:
        prediction = model.predict(row.predicts, x, t, tau)
    else:
        prediction, _ = model.parts(row.predicts, x, t, tau, guided=False)
    return check_prediction(prediction, x, f" at call {k}")


def evaluate(
    model: Model, plan: Plan, k: int, x: Tensor, past: tuple[Call, ...], tau: Tensor | None = None
) -> tuple[Tensor, Tensor | None]:
    """The prediction of a model in the state x (B, ...) at call k of a run, as `predict` gives it, with what the call
    reuses of the calls of `past`, see `advance`; and what guidance has added to it, where later calls need that."""
    row = plan.rows[k]
    if row.reused:
        t, tau = plan.point(k).t, plan.taus[k] if tau is None else tau
        prediction, added = model.parts(row.predicts, x, t, tau)
        if added is None:
            raise ValueError(f"parts of {type(model).__name__} must return what guidance adds at call {k}, got None")
        return check_prediction(prediction + added, x, f" at call {k}"), added
    prediction = predict(model, plan, k, x, tau)
    if row.guidance is not None and row.guidance.terms:
        prediction = prediction + row.guidance((*past, ()), prediction.dtype)
    return prediction, None


def trajectory(eps: ModelLike, plan: Plan, x: Tensor, noise: Noise | None = None) -> Iterator[Tensor]:
    """The state after every call of the plan, len(plan) tensors of the shape of x; grad mode is the caller's.

    Args:
        eps: a model, or a function `eps(x, t, tau)`.
        plan: the plan.
        x: the state at `plan.t[0]`, (B, ...), real or complex: `plan.initial_state(noise)`, which on a
            variance-preserving schedule is standard normal noise itself.
        noise: called with x, draws standard normal noise of its shape for stochastic samplers; `torch.randn_like` by
            default.

    Returns:
        An iterator over the states, (B, ...) each.

    Raises:
        ValueError: eps is no model, x is no tensor of numbers, or the plan was made for another noise schedule than
            that of eps.
    """
    if not isinstance(plan, Plan):
        raise ValueError(f"plan must be a Plan, as make_plan or Plan.load gives, got {plan!r}")
    model = as_model(eps, plan.schedule)
    check_schedule(model.schedule, plan)
    check_state("x", x)
    past: tuple[Call, ...] = ()
    noise = noise or torch.randn_like
    for k in range(len(plan)):
        prediction, added = evaluate(model, plan, k, x, past)
        x, past = advance(plan, k, past, x, prediction, noise, added)
        yield x


@torch.no_grad()
def sample(eps: ModelLike, plan: Plan, x: Tensor, noise: Noise | None = None) -> Tensor:
    """The state at the end of the plan, (B, ...); arguments as for `trajectory`.

    Args:
        eps: a model, or a function `eps(x, t, tau)`.
        plan: the plan.
        x: the state at `plan.t[0]`, (B, ...), real or complex: `plan.initial_state(noise)`.
        noise: draws standard normal noise for stochastic samplers, see `trajectory`.

    Returns:
        The state, of the shape, the dtype and the device of x.

    Warns:
        UserWarning: the plan was tuned for another network, guidance or size; names what differs.

    Raises:
        ValueError: the model predicts NaN or infinity (the message names the call), or another shape than that of x,
            or the plan was made for another noise schedule than that of the model.
    """
    if "made_for" in getattr(plan, "provenance", ()):
        warn_of_mismatch(plan.provenance, as_model(eps, plan.schedule), x.shape[1:])
    end = x
    for end in trajectory(eps, plan, x, noise):  # noqa: B007 - the last state is what is wanted
        pass
    # NaN and infinity stay until the end: one check there is enough, and the loop does not wait for the device.
    if not finite(end):
        raise ValueError(_what_broke(eps, plan, x, noise))
    return end


def sample_in_turn(runs: Sequence[tuple[ModelLike, Plan]], x: Tensor, noise: Noise | None = None) -> Tensor:
    """The state at the end of the last of several runs, (B, ...), such as those of a base and of a refiner.

    Each run begins in the state that the run before ended with, without new noise, and its sampler looks back on its
    own calls alone.

    Args:
        runs: models, or functions `eps(x, t, tau)`, each with its plan.
        x: the state at the first time of the first plan, (B, ...).
        noise: draws standard normal noise for stochastic samplers, see `trajectory`.

    Returns:
        The state, of the shape, the dtype and the device of x.

    Raises:
        ValueError: a plan begins elsewhere than the one before ends, and see `sample`.
    """
    if not runs:
        raise ValueError("runs must be pairs of a model and a plan, got none")
    for i, ((_, first), (_, second)) in enumerate(pairwise(runs), 1):
        p, q = first.point(len(first)), second.point(0)
        if not all(torch.isclose(a, b, rtol=1e-6, atol=1e-9) for a, b in ((p.alpha, q.alpha), (p.sigma, q.sigma))):
            raise ValueError(
                f"plan {i} of runs must begin where the one before ends, at t = {float(p.t):.6g} (alpha {p.alpha:.6g}, "
                f"sigma {p.sigma:.6g}), got t = {float(q.t):.6g} (alpha {q.alpha:.6g}, sigma {q.sigma:.6g}): make it "
                f"with times that begin there"
            )
    for model, plan in runs:
        x = sample(model, plan, x, noise)
    return x


def finite(x: Tensor) -> bool:
    """Whether all of x is finite. A finite sum proves it; otherwise the sum may have overflowed, and x is looked at."""
    total = x.sum(dtype=torch.float32 if x.dtype in HALF else None)
    return isfinite(total.item()) or bool(torch.isfinite(x).all())


def _what_broke(eps: ModelLike, plan: Plan, x: Tensor, noise: Noise | None) -> str:
    """The message that names the first NaN or infinity of a run; the run is repeated to find it."""
    if not finite(x):
        return "x must be finite, got NaN or infinity in it"
    predictions: list[Tensor] = []
    model = HookedModel(as_model(eps, plan.schedule), lambda quantity, x, t, prediction: predictions.append(prediction))
    for k, state in enumerate(trajectory(model, plan, x, noise)):
        where = f"at call {k} (t = {float(plan.t[k]):.4g}, tau = {float(plan.tau[k]):.4g})"
        if not finite(predictions.pop()):
            return f"eps returned NaN or infinity {where}"
        if not finite(state):
            return f"the state became NaN or infinite {where}, though the prediction did not: {state.dtype} overflows"
    return "the state became NaN or infinite, but not when the run was repeated to find where"


def check_schedule(schedule: NoiseSchedule, plan: Plan) -> None:
    """Raise a ValueError if the plan was made for another noise schedule than this one, a model's."""
    if schedule is plan.schedule or schedule == plan.schedule:
        return
    alpha = schedule.at(plan.t).alpha
    if not torch.allclose(alpha, plan.alpha, rtol=1e-4, atol=1e-6):  # the same betas may come in lower precision
        k = int((alpha - plan.alpha).abs().argmax())
        raise ValueError(
            f"plan was made for another noise schedule, {plan.schedule!r}: at t = {float(plan.t[k]):.4g} it has alpha "
            f"{float(plan.alpha[k]):.5g}, the model's {schedule!r} has {float(alpha[k]):.5g}; make or tune one for it"
        )


def advance(
    plan: Plan,
    k: int,
    past: tuple[Call, ...],
    x: Tensor,
    prediction: Tensor,
    noise: Noise,
    added: Tensor | None = None,
) -> tuple[Tensor, tuple[Call, ...]]:
    """The body of every loop: the state after call k, (B, ...), and the calls that the next call may look back on.

    `past` is what `advance` returned for the call before, `()` for the first call. `prediction` is the prediction in
    the state x at call k, and `added` what guidance has added to it, see `evaluate`. `noise` draws standard normal
    noise of the shape of x.

    Args:
        plan: the plan.
        k: the number of the call, from 0.
        past: what `advance` returned for the call before, `()` for the first call.
        x: the state at call k, (B, ...).
        prediction: the prediction in x at call k, see `predict`.
        noise: draws standard normal noise of the shape of x.
        added: what guidance has added to the prediction, see `evaluate`; None without guidance.

    Returns:
        The next state, and the calls.
    """
    row, dtype = plan.rows[k], x.dtype
    if prediction.dtype is not dtype and dtype not in HALF:
        prediction = prediction.to(dtype)  # once, and not at each use
    kept = past[1 - row.history :] if row.history > 1 else ()
    corrected = None if row.corrected is None else row.corrected((*kept, (x, prediction)), dtype)
    call = Call(x, prediction, corrected, added)
    calls = (*kept, call)
    return row.next_state((*kept, (*call, noise(x))) if row.uses_noise else calls, dtype), calls


def coefficients(plan: Plan) -> Tensor:
    """The whole run as a table, float64 (K, 1 + 2 K): row k is the state after call k as a combination of x_T,
    eps_0 .. eps_{K-1}, z_0 .. z_{K-1}; of x0_k in place of eps_k where `plan.rows[k].predicts` is "x0". These are the
    predictions after guidance, or with what is reused of it.

    It is the loop itself, run on unit vectors.

    Args:
        plan: the plan, whose times, conditioning times and corrections may carry gradients.

    Returns:
        The table, float64 (K, 1 + 2 K).
    """
    calls = len(plan)
    unit = torch.eye(1 + 2 * calls, dtype=torch.float64)
    x, past, states = unit[0], tuple[Call, ...](), list[Tensor]()
    for k in range(calls):
        z = unit[1 + calls + k]
        x, past = advance(plan, k, past, x, unit[1 + k], z.expand_as)
        states.append(x)
    return torch.stack(states)
