"""PASCAL VOC 2012 segmentation, with the augmented SBD labels, and any data set in its layout.

    VOCdevkit/VOC2012/JPEGImages/<id>.jpg
                      SegmentationClass/<id>.png          palette or grey: class index per pixel, 255 = void
                      SegmentationClassAug/<id>.png       optional, VOC and SBD labels together
                      ImageSets/Segmentation/<split>.txt  one id per line, or "picture label" paths
"""
from __future__ import annotations

import os
from pathlib import Path
from typing import Sequence

import numpy as np

from jea.data.dataset import check_split
from jea.data.faults import fault, is_collecting
from jea.data.files.folders import list_files
from jea.data.files.lists import read_lines
from jea.data.segmentation.base import Sample, SegmentationDataset
from jea.data.segmentation.submission import Submission
from jea.data.views import crops as transforms
from jea.draw.palettes import voc_palette
from jea.errors import DataError

VOC_CLASSES = (
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train",
    "tvmonitor",
)

SPLITS = ("train", "val", "trainval", "test", "trainaug")

_PICTURES = "JPEGImages"
_LABELS = "SegmentationClass"
_LABELS_AUG = "SegmentationClassAug"
_LISTS = os.path.join("ImageSets", "Segmentation")


class VOCSegmentation(SegmentationDataset):
    """Training crops and test pictures of a data set in VOC's layout.

    root: the VOC2012 folder, VOCdevkit, or the folder that holds VOCdevkit.
    split: train, val, trainval, test (pictures without labels), trainaug, or any other list in
        ImageSets/Segmentation. trainaug = (VOC train and SBD) without VOC val, 10,582 pictures. It needs
        SegmentationClassAug; its list is trainaug.txt or train_aug.txt, else it is made from the label files.
    label_dir: label folder, relative to VOC2012 or absolute. Default: SegmentationClassAug for trainaug, else
        SegmentationClass. With two-column lists the default is what the list says.
    crop_size: side of the training crops, in pixels.
    scales: factors of the random resize in training; default 0.5, 0.6, ... 2.0.
    num_classes: labels are 0 to num_classes - 1, and 255 for pixels that do not count.
    class_names: one per class; default VOC's names for 21 classes, else "class 0", ...

    Construction reads the list and the folders' contents, no picture. Faults raise DataError.
    """

    background = 0
    submission = Submission(folder="results/VOC2012/Segmentation/comp6_test_cls", archive="results.tar",
                            inside="results/VOC2012/Segmentation/comp6_test_cls")  # comp6: any training data

    def __init__(self, *, root: str | Path, split: str = "train", label_dir: str | None = None,
                 crop_size: int = 513, scales: Sequence[float] | None = None, num_classes: int = 21,
                 class_names: Sequence[str] | None = None):
        if not 1 <= num_classes <= self.ignore_index:
            raise DataError(f"num_classes is {num_classes}; expected 1 to {self.ignore_index} "
                            f"({self.ignore_index} marks ignored pixels)")
        if crop_size < 1:
            raise DataError(f"crop_size is {crop_size}; expected at least 1")
        self.scales = tuple(transforms.SCALES if scales is None else scales)
        if not self.scales or min(self.scales) <= 0:
            raise DataError(f"scales are {list(self.scales)}; expected one or more positive factors")
        if class_names is None:
            class_names = VOC_CLASSES if num_classes == 21 else [f"class {i}" for i in range(num_classes)]
        if len(class_names) != num_classes:
            raise DataError(f"class_names has {len(class_names)} names, num_classes is {num_classes}")
        self.num_classes = num_classes
        self.class_names = tuple(class_names)
        self.palette = voc_palette()
        self.split = split
        self.crop_size = crop_size
        self.root = _find_root(Path(root).expanduser())
        self._samples = self._list(label_dir)
        self.ids = [sample.id for sample in self._samples]

    def train_sample(self, index: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """A random crop: {"image": (3, crop, crop) float32, normalised; "label": (crop, crop) int32}."""
        sample = self._samples[index]
        if sample.label is None:
            raise DataError(f"{self.root}: split {self.split} has no labels to train on; use another split")
        image, label = self._read(sample)
        image, label = transforms.train_augment(transforms.normalise(image), label, rng,
                                                scales=self.scales, crop_size=self.crop_size)
        return {"image": np.ascontiguousarray(image.transpose(2, 0, 1)), "label": label.astype(np.int32)}

    @classmethod
    def legend(cls, **arguments):
        return arguments.get("class_names") or VOC_CLASSES, voc_palette()

    def _list(self, label_dir: str | None) -> list[Sample]:
        """The samples of the split, all of whose files exist."""
        lists = self.root / _LISTS
        available = {name[:-4] for name in os.listdir(lists) if name.endswith(".txt")}
        check_split(self.split, [*SPLITS, *sorted(available.difference(SPLITS))], lists)

        aug = self.split == "trainaug"
        if aug and label_dir is None and not (self.root / _LABELS_AUG).is_dir():
            raise DataError(
                f"{self.root}: split trainaug needs the folder {_LABELS_AUG}, the labels of the Semantic "
                "Boundaries Dataset (SBD) as one PNG per picture with class indices. Put it beside "
                "SegmentationClass, or use split train (1,464 pictures)")
        folder = label_dir or (_LABELS_AUG if aug else _LABELS)
        if label_dir is not None and not (self.root / label_dir).is_dir():
            raise DataError(f"{self.root / label_dir}: label_dir is not a folder")

        name = "train_aug" if aug and "trainaug" not in available else self.split
        if name in available:
            path = lists / f"{name}.txt"
            samples = _read_list(path, folder, keep_labels=label_dir is None)
        elif aug:
            path = self.root / folder
            held_out = {sample.id for sample in _read_list(lists / "val.txt", folder, keep_labels=False)}
            labelled = {os.path.basename(file)[:-4] for file in list_files(path, (".png",), below=False).files}
            samples = [_sample(id, folder) for id in sorted(labelled - held_out)]
        else:
            raise DataError(f"{lists / (name + '.txt')}: the list of split {name} does not exist")
        if not samples:
            raise DataError(f"{path}: the list of split {self.split} is empty")
        if self.split == "test":
            samples = [sample._replace(label=None) for sample in samples]
        self._check_files([sample.image for sample in samples], "picture", path)
        self._check_files([sample.label for sample in samples if sample.label is not None], "label", path)
        return samples

    def _check_files(self, files: list[str], what: str, path: Path) -> None:
        """All listed files must exist; one directory listing per folder instead of a look at every file."""
        if is_collecting():
            return
        contents: dict[str, frozenset] = {}
        for folder in {os.path.dirname(file) for file in files}:
            try:
                contents[folder] = frozenset(os.listdir(self.root / folder))
            except OSError as error:
                raise DataError(f"{self.root / folder}: cannot read the {what} folder named by {path}: "
                                f"{error.strerror}") from None
        missing = [file for file in files if os.path.basename(file) not in contents[os.path.dirname(file)]]
        if missing:
            raise DataError(f"{self.root / missing[0]}: {what} does not exist, but {path} lists it "
                            f"({len(missing)} of {len(files)} {what}s are missing)")


def _find_root(root: Path) -> Path:
    """The folder that holds JPEGImages and ImageSets/Segmentation."""
    candidates = [root, root / "VOC2012", root / "VOCdevkit" / "VOC2012"]
    for folder in candidates:
        if (folder / _PICTURES).is_dir() and (folder / _LISTS).is_dir():
            return folder
    looked = ", ".join(str(folder) for folder in candidates)
    state = "" if root.is_dir() else " (it is not a folder)"
    raise DataError(f"{root}: no VOC data there{state}; looked for the folders {_PICTURES} and {_LISTS} in "
                    f"{looked}")


def _sample(id: str, label_folder: str) -> Sample:
    return Sample(id, f"{_PICTURES}/{id}.jpg", f"{label_folder}/{id}.png")


def _read_list(path: Path, label_folder: str, *, keep_labels: bool) -> list[Sample]:
    """Parse a split: lines "<id>" or "<picture path> <label path>", the paths relative to VOC2012.

    keep_labels: take the labels of two-column lists from where they say, not from `label_folder`.
    """
    lines = read_lines(path)
    samples: list[Sample] = []
    seen: dict[str, int] = {}
    for number, line in enumerate(lines, 1):
        fields = line.split()
        if not fields:
            continue
        if not all(field.isprintable() for field in fields):
            fields = []  # told below
        if len(fields) == 1 and not set(fields[0]) & set("/\\") and fields[0] not in (".", ".."):
            sample = _sample(fields[0], label_folder)
        elif len(fields) == 2 and all(os.path.splitext(field)[1] for field in fields):
            image, label = (field.lstrip("/") for field in fields)
            id = os.path.splitext(os.path.basename(image))[0]
            sample = Sample(id, image, label if keep_labels else f"{label_folder}/{id}.png")
        else:
            fault(f"{path}, line {number}: {line.strip()[:80]!r}; expected an id such as 2007_000032, or the paths of "
                  "a picture and of its label")
            continue
        if sample.id in seen:
            fault(f"{path}, line {number}: {sample.id} is listed twice (first in line {seen[sample.id]})")
            continue
        seen[sample.id] = number
        samples.append(sample)
    return samples
