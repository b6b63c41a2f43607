"""Samplers compiled to numbers: what each call of a plan does to the tensors, as one row of weights.

Every sampler is linear in the states it saw, in what the network said of them and in the noise it draws, so running it
on unit vectors once gives the weights, and a run is one linear combination of tensors a call.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor

from .samplers import Evaluation, Noise
from .schedules import Point

if TYPE_CHECKING:
    from .plan import Plan

Term: TypeAlias = tuple[str, int]
"""A tensor that a row uses: what it is ("x" the state the network saw, "eps" or "x0" what it said, "c" the state after
the corrector, "z" the draw) and how many calls ago (0: this call's own)."""

LOST = 200.0
"""Where sigma exceeds this many alpha, the network is asked for x0: there the noise, in float32, tells the data to no
better than LOST * 6e-8 = 1e-5, and at alpha = 0 not at all."""


def unit(p: Point) -> str:
    """What a call at p is a prediction of, "eps" or "x0"."""
    return "x0" if p.sigma > LOST * p.alpha else "eps"


@dataclass(frozen=True)
class Combination:
    """A weighted sum of terms."""

    terms: tuple[Term, ...]
    weights: Tensor

    @cached_property
    def numbers(self) -> tuple[float, ...]:
        return tuple(self.weights.tolist())

    def to_list(self) -> list[list[Any]]:
        """[what, calls ago, weight] for each term."""
        return [[*term, number] for term, number in zip(self.terms, self.numbers, strict=True)]

    def __call__(self, value: Callable[[Term], Tensor], dtype: torch.dtype) -> Tensor:
        """The sum in `dtype`; for half precision it is accumulated in float32."""
        wide = torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype
        first, *rest = (value(term).to(wide) for term in self.terms)
        if self.weights.requires_grad:
            total = self.weights[0] * first
            for weight, tensor in zip(self.weights[1:], rest, strict=True):
                total = total + weight * tensor
        else:
            total = self.numbers[0] * first
            for number, tensor in zip(self.numbers[1:], rest, strict=True):
                total.add_(tensor, alpha=number)
        return total.to(dtype)


@dataclass(frozen=True)
class Row:
    """One call: the corrected state at its point (None without a corrector), then the state after it."""

    corrected: Combination | None
    following: Combination
    draws: bool
    reach: int  # how many calls it looks back on, itself included
    unit: str = "eps"  # what the network says, or "x0"

    def to_dict(self) -> dict[str, Any]:
        """The row as JSON holds it, for whoever runs a plan without this library."""
        said = {} if self.unit == "eps" else {"unit": self.unit}
        corrected = {} if self.corrected is None else {"corrected": self.corrected.to_list()}
        return said | corrected | {"following": self.following.to_list()}


def compile_rows(plan: "Plan") -> tuple[Row, ...]:
    """The rows of a plan, with the gradient of its points and corrections.

    A call at alpha = 0, which only the first can be, is no part of anyone's past: lam is infinite there.
    """
    rows: list[Row] = []
    corrected = [False] * len(plan)
    before = 0  # how many evaluations the previous call saw
    blind = int(plan.alpha[0] == 0)
    count = len(plan.steps)
    k = 0
    for step, calls in enumerate(plan.steps):
        for stage in range(calls):
            look_back = min(plan.sampler.look_back(step, stage, count), max(1, k + 1 - blind))
            if not 1 <= look_back <= before + 1:
                raise ValueError(
                    f"{type(plan.sampler).__name__}.look_back must be at least 1 and at most one more than at the call "
                    f"before, got {look_back} after {before} (call {k})"
                )
            rows.append(_compile_row(plan, k, max(k - stage, min(k, blind)), look_back, before, corrected))
            before = look_back if k >= blind else 0
            k += 1
    return tuple(rows)


def _compile_row(plan: "Plan", k: int, start: int, look_back: int, before: int, corrected: list[bool]) -> Row:
    """Row k, whose step begins with call `start`; notes in `corrected` whether the sampler corrects at k."""
    sees = max(look_back, before + 1)
    reach = k + 1 if plan.corrections is not None else sees
    says = [unit(plan.point(k - ago)) for ago in range(reach)]
    terms: list[Term] = [*((what, ago) for ago in range(reach) for what in ("x", says[ago], "c")), ("z", 0)]
    units: dict[Term, Tensor] = dict(zip(terms, torch.eye(len(terms), dtype=torch.float64), strict=True))

    def noise_said(i: int) -> Tensor:
        x, said, p = units["x", k - i], units[says[k - i], k - i], plan.point(i)
        return said if says[k - i] == "eps" else (x - p.alpha * said) / p.sigma

    def evaluation(i: int) -> Evaluation:
        x, eps, c, p = units["x", k - i], noise_said(i), units["c", k - i], plan.point(i)
        data = units.get(("x0", k - i))
        # A corrector moves the state and keeps x0, which makes the noise in the corrected state another.
        return Evaluation(c, eps + (c - x) / p.sigma, p, data) if corrected[i] else Evaluation(x, eps, p, data)

    draws = False

    def noise(x: Tensor) -> Tensor:
        nonlocal draws
        if draws:
            raise ValueError(f"{type(plan.sampler).__name__}.step draws noise more than once a call")
        draws = True
        return units["z", 0]

    correction = plan.sampler.correct(tuple(evaluation(i) for i in range(k - before, k + 1))) if before else None
    corrected[k] = correction is not None
    q = plan.point(k + 1)
    past = tuple(evaluation(i) for i in range(k - look_back + 1, k + 1))
    if q.sigma == 0:
        following = past[-1].x0
    elif past[-1].p.alpha == 0:
        following = q.alpha * past[-1].x0 + q.sigma * past[-1].eps
    else:
        following = plan.sampler.step(past, q, noise)
    if plan.corrections is not None and k:
        b = plan.point(start)
        gamma = q.sigma - q.alpha / b.alpha * b.sigma
        said = [noise_said(j) for j in range(k + 1)]
        following = following + gamma * sum(
            (plan.corrections[k, j] * (said[j] - said[k]) for j in range(k)), torch.zeros_like(following)
        )
    combined = None if correction is None else _combination(terms, correction)
    return Row(combined, _combination(terms, following), draws, reach, says[0])


def _combination(terms: list[Term], vector: Tensor) -> Combination:
    # A weight of zero may have a gradient (an untrained correction), but only one on something the network said.
    said = ("eps", "x0")
    used = [i for i, (what, _) in enumerate(terms) if vector[i] != 0 or (vector.requires_grad and what in said)]
    return Combination(tuple(terms[i] for i in used), vector[used])


@dataclass(frozen=True)
class Call:
    """What the loop remembers of a call: the state seen, what the network said (eps, or x0 where that is the row's
    unit), the corrected state if any."""

    x: Tensor
    eps: Tensor
    c: Tensor | None = None


def advance(
    plan: "Plan", k: int, past: tuple[Call, ...], x: Tensor, eps: Tensor, noise: Noise
) -> tuple[Tensor, tuple[Call, ...]]:
    """The body of every loop: the state after call k, in which the network said `eps` of `x`, and what to remember.

    `past` is what the call before returned; `()` at the first one. `eps` is x0 where that is the row's unit.
    """
    row = plan.rows[k]
    past = (*past[max(0, len(past) + 1 - row.reach) :], Call(x, eps))
    z = noise(x) if row.draws else None

    def value(term: Term) -> Tensor:
        what, ago = term
        tensor = z if what == "z" else getattr(past[-1 - ago], "eps" if what == "x0" else what)
        assert tensor is not None
        return tensor

    if row.corrected is not None:
        past = (*past[:-1], Call(x, eps, row.corrected(value, x.dtype)))
    return row.following(value, x.dtype), past
