"""Assertions that name the property which does not hold."""

import torch
from torch import Tensor


def seeded(*shape: int, seed: int = 0) -> Tensor:
    """Standard normal numbers in float64."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def holds(condition: bool, what: str) -> None:
    """Raise an AssertionError that names what does not hold."""
    if not condition:
        raise AssertionError(f"this does not hold: {what}")


def close(got: Tensor, expected: Tensor, what: str, rtol: float = 1e-7, atol: float = 1e-9) -> None:
    torch.testing.assert_close(
        got, expected, rtol=rtol, atol=atol, msg=lambda text: f"this does not hold: {what}\n{text}"
    )
