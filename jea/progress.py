"""The one progress bar: of items, of steps, on stderr. Nothing else imports tqdm."""
from __future__ import annotations

import sys
from typing import Iterable

from tqdm import tqdm


def progress(items: Iterable | None = None, *, total: int | None = None, title: str = "", unit: str = "it",
             shown: bool = True, initial: int = 0) -> tqdm:
    """Make a bar to iterate over, or, without items, one to move on with `update()`.

    It also has `set_postfix_str`, `write` and `close`. On a terminal it is drawn every 0.1 s; elsewhere, as in the log
    of a job, every 10 s.

    Args:
        items: what to iterate over. total: how many there are, where len(items) does not say it.
        title, unit: texts before the bar and after the rate. initial: where a resumed count begins.
        shown: False draws nothing; all else works the same.
    """
    return tqdm(items, total=total, desc=title or None, unit=unit, initial=initial, disable=not shown, file=sys.stderr,
                dynamic_ncols=True, mininterval=0.1 if sys.stderr.isatty() else 10)
