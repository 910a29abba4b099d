"""What error messages share."""
from __future__ import annotations

import difflib


def nearest(word, words) -> str:
    """" (did you mean x?)" for the entry of `words` that is close to `word`; "" where none is."""
    close = difflib.get_close_matches(str(word), [str(w) for w in words], n=1)
    return f" (did you mean {close[0]}?)" if close else ""
