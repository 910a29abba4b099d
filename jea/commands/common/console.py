"""How every command of jea ends: 0 when it did what was asked; 1 when it did, and what it examined is not in order
(`data check`, `doctor`); 2 for an error, which is one message on stderr; 130 when interrupted.
"""
from __future__ import annotations

import os
import sys
import time

from jea.environment import interrupts, mpi
from jea.errors import UserError, printable, shortened

_LONGEST_LINE = 20_000  # characters; a path has up to 4,096


def run(command: str, function, arguments) -> int:
    """function(arguments), which returns a status or None for 0; errors that a user can mend become one message, not a
    traceback. Whatever is printed meanwhile goes through `errors.printable`: names of files, and texts in them, are
    chosen by others."""
    interrupts.last_words = f"jea {command}: interrupted\n"
    streams = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = _Printable(sys.stdout), _Printable(sys.stderr, keeps="\r")  # a progress bar's
    try:
        status = _status(command, function, arguments)
    finally:
        sys.stdout, sys.stderr = streams
        interrupts.last_words = ""
    if status and "jea.ranks" in sys.modules:
        sys.modules["jea.ranks"].leave(status)
    return status


class _Printable:
    """A text stream that escapes what a terminal would take for commands."""

    def __init__(self, stream, keeps=""):
        self._stream, self._keeps = stream, keeps

    def write(self, text):
        parts = text.split(self._keeps) if self._keeps else [text]
        self._stream.write((self._keeps or "").join(printable(part, lines=True) for part in parts))
        return len(text)

    def writelines(self, lines):
        for line in lines:
            self.write(line)

    def __getattr__(self, name):
        return getattr(self._stream, name)


def _status(command: str, function, arguments) -> int:
    try:
        status = function(arguments) or 0
        sys.stdout.flush()
        return status
    except BrokenPipeError:  # `jea inspect x | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:  # a full disk, a folder that may not be written
        where = f"{printable(error.filename)}: " if error.filename else ""
        return _say(command, f"{where}{error.strerror or error}")
    except KeyboardInterrupt as interrupt:
        print(f"jea {command}: {str(interrupt) or 'interrupted'}", file=sys.stderr)
        if "jittor_utils" in sys.modules and "jea._jittor" not in sys.modules:  # in the middle of importing Jittor
            sys.stdout.flush()
            os._exit(130)  # an orderly end would run the teardown of what is half there
        return 130
    except UserError as error:
        return _say(command, error)


def _say(command: str, error) -> int:
    rank = mpi.rank()
    if rank:
        time.sleep(3)  # most often all ranks fail alike: the first one's message is enough, and mpirun ends the rest
    lines = [shortened(line, _LONGEST_LINE) for line in str(error).split("\n")]
    print(f"jea {command}: {f'rank {rank}: ' * bool(rank)}error: " + "\n".join(lines), file=sys.stderr)
    return 2
