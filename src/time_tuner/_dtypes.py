"""Half precision, and the precision in which its arithmetic is done."""

import torch
from torch import Tensor

HALF = (torch.float16, torch.bfloat16)


def like(value: Tensor, x: Tensor) -> Tensor:
    """`value` in the dtype of x and then on its device, which may be one without float64."""
    return value.to(x.dtype).to(x.device)


def squared_norms(x: Tensor) -> Tensor:
    """|x|^2 of each sample (B, ...), float64 (B,) on the CPU: summed in the dtype of x, in float32 at least, for the
    device of the states may be one without float64."""
    return wide(x).square().flatten(1).sum(1).cpu().double()


def wide(x: Tensor) -> Tensor:
    """x, in float32 where it is in half precision."""
    return x.float() if x.dtype in HALF else x
