"""The guard: a tuned plan against the untuned one, on noise that no tuning has used, by a many-step run from it."""

import math
from collections.abc import Callable, Sequence
from copy import copy
from typing import Any

import torch
from torch import Tensor

from .._distributed import gathered, share
from .._dtypes import squared_norms, wide
from ..models.base import Model, as_model, check_state, own_share
from ..models.batching import BatchedModel
from ..models.counting import CostLog, CountedModel
from ..noise import Constraint, SeededNoise
from ..plans.build import reference_plan
from ..plans.plan import Plan
from ..sampling import ModelLike, check_schedule, sample
from ..schedules import NoiseSchedule, as_float64
from .base import PARTS
from .ranking import Ranked, differs_only_in
from .units import Units, runs

MOST_NOISE = 4  # times as much noise, at most, where the first leaves open which plan is better: half its error


class ReferenceDistance:
    """The distance between the ends of plans and the end of a many-step run from the same noise.

    It is the mean *unsquared* distance E |x_K - y|: the mean square can fall while pictures get worse, because a few
    far ends count more in it than many near ones. A stochastic plan ends elsewhere by design, so there it is the energy
    distance 2 E |x - y| - E |x - x'| - E |y - y'| between the two sets of ends (Szekely & Rizzo, 2013).

    Args:
        model: the model.
        schedule: its noise schedule.
        end: the time at which the plans end whose distance is measured.
        x: noise (B, ...) that no tuning has used: standard normal, or under the constraint.
        calls: of the many-step run; of a network with fewer trained levels as many as these.
        seed: of the noise that stochastic samplers draw, the same for every plan.
        noise: maps standard normal noise (B, ...) to the noise of the model, see `SeededNoise`; None for the same.
        units: where the many-step run is kept; None for nowhere.

    Attributes:
        reference: the ends of the many-step run, (B, ...).
        calls: the calls that it made.
    """

    def __init__(
        self,
        model: ModelLike,
        schedule: NoiseSchedule,
        end: float,
        x: Tensor,
        calls: int = 100,
        seed: int = 0,
        noise: Constraint | None = None,
        units: Units | None = None,
    ) -> None:
        own = model if isinstance(model, BatchedModel) else BatchedModel(as_model(model, schedule))
        self.model: Model = own
        self.x, self.seed, self.end = check_state("x", x, real=True), seed, end
        self._constraint = noise
        reference = reference_plan(schedule, end, calls)
        self.calls = len(reference)
        self.reference = runs(units, "reference run", own, reference, x, own.batch)

    def __call__(self, plan: Plan) -> float:
        """The distance of a plan.

        Raises:
            ValueError: the plan ends at another time.
        """
        return float(self.per_sample(plan).mean())

    def check(self, plan: Plan) -> None:
        """Raise a ValueError if the plan ends at another time than the reference run, is on another schedule, or draws
        noise where there is a single sample."""
        check_schedule(self.model.schedule, plan)
        if plan.stochastic and len(self.x) < 2:
            raise ValueError("x must hold at least two samples to measure a plan that draws noise, got 1")
        if abs(float(plan.t[-1]) - self.end) > 1e-9:
            raise ValueError(
                f"plan must end where the reference run does, at t = {self.end:.6g}, got t = {float(plan.t[-1]):.6g}"
            )

    def per_sample(self, plan: Plan) -> Tensor:
        """The contribution of each sample to the distance of a plan, (B,): their mean is the distance."""
        self.check(plan)
        own, rows = own_share(self.model, len(self.x))
        noise = SeededNoise((self.seed + share(len(self.x))).tolist(), self._constraint)
        ends = sample(own, plan, plan.initial_state(self.x[rows]), noise)
        if plan.stochastic:
            return self.of_ends(gathered(ends, len(self.x)), True)
        return gathered(self._norms(ends, self.reference[rows]), len(self.x))

    def counted(self, cost_log: CostLog) -> "ReferenceDistance":
        """The same distance, whose network calls are counted in this log."""
        other = copy(self)
        other.model = CountedModel(self.model, cost_log)
        return other

    @staticmethod
    def _norms(ends: Tensor, reference: Tensor) -> Tensor:
        """|x - y| of each sample, (B,)."""
        return squared_norms(wide(ends).flatten(1) - wide(reference).flatten(1)).sqrt()

    def of_ends(self, ends: Tensor, stochastic: bool = False) -> Tensor:
        """The contribution of each sample to the distance of these ends (B, ...) of runs from `x`, (B,)."""
        if not stochastic:
            return self._norms(ends, self.reference)
        x, y = wide(ends).flatten(1), wide(self.reference).flatten(1)
        across, others = _distances(x, y), len(x) - 1
        return across.mean(0) + across.mean(1) - (_distances(x, x).sum(1) + _distances(y, y).sum(1)) / others


