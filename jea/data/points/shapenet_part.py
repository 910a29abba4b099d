"""ShapeNetPart: 16 categories of shapes, each point labelled with one of 50 parts. Either of the forms in use.

    shapenet_part_seg_hdf5_data/*train*.h5, *val*.h5, *test*.h5       data (n, 2048, 3), label (n, 1), pid (n, 2048)
    shapenetcore_partanno_segmentation_benchmark_v0_normal/
        synsetoffset2category.txt                                     lines "Airplane 02691156"
        train_test_split/shuffled_{train,val,test}_file_list.json     ["shape_data/<synset>/<token>", ...]
        <synset>/<token>.txt                                          lines x y z nx ny nz part
"""
from __future__ import annotations

import json
from pathlib import Path
from typing import Sequence

import numpy as np

from jea.data.dataset import check_split
from jea.data.files.cache import cached, pack
from jea.data.files.clouds.text import check_cloud, read_table
from jea.data.files.hdf5 import check_hdf5_clouds, check_labels, hdf5_files, read_hdf5
from jea.data.files.lists import MAX_BYTES, check_listed, read_lines
from jea.data.points.base import PointCloudDataset
from jea.data.views.clouds import normalise_cloud
from jea.errors import DataError
from jea.reading import decode, read_file

CATEGORIES = ("airplane", "bag", "cap", "car", "chair", "earphone", "guitar", "knife", "lamp", "laptop", "motorbike",
              "mug", "pistol", "rocket", "skateboard", "table")
PART_COUNTS = (4, 2, 2, 4, 4, 3, 3, 2, 4, 2, 6, 2, 3, 3, 3, 3)
SPLITS = {"train": ("train",), "val": ("val",), "trainval": ("train", "val"), "test": ("test",)}

_TEXT = "shapenetcore_partanno_segmentation_benchmark_v0_normal"
_HDF5 = ("shapenet_part_seg_hdf5_data", "hdf5_data")


def part_ranges(counts: Sequence[int] = PART_COUNTS) -> tuple[tuple[int, ...], ...]:
    """The parts of each category: category k has counts[k] of them, numbered through."""
    ends = np.cumsum([0, *counts])
    return tuple(tuple(range(a, b)) for a, b in zip(ends.tolist(), ends[1:].tolist()))


class ShapeNetPart(PointCloudDataset):
    """Shapes with a category (0 to 15, alphabetical) and a part (0 to 49) of each point.

    root: one of the two folders above, or the folder that holds it.
    split: train, val, trainval (the published recipes train on it) or test (2,874 shapes).
    num_points: points of a sample. hdf5: the first so many of 2,048 rows. Text: drawn with replacement, as its
        shapes differ in length (training: anew each time), after moving them into the unit sphere.
    dropout, scale, shift, jitter: see PointCloudDataset; the defaults are DGCNN's, whose code PCT names for this task.

    Both forms give the same category numbers, whatever the order in synsetoffset2category.txt. The clouds are read
    once and kept in root/.jea. Faults raise DataError.
    """

    class_names = CATEGORIES
    num_classes = len(CATEGORIES)
    parts = part_ranges()
    part_names = tuple(f"{name} {k + 1}" for name, count in zip(CATEGORIES, PART_COUNTS) for k in range(count))

    def __init__(self, *, root: str | Path, split: str = "trainval", num_points: int = 2048,
                 dropout: float = 0.0, scale: Sequence[float] = (2 / 3, 3 / 2), shift: float = 0.2,
                 jitter: float = 0.0):
        super().__init__(num_points=num_points, dropout=dropout, scale=scale, shift=shift, jitter=jitter)
        check_split(split, SPLITS, "ShapeNetPart")
        self.split = split
        self.root, self._is_text = _find_root(Path(root).expanduser())
        sources, build = self._text() if self._is_text else self._hdf5()
        name = split if self._is_text else f"{split}-{num_points}"
        self._clouds = cached(self.root, name, sources, build)

    def __len__(self) -> int:
        return len(self._clouds)

    def cloud(self, index: int, rng: np.random.Generator | None = None):
        start, end = self._clouds.ends[index:index + 2].tolist()
        chosen: slice | np.ndarray = slice(start, end)
        if self._is_text:
            rng = rng or np.random.Generator(np.random.PCG64(index))
            chosen = start + rng.integers(end - start, size=self.num_points)
        return (np.array(self._clouds.points[chosen]), int(self._clouds.labels[index]),
                self._clouds.parts[chosen].astype(np.int32), f"{self.split}_{index:04d}")

    def _hdf5(self):
        files = hdf5_files(self.root, *(f"*{part}*.h5" for part in SPLITS[self.split]))

        def build() -> dict[str, np.ndarray]:
            points: list = []
            parts: list = []
            labels: list = []
            for file in files:
                arrays = read_hdf5(file, {"data": (None, self.num_points, 3), "label": (None,),
                                          "pid": (None, self.num_points)})
                check_labels(arrays["label"], self.num_classes, file)
                points += list(check_hdf5_clouds(arrays["data"], file))
                for number, (label, pid) in enumerate(zip(arrays["label"].tolist(), arrays["pid"])):
                    parts.append(self._checked_parts(pid, int(label), f"{file}, cloud {number}", None))
                labels += arrays["label"].tolist()
            return pack(points, labels, parts)
        return files, build

    def _text(self):
        table = self.root / "synsetoffset2category.txt"
        categories = _read_categories(table)
        files: list[Path] = []
        lists = [self.root / "train_test_split" / f"shuffled_{part}_file_list.json" for part in SPLITS[self.split]]
        for path in lists:
            listed = [self.root / synset / f"{token}.txt" for synset, token in _read_json_list(path, categories)]
            check_listed(listed, path)
            files += listed

        def build() -> dict[str, np.ndarray]:
            labels = [categories[file.parent.name] for file in files]
            clouds, parts = [], []
            for file, label in zip(files, labels):
                values, lines = read_table(file, columns=7)
                clouds.append(normalise_cloud(check_cloud(values[:, :3], file, lines)))
                parts.append(self._checked_parts(values[:, 6], label, file, lines))
            return pack(clouds, labels, parts)
        return [table, *lists, *files], build

    def _checked_parts(self, parts: np.ndarray, category: int, path, lines) -> np.ndarray:
        own = self.parts[category]
        wrong = np.flatnonzero(~((parts >= own[0]) & (parts <= own[-1]) & (parts == np.floor(parts))))
        if len(wrong):
            where = f"{path}, line {lines[wrong[0]]}" if lines is not None else f"{path}, point {wrong[0]}"
            raise DataError(f"{where}: part {parts[wrong[0]]:g} of a {self.class_names[category]}; expected {own[0]} "
                            f"to {own[-1]}")
        return parts


