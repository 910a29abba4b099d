"""Ctrl-C while training."""
from __future__ import annotations

import signal
import sys


class Interrupt:
    """In a `with` block the first Ctrl-C (or SIGTERM) asks the loop to save and stop; the second stops at once."""

    def __init__(self):
        self.asked = False
        self._previous = {}

    def __enter__(self) -> Interrupt:
        for number in (signal.SIGINT, signal.SIGTERM):
            try:
                self._previous[number] = signal.signal(number, self._handle)
            except ValueError:
                pass  # not the main thread: the caller has its own way to stop
        return self

    def _handle(self, number, frame):
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
        print("\njea: stopping after this step and saving (once more to stop at once)", file=sys.stderr)

    def __exit__(self, *error) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
