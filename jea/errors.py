"""The errors that a person can mend. Each is told in one line, without a traceback; any other exception is a bug.

A message says what was got, what was expected and what to do.
"""
from __future__ import annotations

import difflib
import os
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


class UserError(Exception):
    """What whoever runs jea can mend; every command ends with its text and status 2 (jea/commands/console.py)."""


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
    close = difflib.get_close_matches(str(word), [str(w) for w in words], n=1)
    return f" (did you mean {close[0]}?)" if close else ""
