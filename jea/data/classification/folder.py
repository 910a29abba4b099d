"""Class folders: ImageNet, and any tree with a folder of pictures per class.

    ROOT/train/n01440764/n01440764_18.JPEG
    ROOT/val/n01440764/ILSVRC2012_val_00000293.JPEG       or validation/, or valid/
"""
from __future__ import annotations

import os
from pathlib import Path
from typing import Sequence

import numpy as np

from jea.data.classification.base import ClassificationDataset
from jea.data.files.folders import Listing, is_folder, list_files, warn_once
from jea.data.files.pictures import SUFFIXES, read_image
from jea.errors import DataError

HELD_OUT = ("val", "validation", "valid")  # names of one thing


class ImageFolder(ClassificationDataset):
    """Pictures in class folders; the classes are the folders' names in sorted order.

    root: the folder that holds the splits.
    split: train, val (also found as validation or valid), or any folder of root; None: root's own folders are the
        classes.
    num_classes: what the number of classes must be; None takes what is there.
    class_names: names for people, one per class folder in sorted order; default the folders' names.

    The classes are those of `train` where it exists, so that a class without held-out pictures shifts no label.
    Pictures may lie in folders below the class, and are turned upright as their EXIF data ask. Construction lists the
    folders and opens no picture. Faults raise DataError.
    """

    follows_exif = True

    def __init__(self, *, root: str | Path, split: str | None = "train", num_classes: int | None = None,
                 class_names: Sequence[str] | None = None):
        self.split = split
        self.root = Path(root).expanduser()
        folder = split_folder(self.root, split)
        train = self.root / "train"
        self.folders = class_folders(train if split is not None and train.is_dir() else folder)
        if num_classes is not None and num_classes != len(self.folders):
            raise DataError(f"{folder}: {len(self.folders)} class folders; expected {num_classes}")
        if class_names is not None and len(class_names) != len(self.folders):
            raise DataError(f"{folder}: {len(self.folders)} class folders; class_names has {len(class_names)} names")
        self.num_classes = len(self.folders)
        self.class_names = tuple(class_names or self.folders)
        self._samples, self._listing = list_samples(folder, self.folders)
        warn_once(self._listing, folder, SUFFIXES)

    def __len__(self) -> int:
        return len(self._samples)

    def load(self, index: int) -> tuple[np.ndarray, int]:
        """Picture (H, W, 3) uint8 RGB and its class; whatever the file's suffix says, its content decides."""
        path, label = self._samples[index]
        return read_image(path, exif=self.follows_exif), label

    def label(self, index: int) -> int:
        return self._samples[index][1]

    def path(self, index: int) -> str:
        return self._samples[index][0]

    def notes(self) -> list[str]:
        return self._listing.notes(self.root, SUFFIXES)


def split_folder(root: Path, split: str | None) -> Path:
    """The folder of a split; raises DataError when it is not there."""
    if split is None:
        names: tuple[str, ...] = (".",)
    else:
        names = (split, *(name for name in HELD_OUT if name != split)) if split in HELD_OUT else (split,)
    for name in names:
        if (root / name).is_dir():
            return root / name
    if not root.is_dir():
        raise DataError(f"{root}: no such folder")
    there = ", ".join(sorted(entry.name for entry in os.scandir(root) if entry.is_dir())[:10]) or "none"
    raise DataError(f"{root}: no folder {' or '.join(names)} for split {split}; there are: {there}. If these are the "
                    "classes themselves, set split to null")


def class_folders(folder: Path) -> list[str]:
    """The names of the class folders, sorted; hidden ones do not count."""
    names = sorted(entry.name for entry in os.scandir(folder) if is_folder(entry) and not entry.name.startswith("."))
    if not names:
        loose = sum(_is_picture(entry.name) for entry in os.scandir(folder))
        hint = f"; the {loose:,} pictures in it must be sorted into class folders first" if loose else ""
        raise DataError(f"{folder}: no class folders{hint}")
    return names


def list_samples(folder: Path, classes: Sequence[str]) -> tuple[list[tuple[str, int]], Listing]:
    """(path, class index) of all pictures, sorted by class and path; and what was left out.

    Every class folder of `folder` must be one of `classes` and hold a picture; a class may have no folder.
    """
    index: dict[str, int] = {name: number for number, name in enumerate(classes)}
    samples: list[tuple[str, int]] = []
    left_out, names = Listing(), class_folders(folder)
    around = [folder.parent, folder,
              *(folder / name for name in names)]  # a link to one of them adds nothing to a class
    for name in names:
        if name not in index:
            raise DataError(f"{folder / name}: the training pictures have no class {name}")
        found = list_files(folder / name, SUFFIXES, beside=around)
        left_out.add(found)
        if not found.files:
            others = ", ".join(f"{count} {suffix or 'without a suffix'}" for suffix,
                               count in found.others.most_common(5))
            raise DataError(f"{folder / name}: no pictures in this class folder{f', only {others}' if others else ''}; "
                            f"expected files ending in {', '.join(SUFFIXES)}")
        samples += [(file, index[name]) for file in found.files]
    return samples, left_out


def _is_picture(name: str) -> bool:
    return name.lower().endswith(SUFFIXES) and not name.startswith(".")
