"""The minimum of a smooth function of one number, in few evaluations and without derivatives.

A search is a generator: it yields the place where it needs a value, and is sent that value. Whoever drives it can
advance several searches together, keep the values, and stop at any time.
"""

import math
from collections.abc import Callable, Generator
from typing import TypeAlias

Minimizer: TypeAlias = Generator[float, float, None]
"""Yields a place, is sent the value there."""

Evaluate: TypeAlias = Callable[[float], Generator[float, float, float]]

STRIDE = 0.04  # the first one, wider than the ripples, about 0.01 t, of a network that receives its time as sinusoids
GROWTH = 2.0  # of the strides downhill
TOLERANCE = 2e-3  # of the place
SECTION = 0.381966  # golden
GAIN = 2e-4  # a search ends where no more than this share of the value is left to gain,
SURPRISE = 1e-3  # by a parabola that predicted the last value to this share of it;
FLOOR = 0.01  # where the value is near zero, to shares of this part of its range in the bracket


def send(search: Minimizer, value: float) -> float | None:
    """Send a search the value that it needs: the place of the next one, None when it has ended."""
    try:
        return search.send(value)
    except StopIteration:
        return None


def lowest(values: dict[float, float], start: float) -> tuple[float, float]:
    """The place of the lowest value, and the value; of equal ones the place nearest to `start`."""
    x = min(values, key=lambda x: (values[x], abs(x - start)))
    return x, values[x]


def minimize(start: float, low: float, high: float, most: int = 24) -> Minimizer:
    """A search for the nearest minimum downhill of `start` in [low, high]; `start` is its first place.

    From `start` a bracket is found in growing strides, then narrowed by parabolas through its three points, with a
    golden section wherever they do not settle (after Brent, 1973, ch. 5). The search ends when a parabola that
    predicted the last value promises no more than a small share of it, when the bracket is narrow, or after `most`
    values.
    """
    values: dict[float, float] = {}

    def evaluate(x: float) -> Generator[float, float, float]:
        if x not in values and len(values) < most:
            values[x] = yield x
        return values.get(x, math.inf)

    bracket = yield from _bracket(evaluate, start, low, high, STRIDE, 0.1)
    if not bracket:
        return
    a, b, c = bracket
    width, settled = math.inf, False
    while len(values) < most and c - a > TOLERANCE:
        fa, fb, fc = values[a], values[b], values[c]
        floor = FLOOR * (min(fa, fc) - fb)
        # 1. The vertex u of the parabola through the bracket; b where its points lie on a line.
        left, right = (b - a) * (fb - fc), (b - c) * (fb - fa)
        u, predicted = b, fb
        if left != right:
            u = b - 0.5 * ((b - a) * left - (b - c) * right) / (left - right)
            predicted = _parabola(u, a, b, c, fa, fb, fc)
        if settled and fb - predicted <= GAIN * max(abs(fb), floor):
            return
        # 2. Another place where the value at the vertex is known well enough, or the last step removed too little.
        longer = c - b if c - b > b - a else a - b
        if abs(u - b) < min(TOLERANCE, abs(longer) / 4):
            u = b + (min(STRIDE, longer) if longer > 0 else max(-STRIDE, longer)) / 4
        if c - a > 0.7 * width or not a < u < c:
            u = b + SECTION * longer
        # 3. The value there, and the narrower bracket.
        width = c - a
        predicted = _parabola(u, a, b, c, fa, fb, fc)
        value = yield from evaluate(u)
        settled = abs(value - predicted) <= SURPRISE * max(abs(value), floor)
        if value <= fb:
            a, b, c = (b, u, c) if u > b else (a, u, b)
        else:
            a, b, c = (a, b, u) if u > b else (u, b, c)


def minimize_levels(start: int, low: int, high: int, stride: int, most: int = 24) -> Minimizer:
    """A search for the nearest minimum downhill of `start` among the whole numbers from `low` to `high`; `start` is its
    first place.

    It is that of `minimize`, with a bracket that begins with `stride` and places that are whole. It ends when both
    neighbours of the best place are known, or after `most` values.
    """
    values: dict[float, float] = {}

    def evaluate(x: float) -> Generator[float, float, float]:
        if x not in values and len(values) < most:
            values[x] = yield x
        return values.get(x, math.inf)

    bracket = yield from _bracket(evaluate, start, low, high, stride, None)
    if not bracket:
        return
    a, b, c = bracket
    width = math.inf
    while len(values) < most and c - a > 2:
        fa, fb, fc = values[a], values[b], values[c]
        longer = c - b if c - b > b - a else a - b
        # 1. The vertex u of the parabola through the bracket, or a golden section; beside b where that is b itself.
        left, right = (b - a) * (fb - fc), (b - c) * (fb - fa)
        u = b - 0.5 * ((b - a) * left - (b - c) * right) / (left - right) if left != right else b
        if c - a > 0.7 * width or not a < u < c:
            u = b + SECTION * longer
        u = min(max(round(u), a + 1), c - 1)
        if u == b:
            u = b + math.copysign(1, longer)
        # 2. The value there, and the narrower bracket.
        width = c - a
        value = yield from evaluate(u)
        if value <= fb:
            a, b, c = (b, u, c) if u > b else (a, u, b)
        else:
            a, b, c = (a, b, u) if u > b else (u, b, c)


def mapped(search: Minimizer, place: Callable[[float], float]) -> Minimizer:
    """The search with other names of its places."""
    here: float | None = next(search)
    while here is not None:
        here = send(search, (yield place(here)))


def _bracket(
    evaluate: Evaluate, start: float, low: float, high: float, stride: float, inside: float | None
) -> Generator[float, float, list[float]]:
    """Places a < b < c with f(b) at most f(a) and f(c); none when the minimum is at an end of the range. `inside` is
    the share of the last stride by which the search moves inward from there; None for 1, to the neighbour."""
    here = yield from evaluate(start)
    left, right = max(start - stride, low), min(start + stride, high)
    for middle in (left, right):
        if middle != start and (value := (yield from evaluate(middle))) < here:
            break
    else:
        if left < start < right:
            return [left, start, right]
        return [] if left == right else (yield from _inward(evaluate, start, left if left < start else right, inside))
    behind = start
    while True:
        ahead = min(max(middle + GROWTH * (middle - behind), low), high)
        if ahead == middle:  # downhill to the end of the range: the minimum is there or just before it
            return (yield from _inward(evaluate, middle, behind, inside))
        beyond = yield from evaluate(ahead)
        if beyond > value:
            return sorted((behind, middle, ahead))
        behind, middle, value = middle, ahead, beyond


def _inward(evaluate: Evaluate, end: float, other: float, inside: float | None) -> Generator[float, float, list[float]]:
    """A bracket between the end of the range, the lower of the two, and a point inside; none if the end is lowest."""
    near = end + (math.copysign(1, other - end) if inside is None else (other - end) * inside)
    if near == other or (yield from evaluate(near)) > (yield from evaluate(end)):
        return []
    return sorted((end, near, other))


def _parabola(x: float, a: float, b: float, c: float, fa: float, fb: float, fc: float) -> float:
    """The value at x of the parabola through three points (Lagrange)."""
    return (
        fa * (x - b) * (x - c) / ((a - b) * (a - c))
        + fb * (x - a) * (x - c) / ((b - a) * (b - c))
        + fc * (x - a) * (x - b) / ((c - a) * (c - b))
    )
