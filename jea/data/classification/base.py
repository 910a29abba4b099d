"""What the classification data sets share."""
from __future__ import annotations

from typing import Any

from jea.data.dataset import Dataset


class ClassificationDataset(Dataset):
    """Pictures of one class each. A data set defines `__len__` and `load`; what training and evaluation see of the
    pictures is made by jea.data.views."""

    def test_sample(self, index: int) -> dict[str, Any]:
        """{"id": str, "image": (H, W, 3) uint8, "label": int}."""
        image, label = self.load(index)
        return {"id": f"{self.split}_{index:06d}", "image": image, "label": label}
