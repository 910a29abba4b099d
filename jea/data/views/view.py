"""The base of the views: data sets that show the samples of another one in a different form."""
from __future__ import annotations

from jea.data.dataset import Dataset


class View(Dataset):
    """A data set seen through a transform; a view defines `train_sample`, `test_sample` or both."""

    def __init__(self, dataset: Dataset):
        self.dataset = dataset
        self.what, self.unit, self.label_unit = dataset.what, dataset.unit, dataset.label_unit
        self.root, self.split, self.ragged = dataset.root, dataset.split, dataset.ragged
        self.follows_exif = dataset.follows_exif
        self.class_names, self.num_classes = dataset.class_names, dataset.num_classes
        self.placeholders = dataset.placeholders

    def __len__(self) -> int:
        return len(self.dataset)

    def load(self, index: int):
        return self.dataset.load(index)

    def label_counts(self, index: int):
        return self.dataset.label_counts(index)
