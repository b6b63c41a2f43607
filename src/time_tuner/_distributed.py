"""Work that several processes share: which samples belong to this process, and what all of them agree on.

Of n samples, process r of N has those with the numbers r, r + N, r + 2 N, ... Values of samples are gathered in the
order of the samples, so that what is computed of them does not depend on N. What depends on a clock or on a file is
decided by process 0. All processes so take the same path. With one process, or before `share_work`, every function
here returns what it is given.

Everything is exchanged on the CPU, by gloo.
"""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar, cast
from zlib import crc32

import torch
from torch import Tensor
from torch import distributed as dist

T = TypeVar("T")

LONGEST_WAIT = timedelta(minutes=30)
"""Of a process for the others, after which it ends with an error. One that dies is noticed at once."""

HEAD = 64  # bytes of a decision that one exchange is enough for

_group: "dist.ProcessGroup | None" = None


def share_work(longest_wait: timedelta = LONGEST_WAIT) -> None:
    """From here on the processes of `torchrun` tune, sample and evaluate together; all must make the same calls.

    `tune`, `tune_several`, `estimate`, `evaluate`, `check_plan` and `ReferenceDistance` divide their samples among the
    processes, and return the same result to each. `sample` and `trajectory` stay with the states that they are given.
    Files are written by process 0 alone, and progress is shown there. The processes are those of a group that the
    program, or accelerate, has begun already; else they are found in the environment that `torchrun` sets, and each
    takes the GPU with its number on the machine.

    Args:
        longest_wait: of a process for the others, after which it ends with an error.

    Raises:
        ValueError: the program was not started by `torchrun`, or this torch has no torch.distributed.
    """
    global _group
    if not dist.is_available():
        raise ValueError("share_work needs torch.distributed, and this build of torch has none: install another one")
    if dist.is_initialized():
        _group = dist.new_group(backend="gloo", timeout=longest_wait)
        return
    if not launched():
        raise ValueError(
            "share_work needs several processes, and this is one alone: start the program with "
            "torchrun --nproc-per-node 2 program.py"
        )
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
    dist.init_process_group("gloo", timeout=longest_wait)
    _group = dist.group.WORLD


def launched() -> bool:
    """Whether this process is one of several that `torchrun`, or `accelerate launch`, has started."""
    return {"RANK", "WORLD_SIZE", "MASTER_ADDR"} <= os.environ.keys() and int(os.environ["WORLD_SIZE"]) > 1


def num_processes() -> int:
    """How many processes share the work."""
    return 1 if _group is None else dist.get_world_size(_group)


def rank() -> int:
    """The number of this process, from 0."""
    return 0 if _group is None else dist.get_rank(_group)


def of_all(batch: int | None) -> int | None:
    """The samples in network calls of this size that all processes make at a time; None for any number."""
    return None if batch is None else batch * num_processes()


def share(count: int) -> Tensor:
    """The numbers (m,) of the samples of this process, among `count`. A process without any has one that belongs to
    another, and `gathered` takes the other's."""
    if _group is None or not count:
        return torch.arange(count)
    return torch.arange(rank() if rank() < count else rank() % count, count, num_processes())


def own_rows(rows: Tensor) -> Tensor:
    """Those of some numbers of samples (n,) that are of this process, (m,)."""
    return rows if _group is None else rows[share(len(rows))]


def gathered(part: Tensor, count: int) -> Tensor:
    """The values of all samples, (count, ...), on every process, of those of the share of each, (m, ...)."""
    if _group is None:
        return part
    own, size = part.detach().cpu().contiguous(), num_processes()
    padded = own.new_zeros(-(-count // size), *own.shape[1:])
    padded[: len(own)] = own
    parts = [torch.empty_like(padded) for _ in range(size)]
    with _exchange():
        dist.all_gather([_bytes(one) for one in parts], _bytes(padded), group=_group)
    return torch.stack(parts, 1).flatten(0, 1)[:count].to(part.device)


def summed(part: Tensor) -> Tensor:
    """The sum of the tensors of all processes, of one shape."""
    if _group is None:
        return part
    total = part.detach().cpu().clone()
    with _exchange():
        dist.all_reduce(total, group=_group)
    return total.to(part.device)


def decided(value: T) -> T:
    """The value of process 0, on every process: a number, a text, or what else JSON has."""
    if _group is None:
        return value
    head = torch.zeros(HEAD, dtype=torch.uint8)
    text = json.dumps(value).encode() if rank() == 0 else b""
    if rank() == 0:
        content = len(text).to_bytes(8, "little") + text[: HEAD - 8]
        head[: len(content)] = torch.frombuffer(bytearray(content), dtype=torch.uint8)
    _broadcast(head)
    received = head.numpy().tobytes()
    length = int.from_bytes(received[:8], "little")
    if length > HEAD - 8:
        rest = torch.zeros(length, dtype=torch.uint8)
        if rank() == 0:
            rest = torch.frombuffer(bytearray(text), dtype=torch.uint8)
        _broadcast(rest)
        received = bytes(8) + rest.numpy().tobytes()
    return value if rank() == 0 else cast(T, json.loads(received[8 : 8 + length]))


def from_first(value: Tensor | None) -> Tensor | None:
    """The tensor of process 0, on every process; None if it has none."""
    if _group is None:
        return value
    kind: Any = decided(None if value is None else [list(value.shape), str(value.dtype).removeprefix("torch.")])
    if kind is None:
        return None
    made = value if value is not None and rank() == 0 else torch.empty(kind[0], dtype=getattr(torch, kind[1]))
    own = made.detach().cpu().contiguous()
    _broadcast(_bytes(own))
    return own


def check_same(value: Any, what: str) -> None:
    """Raise a RuntimeError unless every process has the same plain value."""
    if _group is None:
        return
    own = torch.tensor([crc32(json.dumps(value).encode())])
    sums = gathered(own, num_processes()).tolist()
    if len(set(sums)) > 1:
        other = next(i for i, one in enumerate(sums) if one != sums[0])
        raise RuntimeError(
            f"process {other} has another {what} than process 0: all must make the same calls with the same arguments, "
            "on machines of one kind"
        )


@contextmanager
def _exchange() -> Iterator[None]:
    """An exchange with the other processes, whose failure is an OSError."""
    try:
        yield
    except RuntimeError as error:
        reason = str(error).partition("\n")[0]
        raise ConnectionError(
            f"process {rank()} has lost another one, which has ended or is late; what it says is above or below "
            f"({reason})"
        ) from error


def _broadcast(values: Tensor) -> None:
    assert _group is not None
    with _exchange():
        dist.broadcast(values, dist.get_global_rank(_group, 0), _group)


def _bytes(values: Tensor) -> Tensor:
    """The memory of a tensor, whatever its dtype is."""
    flat = values.reshape(-1)
    return (torch.view_as_real(flat).reshape(-1) if flat.is_complex() else flat).view(torch.uint8)
