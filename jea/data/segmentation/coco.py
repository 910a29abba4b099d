"""COCO reduced to VOC's 20 classes and background, for pre-training.

    {train,val}2017/<id>.jpg                       or in images/
    annotations/instances_{train,val}2017.json     polygons, and run lengths for crowds
    stuffthingmaps/{train,val}2017/<id>.png        COCO-Stuff: category id - 1, 255 = unlabelled; labels: stuffthingmaps
"""
from __future__ import annotations

import json
from typing import Sequence

import numpy as np

from jea.data.faults import fault
from jea.data.files.labels import read_label
from jea.data.segmentation.base import AugmentedSegmentation, Sample
from jea.data.segmentation.voc import VOC_CLASSES
from jea.data.views.crops import IGNORE
from jea.draw.palettes import voc_palette
from jea.errors import DataError

# COCO's category ids of VOC's classes 1 to 20, and their names there
COCO_IDS = (5, 2, 16, 9, 44, 6, 3, 17, 62, 21, 67, 18, 19, 4, 1, 64, 20, 63, 7, 72)
COCO_NAMES = ("airplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "dining table",
              "dog", "horse", "motorcycle", "person", "potted plant", "sheep", "couch", "train", "tv")

_STUFF = np.zeros(256, np.uint8)  # stuffthingmaps' values -> classes
_STUFF[np.array(COCO_IDS) - 1] = np.arange(1, 21)
_STUFF[255] = IGNORE


class COCO(AugmentedSegmentation):
    """COCO pictures with VOC's labels: splits train and val (of 2017), or any that the folders have, such as train2014.

    labels: "instances" (drawn from the JSON) or "stuffthingmaps" (PNGs of COCO-Stuff). Where instances of different
        classes overlap, the pixels are ignored.
    min_pixels: only pictures with instances of VOC's classes that have at least this area together (instances only).
    The other arguments are those of AugmentedSegmentation. Reading instances_train2017.json (450 MB of text) needs several GB
    for a while; what is kept of it, flat arrays of the 20 classes' outlines, goes to each worker process.
    """

    num_classes = 21
    class_names = VOC_CLASSES
    palette = voc_palette()
    background = 0
    _title, _needs = "COCO", ()

    def __init__(self, *, labels: str = "instances", min_pixels: int = 1000, crop_size: int = 513, **options):
        if labels not in ("instances", "stuffthingmaps"):
            raise DataError(f"labels is {labels!r}; expected instances or stuffthingmaps")
        self._labels, self._min_pixels = labels, min_pixels
        super().__init__(crop_size=crop_size, **options)

    def _list(self) -> list[Sample]:
        year_split = {"train": "train2017", "val": "val2017"}.get(self.split, self.split)
        places = (year_split, f"images/{year_split}")
        folder = next((place for place in places if (self.root / place).is_dir()), year_split)
        if self._labels == "stuffthingmaps":
            return self._pairs(folder, f"stuffthingmaps/{year_split}")
        file = f"annotations/instances_{year_split}.json"
        images, self._drawings = _read_instances(self.root / file, self._min_pixels)
        there = set(self._files(folder, (".jpg",)))
        samples = []
        for place, name in enumerate(images):
            id = name.rpartition(".")[0]
            if id not in there:
                fault(f"{self.root / folder / name}: picture does not exist, but {self.root / file} has annotations of "
                      "it")
                continue
            samples.append(Sample(id, f"{folder}/{name}", f"{file}#{place}"))
        return samples

    def _read_label(self, sample: Sample) -> np.ndarray:
        if self._labels == "stuffthingmaps":
            return _STUFF[read_label(self.root / sample.label, 182, ignore=255)]
        return self._drawings.draw(int(sample.label.rpartition("#")[2]))


class _Drawings:
    """All annotations in flat arrays, which travel to worker processes fast.

    first (n + 1,): parts of picture k are first[k] to first[k + 1]; start (m + 1,): where each part's numbers start;
    classes (m,); is_runs (m,): run lengths instead of x0, y0, x1, y1, ...; sizes (n, 2): height, width.
    """

    def __init__(self, pictures, sizes):
        parts = [part for picture in pictures for part in picture]
        self.sizes = np.array(sizes, np.int32)
        self.first = np.cumsum([0, *map(len, pictures)])
        self.classes = np.array([c for c, _, _ in parts], np.uint8)
        self.is_runs = np.array([runs for _, runs, _ in parts], bool)
        self.start = np.cumsum([0, *(len(numbers) for _, _, numbers in parts)])
        self.numbers = np.concatenate([np.asarray(numbers, np.float32) for _, _, numbers in parts] or [np.zeros(0)])

    def draw(self, place: int) -> np.ndarray:
        height, width = self.sizes[place]
        label = np.zeros((height, width), np.uint8)
        for part in range(self.first[place], self.first[place + 1]):
            numbers = self.numbers[self.start[part]:self.start[part + 1]]
            if self.is_runs[part]:
                mask = decode_runs(numbers.astype(np.int64), height, width)
            else:
                mask = fill_polygon(numbers.reshape(-1, 2), height, width)
            clash = mask & (label != 0) & (label != self.classes[part])
            label[mask] = self.classes[part]
            label[clash] = IGNORE
        return label


