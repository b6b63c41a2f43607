"""Fewer cases where a test has three parameters or more, and its truth is of each two of them."""

from collections.abc import Sequence
from itertools import combinations, product
from typing import Any

import pytest


def cases(*values: Sequence[Any]) -> list[tuple[Any, ...]]:
    """Tuples of one value of each list, such that any two values of two lists are together in one of them: by the
    greedy rule, which takes the tuple that has the most pairs that are missing."""
    indices = list(product(*(range(len(each)) for each in values)))
    pairs = {one: set(combinations(enumerate(one), 2)) for one in indices}
    missing, taken = set[Any]().union(*pairs.values()), list[tuple[int, ...]]()
    while missing:
        taken.append(max(indices, key=lambda one: len(pairs[one] & missing)))
        missing -= pairs[taken[-1]]
    return [tuple(each[i] for each, i in zip(values, one, strict=True)) for one in sorted(taken)]


def every_pair(names: str, *values: Sequence[Any], ids: Any = None) -> pytest.MarkDecorator:
    """`pytest.mark.parametrize` for several parameters: every pair of values of two of them is tested, and not every
    combination of all."""
    return pytest.mark.parametrize([name.strip() for name in names.split(",")], cases(*values), ids=ids)
