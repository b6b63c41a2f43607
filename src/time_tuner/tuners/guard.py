"""Whether a tuned plan is better: judged on noise it was not tuned on, against a many-step run from the same noise."""

import math
from copy import copy

import torch
from torch import Tensor

from ..models.base import Model, as_model
from ..models.batching import BatchedModel
from ..models.counting import CostLog, CountedModel
from ..noise import SeededNoise
from ..plans.build import reference_plan
from ..plans.plan import Plan
from ..sampling import ModelLike, sample
from ..schedules import NoiseSchedule


class ReferenceDistance:
    """How far plans end from where a many-step run from the same noise ends; smaller is better.

    The measure is the mean *unsquared* distance E |x_K - y|: the mean square can fall while pictures get worse
    (a few far ends count more in it than many near ones). A stochastic plan ends elsewhere by design, so there it is
    the energy distance 2 E |x - y| - E |x - x'| - E |y - y'| between the two sets of ends (Szekely & Rizzo, 2013).

    Args:
        model: the model.
        schedule: its noise schedule.
        end: the time at which the plans end whose distance is measured.
        x: standard normal noise (B, ...) that no tuning has used.
        calls: of the many-step run; of a network with fewer trained levels as many as these.
        seed: of the noise that stochastic samplers draw, the same for every plan.

    Attributes:
        reference: the ends of the many-step run, (B, ...).
        calls: the calls that it made.
    """

    def __init__(
        self, model: ModelLike, schedule: NoiseSchedule, end: float, x: Tensor, calls: int = 100, seed: int = 0
    ) -> None:
        self.model: Model = BatchedModel(as_model(model, schedule))
        self.x, self.seed, self.end = x, seed, end
        reference = reference_plan(schedule, end, calls)
        self.calls = len(reference)
        self.reference = sample(self.model, reference, reference.initial_state(x))

    def __call__(self, plan: Plan) -> float:
        """The measure of a plan.

        Raises:
            ValueError: the plan ends at another time.
        """
        return float(self.per_sample(plan).mean())

    def per_sample(self, plan: Plan) -> Tensor:
        """What each sample contributes to the measure of a plan, (B,): their mean is the measure."""
        if abs(float(plan.t[-1]) - self.end) > 1e-9:
            raise ValueError(
                f"plan must end where the reference run does, at t = {self.end:.6g}, got t = {float(plan.t[-1]):.6g}"
            )
        return self._per_sample(
            sample(self.model, plan, plan.initial_state(self.x), SeededNoise(self.seed)), plan.stochastic
        )

    def counted(self, cost_log: CostLog) -> "ReferenceDistance":
        """The same measure, whose network calls are counted in this log."""
        other = copy(self)
        other.model = CountedModel(self.model, cost_log)
        return other

    def distance(self, ends: Tensor, stochastic: bool = False) -> float:
        """The measure of states (B, ...) in which runs from `x` have ended."""
        return float(self._per_sample(ends, stochastic).mean())

    def _per_sample(self, ends: Tensor, stochastic: bool) -> Tensor:
        x, y = ends.double().flatten(1), self.reference.double().flatten(1)
        if not stochastic:
            apart: Tensor = (x - y).norm(dim=1)
            return apart
        across, others = torch.cdist(x, y), len(x) - 1
        return across.mean(0) + across.mean(1) - (torch.cdist(x, x).sum(1) + torch.cdist(y, y).sum(1)) / others


def guarded(plan: Plan, untuned: Plan, judge: ReferenceDistance) -> Plan:
    """The tuned plan, or what of it is better than the untuned one; the measures go into its provenance.

    Rows are put back to untuned one at a time, last first, while that lowers the measure. A gain over the untuned plan
    that is no larger than its own standard error need not be one on other noise: then the untuned plan is what remains.
    """
    before, bare = judge.per_sample(untuned), judge.per_sample(plan)
    best, after, reverted = plan, bare, list[int]()
    for k in reversed(range(len(plan))):
        if best.tau[k] == best.t[k]:
            continue
        tau = best.tau.clone()
        tau[k] = best.t[k]
        trial = best.with_tau(tau)
        shares = judge.per_sample(trial)
        if shares.mean() >= after.mean():
            break
        best, after = trial, shares
        reverted.append(k)
    gain = before - after
    # In the energy distance, which is of pairs, what one sample contributes counts twice.
    error = (1 + plan.stochastic) * gain.std(correction=0) / math.sqrt(len(gain))
    if gain.mean() < error:
        best, after, reverted = untuned, before, list(range(len(plan)))
    distances = (("untuned", before), ("tuned", after), ("unguarded", bare))
    distance = {name: float(per_sample.mean()) for name, per_sample in distances}
    notes = {"distance": distance, "reference_calls": judge.calls, "reverted_calls": sorted(reverted)}
    return best.with_provenance(**{**plan.provenance, **notes})
