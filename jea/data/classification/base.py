"""What the classification data sets share."""
from __future__ import annotations

from typing import Any

import numpy as np

from jea.data.dataset import Dataset, Examined
from jea.data.files.pictures import is_rotated


class ClassificationDataset(Dataset):
    """Pictures of one class each. A data set defines `__len__` and `load`; what training and evaluation see of the
    pictures is made by jea.data.views."""

    def label(self, index: int) -> int:
        """The class of a picture."""
        return self.load(index)[1]

    def label_counts(self, index: int) -> np.ndarray | None:
        counts = np.zeros(self.num_classes, np.int64)
        counts[self.label(index)] = 1
        return counts

    def path(self, index: int) -> str | None:
        """The file of a picture, or None where it has none of its own."""
        return None

    def test_sample(self, index: int) -> dict[str, Any]:
        """{"id": str, "image": (H, W, 3) uint8, "label": int}."""
        image, label = self.load(index)
        return {"id": f"{self.split}_{index:06d}", "image": image, "label": label}

    def examine(self, index: int) -> Examined:
        found, path = super().examine(index), self.path(index)
        if path is not None:
            found.name = path
            found.rotated = found.size is not None and is_rotated(path)
        return found