def _find_root(root: Path) -> tuple[Path, bool]:
    """The folder of the data, and whether it is the text form."""
    for folder in (root, root / _TEXT, *(root / name for name in _HDF5)):
        if (folder / "synsetoffset2category.txt").is_file():
            return folder, True
        if folder.is_dir() and next(folder.glob("*.h5"), None) is not None:
            return folder, False
    state = "" if root.is_dir() else " (it is not a folder)"
    raise DataError(f"{root}: no ShapeNetPart there{state}; looked for synsetoffset2category.txt and for .h5 files in "
                    f"it, in {_TEXT} and in {' or '.join(_HDF5)}")


def _read_categories(path: Path) -> dict[str, int]:
    """synset -> category number."""
    found: dict[str, int] = {}
    for number, line in enumerate(read_lines(path), 1):
        words = line.split()
        if not words:
            continue
        if len(words) != 2 or words[0].lower() not in CATEGORIES or words[1] in found or not words[1].isalnum():
            raise DataError(f"{path}, line {number}: {line[:80]!r}; expected one of the categories "
                            f"{', '.join(CATEGORIES)} and its folder, each folder once")
        found[words[1]] = CATEGORIES.index(words[0].lower())
    return found


def _read_json_list(path: Path, categories: dict[str, int]) -> list[tuple[str, str]]:
    """(synset, token) of each shape in a list of "shape_data/<synset>/<token>"."""
    try:
        data = read_file(path, limit=MAX_BYTES, error=DataError, what="list")
        entries = json.loads(decode(data, path, error=DataError, what="list"))
    except DataError:
        raise
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: cannot read the list: {str(error)[:200]}") from None
    if not isinstance(entries, list) or not entries:
        raise DataError(f"{path}: expected a list of at least one \"shape_data/<synset>/<token>\"")
    shapes = []
    for entry in entries:
        parts = entry.split("/") if isinstance(entry, str) else []
        if len(parts) != 3 or parts[1] not in categories or parts[2] in ("", ".", "..") or "\\" in entry \
                or not entry.isprintable():
            raise DataError(f"{path}: {str(entry)[:80]!r}; expected \"shape_data/<synset>/<token>\" with a synset of "
                            "synsetoffset2category.txt")
        shapes.append((parts[1], parts[2]))
    return shapes
