"""Reads a data set once, whole, and lists everything that is wrong with it."""
from __future__ import annotations

import hashlib
import sys
from dataclasses import dataclass, field
from typing import Dict, List, Optional, Sequence, Tuple

import numpy as np

from jea.data.faults import collecting
from jea.data.loader import map_ordered
from jea.data.segmentation.base import LabelledPictures
from jea.errors import DataError


@dataclass
class Report:
    """What `check_splits` found.

    problems: one line each, with the file's name.
    pictures: split -> number of samples that were read.
    sizes: (height, width) -> number of pictures.
    pixels, pictures_with: per class, over all splits; for classification only the latter counts.
    ignored: pixels without a class.
    what: what the samples are; of clouds, a size is (points, coordinates).
    """

    class_names: Sequence[str] = ()
    problems: List[str] = field(default_factory=list)
    pictures: Dict[str, int] = field(default_factory=dict)
    sizes: Dict[Tuple[int, int], int] = field(default_factory=dict)
    pixels: Optional[np.ndarray] = None
    pictures_with: Optional[np.ndarray] = None
    ignored: int = 0
    what: str = "pictures"

    def lines(self) -> List[str]:
        """The report as text."""
        lines = [f"{count} {self.what} in split {split}" for split, count in self.pictures.items()]
        if self.sizes:
            areas = sorted(self.sizes, key=lambda size: size[0] * size[1])
            small, large = areas[0], areas[-1]
            lines.append(f"{len(self.sizes)} sizes, from {small[1]} x {small[0]} to {large[1]} x {large[0]} pixels"
                         if self.what == "pictures" else f"{small[0]} to {large[0]} points in a cloud")
        if self.pictures_with is not None:
            width = max(map(len, self.class_names))
            total = max(1, int(self.pixels.sum()))
            is_map = self.pixels.any()
            lines.append(f"{'class':>{width + 5}}  {self.what:>9}" + (f"  {'pixels':>14}  share" if is_map else ""))
            for place, (name, pictures) in enumerate(zip(self.class_names, self.pictures_with)):
                pixels = f"  {self.pixels[place]:>14,}  {self.pixels[place] / total:6.2%}" if is_map else ""
                lines.append(f"{place:>4} {name:>{width}}  {pictures:>9,}{pixels}")
            if is_map:
                lines.append(f"{'ignored':>{width + 5}}  {'':>9}  {self.ignored:>14,}")
        lines += [f"problem: {problem}" for problem in self.problems]
        lines.append(f"{len(self.problems) or 'no'} problem{'' if len(self.problems) == 1 else 's'}")
        return lines


def check_splits(dataset_class, arguments: dict, splits: Sequence[str], *, num_workers: int = 2,
                 progress: bool = True) -> Report:
    """Read all samples of the splits of a data set in `num_workers` processes.

    Problems are files that are missing, broken, empty or of another kind, labels of another size than their picture,
    with values that are no class or with nothing but ignored pixels, labels without a picture, ids listed twice or
    names that occur twice, pictures that occur twice (also in two splits), and classes that never occur in the first
    split.
    """
    if num_workers < 0:
        raise DataError(f"num_workers is {num_workers}; expected 0 or more")
    report, seen = Report(), {}
    for number, split in enumerate(splits):
        try:
            with collecting() as found:
                dataset = dataset_class(**{**arguments, "split": split})
        except DataError as error:
            report.problems += [problem for problem in (*found, str(error)) if problem not in report.problems]
            continue
        report.problems += found
        report.class_names, report.what = dataset.class_names, getattr(dataset, "what", "pictures")
        if report.pictures_with is None:
            report.pixels, report.pictures_with = (np.zeros(dataset.num_classes, np.int64) for _ in range(2))
        before = report.pictures_with.copy()
        results = map_ordered(_Probe(dataset), range(len(dataset)), num_workers)
        for result in _bar(results, len(dataset), split, report.what[:-1], progress):
            _add(report, result, split, seen)
        report.pictures[split] = len(dataset)
        labelled = report.pictures_with - before
        if number == 0 and labelled.any():
            report.problems += [f"{dataset.root}: class {c} ({dataset.class_names[c]}) occurs in no label of split "
                                f"{split}" for c in np.flatnonzero(labelled == 0)]
    return report


def _add(report: Report, result: dict, split: str, seen: dict) -> None:
    report.problems += result["problems"]
    if result["size"] is not None:
        report.sizes[result["size"]] = report.sizes.get(result["size"], 0) + 1
        first = seen.setdefault(result["digest"], (split, result["name"]))
        if first != (split, result["name"]):
            report.problems.append(f"{result['name']} (split {split}): is the same {report.what[:-1]} as {first[1]} "
                                   f"(split {first[0]})")
    if result["counts"] is not None:
        classes = result["counts"][:len(report.pixels)]
        if result["is_map"]:
            report.pixels += classes
            report.ignored += int(result["counts"][len(report.pixels):].sum())
        report.pictures_with += classes > 0


class _Probe:
    """index -> what is wrong with a sample, and its statistics. Runs in the workers."""

    def __init__(self, dataset):
        self.dataset = dataset

    def __call__(self, index: int) -> dict:
        dataset, problems = self.dataset, []
        is_map = isinstance(dataset, LabelledPictures)
        image = label = counts = None
        name = f"sample {index}"
        if is_map:
            sample = dataset._samples[index]
            name = str(dataset.root / sample.image)
            image = self._try(problems, dataset._read_image, sample)
            if sample.label is not None:
                label = self._try(problems, dataset._read_label, sample)
        else:
            pair = self._try(problems, dataset.load, index)
            image, label = pair if pair is not None else (None, None)
        if label is not None:
            counts = np.bincount(np.asarray(label).reshape(-1), minlength=max(256, dataset.num_classes))
            if is_map and image is not None and label.shape != image.shape[:2]:
                problems.append(f"{dataset.root / sample.label}: label is {label.shape[1]} x {label.shape[0]}, its "
                                f"picture {name} is {image.shape[1]} x {image.shape[0]}")
            if is_map and not counts[:dataset.num_classes].any():
                problems.append(f"{dataset.root / sample.label}: all pixels are ignored")
        size = digest = None
        if image is not None:
            size, digest = image.shape[:2], hashlib.blake2b(np.ascontiguousarray(image), digest_size=16).digest()
        return {"problems": problems, "name": name, "size": size, "digest": digest, "counts": counts, "is_map": is_map}

    @staticmethod
    def _try(problems: list, function, argument):
        try:
            return function(argument)
        except DataError as error:
            problems.append(str(error))
            return None


def _bar(items, total: int, title: str, unit: str, shown: bool):
    from tqdm import tqdm
    return tqdm(items, total=total, desc=title, unit=unit, dynamic_ncols=True, disable=not shown, file=sys.stderr,
                mininterval=0.1 if sys.stderr.isatty() else 10)
