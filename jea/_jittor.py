"""The one place that imports Jittor, with what has to be said before and mended after.

    from jea._jittor import jt, nn
"""
import atexit
import builtins
import contextlib
import signal
import ssl
import sys
import threading

from jea.environment import interrupts, machine, mpi, prepare, toolchain
from jea.environment.compiling import core_build, notice, precompiled

_already_there = "jittor" in sys.modules
_found = prepare()
if not _already_there:
    toolchain.check()
    machine.check()
    if _found.cuda_broken:
        print(f"jea: running on the CPU: {_found.device_reason}", file=sys.stderr)
    if not _found.onednn:
        print(f"jea: oneDNN {_found.onednn_reason}", file=sys.stderr)
_recursion_limit = sys.getrecursionlimit()
_https_context = ssl._create_default_https_context


class _Locals(dict):
    """A function's local names, and behind them the modules that have been imported."""

    def __missing__(self, name):
        return sys.modules[name]


def _locals():
    return _Locals(sys._getframe(1).f_locals)


@contextlib.contextmanager
def _modules_among_locals():
    """Jittor runs exec("import NAME") in a function and then reads locals()[NAME]; from Python 3.13 on exec writes no
    function's locals any more (PEP 667). Its two modules that do so keep a `locals` of their own afterwards."""
    if sys.version_info < (3, 13):
        yield
        return
    import jittor_utils
    original, builtins.locals = builtins.locals, _locals
    try:
        yield
    finally:
        builtins.locals = original
    for module in (sys.modules.get("jittor.compiler"), jittor_utils):
        if module is not None:
            module.locals = _locals


with notice.CoreCompileNotice(), mpi.only_under_mpirun(), interrupts.kept(), _modules_among_locals():
    import jittor_utils
    jittor_utils.get_total_mem = machine.memory_for_compiling
    with core_build.faster() as _build:
        import jittor as jt
        from jittor import nn
    precompiled.for_kernels(jt.flags, _build and _build.kernel)

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
# Where something imported it before jea, it has taken signals: give them back to Python. (Its handler ends the process
# as soon as any child process is killed; jea's own loader reports workers that died.)
if _already_there and threading.current_thread() is threading.main_thread():
    signal.signal(signal.SIGINT, signal.getsignal(signal.SIGINT) or signal.default_int_handler)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)

__all__ = ["jt", "nn"]
