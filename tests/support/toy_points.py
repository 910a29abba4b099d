"""The data set of toy.py. It stands in a file of its own, as the processes that read data import that, and not
Jittor."""
from __future__ import annotations

import numpy as np

from jea.data import Dataset


class Points(Dataset):
    """(x, 2 x + 1) for x from -1 to 1."""

    what, unit = "points", "point"

    def __init__(self, *, count: int = 12, split: str = "train"):
        self.x, self.split = np.linspace(-1, 1, count, dtype=np.float32), split

    def __len__(self) -> int:
        return len(self.x)

    def train_sample(self, index, rng):
        return {"x": self.x[index], "y": 2 * self.x[index] + 1}

    def examine(self, index):
        found = super().examine(index)
        found.problems.clear()  # there is no class
        return found
