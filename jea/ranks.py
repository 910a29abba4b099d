"""The processes of a run that mpirun started, called ranks: what they tell each other.

Jittor averages the gradients over the ranks; the rest is here. Every function that says "all ranks" must be called by
all of them in the same order, or they wait for each other for ever. Without mpirun there is one rank, and nothing is
sent.
"""
from __future__ import annotations

import contextlib
import os
import pickle
import socket
import sys
import time
import traceback
from typing import Callable, Sequence

import numpy as np

from jea._jittor import jt
from jea.environment import mpi


def rank() -> int:
    """The number of this process, from 0."""
    return mpi.rank() if jt.in_mpi else 0


def size() -> int:
    """How many processes work together; 1 inside `on_first`."""
    return mpi.size() if jt.in_mpi else 1


def is_first() -> bool:
    """Whether this process is the one that writes files and prints."""
    return rank() == 0


def own(items: Sequence) -> Sequence:
    """The part of a sequence that is this process's: every size()-th item, so that all have as many but for one."""
    return items[rank()::size()]


def total(values) -> np.ndarray:
    """The sum over all ranks of an array, in float64."""
    values = np.ascontiguousarray(values, np.float64)
    return values if size() == 1 else _sum(values)


def total_on_device(var):
    """The sum over all ranks of a float64 Var, as a Var: nobody waits for it."""
    return var if size() == 1 else var.mpi_all_reduce("add")


def gather(value) -> list:
    """A picklable value of each rank, in the order of the ranks, on all ranks."""
    if size() == 1:
        return [value]
    data = pickle.dumps(value, pickle.HIGHEST_PROTOCOL)
    lengths = np.zeros(size(), np.int32)
    lengths[rank()] = len(data)
    lengths = _sum(lengths)
    words = np.zeros((size(), -(-int(lengths.max()) // 4)), np.int32)  # a row of each rank, zero in all others
    words[rank()].view(np.uint8)[:len(data)] = np.frombuffer(data, np.uint8)
    words = _sum(words)
    return [pickle.loads(row.view(np.uint8)[:length].tobytes()) for row, length in zip(words, lengths)]


def on_first(function: Callable[[], object]):
    """Call a function on rank 0 alone, where it runs as in a single process; all ranks get its result."""
    if size() == 1:
        return function()
    return gather(jt.single_process_scope(0)(function)())[0]


def share_variables(variables) -> None:
    """Set variables to those of rank 0, on all ranks."""
    if size() > 1:
        for var in variables:
            var.assign(var.mpi_broadcast(0).numpy())  # not the broadcast Var: the weights would keep a history


def places() -> list:
    """"host, cpu" of each rank, on all ranks."""
    return gather(f"{socket.gethostname()}, {'cuda' if jt.flags.use_cuda else 'cpu'}")


def _sum(values: np.ndarray) -> np.ndarray:
    jt.sync_all()  # what was begun before, such as the averaging of gradients, comes first on every rank
    with jt.flag_scope(use_cuda=0, auto_convert_64_to_32=0):
        return jt.array(values).mpi_all_reduce("add").numpy()


# -- the end of a rank --------------------------------------------------------------------------------------------

def leave(status: int) -> None:
    """End this process at once if it has others beside it, and with it all of them.

    An orderly end would wait for them in MPI_Finalize, while they wait for this one's gradients: mpirun ends all when a
    process ends without it.
    """
    if mpi.size() > 1:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)


def _excepthook(kind, error, trace) -> None:
    if mpi.rank():
        time.sleep(3)  # most often all ranks fail alike: the first one's message is enough, and mpirun ends the rest
    print(f"Rank {mpi.rank()}:", file=sys.stderr)
    traceback.print_exception(kind, error, trace)
    leave(1)


if mpi.size() > 1:
    sys.excepthook = _excepthook
