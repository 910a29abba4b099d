"""Reads a data set once, whole, and lists everything that is wrong with it."""
from __future__ import annotations

from dataclasses import dataclass, field
from typing import Sequence

import numpy as np

from jea.data.dataset import Dataset, Examined
from jea.data.faults import collecting
from jea.data.loader import map_ordered
from jea.errors import DataError
from jea.progress import progress

_AS_STORED = "are read as they are stored, as the tools of this data set read them"


@dataclass
class Report:
    """What `check_splits` found.

    problems: one line each, with the file's name. notes: what is no fault, but should be known.
    pictures: split -> number of samples that were read.
    sizes: (height, width) -> number of pictures; of clouds, (points, coordinates).
    part_names, parts: of point clouds with parts, and how many points are of each.
    labels, pictures_with: per class and over all splits, how many labels (`label_unit`: pixels) and how many samples
    have it. ignored: labels without a class.
    what, label_unit: as of the data set.
    """

    class_names: Sequence[str] = ()
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    pictures: dict[str, int] = field(default_factory=dict)
    sizes: dict[tuple[int, int], int] = field(default_factory=dict)
    labels: np.ndarray | None = None
    pictures_with: np.ndarray | None = None
    ignored: int = 0
    part_names: Sequence[str] = ()
    parts: np.ndarray | None = None
    what: str = "pictures"
    label_unit: str | None = None

    def lines(self) -> list[str]:
        """The report as text."""
        lines = [f"{count} {self.what} in split {split}" for split, count in self.pictures.items()]
        if self.sizes:
            areas = sorted(self.sizes, key=lambda size: size[0] * size[1])
            small, large = areas[0], areas[-1]
            lines.append(f"{small[0]} to {large[0]} points in a cloud" if self.what == "clouds" else
                         f"{len(self.sizes)} sizes, from {small[1]} x {small[0]} to {large[1]} x {large[0]} pixels")
        if self.pictures_with is not None and len(self.class_names):
            lines += self._table()
        if self.parts is not None:
            lines += self._part_table()
        lines += [f"note: {note}" for note in self.notes]
        lines += [f"problem: {problem}" for problem in self.problems]
        lines.append(f"{len(self.problems) or 'no'} problem{'' if len(self.problems) == 1 else 's'}")
        return lines

    def _table(self) -> list[str]:
        width = max(map(len, self.class_names))
        total, many = max(1, int(self.labels.sum())), self.label_unit is not None
        lines = [f"{'class':>{width + 5}}  {self.what:>9}" + (f"  {self.label_unit:>14}  share" if many else "")]
        for place, (name, pictures) in enumerate(zip(self.class_names, self.pictures_with)):
            labels = f"  {self.labels[place]:>14,}  {self.labels[place] / total:6.2%}" if many else ""
            lines.append(f"{place:>4} {name:>{width}}  {pictures:>9,}{labels}")
        if many:
            lines.append(f"{'ignored':>{width + 5}}  {'':>9}  {self.ignored:>14,}")
        return lines

    def _part_table(self) -> list[str]:
        width, total = max(map(len, self.part_names)), max(1, int(self.parts.sum()))
        return [f"{'part':>{width + 5}}  {'points':>14}  share"] + [
            f"{place:>4} {name:>{width}}  {points:>14,}  {points / total:6.2%}"
            for place, (name, points) in enumerate(zip(self.part_names, self.parts))]


