"""The errors that a person can mend. Each is told in one line, without a traceback; any other exception is a bug.

A message says what was got, what was expected and what to do.
"""
from __future__ import annotations

import difflib
import itertools
import os
import reprlib
import unicodedata


def printable(text, *, lines=False) -> str:
    """Make a text that others have chosen, such as a file's name, safe to print on a terminal and in a log.

    Control characters, those that turn the direction of writing or are not seen, and bytes that are no text become
    escapes: "a\\x1b[2J". With `lines`, line ends and tabs stay, for messages of several lines.
    """
    text = os.fspath(text) if isinstance(text, os.PathLike) else str(text)
    kept = "\n\t" if lines else ""
    if text.replace("\n", "").isprintable() and (lines or "\n" not in text):
        return text
    return "".join(c if c in kept or unicodedata.category(c) not in _HIDDEN else c.encode("unicode_escape").decode()
                   for c in text)


_HIDDEN = ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")


def quoted(value, limit: int = 100) -> str:
    """Make the repr of a value that others have chosen, at most `limit` characters of it: what a message shows of it.

    A long text, list or dict is cut, and the message stays readable. Work and memory do not grow with the value.
    """
    text = _REPR.repr(value)
    return text if len(text) <= limit else f"{text[:limit - 12]}...{text[-9:]}"


def shortened(text, limit: int = 100) -> str:
    """A text that others have chosen as it is, without quotation marks; the middle of a long one is left out."""
    text = str(text) if isinstance(text, (str, os.PathLike)) else quoted(text, limit)
    return text if len(text) <= limit else f"{text[:limit - 12]}...{text[-9:]}"


class _Repr(reprlib.Repr):
    """Python's repr of what is short, and little of what is long."""

    def __init__(self):
        super().__init__()
        self.maxlevel = 3
        self.maxlist = self.maxtuple = self.maxset = self.maxfrozenset = self.maxdict = self.maxarray = 24
        self.maxstring = self.maxlong = self.maxother = 400

    def repr_int(self, value, level):
        try:
            return super().repr_int(value, level)
        except ValueError:  # Python refuses to write out over 4,300 digits
            return f"an integer of about {int(value.bit_length() * 0.30103):,} digits"

    def repr_dict(self, value, level):  # in its own order: reprlib would sort all keys
        if level <= 0:
            return "{...}"
        shown = [f"{self.repr1(key, level - 1)}: {self.repr1(entry, level - 1)}"
                 for key, entry in itertools.islice(value.items(), self.maxdict)]
        return "{" + ", ".join(shown + ["..."] * (len(value) > self.maxdict)) + "}"


_REPR = _Repr()


class UserError(Exception):
    """What whoever runs jea can mend; every command ends with its text and status 2 (commands/common/console.py)."""


class ConfigError(UserError, ValueError):
    """What is wrong with a config or an option, one line per mistake."""


class DataError(UserError, ValueError):
    """A data set, picture, cloud or label that cannot be used: the file, what is wrong with it, what to do.

    It takes exactly one argument, so that it survives the way from a worker process to the parent unchanged.
    """

    def __init__(self, message: str):
        super().__init__(message)


class CheckpointError(UserError, ValueError):
    """A checkpoint cannot be read, written or loaded.

    `str(error)` starts with the file's path and goes on with what is wrong and what to do about it.
    """

    def __init__(self, path, problem: str):
        super().__init__(os.fspath(path), problem)

    @property
    def path(self) -> str:
        return self.args[0]

    @property
    def problem(self) -> str:
        return self.args[1]

    def __str__(self) -> str:
        return f"{printable(self.path)}: {self.problem}"


class SetupError(UserError, RuntimeError):
    """Something outside Python is missing; the message names it and the remedy."""


class TrainingError(UserError, RuntimeError):
    """Training cannot go on; the message names the step and the phase."""


def nearest(word, words) -> str:
    """" (did you mean x?)" for the entry of `words` that is close to `word`; "" where none is."""
    close = difflib.get_close_matches(str(word)[:200], [str(w) for w in words], n=1)
    return f" (did you mean {close[0]}?)" if close else ""