def _distances(x: Tensor, y: Tensor) -> Tensor:
    """|x_i - y_j|, float64 (B, B) on the CPU; without the products that lose precision between near samples."""
    return torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist").cpu().double()


def gain_with_error(untuned: Tensor, tuned: Tensor, stochastic: bool) -> tuple[float, float]:
    """The mean gain of a tuned plan over the untuned one, by the contributions of each sample (B,); and its standard
    error: a gain that is no larger need not be one on other noise."""
    gain = untuned - tuned
    # In the energy distance, which is of pairs, the contribution of a sample counts twice.
    return float(gain.mean()), (1 + stochastic) * float(gain.std(correction=0)) / math.sqrt(len(gain))


def guarded(
    plan: Plan,
    untuned: Plan,
    judge: ReferenceDistance,
    rounded: Callable[[Tensor], Tensor] = as_float64,
    ranking: Sequence[Ranked] = (),
    parts: Sequence[str] = PARTS,
    more: Callable[[], ReferenceDistance | None] | None = None,
) -> Plan:
    """The tuned plan, what of it is better than the untuned one, or an untuned plan that is better, with the distances
    in its provenance.

    Conditioning times are set back to those of the untuned plan, in their ratio to t, one at a time, last first, while
    that lowers the distance; `rounded` gives the times that the network receives for them. Where the gain over an
    untuned plan is below its standard error, the untuned plan remains: that from which tuning started, or one of the
    two nearest of the ranking, if it differs from that in these parts. Where neither a gain nor a loss is above its
    standard error, `more` gives a distance on more noise, if any, which decides.
    """
    if len(plan) == len(untuned):
        same = plan.t[:-1] == untuned.t[:-1]
        back = torch.where(same, untuned.tau, rounded(plan.with_ratios(untuned.tau / untuned.t[:-1]).tau))
    else:  # the number of calls was searched for
        back = rounded(plan.t[:-1])
    before, unguarded = judge.per_sample(untuned), judge.per_sample(plan)
    best, after, reverted = plan, unguarded, list[int]()
    for k in reversed(range(len(plan))):
        if best.tau[k] == back[k]:
            continue
        tau = best.tau.clone()
        tau[k] = back[k]
        trial = best.with_tau(tau)
        distances = judge.per_sample(trial)
        if distances.mean() >= after.mean():
            break
        best, after = trial, distances
        reverted.insert(0, k)
    # The two nearest of the ranking in the order that they have on this noise.
    others = [(judge.per_sample(one.plan), one) for one in ranking[:2]]
    others.sort(key=lambda each: float(each[0].mean()))
    fallbacks = [(before, untuned), *((d, one.plan) for d, one in others if differs_only_in(parts, one.plan, untuned))]
    nearest, fallback = min(fallbacks, key=lambda each: float(each[0].mean()))
    gain, error = gain_with_error(nearest, after, plan.stochastic)
    if abs(gain) < error and more is not None and (larger := more()) is not None:
        return guarded(plan, untuned, larger, rounded, ranking, parts)
    if gain < error:
        best, after, reverted = fallback, nearest, list(range(len(plan)))
    measured = {"untuned": before, "tuned": after, "unguarded": unguarded}
    measured |= {name: each[0] for name, each in zip(("best untuned", "runner-up"), others, strict=False)}
    distance = {name: float(per_sample.mean()) for name, per_sample in measured.items()}
    notes: dict[str, Any] = {"distance": distance, "distance_samples": len(before), "reference_calls": judge.calls}
    notes["reverted_calls"] = reverted
    if others:
        names = dict(zip(("best", "runner-up"), (one.name for _, one in others), strict=False))
        notes["untuned_plans"] = {"ranked": len(ranking), **names}
    return best.with_provenance(**{**plan.provenance, **notes})


def unchanged(plan: Plan) -> bool:
    """Whether the guard has left nothing of what tuning found: the plan is an untuned one."""
    distance = plan.provenance["distance"]
    return any(distance["tuned"] == distance.get(name) for name in ("untuned", "best untuned", "runner-up"))
