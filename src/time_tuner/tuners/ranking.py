"""The untuned table: every deterministic sampler on every spacing, ranked by the distance of its runs to a teacher's.

Tuning starts from the nearest of these plans, and the guard compares with it. The ranking is by successive halving
(Jamieson and Talwalkar, 2016, https://arxiv.org/abs/1502.07943): all plans run on 4 pairs of the teacher, the best
quarter of them on 16, of these the best quarter on 64, and then on 256.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product, zip_longest
from typing import overload

import torch
from torch import Tensor

from ..models.base import Model
from ..models.counting import Cost
from ..plans.build import make_plan
from ..plans.plan import Plan
from ..samplers import SAMPLERS, Sampler, sampler_from_dict, sampler_of, sampler_text, sampler_to_dict
from ..sampling import coefficients
from ..spacings import SPACINGS
from .base import TuningRun
from .budget import forward
from .joint.loss import TeacherLoss
from .network_times import received

ROUNDS = (4, 16, 64, 256)  # pairs; on exact digits the plan that is found ends 5 % farther than the best, on average
KEPT = 4  # one of so many plans stays for the next round, so that each round costs the same,
FEWEST = 4  # and no fewer than these
MOST = 200  # plans, about as many as there are
SHARE = 0.2  # of the evaluations of tuning, at most: in a budget of 1000 calls a tenth is enough for a third of the
# table, and on exact digits under VE the best plans are not among these
SECONDS_SHARE = 0.1  # of a budget of seconds, which tuning needs on a slow machine
SAMPLERS_FIRST = ("ipndm", "unipc", "dpmpp", "deis", "ddim")
SPACINGS_FIRST = ("quadratic", "uniform", "leading", "logsnr", "trailing")
"""The best on exact digits and on the bundled network: where a budget is too small for all plans, these are ranked."""
ORDERS = (2, 3, 4, 1)
LATE = (1, 0, 2)  # so many first steps of a grid with as many steps more are left out
APART = 0.02  # of the angles of two grids, for them to count as two
SHORTEST = 1.02  # times the end of the run, at least, where the last step begins: a shorter one wastes a call
SAME_START = 1e-3  # of the first time, a difference that counts as none
OWN = "its own grid"


def untuned_plans(plan: Plan, fixed_start: bool = False) -> dict[str, Plan]:
    """The untuned plans that make as many calls as this one, with guidance at the same ones, and end where it does, by
    name; the likely best first.

    Their samplers are that of the plan and every deterministic one, in every order; their grids are that of the plan
    and every spacing. A run may begin later than the plan, on the grid of a longer run without its first steps, since a
    call where there is only noise is often wasted: "unipc(order=3):5@quadratic, 1 late" has the last 5 steps of 6.
    With a fixed start all begin where the plan does.
    """
    return dict(each_untuned_plan(plan, fixed_start))


def each_untuned_plan(plan: Plan, fixed_start: bool = False) -> Iterator[tuple[str, Plan]]:
    """The names and plans of `untuned_plans`, each made when it is needed."""
    grids: dict[int, dict[str, Tensor]] = {}
    places = dict[tuple[int, int], tuple[Sampler, str, Tensor]]()
    for i, sampler in enumerate(_samplers(plan)):
        try:
            steps = len(sampler.steps(len(plan), bool(plan.t[-1] == 0)))
        except ValueError:  # not so many calls to this end
            continue
        if steps not in grids:
            grids[steps] = _grids(plan, steps, fixed_start)
        for j, (name, times) in enumerate(grids[steps].items()):
            places[i + j, i] = sampler, name, times
    guided, guidance = None if all(plan.guided) else plan.guided, _guidance(plan)
    for _, (sampler, name, times) in sorted(places.items(), key=lambda place: place[0]):
        made = make_plan(sampler, plan.schedule, len(plan), times=times, guided=guided)
        yield f"{sampler_text(sampler)}:{len(plan)}@{name}{guidance}", made.with_provenance(spacing=name)


def _guidance(plan: Plan) -> str:
    """The part of a name that says which calls have guidance."""
    if all(plan.guided):
        return ""
    count = sum(plan.guided)
    first = plan.guided == (True,) * count + (False,) * (len(plan) - count)
    at = f"the first {count}" if first else ", ".join(str(k) for k, has in enumerate(plan.guided) if has) or "none"
    return f", guidance at {at}"


def _received(model: Model, starts: Sequence[Plan], most: int) -> dict[str, Plan]:
    """The first untuned plans, `most` of them, for each of some plans in turn, with the times that the network
    receives."""
    tables = [each_untuned_plan(start, model.fixed_start) for start in starts]
    inturn, found = (each for row in zip_longest(*tables) for each in row if each is not None), dict[str, Plan]()
    while len(found) < most and (each := next(inturn, None)) is not None:
        name, one = each
        found[name] = received(model, one)
    return found


def _samplers(plan: Plan) -> list[Sampler]:
    """The sampler of the plan, and every deterministic one that makes another run."""
    names = [*SAMPLERS_FIRST, *(name for name in SAMPLERS if name not in SAMPLERS_FIRST)]
    found, runs = list[Sampler](), list[Tensor]()
    others = [each for name in names if name in SAMPLERS for each in _orders(name)]
    others.sort(key=lambda each: getattr(each, "order", None) == 1)  # most of these are DDIM, and are named so
    for sampler in [plan.sampler, *others]:
        try:
            made = make_plan(sampler, plan.schedule, len(plan), "quadratic")
        except ValueError:  # not for so many calls
            continue
        run = None if made.stochastic else coefficients(made)
        if run is not None and not any(torch.allclose(run, one, rtol=1e-9, atol=1e-9) for one in runs):
            found.append(sampler)
            runs.append(run)
    return found


def _orders(name: str) -> list[Sampler]:
    """The sampler of a name in every order that it may have."""
    usual = sampler_of(name)
    values, found = sampler_to_dict(usual), list[Sampler]()
    for order in ORDERS if "order" in values else ():
        try:
            found.append(sampler_from_dict({**values, "order": order}))
        except ValueError:
            continue
    return found or [usual]


def _grids(plan: Plan, steps: int, fixed_start: bool) -> dict[str, Tensor]:
    """Step times, (steps + 1,), by name: those of the plan, and of every spacing to the end of the plan."""
    own = [plan.schedule.default_spacing(order, len(plan)) for order in (2, 1)]
    first = [*SPACINGS_FIRST[:2], *(name for name in own if name in SPACINGS), *SPACINGS_FIRST[2:]]
    names = list(dict.fromkeys([*first, *SPACINGS]))
    found, angles = dict[str, Tensor](), list[Tensor]()

    def add(name: str, times: Tensor) -> None:
        angle = plan.schedule.at(times).angle
        if all(len(one) != len(angle) or (angle - one).abs().max() > APART for one in angles):
            found[name] = times
            angles.append(angle)

    if len(plan.steps) == steps:
        add(_name_of(plan.step_times.detach(), plan), plan.step_times.detach())
    # In the order of diagonals: the first of them are the best spacings, each from several beginnings.
    places = product(enumerate(names), enumerate(LATE))
    for (_, name), (_, late) in sorted(places, key=lambda place: place[0][0] + place[1][0]):
        try:
            times = SPACINGS[name](plan.schedule, steps + late, end=_early(plan))[late:]
        except (KeyError, ValueError):  # not on this schedule
            continue
        if not plan.schedule.at(times[0]).alpha and plan.point(0).alpha:
            continue  # a model that predicts noise may not be called there
        if fixed_start and abs(float(times[0] / plan.t[0]) - 1) > SAME_START:
            continue
        if len(times) == steps + 1 and times[-2] > plan.t[-1] * SHORTEST:
            add(f"{name}, {late} late" if late else name, torch.cat([times[:-1], plan.t[-1:].detach()]))
    return found


def _early(plan: Plan) -> float | None:
    """The end of a plan that ends above the least trained time, where spacings have their own ends; else None."""
    end = float(plan.t[-1])
    return end if end > plan.schedule.t_min * (1 + 1e-9) else None


def _name_of(times: Tensor, plan: Plan) -> str:
    """The name of the spacing that has these step times of a plan."""
    for name, spacing in SPACINGS.items():
        try:
            same = spacing(plan.schedule, len(times) - 1, end=_early(plan))
        except (KeyError, ValueError):
            continue
        if same.shape == times.shape and torch.allclose(same, times, rtol=1e-9, atol=1e-12):
            return name
    return OWN


def differs_only_in(parts: Sequence[str], other: Plan, plan: Plan) -> bool:
    """Whether an untuned plan differs from a plan in nothing but these parts; a sampler belongs to the corrections."""
    same_grid = other.t.shape == plan.t.shape and torch.allclose(other.t, plan.t, rtol=1e-9, atol=1e-12)
    return ("times" in parts or same_grid) and ("corrections" in parts or other.sampler == plan.sampler)


@dataclass(frozen=True)
class Ranked:
    """An untuned plan, its name, and its mean distance to the ends of the teacher."""

    name: str
    plan: Plan
    loss: float


class Ranking(Sequence[Ranked]):
    """The untuned plans that were tried, the nearest first: those of the last round, then those of earlier ones."""

    def __init__(self, ranked: Sequence[Ranked]) -> None:
        self._ranked = tuple(ranked)

    @overload
    def __getitem__(self, i: int) -> Ranked: ...
    @overload
    def __getitem__(self, i: slice) -> Sequence[Ranked]: ...
    def __getitem__(self, i: int | slice) -> Ranked | Sequence[Ranked]:
        return self._ranked[i]

    def __len__(self) -> int:
        return len(self._ranked)

    def to_dict(self) -> dict[str, float]:
        """The losses by name, plain values."""
        return {one.name: one.loss for one in self}

    @classmethod
    def from_dict(cls, losses: Mapping[str, float], model: Model, starts: Sequence[Plan]) -> "Ranking":
        """The ranking of an earlier run for the same model and plans."""
        plans = _received(model, starts, len(losses))
        return cls([Ranked(name, plans[name], loss) for name, loss in losses.items()])


@dataclass(frozen=True)
class Rounds:
    """How many plans are ranked on how many pairs.

    Attributes:
        plans: in the first round.
        pairs: of each round.
    """

    plans: int
    pairs: Sequence[int]

    @classmethod
    def within(cls, evaluations: int | None, calls: int, pairs: int) -> "Rounds":
        """As many rounds, of as many plans, as these evaluations and pairs of a teacher are enough for; no round where
        they are not enough for two plans."""
        known = [*(size for size in ROUNDS if size < pairs), min(ROUNDS[-1], pairs)]
        for count in range(len(known), 0, -1):
            some = (cls(n, known[:count]) for n in range(MOST, 2 * KEPT ** (count - 1) - 1, -1))
            found = next((one for one in some if evaluations is None or one.evaluations(calls) <= evaluations), None)
            if found is not None:
                return found
        return cls(0, ())

    def evaluations(self, calls: int) -> int:
        """The sample evaluations that they cost."""
        return self.cost(calls, None).evaluations

    def cost(self, calls: int, batch: int | None) -> Cost:
        """The cost of plans of so many calls."""
        cost, left = Cost(), self.plans
        for size in self.pairs:
            cost, left = cost + forward(size, batch) * (left * calls), num_kept(left)
        return cost


def num_kept(plans: int) -> int:
    """How many of so many plans stay for the next round."""
    return min(plans, max(FEWEST, plans // KEPT))


def rank(loss: TeacherLoss, starts: Sequence[Plan], run: TuningRun, rounds: Rounds, seconds: float | None) -> Ranking:
    """The ranking of the first plans of `untuned_plans` for some plans, as many as there are rounds and seconds for.

    The order is that of the mean root of the distances, which depends less on the few runs that end far away.
    """
    began, out = run.seconds, list[Ranked]()
    left = list(_received(loss.model, starts, rounds.plans).items())
    for i, size in enumerate(rounds.pairs):
        rows, done = torch.arange(size), list[tuple[float, Ranked]]()
        for name, one in left:
            # A slow network ends a round early, and leaves time for the next one. The first has half of the time.
            share = 0.5 + 0.5 * i / max(1, len(rounds.pairs) - 1)
            if seconds is not None and run.seconds - began > seconds * share and len(done) > 1:
                break
            distances = loss.per_pair(one, rows)
            root = float((distances.sign() * distances.abs().sqrt()).mean())
            done.append((root, Ranked(name, one, float(distances.mean()))))
        done.sort(key=lambda each: each[0])
        kept = num_kept(len(done))
        left, ranked = [(one.name, one.plan) for _, one in done[:kept]], [one for _, one in done]
        out = [*ranked, *(one for one in out if one.name not in {each.name for each in ranked})]
    return Ranking(out)
