"""What the segmentation data sets share: pictures with a label file each, their training crops and test samples."""
from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple, Sequence

import numpy as np

from jea.data.dataset import Dataset, Examined, digest
from jea.data.faults import fault
from jea.data.files.folders import Listing, list_files, warn_once
from jea.data.files.labels import read_label
from jea.data.files.pictures import SUFFIXES, is_rotated, read_image
from jea.data.segmentation.submission import Submission
from jea.data.views import crops as transforms
from jea.errors import DataError, quoted, shortened


class Sample(NamedTuple):
    id: str
    image: str  # paths relative to the root
    label: str | None


class SegmentationDataset(Dataset):
    """Base of the segmentation data sets; a subclass sets root, split, num_classes, class_names, palette and _samples.

    background: the class that overlays leave clear, or None.
    submission: how predictions of pictures without labels are written.
    """

    label_unit = "pixels"
    ignore_index = transforms.IGNORE
    background: int | None = None
    submission = Submission()

    root: Path
    palette: np.ndarray
    _samples: list[Sample]

    @classmethod
    def legend(cls, **arguments) -> tuple[Sequence[str], np.ndarray]:
        """(class names, palette (256, 3) uint8) of the data set with these arguments, without reading a picture."""
        return cls.class_names, cls.palette

    def __len__(self) -> int:
        return len(self._samples)

    def test_sample(self, index: int) -> dict[str, object]:
        """{"id": str, "image": (H, W, 3) uint8, "label": (H, W) uint8, or None where the split has none}."""
        sample = self._samples[index]
        image, label = self._read(sample)
        return {"id": sample.id, "image": image, "label": label}

    def examine(self, index: int) -> Examined:
        sample = self._samples[index]
        found = Examined(str(self.root / sample.image))
        image = found.attempt(self._read_image, sample)
        if image is not None:
            found.size, found.digest = image.shape[:2], digest(image)
            found.rotated = is_rotated(self.root / sample.image)
        label = found.attempt(self._read_label, sample) if sample.label is not None else None
        if label is not None:
            values = np.bincount(label.reshape(-1), minlength=256)
            found.counts, found.ignored = values[:self.num_classes], int(values[self.num_classes:].sum())
            if image is not None and label.shape != image.shape[:2]:
                found.problems.append(self._sizes_differ(sample, image, label))
            if not found.counts.any():
                found.problems.append(f"{self.root / sample.label}: all pixels are ignored")
        return found

    def label_counts(self, index: int) -> np.ndarray | None:
        sample = self._samples[index]
        if sample.label is None:
            return None
        return np.bincount(self._read_label(sample).reshape(-1), minlength=256)[:self.num_classes]

    def _read(self, sample: Sample):
        image = self._read_image(sample)
        if sample.label is None:
            return image, None
        label = self._read_label(sample)
        if label.shape != image.shape[:2]:
            raise DataError(self._sizes_differ(sample, image, label))
        return image, label

    def _sizes_differ(self, sample: Sample, image: np.ndarray, label: np.ndarray) -> str:
        stored = ""
        if self.follows_exif and is_rotated(self.root / sample.image):
            stored = (", turned upright as its EXIF data ask; draw the label on the upright picture, or remove the "
                      "picture's EXIF tag")
        return (f"{self.root / sample.label}: label is {_wxh(label)}, its picture {self.root / sample.image} is "
                f"{_wxh(image)}{stored}; they must have one size")

    def _read_image(self, sample: Sample) -> np.ndarray:
        return read_image(self.root / sample.image, exif=self.follows_exif)

    def _read_label(self, sample: Sample) -> np.ndarray:
        return read_label(self.root / sample.label, self.num_classes, ignore=self.ignore_index, exif=self.follows_exif)


