"""Objects of pictures, from COCO-format files: read once, checked, kept in flat arrays."""
from __future__ import annotations

import json
import math
from array import array
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from jea.data.detection.rle import (
    mask_of_runs,
    runs_of_mask,
    runs_of_polygon,
    runs_of_text,
    toggles_of_polygon,
)
from jea.data.faults import fault, is_collecting
from jea.data.files.pictures import MAX_PIXELS
from jea.errors import DataError
from jea.reading import read_file

NO_MASK, POLYGONS, RUNS = 0, 1, 2
LARGEST_SIDE = 65_536
MAX_JSON = 1024 * 1024 * 1024  # bytes; instances_train2017.json has 450 MB


@dataclass
class Instances:
    """The objects of a list of pictures. Picture p has the objects first[p] to first[p + 1].

    files, ids, sizes (P, 2): each picture's file, its id and height and width (0 where the file does not tell).
    names, category_ids: of the classes, by ascending id. boxes (N, 4) x y w h as written, classes (N,), crowd (N,),
    areas (N,), annotation_ids (N,).
    kinds (N,): what an object's mask is: nothing, polygons or runs; parts (N + 1,), starts, numbers: object n has the
    parts parts[n] to parts[n + 1], part k the numbers starts[k] to starts[k + 1].
    """

    names: tuple = ()
    category_ids: tuple = ()
    files: list = field(default_factory=list)
    ids: list = field(default_factory=list)
    sizes: np.ndarray = None
    first: np.ndarray = None
    boxes: np.ndarray = None
    classes: np.ndarray = None
    crowd: np.ndarray = None
    areas: np.ndarray = None
    annotation_ids: list = field(default_factory=list)
    kinds: np.ndarray = None
    parts: np.ndarray = None
    starts: np.ndarray = None
    numbers: np.ndarray = None

    def of(self, picture: int) -> range:
        """The objects of a picture."""
        return range(int(self.first[picture]), int(self.first[picture + 1]))

    def runs(self, n: int, height: int, width: int) -> list:
        """An object's mask in a picture of this size, as runs: the union of its parts."""
        lists = [self.numbers[self.starts[k]:self.starts[k + 1]] for k in range(self.parts[n], self.parts[n + 1])]
        if self.kinds[n] == RUNS:
            return lists[0].astype(np.int64).tolist()
        if len(lists) == 1:
            return runs_of_polygon(lists[0], height, width)
        return runs_of_mask(self.mask(n, height, width))

    def mask(self, n: int, height: int, width: int) -> np.ndarray:
        """An object's mask, bool (height, width); without one, its box."""
        if self.kinds[n] == RUNS:
            return mask_of_runs(self.runs(n, height, width), height, width)
        if self.kinds[n] == NO_MASK:
            found = np.zeros((height, width), bool)
            x, y, w, h = self.boxes[n]
            found[max(int(round(y)), 0):max(int(round(y + h)), 0),
                  max(int(round(x)), 0):max(int(round(x + w)), 0)] = True
            return found
        depth = np.zeros(height * width + 1, np.int32)  # how many parts begin at a pixel, less those that end
        for k in range(self.parts[n], self.parts[n + 1]):
            places = toggles_of_polygon(self.numbers[self.starts[k]:self.starts[k + 1]], height, width)
            depth[places[0::2]] += 1
            depth[places[1::2]] -= 1
        return (np.cumsum(depth[:-1]) > 0).reshape(width, height).T


def soft(message: str) -> None:
    """What `jea data check` lists and training leaves out or lives with."""
    if is_collecting():
        fault(message)


def read_json(path: Path):
    """The content of a JSON file; DataError for one that is missing, broken, too deep or holds numbers that are
    none."""
    def constant(name):
        raise ValueError(f"it holds {name}")
    data = read_file(path, limit=MAX_JSON, error=DataError, what="annotations", too_large="is it the right file?")
    try:
        return json.loads(data, parse_constant=constant)
    except (ValueError, RecursionError, MemoryError) as error:  # UnicodeDecodeError is a ValueError
        said = "it is nested too deep" if isinstance(error, RecursionError) else str(error) or "not enough memory"
        raise DataError(f"{path}: not a COCO-format JSON file: {said[:200]}") from None


def read_instances(path: Path, *, wanted_masks: bool = True) -> Instances:
    """The objects in a COCO-format file: {"images": [...], "annotations": [...], "categories": [...]}.

    The file may have no annotations, as those of test pictures. Faults raise DataError, or are collected.
    """
    content = read_json(path)
    if not isinstance(content, dict):
        raise DataError(f"{path}: holds {_kind(content)}; expected images, annotations and categories")
    builder = _Builder(path, wanted_masks)
    builder.categories(_list(content, "categories", path))
    builder.pictures(_list(content, "images", path))
    if "annotations" in content:
        builder.annotations(_list(content, "annotations", path))
    return builder.finish()


