"""Assertions that name the property which does not hold."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


def seeded(*shape: int, seed: int = 0) -> Tensor:
    """Standard normal numbers in float64."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def no_noise(x: Tensor) -> Tensor:
    """The noise of a run that draws none."""
    raise AssertionError("a deterministic plan draws no noise")


def holds(condition: bool, what: str) -> None:
    """Raise an AssertionError that names what does not hold."""
    if not condition:
        raise AssertionError(f"this does not hold: {what}")


def close(got: Tensor, expected: Tensor, what: str, rtol: float = 1e-7, atol: float = 1e-9) -> None:
    torch.testing.assert_close(
        got, expected, rtol=rtol, atol=atol, msg=lambda text: f"this does not hold: {what}\n{text}"
    )


class NoFloat64(TorchDispatchMode):
    """A mode in which an operation that makes float64 of float32 or less is an AssertionError: it fails on a device
    without float64, such as Apple's. Points, times and weights are float64 from the beginning, on the CPU.

    Args:
        shape: of one state. If given, operations on other tensors than states (..., *shape) are free: numbers of a
            state that were moved to the CPU may become float64 there.
    """

    def __init__(self, shape: tuple[int, ...] | None = None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.shape = shape

    def _on_device(self, value: Any) -> bool:
        held = isinstance(value, Tensor) and (value.is_floating_point() or value.is_complex())
        return held and (self.shape is None or tuple(value.shape[-len(self.shape) :]) == self.shape)

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        made = func(*args, **(kwargs or {}))
        doubles = (torch.float64, torch.complex128)
        given = [value for value in tree_leaves((args, kwargs)) if self._on_device(value)]
        single = any(value.dtype not in doubles for value in given)
        double = any(isinstance(value, Tensor) and value.dtype in doubles for value in tree_leaves(made))
        holds(not (single and double), f"states are computed without float64, {func} makes it of them")
        return made
