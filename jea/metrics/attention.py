"""How much the memories of an external attention are used, and how far what they look at differs."""
from __future__ import annotations

from dataclasses import dataclass
from typing import Iterable, Mapping

import numpy as np

COUNT = 8  # memories in a group


@dataclass(frozen=True)
class MemoryUse:
    """The memories of one map.

    The mass of a memory is its share of all attention. What it looks at is its row of the map, scaled to sum 1 over the
    positions; the difference of two memories is half the summed difference of these: 0 where they look at the same, 1
    where at nothing in common (the total variation distance).

    mass: (S,), sums to 1. most, least: the memories that are used most and least, COUNT of each, or half of all.
    among_most, among_least, between: mean differences over the pairs within each group and from one to the other; NaN
        without a pair.
    """
    mass: np.ndarray
    most: np.ndarray
    least: np.ndarray
    among_most: float
    among_least: float
    between: float

    def numbers(self) -> dict:
        """The groups' masses and differences, by their names for people."""
        return {"mass of the most used": float(self.mass[self.most].sum()),
                "mass of the least used": float(self.mass[self.least].sum()),
                "difference among the most used": self.among_most,
                "difference among the least used": self.among_least, "difference between them": self.between}


def memory_use(attention: np.ndarray) -> MemoryUse:
    """attention: (S, N), the share of memory s in the attention of position n."""
    attention = np.asarray(attention, np.float64)
    mass = attention.mean(1)
    order, count = np.argsort(-mass, kind="stable"), min(COUNT, max(len(mass) // 2, 1))
    most, least = order[:count], order[::-1][:count]
    rows = attention / np.maximum(attention.sum(1, keepdims=True), np.finfo(np.float64).tiny)
    rows = rows[np.concatenate([most, least])]
    differences = np.stack([np.abs(rows - row).sum(1) / 2 for row in rows])
    pairs = np.triu_indices(count, 1)
    return MemoryUse(mass, most, least, _mean(differences[:count, :count][pairs]),
                     _mean(differences[count:, count:][pairs]), _mean(differences[:count, count:]))


def mean_numbers(uses: Iterable[Mapping[str, dict]]) -> list:
    """[{"layer": name, number: its mean}, ...] of {layer: numbers} of many pictures."""
    layers: dict = {}
    for use in uses:
        for layer, numbers in use.items():
            layers.setdefault(layer, []).append(numbers)
    return [{"layer": layer, **{name: _mean([numbers[name] for numbers in found]) for name in found[0]}}
            for layer, found in layers.items()]


def _mean(values) -> float:
    return float(np.mean(values)) if len(values) else float("nan")
