"""mpirun (Open MPI): how many processes there are, and that Jittor compiles its MPI part for them alone."""
from __future__ import annotations

import contextlib
import os


def decide() -> None:
    if os.environ.get("use_mpi") == "0":
        for name in ("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK"):
            os.environ.pop(name, None)  # Jittor crashes where one is on and the other off


@contextlib.contextmanager
def only_under_mpirun():
    """Around `import jittor`, which would compile its MPI part wherever there is an mpicc. The user's use_mpi
    stands."""
    turned_off = not {"OMPI_COMM_WORLD_SIZE", "use_mpi"} & os.environ.keys()
    if turned_off:
        os.environ["use_mpi"] = "0"
    try:
        yield
    finally:
        if turned_off:
            del os.environ["use_mpi"]  # a program that runs mpirun hands its environment on


def rank() -> int:
    """The number of this process among those that mpirun (Open MPI) started, from 0."""
    return int(os.environ.get("OMPI_COMM_WORLD_RANK", "0"))


def size() -> int:
    """How many processes mpirun started; 1 without mpirun."""
    return int(os.environ.get("OMPI_COMM_WORLD_SIZE", "1"))
