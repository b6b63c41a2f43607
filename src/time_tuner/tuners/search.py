"""The minimum of a smooth function of one number, in few evaluations and without derivatives."""

from collections.abc import Callable

GOLDEN = 1.618033988749895


def minimise(
    f: Callable[[float], float],
    start: float,
    low: float,
    high: float,
    stride: float = 0.04,
    tolerance: float = 1e-3,
    most: int = 40,
) -> tuple[float, float]:
    """The nearest minimum downhill of `start` in [low, high], to `tolerance`: (where, value).

    A bracket is stepped out from `start` in golden strides, then narrowed by parabolas through its three points, with
    a golden section wherever a parabola does not settle (after Brent, 1973, ch. 5). The value is never above that at
    `start`. At most `most` evaluations of f; it stops early with the best so far.
    """
    seen: dict[float, float] = {}

    def value(x: float) -> float:
        if x not in seen:
            seen[x] = f(x)
        return seen[x]

    value(start)
    bracket = _bracket(value, start, low, high, stride)
    if bracket is not None:
        _narrow(value, *bracket, tolerance, most, seen)
    best = min(seen, key=lambda x: (seen[x], abs(x - start)))
    return best, seen[best]


def _bracket(
    value: Callable[[float], float], start: float, low: float, high: float, stride: float
) -> tuple[float, float, float] | None:
    """Three points a < b < c with f(b) at most f(a), f(c); None when the minimum is at an end of the range."""
    left, right = max(start - stride, low), min(start + stride, high)
    ahead = right if right > start and (left == start or value(right) <= value(left)) else left
    if ahead == start:
        return None
    if value(ahead) > value(start):
        # Start is a minimum of what was seen, unless the range ends there.
        return (
            (left, start, right)
            if left < start < right and value(left) >= value(start)
            else _inward(value, start, ahead)
        )
    behind, middle = start, ahead
    while True:
        ahead = min(max(middle + GOLDEN * (middle - behind), low), high)
        if ahead == middle:  # downhill to the end of the range: the minimum is there or just before it
            return _inward(value, middle, behind)
        if value(ahead) > value(middle):
            return (behind, middle, ahead) if behind < ahead else (ahead, middle, behind)
        behind, middle = middle, ahead


def _inward(value: Callable[[float], float], end: float, other: float) -> tuple[float, float, float] | None:
    """A bracket between the end of the range, the lower of the two, and a point inside; None if the end is lowest."""
    near = end + (other - end) * 0.1
    if value(near) > value(end):
        return None
    return (end, near, other) if end < other else (other, near, end)


def _narrow(
    value: Callable[[float], float],
    a: float,
    b: float,
    c: float,
    tolerance: float,
    most: int,
    seen: dict[float, float],
) -> None:
    width = c - a
    while len(seen) < most:
        u = _vertex(a, b, c, value(a), value(b), value(c))
        if abs(u - b) < tolerance:
            if c - a < 100 * tolerance:
                return
            # Over a wide bracket a parabola says little: a few strides of the tolerance into its longer side tell more.
            u = b + 10 * tolerance if c - b > b - a else b - 10 * tolerance
        golden = c - a > 0.7 * width  # the last step took away too little: a section takes a sure share
        width = c - a
        if golden or not a < u < c:
            u = b + (c - b) / (GOLDEN + 1) if c - b > b - a else b - (b - a) / (GOLDEN + 1)
        if value(u) <= value(b):
            a, b, c = (b, u, c) if u > b else (a, u, b)
        else:
            a, b, c = (a, b, u) if u > b else (u, b, c)
        if c - a < tolerance:
            return


def _vertex(a: float, b: float, c: float, fa: float, fb: float, fc: float) -> float:
    """Where the parabola through three points is lowest; b itself where they lie on a line."""
    left, right = (b - a) * (fb - fc), (b - c) * (fb - fa)
    if left == right:
        return b
    return b - 0.5 * ((b - a) * left - (b - c) * right) / (left - right)
