"""Half precision, and the precision in which its arithmetic is done."""

import torch
from torch import Tensor

HALF = (torch.float16, torch.bfloat16)


def wide(x: Tensor) -> Tensor:
    """x, in float32 where it is in half precision."""
    return x.float() if x.dtype in HALF else x
