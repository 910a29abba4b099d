"""What is said while Jittor compiles its core."""
from __future__ import annotations

import sys
import threading
import time
from pathlib import Path

from jea.environment import machine
from jea.environment.jittor_home import compiled_cache, core_is_compiled


class CoreCompileNotice:
    """Tells the user, on stderr, that the first import compiles Jittor's core, and how far it is.

    Jittor's own messages are off by then (log_silent): they are many and speak to its developers.
    """

    OBJECTS = 150  # what Jittor 1.3.11 compiles for the CPU; only for the progress line

    def __init__(self) -> None:
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> "CoreCompileNotice":
        folder, processes = compiled_cache(), machine.compiling_processes()
        if folder is None or core_is_compiled(folder):
            return self
        print("jea: first use of Jittor with this Python: compiling its core, once, about a minute on two cores "
              f"(kept in {folder}; as many processes as cores and memory allow: {processes})",
              file=sys.stderr, flush=True)
        self._started = time.time()
        self._thread = threading.Thread(target=self._watch, args=(folder,), daemon=True)
        self._thread.start()
        return self

    def _watch(self, folder: Path) -> None:
        on_terminal = sys.stderr.isatty()
        while not self._stop.wait(1.0 if on_terminal else 30.0):
            done = min(sum(1 for _ in folder.glob("**/obj_files/*.o")), self.OBJECTS)
            seconds = time.time() - self._started
            line = f"jea: compiling Jittor's core: {done}/{self.OBJECTS} files, {seconds:.0f} s"
            print("\r" + line if on_terminal else line, end="" if on_terminal else "\n", file=sys.stderr, flush=True)

    def __exit__(self, *error) -> None:
        if self._thread is not None:
            self._stop.set()
            self._thread.join()
            end = "\n" if sys.stderr.isatty() else ""
            if error[0] is None:
                print(f"{end}jea: Jittor's core is ready ({time.time() - self._started:.0f} s)", file=sys.stderr)
