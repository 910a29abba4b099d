"""Tiny-ImageNet-200 in its official layout and as plain class folders (StudioGAN's).

    tiny-imagenet-200/wnids.txt, words.txt
                      train/<wnid>/images/<wnid>_0.JPEG         500 each
                      val/images/val_0.JPEG
                      val/val_annotations.txt: "val_0.JPEG<tab>n03444034<tab>x0<tab>y0<tab>x1<tab>y1" per line
    or                train/<wnid>/..., valid/<wnid>/...
"""
from __future__ import annotations

from pathlib import Path

import numpy as np

from jea.data.classification.base import ClassificationDataset
from jea.data.classification.folder import HELD_OUT, class_folders, list_samples, split_folder
from jea.data.dataset import check_split
from jea.data.files.lists import read_lines
from jea.data.files.pictures import read_image
from jea.errors import DataError

_FOLDER = "tiny-imagenet-200"


class TinyImageNet(ClassificationDataset):
    """Tiny-ImageNet: 100,000 training and 10,000 validation pictures of 64 x 64 pixels in 200 classes.

    root: the folder tiny-imagenet-200, or the one that holds it.
    split: train or val; the official test pictures have no labels.

    Classes are the sorted wnids, in both layouts; class_names are the first words of words.txt where it exists. Faults
    raise DataError.
    """

    def __init__(self, *, root: str | Path, split: str = "train"):
        check_split(split, ("train", *HELD_OUT), "Tiny-ImageNet, whose test pictures have no labels")
        self.split = split
        root = Path(root).expanduser()
        self.root = root if (root / "train").is_dir() else root / _FOLDER
        if not (self.root / "train").is_dir():
            raise DataError(f"{root}: no Tiny-ImageNet there; looked for the folder train in it and in {self.root}")
        self.wnids = tuple(class_folders(self.root / "train"))
        self.num_classes = len(self.wnids)
        words = _words(self.root / "words.txt")
        self.class_names = tuple(words.get(wnid, wnid) for wnid in self.wnids)
        folder = split_folder(self.root, split)
        annotations = folder / "val_annotations.txt"
        if split != "train" and annotations.is_file():
            self._samples = self._annotated(folder, annotations)
        else:
            self._samples, _ = list_samples(folder, self.wnids)

    def __len__(self) -> int:
        return len(self._samples)

    def load(self, index: int) -> tuple[np.ndarray, int]:
        """Picture (64, 64, 3) uint8 RGB (grey files are converted) and its class."""
        path, label = self._samples[index]
        return read_image(path), label

    def label(self, index: int) -> int:
        return self._samples[index][1]

    def path(self, index: int) -> str:
        return self._samples[index][0]

    def _annotated(self, folder: Path, annotations: Path) -> list[tuple[str, int]]:
        index = {wnid: number for number, wnid in enumerate(self.wnids)}
        images = folder / "images"
        try:
            there = {entry.name for entry in images.iterdir()}
        except OSError as error:
            raise DataError(f"{images}: cannot be read: {error.strerror or error}") from None
        samples = []
        for number, line in enumerate(read_lines(annotations), 1):
            fields = line.split("\t")
            if not line.strip():
                continue
            if len(fields) < 2 or fields[1] not in index:
                raise DataError(f"{annotations}, line {number}: {line[:80]!r}; expected a file, a tab and a wnid of "
                                "train/")
            if fields[0] not in there:
                raise DataError(f"{images / fields[0]}: picture does not exist, but {annotations} lists it")
            samples.append((str(images / fields[0]), index[fields[1]]))
        if not samples:
            raise DataError(f"{annotations}: the list is empty")
        return samples


def _words(path: Path) -> dict[str, str]:
    """wnid -> first name in words.txt; {} without the file."""
    if not path.is_file():
        return {}
    pairs = (line.partition("\t") for line in read_lines(path))
    return {wnid: names.split(",")[0].strip() for wnid, _, names in pairs}
