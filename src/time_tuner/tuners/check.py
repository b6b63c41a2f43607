"""Whether a plan fits a model: what differs from the model it was tuned for, and what it gains there on few samples."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .._checks import check_int
from .._distributed import of_all
from ..models.base import as_model
from ..models.batching import BatchedModel
from ..models.fingerprint import Difference, differences, fingerprint_of
from ..noise import Constraint, SeededNoise
from ..plans.plan import Plan
from ..sampling import ModelLike, check_schedule
from .arguments import own_plan
from .guard import ReferenceDistance, gain_with_error

SAMPLES, CALLS = 16, 50
"""Of a check, and of its reference run: half of those of tuning, since a verdict needs less than a measurement."""

RIVALS = ("dpmpp", "unipc", "deis", "ddim")
"""The samplers of the untuned plans that a plan is compared with, each on the model's own grid."""

SELF = "the plan without its tuning"


@dataclass(frozen=True)
class PlanCheck:
    """What `check_plan` has found.

    Attributes:
        differences: from the model that the plan was tuned for, the gravest first; empty without a fingerprint in the
            plan.
        distances: of the plan, of itself without tuning and of untuned plans, from the reference run, (n,) each, by
            name; the plan is the first.
        gain: by how much the plan is nearer to the reference run than the best other one, in the mean; below 0 if it is
            farther away.
        error: the standard error of the gain.
    """

    differences: Sequence[Difference]
    distances: Mapping[str, Tensor]
    gain: float
    error: float

    @property
    def rival(self) -> str:
        """The name of the best other plan."""
        _, *others = self.distances
        return min(others, key=lambda name: float(self.distances[name].mean()))

    @property
    def fits(self) -> bool | None:
        """Whether the plan is better than the others; None where so few samples do not tell."""
        return None if abs(self.gain) <= self.error else self.gain > 0

    @property
    def verdict(self) -> str:
        """The result in a sentence."""
        share = abs(self.gain) / float(self.distances[self.rival].mean())
        samples = len(self.distances[self.rival])
        if self.fits is None:
            text = f"undecided on {samples} samples: the plan ends as near to the reference run as {self.rival}"
            return f"{text}, within the standard error; take more samples"
        if self.fits:
            return f"the plan fits: it ends {share:.1%} nearer to the reference run than {self.rival}"
        return f"the plan does not fit: {self.rival} ends {share:.1%} nearer to the reference run; tune another one"


def check_plan(
    eps: ModelLike,
    plan: Plan,
    samples: int = SAMPLES,
    seed: int = 0,
    *,
    batch: int | None = None,
    shape: tuple[int, ...] | None = None,
    reference_calls: int = CALLS,
    noise: Constraint | None = None,
) -> PlanCheck:
    """Whether a plan is better for a model than its untuned self and than a few untuned plans of as many calls.

    All runs start from the same noise. The distances are those of `ReferenceDistance`.

    Args:
        eps: a model, or a function `eps(x, t, tau)`.
        plan: the plan.
        samples: the number of samples; costs `samples x (reference_calls + 5 K)` evaluations.
        seed: of the first sample; the next ones count up.
        batch: the most samples in one network call; the model's own limit by default.
        shape: of one sample, for a model that does not know it.
        reference_calls: of the reference run.
        noise: the constraint of the noise, see `tune`.

    Returns:
        The verdict, the distances of the runs, and what differs from the model of the tuning.

    Raises:
        ValueError: a plan for another noise schedule, an untuned one that draws noise, or no shape.
    """
    model, samples = as_model(eps, plan.schedule, shape), check_int("samples", samples, 2)
    check_schedule(model.schedule, plan)
    if model.shape is None:
        raise ValueError("shape= is needed, of one sample: the model does not know it")
    plans = {"the plan": plan, **_others(BatchedModel(model, batch), plan)}
    if len(plans) == 1:
        raise ValueError("plan draws noise and is untuned: there is nothing to compare it with")
    found, made_for = fingerprint_of(model), plan.provenance.get("made_for")
    differ = differences(made_for, found) if isinstance(made_for, Mapping) and found else []
    x = SeededNoise(range(seed, seed + samples), noise)(torch.empty(samples, *model.shape, device=model.device))
    limited = BatchedModel(model, of_all(batch or model.max_batch))
    judge = ReferenceDistance(limited, plan.schedule, float(plan.t[-1]), x, reference_calls, seed, noise)
    distances = {name: judge.per_sample(one.with_provenance(made_for=None)) for name, one in plans.items()}
    own, *others = distances.values()
    best = min(others, key=lambda one: float(one.mean()))
    return PlanCheck(differ, distances, *gain_with_error(best, own, plan.stochastic))


def _others(model: BatchedModel, plan: Plan) -> dict[str, Plan]:
    """The plans to compare with: for one that draws noise only itself without tuning."""
    others: dict[str, Plan] = {}
    if plan.tuned or plan.reuse is not None:
        others[SELF] = plan.with_tau(plan.t[:-1]).with_corrections(None).with_guidance(plan.guided)
    if plan.stochastic:
        return others
    end = float(plan.t[-1])
    for name in RIVALS:
        try:
            made = own_plan(model, len(plan), name)
            made = made if abs(float(made.t[-1]) - end) < 1e-9 else own_plan(model, len(plan), name, end=end)
        except ValueError:  # a number of calls that the sampler does not make
            continue
        made = made.with_guidance(plan.guided)  # the same evaluations
        if made.sampler != plan.sampler or not torch.allclose(made.t, plan.t):
            others[f"{name} on {made.provenance['spacing']}"] = made
    return others
