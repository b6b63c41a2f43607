"""What a backward pass keeps of a network, and how to keep less."""

import os
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.checkpoint import checkpoint, set_checkpoint_early_stop

from ..plans.plan import Plan
from ..sampling import Eps


class CheckpointedModel:
    """A model whose activations are not kept for the backward pass but computed again: a call costs a forward more, and
    a run needs the memory of a single call."""

    def __init__(self, eps: Eps) -> None:
        self.eps = eps

    def __call__(self, x: Tensor, t: Any, tau: Any = None) -> Tensor:
        return self._asked(self.eps, x, t, tau)

    def __getattr__(self, name: str) -> Any:
        found = getattr(self.eps, name)
        return partial(self._asked, found) if name == "x0" else found

    def _asked(self, say: Eps, x: Tensor, t: Any, tau: Any = None) -> Tensor:
        with set_checkpoint_early_stop(False):  # to its end, where it is counted
            said: Tensor = checkpoint(say, x, t, tau, use_reentrant=False)
        return said


def kept_bytes(work: Callable[[], Any]) -> int:
    """How much memory some work keeps until its backward pass."""
    seen: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        seen[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.enable_grad(), saved_tensors_hooks(keep, lambda tensor: tensor):
        done = work()  # what it returns holds what is kept, or memory would be counted as used again
    del done
    return sum(seen.values())


def free_bytes(device: torch.device) -> int:
    """How much memory is free on a device."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):  # not on this system
        return 2**32


def crowded(eps: Eps, x: Tensor, plan: Plan) -> bool:
    """Whether the activations of a whole run would fill more than half of what is free."""
    p = plan.point(len(plan) - 1)
    once = kept_bytes(lambda: eps(x.detach().requires_grad_(), p.t, p.t))
    return once * len(plan) > free_bytes(x.device) / 2
