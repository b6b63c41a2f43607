"""What a backward pass keeps of a network, and how to keep less."""

import os
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.checkpoint import checkpoint, set_checkpoint_early_stop

from .base import Model, ModelAround


class CheckpointedModel(ModelAround):
    """A model whose activations are computed again in the backward pass instead of being kept: a call costs a forward
    more, and a run needs the memory of a single call."""

    def predict(self, quantity: str, x: Tensor, t: Any, tau: Any = None) -> Tensor:
        with set_checkpoint_early_stop(False):  # to its end, where it is counted
            prediction: Tensor = checkpoint(self.inner.predict, quantity, x, t, tau, use_reentrant=False)
        return prediction

    def parts(
        self, quantity: str, x: Tensor, t: Any, tau: Any = None, guided: bool = True
    ) -> tuple[Tensor, Tensor | None]:
        with set_checkpoint_early_stop(False):
            found: tuple[Tensor, Tensor | None] = checkpoint(
                self.inner.parts, quantity, x, t, tau, guided, use_reentrant=False
            )
        return found


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


def needs_checkpointing(model: Model, x: Tensor, t: Tensor, calls: int) -> bool:
    """Whether the activations of a run of so many calls would fill more than half of the free memory."""
    once = kept_bytes(lambda: model(x.detach().requires_grad_(), t, t))
    return once * calls > free_bytes(x.device) / 2
