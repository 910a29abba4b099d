"""Classes and parts that occur in no label: a score over them says nothing, and a network does not learn them."""
from __future__ import annotations

import itertools
import time
from typing import Sequence

import numpy as np

from jea import ranks
from jea.data import Dataset, map_ordered
from jea.errors import DataError
from jea.training.log import say

_SECONDS = 10  # at most, for looking at the labels before training
_FIRST = 200  # samples that are looked at in this process
_SHOWN = 10  # names in a message
_WORDS = {"absent_classes": "class", "absent_parts": "part"}
_HINTS = {"pixels": ". Pixels of 255 have no class: if 255 is the object, write 1 instead",
          "boxes": ". Take the categories that never occur out of the annotations, and set model.num_classes"}


class ClassLabels:
    """What a task tells apart in the labels of a data set, and how often each occurs in a sample: the classes.

    Called with an index it counts; None for a sample without a label, and for what cannot be read, which training says.
    """

    word, plural = "class", "classes"

    def __init__(self, dataset: Dataset):
        self.dataset = dataset
        self.real = [k for k in range(dataset.num_classes) if k not in dataset.placeholders]
        self.names = [dataset.class_names[k] for k in self.real]

    def __call__(self, index: int) -> np.ndarray | None:
        try:
            counts = self.counted(index)
        except DataError:
            return None
        return None if counts is None else np.asarray(counts)[self.real]

    def counted(self, index: int) -> np.ndarray | None:
        return self.dataset.label_counts(index)

    def absent(self, counts: np.ndarray) -> dict:
        """{"absent_classes": names} of those that never occur, {} where there is none."""
        names = [name for name, count in zip(self.names, counts) if not count]
        return {"absent_classes": names} if names else {}


class PartLabels(ClassLabels):
    """The parts of a PointCloudDataset with parts. Of a category that never occurs the parts are not listed."""

    word, plural = "part", "parts"

    def __init__(self, dataset: Dataset):
        self.dataset, self.names = dataset, list(dataset.part_names)
        self.real = list(range(len(self.names)))

    def counted(self, index: int) -> np.ndarray | None:
        return self.dataset.part_counts(index)

    def absent(self, counts: np.ndarray) -> dict:
        classes, parts = [], []
        for name, own in zip(self.dataset.class_names, self.dataset.parts):
            gone = [self.names[k] for k in own if not counts[k]]
            if len(gone) == len(own):
                classes.append(name)
            else:
                parts += gone
        return {key: names for key, names in (("absent_classes", classes), ("absent_parts", parts)) if names}


def check_training_labels(labels: ClassLabels, *, num_workers: int, seconds: float = _SECONDS) -> None:
    """Say what occurs in no label of a data set; DataError where all but one never occur.

    Labels are read until everything has been seen, in random order and for at most so many seconds; only where that
    shows a single class all are read, to be sure. The first rank looks for all.
    """
    if len(labels.names) > 1 and len(labels.dataset):
        ranks.on_first(lambda: _look(labels, num_workers, seconds))


def _look(labels: ClassLabels, num_workers: int, seconds: float) -> None:
    dataset = labels.dataset
    order = np.random.Generator(np.random.PCG64(0)).permutation(len(dataset)).tolist()
    counts, looked, started = np.zeros(len(labels.names), np.int64), 0, time.monotonic()
    found = map_ordered(labels, order[_FIRST:], num_workers)  # starts workers only where they are needed
    for sample in itertools.chain(map(labels, order[:_FIRST]), found):
        looked += 1
        if sample is not None:
            counts += sample
        seen = np.count_nonzero(counts)
        if seen == len(counts) or seen > 1 and time.monotonic() - started > seconds:
            break
    found.close()
    if counts.any():
        where = f"split {dataset.split}" if looked == len(order) else f"the {looked} {dataset.what} looked at"
        tell_absent(labels, counts, where)


def absent_in_evaluation(labels: ClassLabels, counts: Sequence[int], *, stop: bool) -> dict:
    """{"absent_classes": names} of what no label of an evaluation has, to stand beside its scores; {} where there is
    none.

    counts: how many labels are of each class of the data set. stop: a single class is an error; not where only a part
    was evaluated.
    """
    counts = np.asarray(counts)[labels.real]
    if len(counts) < 2 or not counts.any() or counts.all():
        return {}
    return tell_absent(labels, counts, f"split {labels.dataset.split}", stop=stop)


def tell_absent(labels: ClassLabels, counts: np.ndarray, where: str, *, stop: bool = True) -> dict:
    """Say what occurs in no label, and return it as `labels.absent`. DataError where a single class or part occurs,
    unless `stop` is False."""
    dataset, there = labels.dataset, np.flatnonzero(counts)
    if stop and len(there) == 1:
        absent = [name for name, count in zip(labels.names, counts) if not count]
        raise DataError(f"{dataset.root}: all labels of {where} are of {labels.word} {labels.names[there[0]]}; "
                        f"{_joined(absent)} never {'occurs' if len(absent) == 1 else 'occur'}, so that there is "
                        f"nothing to tell apart{_HINTS.get(dataset.label_unit, '')}. `jea data check` shows how often "
                        f"each {labels.word} occurs")
    absent = labels.absent(counts)
    if absent:
        said = ", ".join(f"of {_WORDS[key]} {_joined(names)}" for key, names in absent.items())
        say(f"no label of {where} is {said}: scores are over the other {len(there)} of {len(counts)} {labels.plural}")
    return absent


def _joined(names: Sequence[str]) -> str:
    more = len(names) - _SHOWN
    return ", ".join(map(str, names[:_SHOWN])) + (f" and {more} more" if more > 0 else "")
