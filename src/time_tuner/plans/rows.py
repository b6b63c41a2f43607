"""Samplers compiled to numbers: each call of a plan becomes one row of weights.

The state after a call is linear in the states, predictions and noise of the calls so far. A sampler evaluated once on
unit vectors therefore gives the weights, and each call of a run is one weighted sum of tensors. The same evaluation
checks that the sampler is linear.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from torch import Tensor

from .._dtypes import HALF, like
from ..samplers import Evaluation, Sampler
from ..schedules import Point

Term: TypeAlias = tuple[str, int]
"""A tensor that a row uses: its kind ("x" the state that the network received, "eps" or "x0" its prediction, "c" the
corrected state, "z" the sampler's noise, "g" what guidance added to its prediction) and how many calls ago (0: this
call)."""

ENTRIES = {"x": 0, "eps": 1, "x0": 1, "c": 2, "g": 3, "z": 4}
"""The position of each kind of term in a `Call`; noise is not kept, and follows the entries of the newest call."""

X0_ABOVE = 200.0
"""Where sigma / alpha exceeds this number, rows use predictions of x0: the data that follows from a prediction of the
noise in float32 has an error of 200 * 6e-8 = 1e-5 there, and at alpha = 0 it does not exist."""

PROBES = (1.0, 1e2, 1e4, 1e6)
"""Magnitudes of the random numbers on which the linearity of a sampler is checked."""

SCALE = -(2.0**-40)
"""The factor by which homogeneity is checked: a power of two, with which a linear function rounds in the same way."""


@dataclass(frozen=True)
class Combination:
    """A weighted sum of tensors: the terms, and their weights as a tensor that may carry a gradient."""

    terms: tuple[Term, ...]
    weights: Tensor

    @cached_property
    def numbers(self) -> tuple[float, ...]:
        """The weights as Python numbers."""
        return tuple(self.weights.tolist())

    def to_list(self) -> list[list[Any]]:
        """[kind, calls ago, weight] for each term."""
        return [[*term, number] for term, number in zip(self.terms, self.numbers, strict=True)]

    @cached_property
    def _parts(self) -> tuple[tuple[int, int, float], ...]:
        """(index of the call from the last, position in it, weight) for each term."""
        return tuple((-1 - ago, ENTRIES[kind], w) for (kind, ago), w in zip(self.terms, self.numbers, strict=True))

    def __call__(self, calls: Sequence[Sequence[Any]], dtype: torch.dtype) -> Tensor:
        """The sum over the tensors of each call, at the positions of `ENTRIES`, the newest call last; of type `dtype`.
        In half precision it is accumulated in float32."""
        half = dtype in HALF
        if self.weights.requires_grad:  # one operation, whose backward pass is fast
            terms = torch.stack([calls[i][j] for i, j, _ in self._parts]).to(torch.float32 if half else dtype)
            total: Tensor = torch.tensordot(like(self.weights, terms), terms, 1)
        else:  # the inner loop of every run
            (i, j, weight), *rest = self._parts
            total = torch.mul(calls[i][j].float() if half else calls[i][j], weight)
            for i, j, weight in rest:
                total.add_(calls[i][j].float() if half else calls[i][j], alpha=weight)
        return total.to(dtype) if half else total


@dataclass(frozen=True)
class Row:
    """The arithmetic of one call.

    Attributes:
        corrected: the corrected state at the call's own point; None without a corrector.
        next_state: the state at the next point.
        uses_noise: whether the sampler draws noise at this call.
        history: the number of calls that the row reads, its own included.
        predicts: the quantity that the network predicts at this call, "eps" or "x0".
        gamma: the factor of the corrections, see `Plan.corrections`.
        guidance: what is added to the prediction of a call without guidance, of terms "g"; None for a guided call.
        reused: whether later calls need what guidance adds at this one.
    """

    corrected: Combination | None
    next_state: Combination
    uses_noise: bool
    history: int
    predicts: str = "eps"
    gamma: float = 0.0
    guidance: Combination | None = None
    reused: bool = False

    def to_dict(self) -> dict[str, Any]:
        """The row as plain JSON values, which suffice to run a plan without this library."""
        predicts = {} if self.predicts == "eps" else {"predicts": self.predicts}
        corrected = {} if self.corrected is None else {"corrected": self.corrected.to_list()}
        guidance = {} if self.guidance is None else {"guidance": self.guidance.to_list()}
        return predicts | guidance | corrected | {"next_state": self.next_state.to_list()}


class Call(NamedTuple):
    """The tensors of a call that the loop keeps: the state that the network received, its prediction (eps, or x0 where
    the row predicts that), the corrected state if there is one, and what guidance added if later calls need it."""

    x: Tensor
    eps: Tensor
    c: Tensor | None = None
    g: Tensor | None = None

    def of(self, rows: Tensor, device: torch.device) -> "Call":
        """The call of some of the samples, on this device."""
        x, eps, c, g = (one if one is None else one[rows].to(device) for one in self)
        assert x is not None and eps is not None
        return Call(x, eps, c, g)


def predicted_at(p: Point) -> str:
    """What rows predict at this point, "eps" or "x0"."""
    return "x0" if p.sigma > X0_ABOVE * p.alpha else "eps"


def compile_rows(
    sampler: Sampler, points: Sequence[Point], steps: Sequence[int], corrections: Tensor | None = None
) -> tuple[Row, ...]:
    """The rows of a run, with the gradient of its points and corrections.

    Only the first call can be at alpha = 0. Later calls do not look back on it, since lam is infinite there. There are
    K + 1 `points`, 0-dim each; `steps` and `corrections` are those of a `Plan`.

    Raises:
        ValueError: the sampler is not linear, looks back too far, or draws noise twice in a call.
    """
    numbers = [number for p in points for number in (p.t, p.alpha, p.sigma)]
    kind = getattr(type(sampler), "__dataclass_params__", None)
    if corrections is not None or not getattr(kind, "frozen", False) or any(one.requires_grad for one in numbers):
        return _compiled(sampler, points, steps, corrections)
    values = tuple(float(one) for one in numbers)
    return _known(sampler, tuple(zip(values[::3], values[1::3], values[2::3], strict=True)), tuple(steps))


@lru_cache(maxsize=1024)
def _known(sampler: Sampler, points: Sequence[tuple[float, float, float]], steps: Sequence[int]) -> tuple[Row, ...]:
    """The rows of an untuned run: a search meets the same ones again and again, and compiling takes milliseconds."""
    with torch.inference_mode(False), torch.no_grad():
        at = torch.tensor(points, dtype=torch.float64, device="cpu").unbind()
        return _compiled(sampler, [Point(*one.unbind()) for one in at], steps, None)


def _compiled(
    sampler: Sampler, points: Sequence[Point], steps: Sequence[int], corrections: Tensor | None
) -> tuple[Row, ...]:
    compiler = _Compiler(sampler, points, corrections)
    rows: list[Row] = []
    before = 0  # the look-back of the previous call
    seen = int(points[0].alpha == 0)  # the first call that later calls may look back on
    k = 0
    for step, calls in enumerate(steps):
        for stage in range(calls):
            look_back = min(sampler.look_back(step, stage, len(steps)), max(1, k + 1 - seen))
            if not 1 <= look_back <= before + 1:
                raise ValueError(
                    f"{type(sampler).__name__}.look_back must be at least 1 and at most one more than at the call "
                    f"before, got {look_back} after {before} (call {k})"
                )
            rows.append(compiler.row(k, max(k - stage, min(k, seen)), look_back, before))
            before = look_back if k >= seen else 0
            k += 1
    return tuple(rows)


def detached(rows: Sequence[Row]) -> tuple[Row, ...]:
    """The rows without the gradient of their weights, as they are compiled of points without one."""

    def of(combination: Combination | None) -> Any:
        return None if combination is None else _combination(combination.terms, combination.weights.detach())

    return tuple(
        replace(row, corrected=of(row.corrected), next_state=of(row.next_state), guidance=of(row.guidance))
        for row in rows
    )


def with_guidance(rows: Sequence[Row], guided: Sequence[bool], reuse: Tensor) -> tuple[Row, ...]:
    """The rows of a plan that leaves guidance out of some calls, which reuse the guidance of others with weights
    (K, K)."""
    out, needed = list[Row](), set[int]()
    for k in reversed(range(len(rows))):
        row, earlier = rows[k], [j for j in range(k) if guided[j]]
        if not guided[k]:
            guidance = _combination([("g", k - j) for j in earlier], reuse[k, earlier])
            row, needed = replace(row, guidance=guidance), needed | {k - ago for _, ago in guidance.terms}
        # What guidance adds is kept to the end of the run.
        out.append(replace(row, reused=k in needed, history=k + 1 if needed else row.history))
    return tuple(reversed(out))


class _Point(Point):
    """A point of one compilation, in which samplers read lam many times: it is computed once."""

    @cached_property
    def lam(self) -> Tensor:
        return super().lam


class _Compiler:
    """Compiles the rows of one run, in their order."""

    def __init__(self, sampler: Sampler, points: Sequence[Point], corrections: Tensor | None) -> None:
        self.sampler, self.corrections = sampler, corrections
        self.points = [_Point(p.t, p.alpha, p.sigma) for p in points]
        self.quantities = list(map(predicted_at, points))
        self.starts: list[int] = []  # for each call, the first call of its step
        self.corrected: list[bool] = []  # for each call, whether the sampler corrects its state
        self.rescaled: set[Any] = set()  # the shapes of past whose homogeneity was checked

    def row(self, k: int, start: int, look_back: int, before: int) -> Row:
        """Row k, of a step that starts with call `start`; `before` is the look-back of the call before."""
        self.starts.append(start)
        self.corrected.append(False)
        reads = max(look_back, before + 1)
        terms = self._terms(k, reads)
        values = _values(len(terms))
        correction, next_state, uses_noise = self._evaluate(k, look_back, before, values)
        combined = None
        if correction is not None:
            combined = _combination(terms, self._weights("correct", correction, values))
        weights = self._weights("step", next_state, values)
        self._check_homogeneous(k, look_back, before, values, (correction, next_state))
        if self.corrections is not None and k:
            terms, new = self._terms(k, k + 1), weights.new_zeros(3 * (k + 1 - reads))
            weights = torch.cat([weights[:-1], new, weights[-1:]]) + self._moved(k, self.corrections[k, :k])
        history = reads if self.corrections is None else k + 1
        gamma = float(self._gamma(k).detach()) if k else 0.0  # there is nothing to correct by at the first call
        return Row(combined, _combination(terms, weights), uses_noise, history, terms[1][0], gamma)

    def _terms(self, k: int, history: int) -> list[Term]:
        kinds = [("x", self.quantities[k - ago], "c") for ago in range(history)]
        return [*((kind, ago) for ago in range(history) for kind in kinds[ago]), ("z", 0)]

    def _evaluate(self, k: int, look_back: int, before: int, values: np.ndarray) -> tuple[Tensor | None, Tensor, bool]:
        """The corrected state, the next state and whether noise was drawn, for `values` in place of the terms."""
        terms = self._terms(k, max(look_back, before + 1))
        tensors = dict(zip(terms, torch.tensor(values, device="cpu").unbind(), strict=True))
        drawn = False

        def noise(x: Tensor) -> Tensor:
            nonlocal drawn
            if drawn:
                raise ValueError(f"{type(self.sampler).__name__}.step draws noise more than once a call")
            drawn = True
            return tensors["z", 0]

        correction, self.corrected[k] = None, False
        if before:
            correction = self.sampler.correct(tuple(self._evaluation(i, k, tensors) for i in range(k - before, k + 1)))
        self.corrected[k] = correction is not None
        past = tuple(self._evaluation(i, k, tensors) for i in range(k - look_back + 1, k + 1))
        q, newest = self.points[k + 1], past[-1]
        if q.sigma == 0:
            next_state = newest.x0
        elif newest.p.alpha == 0:
            next_state = self.sampler.first_step(newest, q, noise)
        else:
            next_state = self.sampler.step(past, q, noise)
        return correction, next_state, drawn

    def _evaluation(self, i: int, k: int, tensors: Mapping[Term, Tensor]) -> Evaluation:
        """The evaluation of call i that the sampler receives at call k."""
        ago, p = k - i, self.points[i]
        x, x0 = tensors["x", ago], tensors.get(("x0", ago))
        eps = tensors["eps", ago] if x0 is None else (x - p.alpha * x0) / p.sigma
        if self.corrected[i]:  # a corrector moves the state and keeps x0: the noise in the corrected state is another
            c = tensors["c", ago]
            x, eps = c, eps + (c - x) / p.sigma
        return Evaluation(x, eps, p, x0, i - self.starts[i])

    def _gamma(self, k: int) -> Tensor:
        q, b = self.points[k + 1], self.points[self.starts[k]]
        return q.sigma - q.alpha / b.alpha * b.sigma

    def _moved(self, k: int, corrections: Tensor) -> Tensor:
        """The weights of gamma_k sum_j C[k, j] (eps_j - eps_k) on all terms of call k, for C[k, :k] (k,)."""
        backwards = torch.cat([-corrections.sum()[None], corrections.flip(0)])  # from call k to call 0
        on_eps = self._gamma(k) * backwards
        none = torch.zeros_like(on_eps)
        on_x, on_prediction = none, on_eps
        if "x0" in self.quantities[: k + 1]:  # where eps is (x - alpha x0) / sigma
            past = self.points[k::-1]
            x0 = torch.tensor([quantity == "x0" for quantity in self.quantities[k::-1]])
            alpha, sigma = torch.stack([p.alpha for p in past]), torch.stack([p.sigma for p in past])
            on_x = torch.where(x0, on_eps / sigma, none)
            on_prediction = torch.where(x0, -alpha * on_x, on_eps)
        return torch.cat([torch.stack([on_x, on_prediction, none], 1).flatten(), none[:1]])

    def _weights(self, method: str, got: Any, values: np.ndarray) -> Tensor:
        """The weight of each term in what the sampler computed from `values`, after a check of its linearity."""
        if not isinstance(got, Tensor) or got.shape != values.shape[1:]:
            shape = f"shape {tuple(got.shape)}" if isinstance(got, Tensor) else type(got).__name__
            raise ValueError(
                f"{type(self.sampler).__name__}.{method} must return a tensor of the shape of x, got {shape} "
                f"where x has {values.shape[1:]}"
            )
        count, numbers = len(values), np.array(got[0].tolist())
        weights, random = numbers[:count], values[:, 0, count:]
        self._check(method, numbers[count:] - weights @ random, 1e-6 * (abs(weights) @ abs(random)))
        return got[0, :count]

    def _check_homogeneous(
        self, k: int, look_back: int, before: int, values: np.ndarray, results: tuple[Tensor | None, Tensor]
    ) -> None:
        """Raise a ValueError unless all results are multiplied by SCALE when `values` are."""
        shape = (before, *(i - self.starts[i] for i in range(k - look_back + 1, k + 1)))
        if shape in self.rescaled:
            return
        self.rescaled.add(shape)
        with torch.no_grad():
            *again, _ = self._evaluate(k, look_back, before, SCALE * values)
        for method, first, second in zip(("correct", "step"), results, again, strict=True):
            if first is None or second is None or first.shape != second.shape:
                self._check(method, np.array(float(first is not second)), np.array(0.0))
            else:
                scaled = SCALE * np.array(first.tolist())
                self._check(method, scaled - np.array(second.tolist()), 1e-9 * abs(scaled))

    def _check(self, method: str, error: np.ndarray, bound: np.ndarray) -> None:
        """Raise a ValueError if an error exceeds its bound. NaN passes; the run reports it."""
        if (abs(error) > bound).any():
            raise ValueError(
                f"{type(self.sampler).__name__}.{method} must be linear in the states, predictions and noise that it "
                "receives, with weights that depend on the points alone: nonlinear operations on the prediction "
                "(clamp, threshold) belong into a wrapper around the model, such as "
                "time_tuner.models.thresholding.clipped"
            )


@lru_cache
def _values(count: int) -> np.ndarray:
    """A unit vector and 4 random numbers for each of `count` terms, as a batch of one sample: (count, 1, count + 4)."""
    random = np.random.default_rng(0).standard_normal((count, len(PROBES))) * PROBES
    return np.concatenate([np.eye(count), random], 1)[:, None]


def _combination(terms: Sequence[Term], weights: Tensor) -> Combination:
    """The sum of the terms whose weight is not zero.

    If the weights have a gradient, predictions stay at weight zero, too, since a correction may be 0 and yet be tuned.
    So do states whose prediction is x0, since their eps follows from state and x0.
    """
    numbers, trained = weights.tolist(), set[Term]()
    if weights.requires_grad:
        trained = {(kind, ago) for kind, ago in terms if kind in ("eps", "x0", "g")}
        trained |= {("x", ago) for kind, ago in trained if kind == "x0"}
    used = [i for i, term in enumerate(terms) if numbers[i] != 0 or term in trained]
    return Combination(tuple(terms[i] for i in used), weights[used])
