"""What the arguments of `tune` and `estimate` stand for: the tuner, the plan to start from, the budget, the batch."""

import logging
from dataclasses import replace

import torch

from .._checks import check_int
from .._distributed import of_all
from .._spec import build, parse_call
from ..models.base import Model
from ..plans.build import default_spacing, make_plan
from ..plans.plan import Plan
from ..samplers import Sampler, sampler_of
from ..spacings import Spacing
from .base import Tuner
from .budget import DEFAULT_BUDGET, Budget
from .grids import spacing_for
from .joint.tuner import Joint
from .least_squares import LeastSquares
from .timesteps.tuner import Parallel, Sequential

TUNERS: dict[str, type[Tuner]] = {
    "sequential": Sequential,
    "parallel": Parallel,
    "joint": Joint,
    "least_squares": LeastSquares,
}
"""Every tuner by its name in texts and on the command line."""

SAMPLER = "dpmpp"
"""Of an untuned plan where none is named."""

logger = logging.getLogger("time_tuner")


def tuner_of(tuner: Tuner | str) -> Tuner:
    """The tuner of a text `name(option=value, ...)`, such as "joint(pairs=128)", or the given tuner itself.

    Args:
        tuner: a tuner, or the text of one; the names are those of `TUNERS`.

    Returns:
        The tuner.

    Raises:
        ValueError: another text, an unknown name or option, or a value that the option does not take.
    """
    if isinstance(tuner, str):
        name, options = parse_call(tuner)
        return build("tuner", TUNERS, name, options)
    if not isinstance(tuner, Tuner):
        raise ValueError(f"tuner must be a tuner or a text such as 'joint(pairs=128)', got {tuner!r}")
    return tuner


def own_plan(
    model: Model,
    calls: int,
    sampler: Sampler | str = SAMPLER,
    spacing: str | Spacing | None = None,
    end: float | None = None,
) -> Plan:
    """The untuned plan of a model: on its own spacing unless another is named, which is noted in the provenance; to the
    spacing's own end unless another is given, see `make_plan`. To another end a model's spacing that is no text, such
    as the grid of a pipeline's own scheduler, is replaced by the default of the schedule.

    Args:
        model: the model, whose `schedule` and spacing are used.
        calls: the number of network calls.
        sampler: a sampler, or the text of one.
        spacing: the spacing; that of the model by default.
        end: the time where the run ends; that of the spacing by default.

    Returns:
        The untuned plan; its provenance names the spacing.
    """
    sampler = sampler_of(sampler)
    own = model.spacing if end is None or isinstance(model.spacing, str) else None
    grid = spacing or own or default_spacing(sampler, model.schedule, calls)
    made = make_plan(sampler, model.schedule, calls, spacing_for(model, grid), end=end)
    return made.with_provenance(spacing=str(grid))


def start_of(model: Model, plan: Plan | None, calls: int | None, end: float | None) -> Plan:
    """The given plan, or an untuned one with so many calls to this end; a ValueError unless either is given."""
    if (plan is None) == (calls is None):
        got = "neither" if plan is None else "both"
        raise ValueError(f"give either plan=, to start from, or calls=, for the best plan of so many, got {got}")
    if plan is None:
        return own_plan(model, check_int("calls", calls, 1), end=end)
    check_no_end(end, "plan=")
    return plan


def pattern_search(evaluations: int, plan: Plan | None, calls: int | None, tuner: Tuner | None) -> tuple[int, Tuner]:
    """The number of calls with guidance at all of them, and the tuner that searches for others of so many
    evaluations.

    Args:
        evaluations: the most evaluations of a run.
        plan: the plan that was given to `tune`, which must be None.
        calls: those that were given to `tune`, which must be None.
        tuner: a `Joint` tuner, or None for the default one.

    Returns:
        The number of calls of the start, and the tuner.
    """
    check_int("evaluations", evaluations, 2)
    if plan is not None or calls is not None:
        raise ValueError(
            f"give one of plan=, calls= and evaluations=, got evaluations={evaluations} and another: "
            f"tuner='joint(evaluations={evaluations})' starts from a plan"
        )
    if not isinstance(tuner, Joint | None):
        raise ValueError(f"evaluations= needs joint tuning, got the tuner {tuner!r}: leave tuner out, or give calls=")
    return evaluations // 2, replace(tuner or Joint(), evaluations=evaluations)


def check_no_end(end: float | None, given: str) -> None:
    """Raise a ValueError if an end is given beside plans, which have their own."""
    if end is not None:
        raise ValueError(f"end must be left out with {given}, which has its own, got {end!r}: give calls= with it")


def default_tuner(plan: Plan, own_samples: bool) -> Tuner:
    """Joint tuning; where it cannot be used the sequential tuner, which is logged with the reason."""
    reason = "" if own_samples else "data= is given"
    if plan.stochastic:
        reason = "the plan draws noise"
    if not reason:
        return Joint()
    logger.warning("the tuner is sequential, because %s, which joint tuning does not take", reason)
    return Sequential()


def budget_of(tuner: Tuner, budget: str | int | Budget | None) -> Budget:
    return Budget.parse(budget) or (Budget() if tuner.sized else DEFAULT_BUDGET)


def batch_of(batch: int | None, samples: int, device: torch.device | str) -> int | None:
    """The most samples in the network calls that all processes make at a time; None on other devices than the CPU,
    where a full memory is an error."""
    return samples if batch is None and str(device) == "cpu" else of_all(batch)
