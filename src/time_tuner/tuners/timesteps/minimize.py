"""The minimum of a smooth function of one number, in few evaluations and without derivatives.

A search is a generator: it yields the place where it needs a value, and is sent that value. Whoever drives it can
advance several searches together, keep the values, and stop at any time.
"""

import math
from collections.abc import Callable, Generator
from typing import TypeAlias

Minimizer: TypeAlias = Generator[float, float, None]
"""Yields a place, is sent the value there."""

Evaluating: TypeAlias = Generator[float, float, float]
Bracket: TypeAlias = tuple[float, float, float]
"""Places a < b < c with f(b) at most f(a) and f(c)."""

GROWTH = 2.0  # of the strides downhill
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


def minimize(
    start: float, low: float, high: float, stride: float = 0.04, tolerance: float = 2e-3, most: int = 24
) -> Minimizer:
    """A search for the nearest minimum downhill of `start` in [low, high]; `start` is its first place.

    From `start` a bracket is found in growing strides, then narrowed by parabolas through its three points, with a
    golden section wherever they do not settle (after Brent, 1973, ch. 5). The search ends when a parabola that
    predicted the last value promises no more than a small share of it, when the bracket is `tolerance` wide, or after
    `most` values. The first stride is wide on purpose: where a network receives its time as sinusoids, the loss has
    ripples about 0.01 t wide, and three points closer than that would show a ripple instead of the minimum.
    """
    values: dict[float, float] = {}

    def evaluate(x: float) -> Evaluating:
        if x not in values and len(values) < most:
            values[x] = yield x
        return values.get(x, math.inf)

    bracket = yield from _bracket(evaluate, start, low, high, stride)
    if bracket is not None:
        yield from _narrow(evaluate, values, bracket, stride, tolerance, most)


def _bracket(
    evaluate: Callable[[float], Evaluating], start: float, low: float, high: float, stride: float
) -> Generator[float, float, Bracket | None]:
    """A bracket; None when the minimum is at an end of the range."""
    here = yield from evaluate(start)
    left, right = max(start - stride, low), min(start + stride, high)
    to_left = (yield from evaluate(left)) if left < start else math.inf
    if left < start and to_left < here:
        behind, middle, value = start, left, to_left
    else:
        to_right = (yield from evaluate(right)) if right > start else math.inf
        if to_right >= here:
            if left < start < right:
                return left, start, right
            other = left if left < start else right
            return None if other == start else (yield from _inward(evaluate, start, other))
        behind, middle, value = start, right, to_right
    while True:
        ahead = min(max(middle + GROWTH * (middle - behind), low), high)
        if ahead == middle:  # downhill to the end of the range: the minimum is there or just before it
            return (yield from _inward(evaluate, middle, behind))
        beyond = yield from evaluate(ahead)
        if beyond > value:
            return (behind, middle, ahead) if behind < ahead else (ahead, middle, behind)
        behind, middle, value = middle, ahead, beyond


def _inward(
    evaluate: Callable[[float], Evaluating], end: float, other: float
) -> Generator[float, float, Bracket | None]:
    """A bracket between the end of the range, the lower of the two, and a point inside; None if the end is lowest."""
    near = end + (other - end) * 0.1
    if (yield from evaluate(near)) > (yield from evaluate(end)):
        return None
    return (end, near, other) if end < other else (other, near, end)


def _narrow(
    evaluate: Callable[[float], Evaluating],
    values: dict[float, float],
    bracket: Bracket,
    stride: float,
    tolerance: float,
    most: int,
) -> Minimizer:
    a, b, c = bracket
    width, settled = math.inf, False
    while len(values) < most and c - a > tolerance:
        floor = FLOOR * (min(values[a], values[c]) - values[b])
        u, predicted = _vertex(a, b, c, values[a], values[b], values[c])
        if settled and values[b] - predicted <= GAIN * max(abs(values[b]), floor):
            return
        longer = c - b if c - b > b - a else a - b
        if abs(u - b) < min(tolerance, abs(longer) / 4):
            # The value at the vertex of the parabola is known well enough.
            u = b + (min(stride, longer) if longer > 0 else max(-stride, longer)) / 4
        if c - a > 0.7 * width or not a < u < c:  # the last step removed too little: a section removes a sure share
            u = b + SECTION * longer
        width = c - a
        predicted = _parabola(u, (a, b, c), (values[a], values[b], values[c]))
        value = yield from evaluate(u)
        settled = abs(value - predicted) <= SURPRISE * max(abs(value), floor)
        if value <= values[b]:
            a, b, c = (b, u, c) if u > b else (a, u, b)
        else:
            a, b, c = (a, b, u) if u > b else (u, b, c)


def _vertex(a: float, b: float, c: float, fa: float, fb: float, fc: float) -> tuple[float, float]:
    """Where the parabola through three points is lowest, and its value; b where they lie on a line."""
    left, right = (b - a) * (fb - fc), (b - c) * (fb - fa)
    if left == right:
        return b, fb
    u = b - 0.5 * ((b - a) * left - (b - c) * right) / (left - right)
    return u, _parabola(u, (a, b, c), (fa, fb, fc))


def _parabola(x: float, places: Bracket, values: tuple[float, float, float]) -> float:
    """The value at x of the parabola through three points (Lagrange)."""
    a, b, c = places
    fa, fb, fc = values
    return (
        fa * (x - b) * (x - c) / ((a - b) * (a - c))
        + fb * (x - a) * (x - c) / ((b - a) * (b - c))
        + fc * (x - a) * (x - b) / ((c - a) * (c - b))
    )
