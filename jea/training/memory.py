"""How much memory a run took."""
from __future__ import annotations

import resource

from jea._jittor import jt


def peak_memory_mb() -> int:
    """The most memory so far, in MB.

    On the CPU: of this process, resident (VmHWM; where /proc lacks it, getrusage's ru_maxrss, which begins with that of
    the process that started this one). On CUDA: what Jittor's allocators have taken from the device. They keep freed
    blocks for the next step, so that the figure after a step is its peak; cuDNN's and cuBLAS's own memory is not in it.
    """
    if jt.flags.use_cuda:
        return jt.get_mem_info().total_cuda_used >> 20
    try:
        with open("/proc/self/status", encoding="ascii", errors="replace") as file:
            return next(int(line.split()[1]) for line in file if line.startswith("VmHWM:")) >> 10
    except (OSError, StopIteration):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
