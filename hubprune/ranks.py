"""Several processes: who takes which sequences, and sums over all of them.

Statistics are sums over sequences, so a run is spread over the processes of a ``torch.distributed`` group by splitting
the sequences: each process runs its part through the model, sums are added up block by block, and all decide alike.
With one process, the usual case, nothing here does anything.
"""

from __future__ import annotations

import datetime
import os
import typing
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from hubprune.errors import ProcessError

T = TypeVar("T")
LONGEST_WAIT = datetime.timedelta(hours=6)


def start() -> None:
    """Join the processes that a launcher (``accelerate launch``, ``torchrun``) started; without one, do nothing.

    Raises:
        ProcessError: The other processes cannot be reached.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not dist.is_initialized():
        from accelerate import PartialState

        with _others("join"):
            PartialState(cpu=not torch.cuda.is_available(), timeout=LONGEST_WAIT)


def finish() -> None:
    """Leave the group, so that the processes end quietly."""
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


def size() -> int:
    """Number of processes in the run."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """This process' number, from 0."""
    return dist.get_rank() if size() > 1 else 0


def share(items: Sequence[T]) -> Sequence[T]:
    """This process' part of the items: consecutive ones, as many as the others get, give or take one."""
    count, parts, mine = len(items), size(), rank()
    return items[count * mine // parts : count * (mine + 1) // parts]


def add_up(tensor: torch.Tensor) -> torch.Tensor:
    """Sum a tensor over all processes.

    Args:
        tensor: The same shape everywhere; all processes must call this in the same order.

    Returns:
        The sum, bit for bit the same in every process; the tensor itself when there is one process.

    Raises:
        ProcessError: Another process is gone.
    """
    if size() == 1:
        return tensor
    total = _sendable(tensor.contiguous())
    with _others("add up statistics with"):
        dist.all_reduce(total)
    return total.to(tensor.device)


def copy_from_first(tensor: torch.Tensor) -> torch.Tensor:
    """Return the first process' version of a tensor; arguments and errors as ``add_up``."""
    if size() == 1:
        return tensor
    first = _sendable(tensor.contiguous())
    with _others("share weights with"):
        dist.broadcast(first, 0)
    return first.to(tensor.device)


def gather(items: Sequence[T]) -> list[T]:
    """Join the parts of all processes, in their order."""
    if size() == 1:
        return list(items)
    parts: list[Any] = [None] * size()
    with _others("share results with"):
        dist.all_gather_object(parts, list(items))
    return [item for part in parts for item in part]


def in_first(work: Callable[[], T]) -> T | None:
    """Do something in the first process while the others wait; they get None.

    Raises:
        ProcessError: In the others, when it failed in the first.
    """
    if size() == 1:
        return work()
    with _others("wait for"):
        group = _patient()  # before the wait
    failure: list[str | None] = [None]
    try:
        return work() if rank() == 0 else None
    except BaseException as error:
        failure = [str(error) or type(error).__name__]
        raise
    finally:
        with _others("wait for"):
            dist.broadcast_object_list(failure, 0, group=group)
        if rank() > 0 and failure[0] is not None:
            raise ProcessError(f"process {rank()} ends because the first one failed: {failure[0]}")


def from_first(decide: Callable[[], T]) -> T:
    """Let the first process decide for all; what it decides is sent to the others.

    Raises:
        ProcessError: In the others, when it failed in the first.
    """
    answer = [in_first(decide)]
    if size() > 1:
        with _others("hear from"):
            dist.broadcast_object_list(answer, 0)
    return typing.cast(T, answer[0])


def on_this_machine() -> int:
    """Number of processes of the run that share this machine's memory."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if size() > 1 else 1


def wait() -> None:
    """Wait until every process has come here."""
    if size() > 1:
        with _others("wait for"):
            dist.barrier(group=_patient())


_PATIENT: dict[Any, Any] = {}


def _patient() -> Any:
    """A group of the same processes that waits long: checking and publishing happen in the first one alone.

    A program's own group may give up after minutes, and NCCL ends the others then.
    """
    whole = dist.group.WORLD
    if whole not in _PATIENT:
        _PATIENT.clear()  # of an earlier group, which was left
        dist.barrier()  # a process that is gone is noticed here, and not waited for
        _PATIENT[whole] = dist.new_group(backend="gloo", timeout=LONGEST_WAIT)
    return _PATIENT[whole]


def _sendable(tensor: torch.Tensor) -> torch.Tensor:
    """A copy where the backend can send it from: NCCL sends from a GPU only."""
    on_gpu = dist.get_backend() == "nccl" and tensor.device.type == "cpu"
    return tensor.to(torch.device("cuda", torch.cuda.current_device())) if on_gpu else tensor.clone()


@contextmanager
def _others(what: str) -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        first_line = (str(error).splitlines() or [type(error).__name__])[0]
        raise ProcessError(
            f"process {rank()} cannot {what} the others, one of them has ended ({first_line:.120}): see what it "
            "printed, and start the run again"
        ) from error
