"""Ctrl-C while Jittor is imported: Python's KeyboardInterrupt instead of Jittor's own end of the process."""
from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import threading

# What a command says at its end (commands/common/console.py sets it), so that it can end at once and wherever it is.
# A program that imports jea has no such line, and gets a KeyboardInterrupt.
last_words = ""


@contextlib.contextmanager
def kept():
    """Around `import jittor`. Jittor takes SIGINT for itself unless it thinks that a notebook wants it.

    Its compiling processes end without a word at Ctrl-C. A KeyboardInterrupt that was swallowed on its way, by a bare
    except of Jittor's or by a fork, is raised again until it arrives here. Its handler of SIGCHLD, which ends this
    process as soon as a program that it runs is killed, by the same Ctrl-C for one, never comes to run.
    """
    import jittor_utils
    previous, seen, over = signal.getsignal(signal.SIGINT), threading.Event(), threading.Event()
    main = threading.main_thread()
    in_main = threading.current_thread() is main
    ours = in_main and callable(previous)
    notebook, own = os.environ.get("JPY_PARENT_PID"), os.getpid()
    start = jittor_utils.pool_initializer

    def interrupted(number, frame):
        if os.getpid() != own:
            os._exit(130)  # one of Jittor's compiling processes, which have inherited this
        if last_words:
            os.write(2, last_words.encode())
            os._exit(130)
        if not seen.is_set():
            seen.set()
            threading.Thread(target=insist, daemon=True).start()
        previous(number, frame)

    def insist():
        while not over.wait(0.5):
            signal.pthread_kill(main.ident, signal.SIGINT)

    def start_quietly():
        signal.signal(signal.SIGINT, lambda *_: os._exit(130))
        _end_with_parent(own)  # its pool starts new ones for those that Ctrl-C has ended
        start()
    jittor_utils.pool_initializer = start_quietly
    os.environ.setdefault("JPY_PARENT_PID", str(own))
    if in_main:
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGCHLD])
    if ours:
        signal.signal(signal.SIGINT, interrupted)
    try:
        yield
    except Exception as error:  # a compiler that was interrupted too
        if seen.is_set():
            raise KeyboardInterrupt from error
        raise
    finally:
        over.set()
        if in_main:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # also drops one that waits
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        if ours:
            signal.signal(signal.SIGINT, previous)
        if notebook is None:
            os.environ.pop("JPY_PARENT_PID", None)
        jittor_utils.pool_initializer = start
    if seen.is_set() and previous is signal.default_int_handler:
        raise KeyboardInterrupt


def _end_with_parent(parent: int) -> None:
    """Have this process end when its parent does, at once if that has happened already."""
    try:
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG, of Linux
    except AttributeError:
        return
    if os.getppid() != parent:
        os._exit(130)
