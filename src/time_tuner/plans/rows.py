"""Samplers compiled to numbers: what each call of a plan does to the tensors, as one row of weights.

Every sampler is linear in the states it saw, in what the network said of them and in the noise it draws, so running it
on unit vectors once gives the weights, and a run is one linear combination of tensors a call.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor

from ..samplers import Evaluation, Sampler
from ..schedules import Point

Term: TypeAlias = tuple[str, int]
"""A tensor that a row uses: what it is ("x" the state the network saw, "eps" or "x0" what it said, "c" the state after
the corrector, "z" the draw) and how many calls ago (0: this call's own)."""

ENTRIES = {"x": 0, "eps": 1, "x0": 1, "c": 2, "z": 3}
"""Where a term is found in a `Call`; the draw is not remembered, and stands behind the rest of the newest call."""

HALF = (torch.float16, torch.bfloat16)

LOST = 200.0
"""Where sigma exceeds this many alpha, the network is asked for x0: there the noise, in float32, tells the data to no
better than LOST * 6e-8 = 1e-5, and at alpha = 0 not at all."""


def predicted_quantity(p: Point) -> str:
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

    @cached_property
    def _parts(self) -> tuple[tuple[int, int, float], ...]:
        """Of each term: which of the calls, from the last, which entry of it, and the weight."""
        return tuple((-1 - ago, ENTRIES[what], w) for (what, ago), w in zip(self.terms, self.numbers, strict=True))

    def __call__(self, calls: Sequence[Sequence[Any]], dtype: torch.dtype) -> Tensor:
        """The sum in `dtype`; for half precision it is accumulated in float32.

        Args:
            calls: the entries of each call, see `ENTRIES`; the newest last.
        """
        half = dtype in HALF
        total: Tensor
        if self.weights.requires_grad:  # one operation, through which the gradient passes quickly
            terms = torch.stack([calls[i][j] for i, j, _ in self._parts]).to(torch.float32 if half else dtype)
            total = torch.tensordot(self.weights.to(terms.dtype), terms, 1)
        else:  # where a run spends its time
            (i, j, weight), *rest = self._parts
            total = torch.mul(calls[i][j].float() if half else calls[i][j], weight)
            for i, j, weight in rest:
                total.add_(calls[i][j].float() if half else calls[i][j], alpha=weight)
        return total.to(dtype) if half else total


@dataclass(frozen=True)
class Row:
    """One call: the corrected state at its point (None without a corrector), then the state after it."""

    corrected: Combination | None
    next_state: Combination
    uses_noise: bool
    history: int  # how many calls it looks back on, itself included
    predicts: str = "eps"  # what the network says, or "x0"

    def to_dict(self) -> dict[str, Any]:
        """The row as JSON holds it, for whoever runs a plan without this library."""
        said = {} if self.predicts == "eps" else {"predicts": self.predicts}
        corrected = {} if self.corrected is None else {"corrected": self.corrected.to_list()}
        return said | corrected | {"next_state": self.next_state.to_list()}


def compile_rows(
    sampler: Sampler, points: Sequence[Point], steps: Sequence[int], corrections: Tensor | None = None
) -> tuple[Row, ...]:
    """The rows of a run, with the gradient of its points and corrections.

    A call at alpha = 0, which only the first can be, is no part of anyone's past: lam is infinite there.

    Args:
        sampler: the sampler.
        points: the K + 1 points, 0-dim each.
        steps: the network calls of each step; they sum to K.
        corrections: C (K, K), strictly lower triangular, or None; see `Plan`.
    """
    rows: list[Row] = []
    corrected = [False] * (len(points) - 1)
    starts: list[int] = []  # of each call, the first of its step
    before = 0  # how many evaluations the previous call saw
    blind = int(points[0].alpha == 0)
    k = 0
    for step, calls in enumerate(steps):
        for stage in range(calls):
            look_back = min(sampler.look_back(step, stage, len(steps)), max(1, k + 1 - blind))
            if not 1 <= look_back <= before + 1:
                raise ValueError(
                    f"{type(sampler).__name__}.look_back must be at least 1 and at most one more than at the call "
                    f"before, got {look_back} after {before} (call {k})"
                )
            starts.append(max(k - stage, min(k, blind)))
            rows.append(_compile_row(sampler, points, corrections, k, starts, look_back, before, corrected))
            before = look_back if k >= blind else 0
            k += 1
    return tuple(rows)


def _compile_row(
    sampler: Sampler,
    points: Sequence[Point],
    corrections: Tensor | None,
    k: int,
    starts: list[int],
    look_back: int,
    before: int,
    corrected: list[bool],
) -> Row:
    """Row k, whose step begins with call `starts[k]`; notes in `corrected` whether the sampler corrects at k."""
    sees = max(look_back, before + 1)
    history = k + 1 if corrections is not None else sees
    says = [predicted_quantity(points[k - ago]) for ago in range(history)]
    terms: list[Term] = [*((what, ago) for ago in range(history) for what in ("x", says[ago], "c")), ("z", 0)]
    units: dict[Term, Tensor] = dict(zip(terms, torch.eye(len(terms), dtype=torch.float64), strict=True))

    def noise_said(i: int) -> Tensor:
        x, said, p = units["x", k - i], units[says[k - i], k - i], points[i]
        return said if says[k - i] == "eps" else (x - p.alpha * said) / p.sigma

    def evaluation(i: int) -> Evaluation:
        x, eps, c, p = units["x", k - i], noise_said(i), units["c", k - i], points[i]
        data = units.get(("x0", k - i))
        # A corrector moves the state and keeps x0, which makes the noise in the corrected state another.
        if corrected[i]:
            x, eps = c, eps + (c - x) / p.sigma
        return Evaluation(x, eps, p, data, i - starts[i])

    draws = False

    def noise(x: Tensor) -> Tensor:
        nonlocal draws
        if draws:
            raise ValueError(f"{type(sampler).__name__}.step draws noise more than once a call")
        draws = True
        return units["z", 0]

    correction = sampler.correct(tuple(evaluation(i) for i in range(k - before, k + 1))) if before else None
    corrected[k] = correction is not None
    q = points[k + 1]
    past = tuple(evaluation(i) for i in range(k - look_back + 1, k + 1))
    if q.sigma == 0:
        next_state = past[-1].x0
    elif past[-1].p.alpha == 0:
        next_state = q.alpha * past[-1].x0 + q.sigma * past[-1].eps
    else:
        next_state = sampler.step(past, q, noise)
    if corrections is not None and k:
        b = points[starts[k]]
        gamma = q.sigma - q.alpha / b.alpha * b.sigma
        said = torch.stack([noise_said(j) for j in range(k + 1)])
        next_state = next_state + gamma * (corrections[k, :k] @ (said[:k] - said[k]))
    combined = None if correction is None else _combination(terms, correction)
    return Row(combined, _combination(terms, next_state), draws, history, says[0])


def _combination(terms: list[Term], vector: Tensor) -> Combination:
    # A weight of zero may have a gradient (an untrained correction), but only one on something the network said.
    said = ("eps", "x0")
    used = [i for i, (what, _) in enumerate(terms) if vector[i] != 0 or (vector.requires_grad and what in said)]
    return Combination(tuple(terms[i] for i in used), vector[used])


class Call(NamedTuple):
    """What the loop remembers of a call: the state seen, what the network said (eps, or x0 where that is the row's
    unit), the corrected state if any."""

    x: Tensor
    eps: Tensor
    c: Tensor | None = None