def check_splits(dataset_class: type[Dataset], arguments: dict, splits: Sequence[str], *, num_workers: int = 2,
                 shown: bool = True) -> Report:
    """Read all samples of the splits of a data set in `num_workers` processes.

    Problems are files that are missing, broken, empty or of another kind, labels of another size than their picture,
    with values that are no class or with nothing but ignored pixels, labels without a picture, ids listed twice or
    names that occur twice, pictures that occur twice (also in two splits), and classes and parts that never occur in
    the first split. Notes are files of other types, links to what is read already, and pictures that EXIF data turn.
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
        report.notes += [note for note in dataset.notes() if note not in report.notes]
        report.class_names, report.what, report.label_unit = dataset.class_names, dataset.what, dataset.label_unit
        report.part_names = getattr(dataset, "part_names", None) or ()
        if report.pictures_with is None:
            report.labels, report.pictures_with = (np.zeros(dataset.num_classes, np.int64) for _ in range(2))
        before = report.pictures_with.copy()
        turned: list[str] = []
        labels_before, ignored_before = report.labels.copy(), report.ignored
        results = map_ordered(dataset.examine, range(len(dataset)), num_workers)
        for result in progress(results, total=len(dataset), title=split, unit=dataset.unit, shown=shown):
            _add(report, result, split, seen, dataset.unit)
            turned += [result.name] * result.rotated
        report.pictures[split] = len(dataset)
        if turned:
            report.notes.append(f"{len(turned)} {dataset.what} of split {split} ask in their EXIF data to be turned, "
                                f"and "
                                f"{'are turned upright' if dataset.follows_exif else _AS_STORED}: "
                                f"{', '.join(turned[:5])}{' ...' * (len(turned) > 5)}")
        labelled = report.pictures_with - before
        if number == 0 and (labelled.any() or report.ignored > ignored_before):
            report.problems += [f"{dataset.root}: class {c} ({dataset.class_names[c]}) occurs in no label of split "
                                f"{split}" for c in np.flatnonzero(labelled == 0) if c not in dataset.placeholders]
            if report.parts is not None:
                report.problems += _absent_parts(dataset, split, labelled, report.parts)
            report.problems += _object_is_ignored(dataset, split, report.labels - labels_before,
                                                  report.ignored - ignored_before)
    return report


def _absent_parts(dataset: Dataset, split: str, clouds: np.ndarray, points: np.ndarray) -> list[str]:
    """A problem for each part that never occurs though its category does."""
    return [f"{dataset.root}: part {k} ({dataset.part_names[k]}) occurs in no label of split {split}"
            for category, own in enumerate(dataset.parts) if clouds[category] for k in own if not points[k]]


def _object_is_ignored(dataset: Dataset, split: str, labels: np.ndarray, ignored: int) -> list[str]:
    """What to say of masks in which an object has the value that stands for ignored pixels."""
    absent = np.flatnonzero(labels == 0)
    share = ignored / max(1, int(labels.sum()) + ignored)
    if dataset.label_unit != "pixels" or not len(absent) or not ignored \
            or len(labels) - len(absent) > 1 and share < 0.2:
        return []
    names = " or ".join(dataset.class_names[c] for c in absent[:3])
    return [f"{dataset.root}: {share:.1%} of the pixels of split {split} are 255, which means ignored, while {names} "
            f"never "
            f"occurs: is 255 the object? Then write its class instead ({absent[0]}), for each file with jea.data: "
            f"write_index_png(path, (read_label(path, {absent[0]}) == 255) * {absent[0]}, voc_palette())"
            if len(labels) == 2 and absent[0] else
            f"{dataset.root}: {share:.1%} of the pixels of split {split} are 255, which means ignored, while {names} "
            f"never "
            f"occurs: is 255 the object? Then write its class instead of 255"]


def _add(report: Report, result: Examined, split: str, seen: dict, unit: str) -> None:
    report.problems += result.problems
    if result.size is not None:
        report.sizes[result.size] = report.sizes.get(result.size, 0) + 1
    if result.digest is not None:
        first = seen.setdefault(result.digest, (split, result.name))
        if first != (split, result.name):
            report.problems.append(f"{result.name} (split {split}): is the same {unit} as {first[1]} (split "
                                   f"{first[0]})")
    if result.counts is not None:
        report.labels += result.counts
        report.ignored += result.ignored
        report.pictures_with += result.counts > 0
    if result.parts is not None:
        report.parts = result.parts + (0 if report.parts is None else report.parts)
