"""Classes that occur in no label: a score over them says nothing, and a network does not learn them."""
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


def check_training_labels(dataset: Dataset, *, num_workers: int, seconds: float = _SECONDS) -> None:
    """Say which classes occur in no label of a data set; DataError where all but one never occur.

    Labels are read until each class has been seen, in random order and for at most so many seconds; only where that
    shows a single class all are read, to be sure. The first rank looks for all.
    """
    if dataset.num_classes > 1 and len(dataset):
        ranks.on_first(lambda: _look(dataset, num_workers, seconds))


def _look(dataset: Dataset, num_workers: int, seconds: float) -> None:
    order = np.random.Generator(np.random.PCG64(0)).permutation(len(dataset)).tolist()
    counts, looked, started = np.zeros(dataset.num_classes, np.int64), 0, time.monotonic()
    count_labels = _LabelCounts(dataset)
    found = map_ordered(count_labels, order[_FIRST:], num_workers)  # starts workers only where they are needed
    for sample in itertools.chain(map(count_labels, order[:_FIRST]), found):
        looked += 1
        if sample is not None:
            counts += sample
        seen = np.count_nonzero(counts)
        if seen == len(counts) or seen > 1 and time.monotonic() - started > seconds:
            break
    found.close()
    if counts.any():
        where = f"split {dataset.split}" if looked == len(order) else f"the {looked} {dataset.what} looked at"
        tell_absent(dataset, counts, where)


class _LabelCounts:
    """index -> how many labels are of each class; None without labels, and for what cannot be read, which training
    says."""

    def __init__(self, dataset: Dataset):
        self.dataset = dataset

    def __call__(self, index: int) -> np.ndarray | None:
        try:
            return self.dataset.label_counts(index)
        except DataError:
            return None


def absent_in_evaluation(dataset: Dataset, counts: Sequence[int], *, limit: int | None) -> dict:
    """{"absent_classes": names} of what no label of an evaluation has, to stand beside its scores; {} where there is
    none.

    counts: how many labels are of each class. limit: as of `evaluate`; with one a single class is no error.
    """
    if len(counts) < 2 or not np.any(counts) or np.all(counts):
        return {}
    absent = tell_absent(dataset, counts, f"split {dataset.split}", stop=limit is None)
    return {"absent_classes": absent}


def tell_absent(dataset: Dataset, counts: Sequence[int], where: str, *, stop: bool = True) -> list:
    """Say which classes occur in no label; their names. DataError where a single one occurs, unless `stop` is False."""
    absent = [dataset.class_names[c] for c in np.flatnonzero(np.asarray(counts) == 0)]
    if stop and len(absent) == len(counts) - 1:
        name = dataset.class_names[int(np.argmax(counts))]
        hint = ". Pixels of 255 have no class: if 255 is the object, write 1 instead" * (dataset.label_unit == "pixels")
        raise DataError(f"{dataset.root}: all labels of {where} are of class {name}; {_joined(absent)} never "
                        f"{'occurs' if len(absent) == 1 else 'occur'}, so that there is nothing to tell apart{hint}. "
                        "`jea data check` shows how often each class occurs")
    if absent:
        say(f"no label of {where} is of class {_joined(absent)}: scores are over the other {len(counts) - len(absent)} "
            f"of "
            f"{len(counts)} classes")
    return absent


def _joined(names: Sequence[str]) -> str:
    more = len(names) - _SHOWN
    return ", ".join(map(str, names[:_SHOWN])) + (f" and {more} more" if more > 0 else "")
