"""Tuners, one file a strategy: each takes a plan to a better one. `tune` calibrates, tunes and judges."""

from collections.abc import Callable
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from typing import Any, TypeAlias

import torch

from ..plan import Plan
from ..sampling import Eps, check_schedule
from .calibration import Calibration
from .conditioning import tune_conditioning
from .guard import Judge, guarded, reference_plan

__all__ = ["TUNERS", "Calibration", "Judge", "reference_plan", "tune"]

Tuner: TypeAlias = Callable[..., Plan]
"""`tuner(eps, plan, calibration, verbose=, **options)`: a plan, tuned."""

TUNERS: dict[str, Tuner] = {
    "sequential": partial(tune_conditioning, strategy="sequential"),
    "parallel": partial(tune_conditioning, strategy="parallel"),
}
"""Every tuning method by its name in `tune` and on the command line."""


def tune(
    eps: Eps,
    plan: Plan,
    method: str = "sequential",
    data: Any = None,
    seed: int = 0,
    guard: bool | Judge = True,
    *,
    samples: int = 256,
    shape: tuple[int, ...] | None = None,
    device: torch.device | str = "cpu",
    verbose: bool = False,
    **options: Any,
) -> Plan:
    """A better plan for the same number of calls.

    Args:
        eps: the model, `eps(x, t, tau)`.
        plan: where to start: its sampler and its grid.
        method: a name in `TUNERS`. "sequential" and "parallel" are the two strategies of TimeTuner (Xia et al., 2024).
        data: x_0 to calibrate on, a tensor (n, ...) or an iterable of samples or batches; None: the model's own
            samples.
        seed: of everything that is drawn.
        guard: True to judge the result on held-out noise and put back what makes it worse; False for the bare optimum;
            or a `Judge` to judge several plans by one reference.
        samples: how many samples to tune on, and to judge on.
        shape: of one sample; needed only when neither `data` nor `eps.shape` tells.
        device: where the model is.
        verbose: show progress.
        **options: of the method, for example `optimizer="adam"` for the published procedure.

    Returns:
        The tuned plan. Its provenance says how it was made and, with a guard, what it is worth: "before" and "after",
        the distance to the end of a many-step run for the untuned and for this plan; "bare", for the tuner's optimum;
        "reverted", the rows that the guard put back.

    Raises:
        ValueError: an unknown method, unusable data, a model that returns NaN or a wrong shape, or one with another
            noise schedule than the plan.
    """
    if method not in TUNERS:
        raise ValueError(f"method must be one of {', '.join(TUNERS)}, got {method!r}")
    check_schedule(eps, plan)
    calibration = Calibration(eps, plan.schedule, data, samples, seed, shape, device)
    tuned = TUNERS[method](eps, plan, calibration, verbose=verbose, **options).with_provenance(
        method=method,
        seed=seed,
        samples=samples,
        data="own samples" if data is None else "given",
        versions={name: _version(name) for name in ("time-tuner", "torch")},
    )
    if guard is False:
        return tuned
    if guard is True:
        guard = Judge(eps, plan.schedule, float(plan.t[-1]), calibration.held_out(), seed=seed)
    return guarded(tuned, plan.with_tau(plan.t[:-1]).with_corrections(None), guard)


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "unknown"
