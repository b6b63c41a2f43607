"""Half precision, and the precision in which its arithmetic is done."""

import torch
from torch import Tensor

HALF = (torch.float16, torch.bfloat16)


def like(value: Tensor, x: Tensor) -> Tensor:
    """`value` in the dtype of x and then on its device, which may be one without float64."""
    return value.to(x.dtype).to(x.device)


def wide(x: Tensor) -> Tensor:
    """x, in float32 where it is in half precision."""
    return x.float() if x.dtype in HALF else x