def _read_instances(path, min_pixels: int):
    """([file name of each picture], _Drawings), for the pictures with VOC's classes."""
    try:
        content = json.loads(path.read_bytes())
        names = {entry["id"]: entry["name"] for entry in content["categories"]}
        images = {entry["id"]: entry for entry in content["images"]}
        annotations = content["annotations"]
    except OSError as error:
        raise DataError(f"{path}: cannot read the annotations: {error.strerror}") from None
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: not COCO's instances file ({type(error).__name__}: {error})") from None
    wrong = [id for id, name in zip(COCO_IDS, COCO_NAMES) if names.get(id, name) != name]
    if wrong:
        raise DataError(f"{path}: category {wrong[0]} is {names[wrong[0]]!r}, in COCO it is "
                        f"{COCO_NAMES[COCO_IDS.index(wrong[0])]!r}; is this COCO's own file?")
    classes = {id: place + 1 for place, id in enumerate(COCO_IDS)}
    parts, areas = {}, {}
    for entry in annotations:
        if entry["category_id"] not in classes:
            continue
        image = entry["image_id"]
        if image not in images:
            fault(f"{path}: annotation {entry.get('id')} is of picture {image}, which is not in the list of pictures")
            continue
        try:
            found = _parts(entry["segmentation"], images[image])
        except (ValueError, KeyError, TypeError) as error:
            fault(f"{path}: annotation {entry.get('id')}: {error}")
            continue
        parts.setdefault(image, []).extend((classes[entry["category_id"]], *part) for part in found)
        areas[image] = areas.get(image, 0) + entry.get("area", 0)
    kept = sorted(image for image in parts if areas[image] >= min_pixels)
    return ([images[image]["file_name"] for image in kept],
            _Drawings([parts[image] for image in kept],
                      [(images[image]["height"], images[image]["width"]) for image in kept] or np.zeros((0, 2))))


def _parts(segmentation, image) -> list:
    """[(is_runs, numbers), ...] of one annotation's "segmentation"."""
    if isinstance(segmentation, dict):
        size, counts = tuple(segmentation["size"]), segmentation["counts"]
        if isinstance(counts, str):
            counts = decompress_counts(counts)
        if size != (image["height"], image["width"]) or sum(counts) != size[0] * size[1]:
            raise ValueError(f"run lengths of {sum(counts)} pixels for size {size}, the picture is "
                             f"{image['height']} x {image['width']}")
        return [(True, counts)]
    for polygon in segmentation:
        if len(polygon) < 6 or len(polygon) % 2:
            raise ValueError(f"a polygon of {len(polygon)} numbers; expected at least 6, and an even count")
    return [(False, polygon) for polygon in segmentation]


def fill_polygon(corners: np.ndarray, height: int, width: int) -> np.ndarray:
    """The pixels (H, W) bool whose centres lie in a polygon, by the even-odd rule.

    corners: (n, 2) x, y in COCO's units: pixel (row, column) covers [column, column + 1] x [row, row + 1].
    """
    x0, y0 = np.asarray(corners, np.float64).T - 0.5  # centres become whole numbers
    x1, y1 = np.roll(x0, -1), np.roll(y0, -1)
    # Each edge crosses the rows from `low` to `high` - 1; right of a crossing, inside and outside change places.
    low = np.clip(np.ceil(np.minimum(y0, y1)), 0, height).astype(np.int64)
    high = np.clip(np.ceil(np.maximum(y0, y1)), 0, height).astype(np.int64)
    counts = high - low
    edge = np.repeat(np.arange(len(counts)), counts)
    row = np.arange(len(edge)) - np.repeat(np.cumsum(counts) - counts, counts) + low[edge]
    x = x0[edge] + (row - y0[edge]) * (x1[edge] - x0[edge]) / (y1[edge] - y0[edge])
    column = np.clip(np.ceil(x), 0, width).astype(np.int64)
    changes = np.bincount(row * (width + 1) + column, minlength=height * (width + 1)).reshape(height, width + 1)
    return np.cumsum(changes, axis=1)[:, :width] % 2 == 1


def decode_runs(counts: Sequence[int], height: int, width: int) -> np.ndarray:
    """COCO's run lengths, column by column and starting with those outside: (H, W) bool."""
    values = np.arange(len(counts)) % 2 == 1
    return np.repeat(values, counts).reshape(width, height).T


def decompress_counts(text: str) -> list[int]:
    """Run lengths of COCO's compressed form: 5 bits per character, from the fourth run on as difference to the last but
    one."""
    counts, number, shift = [], 0, 0
    for character in text:
        bits = ord(character) - 48
        number |= (bits & 31) << shift
        shift += 5
        if bits & 32:
            continue
        if bits & 16:
            number -= 1 << shift
        counts.append(number + (counts[-2] if len(counts) > 2 else 0))
        number, shift = 0, 0
    return counts
