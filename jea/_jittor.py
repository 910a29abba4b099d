"""The one place that imports Jittor, with what has to be said before and mended after.

    from jea._jittor import jt, nn
"""
import atexit
import signal
import ssl
import sys
import threading

from jea.environment import runtime

_already_there = "jittor" in sys.modules
_found = runtime.prepare()
if not _already_there:
    runtime.check_toolchain()
    if _found.cuda_broken:
        print(f"jea: running on the CPU: {_found.device_reason}", file=sys.stderr)
    if not _found.onednn:
        print(f"jea: oneDNN {_found.onednn_reason}", file=sys.stderr)
_recursion_limit = sys.getrecursionlimit()
_https_context = ssl._create_default_https_context

with runtime.CoreCompileNotice(), runtime.mpi_only_under_mpirun():
    import jittor as jt
    import jittor_utils
    from jittor import nn

if not _already_there:
    # Jittor lifts the recursion limit to a million, so that deep recursion crashes the process instead of raising,
    # and turns certificate checks off for the whole process.
    sys.setrecursionlimit(max(_recursion_limit, 10_000))
    ssl._create_default_https_context = _https_context
# The processes that checked its core's objects stay for ever, and a signal to the process group (Ctrl-C, a batch
# system) then leaves this process waiting for them at its end. Jittor starts new ones when it wants them.
if jittor_utils.pool_size:
    jittor_utils.pool_cleanup()
    jittor_utils.pool_size = 0
    atexit.unregister(jittor_utils.pool_cleanup)
# Its signal handlers end the process at Ctrl-C, and as soon as any child process is killed: give both back to Python.
# jea's own loader reports workers that died.
if threading.current_thread() is threading.main_thread():
    signal.signal(signal.SIGINT, signal.getsignal(signal.SIGINT) or signal.default_int_handler)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)

__all__ = ["jt", "nn"]
