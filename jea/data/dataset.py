"""The contract of a data set, and the batches that training gets from it.

A data set of your own derives from Dataset (or from ClassificationDataset, SegmentationDataset, PointCloudDataset,
which know how such samples are augmented and checked) and defines what its task needs. What it leaves out raises a
DataError that says so.
"""
from __future__ import annotations

import hashlib
import inspect
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Sequence

import numpy as np

from jea.errors import DataError, nearest, quoted


class Batch(dict):
    """Several samples side by side: name -> array whose first axis counts the samples, or list with an entry for each.

    A list holds what differs in shape from sample to sample, such as the boxes of pictures.
    """

    @property
    def size(self) -> int:
        """How many samples the batch holds."""
        return len(next(iter(self.values()))) if self else 0

    def parts(self, count: int) -> list[Batch]:
        """Cut the batch into `count` batches of one size, in order."""
        size, rest = divmod(self.size, count)
        if rest:
            raise ValueError(f"a batch of {self.size} samples does not divide into {count} parts of one size")
        if count == 1:
            return [self]
        return [type(self)({name: values[k * size:(k + 1) * size] for name, values in self.items()})
                for k in range(count)]


@dataclass
class Examined:
    """What `jea data check` learns about one sample.

    name: its file, or "sample 3". problems: what is wrong with it, one line each.
    size: (height, width) of a picture, (points, coordinates) of a cloud; None where it could not be read.
    digest: of its content, so that a sample that is there twice is found; None: do not compare.
    counts: (num_classes,) how many of its labels are of each class; None: it has none, or they could not be read.
    ignored: how many of its labels count for no class.
    rotated: the picture's EXIF data ask to turn it.
    parts: (number of parts,) how many points of a cloud are of each part, for data sets with parts.
    """

    name: str
    problems: list[str] = field(default_factory=list)
    size: tuple[int, int] | None = None
    digest: bytes | None = None
    counts: np.ndarray | None = None
    ignored: int = 0
    rotated: bool = False
    parts: np.ndarray | None = None

    def attempt(self, function, *arguments):
        """What the function returns, or None where it raised a DataError, which becomes a problem."""
        try:
            return function(*arguments)
        except DataError as error:
            self.problems.append(str(error))
            return None


class Dataset:
    """Samples by index. The methods of this class name what a data set can be asked.

    what, unit: what messages call the samples and one of them.
    label_unit: what there are many of in a sample's label, such as pixels; None: a sample has one class.
    follows_exif: pictures are turned upright as their EXIF data ask, instead of read as they are stored.
    ragged: names of a sample's entries that differ in shape from sample to sample; in a batch they are lists.
    root: where the data are, for messages. split: the part that this object stands for.
    class_names, num_classes: of the labels.
    placeholders: classes that stand for none, such as numbers that COCO's ids leave out.
    """

    what, unit = "pictures", "picture"
    label_unit: str | None = None
    ragged: Sequence[str] = ()
    follows_exif = False

    root: str | Path = "memory"
    split: str | None = None
    class_names: Sequence[str] = ()
    num_classes: int = 0
    placeholders: Sequence[int] = ()

    def __len__(self) -> int:
        raise self._lacks("samples", "__len__()")

    def load(self, index: int) -> tuple[np.ndarray, int]:
        """Read a sample and its class: a picture (H, W, 3) uint8 RGB, or a cloud (N, 3) float32."""
        raise self._lacks(f"{self.what} with one class each", "load(index)")

    def train_sample(self, index: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """Make a training sample; all that is random in it comes from `rng`."""
        raise self._lacks("samples to train on", "train_sample(index, rng)")

    def test_sample(self, index: int) -> dict[str, Any]:
        """Read a sample for evaluation, with its "id"; the same at each call."""
        raise self._lacks("samples to evaluate on", "test_sample(index)")

    def collate(self, samples: Sequence[dict[str, np.ndarray]]) -> Batch:
        """Put samples side by side: arrays of one name are stacked, those in `ragged` become a list."""
        batch = Batch()
        for name in samples[0]:
            entries = [sample[name] for sample in samples]
            if name not in self.ragged:
                shapes = {np.shape(entry) for entry in entries}
                if len(shapes) > 1:
                    raise DataError(f"{self.root}: \"{name}\" has the shapes {', '.join(map(str, sorted(shapes)))} in "
                                    f"the samples of one batch; give all one shape, or name it in "
                                    f"{type(self).__name__}.ragged to get a list")
                entries = np.stack(entries)
            batch[name] = entries
        return batch

    def describe(self) -> str:
        """Say in one line what this is."""
        return f"{len(self)} {self.what} of {type(self).__name__}, split {self.split}, in {self.root}"

    def examine(self, index: int) -> Examined:
        """Read a sample as `jea data check` does: all that is wrong with it, and what it contains."""
        found = Examined(f"sample {index}")
        pair = found.attempt(self.load, index)
        if pair is not None:
            content, label = pair
            found.size, found.digest = content.shape[:2], digest(content)
            found.counts = np.bincount([label], minlength=self.num_classes)[:self.num_classes]
        return found

    def label_counts(self, index: int) -> np.ndarray | None:
        """How many of a sample's labels are of each class, (num_classes,); None where it has none. A data set that can
        tell without reading the sample defines it."""
        return self.examine(index).counts

    def notes(self) -> list[str]:
        """What a person should know about the files, and is no fault: a line each, such as files that are left out."""
        return []

    @classmethod
    def arguments(cls) -> dict[str, inspect.Parameter]:
        """The keywords that the constructor takes, those of its bases included where it has `**keywords`."""
        found: dict[str, inspect.Parameter] = {}
        for base in cls.__mro__:
            if "__init__" not in base.__dict__ or base is object:
                continue
            parameters = list(inspect.signature(base.__init__).parameters.values())[1:]
            found.update({p.name: p for p in parameters if p.kind is not p.VAR_KEYWORD and p.name not in found})
            if all(p.kind is not p.VAR_KEYWORD for p in parameters):
                break
        return found

    def _lacks(self, what: str, method: str) -> DataError:
        return DataError(f"data.name: {type(self).__name__} has no {what}: its class does not define {method}. Choose "
                         "another data set, or define it")


def check_split(split, splits: Sequence[str], where) -> None:
    """DataError, with the nearest name, for a split that is none of `splits`; where: the folder or the data set."""
    if split not in splits:
        raise DataError(f"{where}: unknown split {quoted(split)}{nearest(split, splits)}; there are "
                        f"{', '.join(splits)}")


def digest(array: np.ndarray) -> bytes:
    """A short checksum of an array's content."""
    return hashlib.blake2b(np.ascontiguousarray(array), digest_size=16).digest()
