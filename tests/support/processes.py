"""Several processes that share work, for tests: forked from a server that has imported the library once."""

import multiprocessing
import os
import pickle
import tempfile
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from torch import distributed as dist

from time_tuner import share_work

SECONDS = 120
"""After which a process ends with an error, as one that waits for another in vain."""


def together(count: int, work: Callable[..., Any], *args: Any) -> list[Any]:
    """What `work(*args)` returns in each of so many processes that share work; the error of one is raised here."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["processes", "joint_problem", "torch._dynamo"])
    with tempfile.TemporaryDirectory() as folder:
        pipes, children = [], []
        for i in range(count):
            ours, theirs = context.Pipe()
            child = context.Process(target=_run, args=(i, count, f"{folder}/meeting", theirs, work, args), daemon=True)
            child.start()
            theirs.close()
            pipes.append(ours)
            children.append(child)
        found = [_received(one) for one in pipes]
        for child in children:
            child.join(SECONDS)
    failed = [one for one in found if isinstance(one, BaseException)]
    if failed:
        raise next((one for one in failed if not isinstance(one, ConnectionError)), failed[0])
    return found


def _received(pipe: Connection) -> Any:
    try:
        return pickle.loads(pipe.recv_bytes()) if pipe.poll(2 * SECONDS) else TimeoutError("a process does not end")
    except (EOFError, ConnectionResetError):
        return ConnectionError("a process has died")


def _run(
    number: int, count: int, meeting: str, pipe: Connection, work: Callable[..., Any], args: tuple[Any, ...]
) -> None:
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    try:
        if count > 1:
            store = dist.FileStore(meeting, count)
            dist.init_process_group("gloo", store=store, rank=number, world_size=count)
            share_work(timedelta(seconds=SECONDS))
        pipe.send_bytes(pickle.dumps(work(*args)))  # tensors by value: the process ends before they are read
    except BaseException as error:
        pipe.send_bytes(pickle.dumps(error))
    finally:
        pipe.close()
        os._exit(0)  # without the clean-up of a group that another process has left


def files_of(folder: Path) -> list[str]:
    """The names of the files in a folder."""
    return sorted(path.name for path in folder.iterdir())