class AugmentedSegmentation(SegmentationDataset):
    """Adds the augmentation of mmsegmentation and JSeg, which the data sets after VOC are trained with.

    root: folder of the data set.
    split: part of it.
    crop_size: side of the training crops, in pixels.
    scales: factors of the random resize, each as likely; default 0.5, 0.6, ... 2.0.
    scale_range: instead: (low, high), any factor between them.
    fit: (longer, shorter) side that a picture is fitted into at factor 1; default: its own size.
    max_class_share: a crop with one class on this share or more of its labelled pixels is drawn again, 10 times.
    photometric: random brightness, contrast, saturation and hue.

    Construction lists the folders, it reads no picture. Faults raise DataError.
    """

    def __init__(self, *, root: str | Path, split: str = "train", crop_size: int = 512,
                 scales: Sequence[float] | None = None, scale_range: Sequence[float] | None = None,
                 fit: Sequence[int] | None = None, max_class_share: float = 1.0, photometric: bool = False):
        if crop_size < 1:
            raise DataError(f"crop_size is {crop_size}; expected at least 1")
        if scales is not None and scale_range is not None:
            raise DataError("both scales and scale_range are given; expected at most one")
        if scales is not None and (not len(scales) or min(scales) <= 0):
            raise DataError(f"scales are {quoted(list(scales))}; expected one or more positive factors")
        if scale_range is not None and (len(scale_range) != 2 or not 0 < scale_range[0] <= scale_range[1]):
            raise DataError(f"scale_range is {quoted(list(scale_range))}; expected two factors, 0 < low <= high")
        if fit is not None and (len(fit) != 2 or min(fit) < 1):
            raise DataError(f"fit is {quoted(list(fit))}; expected two sides in pixels, such as [2048, 512]")
        if not 0 < max_class_share <= 1:
            raise DataError(f"max_class_share is {max_class_share}; expected 0 < share <= 1")
        self.root, self.split = Path(root).expanduser(), split
        self.crop_size, self.photometric = crop_size, photometric
        self._drawing = {"scales": tuple(transforms.SCALES if scales is None else scales), "crop_size": crop_size,
                         "scale_range": scale_range, "fit": fit, "max_class_share": max_class_share}
        self._listing = Listing()
        self._samples = self._list()
        warn_once(self._listing, self.root, SUFFIXES)
        if not self._samples:
            raise DataError(f"{self.root}: split {shortened(split)} has no pictures")
        self.ids = [sample.id for sample in self._samples]

    def notes(self) -> list[str]:
        return self._listing.notes(self.root, SUFFIXES)

    def _list(self) -> list[Sample]:
        raise NotImplementedError

    def train_sample(self, index: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """A random crop: {"image": (3, crop, crop) float32, normalised; "label": (crop, crop) int32}."""
        sample = self._samples[index]
        if sample.label is None:
            raise DataError(f"{self.root}: split {self.split} has no labels to train on; use another split")
        image, label = self._read(sample)

        def finish(crop):
            return transforms.standardise(transforms.distort_colours(crop, rng) if self.photometric else crop)
        image, label = transforms.train_augment(image.astype(np.float32), label, rng, finish=finish, **self._drawing)
        return {"image": np.ascontiguousarray(image.transpose(2, 0, 1)), "label": label.astype(np.int32)}

    def _find_root(self, *folders: str) -> Path:
        """self.root or the first of the folders in it that holds all of what a subclass's `_needs` names."""
        candidates = [self.root, *(self.root / folder for folder in folders)]
        for candidate in candidates:
            if all((candidate / name).is_dir() for name in self._needs):
                return candidate
        state = "" if self.root.is_dir() else " (it is not a folder)"
        raise DataError(f"{self.root}: no {self._title} data there{state}; looked for the folders "
                        f"{' and '.join(self._needs)} in {', '.join(map(str, candidates))}")

    def _pairs(self, pictures: str, labels: str | None, *, picture_end: str = "",
               label_end: str = ".png") -> list[Sample]:
        """The samples of two folder trees, paired by their path without the ending; sorted.

        picture_end: what picture files end in; "" for any picture suffix. labels: None for pictures without labels.
        """
        found = self._files(pictures, (picture_end,) if picture_end else SUFFIXES)
        if labels is None:
            return [Sample(id, path, None) for id, path in sorted(found.items())]
        labelled = self._files(labels, (label_end,))
        samples = []
        for id, path in sorted(found.items()):
            if id in labelled:
                samples.append(Sample(id, path, labelled[id]))
            else:
                fault(f"{self.root / path}: has no label; expected {self.root / labels / (id + label_end)}")
        for id in sorted(set(labelled) - set(found)):
            fault(f"{self.root / labelled[id]}: belongs to no picture in {self.root / pictures}")
        return samples

    def _files(self, folder: str, ends: tuple[str, ...]) -> dict[str, str]:
        """Path below `folder` without its ending -> path below the root, of all files that end in one of `ends`."""
        top, found = self.root / folder, {}
        if not top.is_dir():
            raise DataError(f"{top}: no such folder, so split {self.split} is not there")
        listing = list_files(top, ends)
        if set(ends) <= {*SUFFIXES, ".png"}:  # the other endings of published data sets are known
            self._listing.add(listing)
        for path in listing.files:
            inside = path[len(str(top)) + 1:].replace(os.sep, "/")
            end = next(end for end in ends if inside.lower().endswith(end.lower()))
            id = inside[:-len(end)]
            if id in found:
                fault(f"{path}: {self.root / found[id]} has the same name; their labels cannot be told apart")
                continue
            found[id] = os.path.relpath(path, self.root).replace(os.sep, "/")
        return found


def _wxh(array: np.ndarray) -> str:
    return f"{array.shape[1]} x {array.shape[0]}"