def _list(content: dict, key: str, path) -> list:
    value = content.get(key)
    if not isinstance(value, list):
        raise DataError(f"{path}: {key} is {_kind(value)}; expected a list")
    return value


def _kind(value) -> str:
    return "missing" if value is None else f"a {type(value).__name__}"


def _shown(value) -> str:
    if isinstance(value, (list, dict)) and len(value) > 20:
        return f"{_kind(value)} of {len(value)} entries"
    try:
        text = ascii(value)
    except (RecursionError, ValueError):  # nested as deep as JSON may be; a number of thousands of digits
        return f"{_kind(value)} too large to show"
    return text if len(text) <= 60 else text[:57] + "..."


def _text(value) -> bool:
    """Whether it is a text that has letters and can be written: JSON can also hold halves of letters."""
    try:
        return isinstance(value, str) and bool(value.encode())
    except UnicodeEncodeError:
        return False


def _id(value) -> bool:
    return type(value) is int and abs(value) < 1 << 63


def _number(value) -> bool:
    return type(value) in (int, float) and abs(value) < 1e15


class _Builder:
    def __init__(self, path, wanted_masks: bool):
        self.path, self.wanted_masks, self.found = path, wanted_masks, Instances()
        self.rows: list = []  # of each picture: its objects

    def bad(self, message: str) -> None:
        fault(f"{self.path}: {message}")

    def categories(self, entries: list) -> None:
        names = {}
        for place, entry in enumerate(entries):
            id, name = (entry.get(key) for key in ("id", "name")) if isinstance(entry, dict) else (None, None)
            if not _id(id) or not _text(name):
                self.bad(f"category {place} is {_shown(entry)}; expected an id (a whole number) and a name")
            elif id in names:
                self.bad(f"category id {id} occurs twice ({_shown(names[id])} and {_shown(name)})")
            else:
                names[id] = name
        self.found.category_ids = tuple(sorted(names))
        self.found.names = tuple(names[id] for id in self.found.category_ids)
        self.class_of = {id: place for place, id in enumerate(self.found.category_ids)}

    def pictures(self, entries: list) -> None:
        self.place, sizes = {}, []
        for number, entry in enumerate(entries):
            if not isinstance(entry, dict):
                self.bad(f"picture {number} is {_shown(entry)}; expected id, file_name, height and width")
                continue
            id, name, height, width = (entry.get(key) for key in ("id", "file_name", "height", "width"))
            if not (_id(id) or _text(id)) or not _text(name):
                self.bad(f"picture {number} has id {_shown(id)} and file_name {_shown(name)}; expected a number and a "
                         "name")
            elif any(part == ".." for part in Path(name).parts) or Path(name).is_absolute() or "\0" in name:
                self.bad(f"picture {id}: file_name {_shown(name)} leads out of the data set's folder")
            elif id in self.place:
                self.bad(f"picture id {id} occurs twice")
            elif any(type(side) is not int or not 1 <= side <= LARGEST_SIDE for side in (height, width)):
                self.bad(f"picture {id}: height {_shown(height)} and width {_shown(width)}; expected 1 to "
                         f"{LARGEST_SIDE}")
            elif height * width > MAX_PIXELS:
                self.bad(f"picture {id}: {height} x {width} pixels are over the limit of {MAX_PIXELS}")
            else:
                self.place[id] = len(self.found.files)
                self.found.files.append(name)
                self.found.ids.append(id)
                sizes.append((height, width))
        self.found.sizes = np.array(sizes, np.int32).reshape(-1, 2)
        self.rows = [[] for _ in sizes]

    def annotations(self, entries: list) -> None:
        seen = set()
        for number, entry in enumerate(entries):
            if not isinstance(entry, dict):
                self.bad(f"annotation {number} is {_shown(entry)}; expected an object")
                continue
            id, image, category = (entry.get(key) for key in ("id", "image_id", "category_id"))
            what = f"annotation {_shown(id)}"
            if not (_id(id) or _text(id)):
                self.bad(f"annotation {number} has id {_shown(id)}; expected a whole number")
                continue
            if id in seen:
                soft(f"{self.path}: annotation id {id} occurs twice: COCO's tools count one of them only")
            if id == 0:
                soft(f"{self.path}: annotation id 0: COCO's own evaluation never counts it as found; number from 1 "
                     "(jea numbers anew)")
            seen.add(id)
            if type(image) not in (int, str) or image not in self.place:
                self.bad(f"{what} is of picture {_shown(image)}, which is not in the list of pictures")
            elif type(category) is not int or category not in self.class_of:
                self.bad(f"{what} is of category {_shown(category)}, which is not in the list of categories")
            else:
                self.annotation(entry, what, id, self.place[image], self.class_of[category])

    def annotation(self, entry: dict, what: str, id, picture: int, category: int) -> None:
        box, crowd, area = entry.get("bbox"), entry.get("iscrowd", 0), entry.get("area")
        height, width = (int(side) for side in self.found.sizes[picture])
        if not isinstance(box, list) or len(box) != 4 or not all(map(_number, box)):
            return self.bad(f"{what}: bbox is {_shown(box)}; expected [x, y, width, height]")
        if type(crowd) is not int and type(crowd) is not bool or crowd not in (0, 1):
            return self.bad(f"{what}: iscrowd is {_shown(crowd)}; expected 0 or 1")
        x, y, w, h = map(float, box)
        area = w * h if area is None else area
        if not _number(area) or area < 0:
            return self.bad(f"{what}: area is {_shown(area)}; expected a number of pixels")
        if w <= 0 or h <= 0:
            soft(f"{self.path}: {what}: its box {_shown(box)} is empty")
        elif x < -1 or y < -1 or x + w > width + 1 or y + h > height + 1:
            soft(f"{self.path}: {what}: its box {_shown(box)} leaves its picture of {width} x {height}")
        elif w < 1 or h < 1:
            soft(f"{self.path}: {what}: its box {_shown(box)} is thinner than a pixel")
        kind, parts = NO_MASK, []
        if self.wanted_masks and entry.get("segmentation"):
            try:
                kind, parts = self.segmentation(entry["segmentation"], height, width)
            except DataError as error:
                return self.bad(f"{what}: {error}")
        self.rows[picture].append((category, (x, y, w, h), bool(crowd), float(area), id, kind, parts))

    def segmentation(self, value, height: int, width: int) -> tuple:
        """(kind, parts) of an annotation; the work is linear in its text."""
        if isinstance(value, dict):
            size, counts = value.get("size"), value.get("counts")
            if size != [height, width]:
                raise DataError(f"its mask has size {_shown(size)}, its picture [{height}, {width}]")
            if isinstance(counts, str):
                return RUNS, [array("d", runs_of_text(counts, height * width))]
            if not isinstance(counts, list) or any(type(run) is not int or run < 0 for run in counts):
                raise DataError(f"its run lengths are {_shown(counts)}; expected whole numbers, or text")
            if sum(counts) != height * width:
                raise DataError(f"run lengths of {sum(counts)} pixels in a picture of {height * width}")
            return RUNS, [array("d", counts)]
        if not isinstance(value, list):
            raise DataError(f"its segmentation is {_shown(value)}; expected polygons or run lengths")
        parts = []
        for polygon in value:
            if not isinstance(polygon, list) or len(polygon) < 6 or len(polygon) % 2 or not all(map(_number, polygon)):
                raise DataError(f"a polygon is {_shown(polygon)}; expected x0, y0, x1, y1, ... of three corners or "
                                "more")
            if max(map(abs, polygon)) > 16 * LARGEST_SIDE:
                raise DataError(f"a polygon reaches to {max(map(abs, polygon)):.0f}, far outside of its picture")
            parts.append(array("d", polygon))
        return POLYGONS, parts

    def finish(self) -> Instances:
        found, rows = self.found, [row for picture in self.rows for row in picture]
        self.rows, found.first = None, np.cumsum([0, *map(len, self.rows)])
        found.classes = np.array([row[0] for row in rows], np.int32)
        found.boxes = np.array([row[1] for row in rows], np.float64).reshape(-1, 4)
        found.crowd = np.array([row[2] for row in rows], bool)
        found.areas = np.array([row[3] for row in rows], np.float64)
        found.annotation_ids = [row[4] for row in rows]
        found.kinds = np.array([row[5] for row in rows], np.uint8)
        found.parts = np.cumsum([0, *(len(row[6]) for row in rows)])
        parts = [part for row in rows for part in row[6]]
        found.starts = np.cumsum([0, *map(len, parts)])
        found.numbers = np.concatenate([np.frombuffer(part, np.float64) for part in parts] or [np.zeros(0)])
        if not math.isfinite(float(found.boxes.sum())):
            self.bad("a box is beyond all numbers")
        return found
