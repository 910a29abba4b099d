"""Ranges of the numbers in a task's options; their types are checked by jea.config."""
from __future__ import annotations

from typing import Sequence

from jea.errors import ConfigError, nearest, quoted

_RANGES = {
    "positive": (lambda x: x > 0, "a number above 0"),
    "not_negative": (lambda x: x >= 0, "0 or more"),
    "counts": (lambda x: x >= 1, "at least 1"),
    "shares": (lambda x: 0 <= x <= 1, "0 to 1"),
    "decays": (lambda x: 0 <= x < 1, "0 or more and less than 1"),
}
LARGEST_SCALE = 16.0  # of a picture or a cloud


def check_limits(block: str, options, **names: Sequence[str]) -> None:
    """Raise ConfigError for an option outside its range; None passes.

    block: "train" or "eval", for the message. options: the dataclass. names: the options of each kind: positive=(...),
    not_negative=(...), counts (at least 1), shares (0 to 1), decays (0 to less than 1).
    """
    for kind, keys in names.items():
        inside, expected = _RANGES[kind]
        for key in keys:
            value = getattr(options, key)
            if value is not None and not inside(value):
                raise ConfigError(f"{block}.{key} is {quoted(value)}; expected {expected}")


def check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    """Raise ConfigError unless the value is one of the choices."""
    if value not in choices:
        expected = (" or " if len(choices) == 2 else ", ").join(choices)
        raise ConfigError(f"{name} is {quoted(value)}; expected {expected}{nearest(value, choices)}")


def check_scales(scales: Sequence[float]) -> None:
    """Raise ConfigError unless there is a scale and all are above 0 and at most LARGEST_SCALE."""
    if not len(scales) or not all(0 < scale <= LARGEST_SCALE for scale in scales):
        raise ConfigError(f"eval.scales is {quoted(list(scales))}; expected one or more factors above 0, at most "
                          f"{LARGEST_SCALE:g}")


def check_range(name: str, pair: Sequence[float]) -> None:
    """Raise ConfigError unless it is [low, high] with 0 < low <= high."""
    if len(pair) != 2 or not 0 < pair[0] <= pair[1]:
        raise ConfigError(f"{name} is {quoted(list(pair))}; expected [low, high] with 0 < low <= high")
