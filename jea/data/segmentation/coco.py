"""COCO reduced to VOC's 20 classes and background, for pre-training.

    {train,val}2017/<id>.jpg                       or in images/
    annotations/instances_{train,val}2017.json     polygons, and run lengths for crowds
    stuffthingmaps/{train,val}2017/<id>.png        COCO-Stuff: category id - 1, 255 = unlabelled; labels: stuffthingmaps
"""
from __future__ import annotations

import json

import numpy as np

from jea.data.faults import fault
from jea.data.files.labels import read_label
from jea.data.files.pictures import MAX_PIXELS
from jea.data.segmentation.base import AugmentedSegmentation, Sample
from jea.data.segmentation.outlines import LARGEST, MAX_COVER, MAX_SIDE, Outlines, box_of, decompress_counts
from jea.data.segmentation.voc import VOC_CLASSES
from jea.data.views.crops import IGNORE
from jea.draw.palettes import voc_palette
from jea.errors import DataError, quoted
from jea.reading import read_file

# COCO's category ids of VOC's classes 1 to 20, and their names there
COCO_IDS = (5, 2, 16, 9, 44, 6, 3, 17, 62, 21, 67, 18, 19, 4, 1, 64, 20, 63, 7, 72)
COCO_NAMES = ("airplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "dining table",
              "dog", "horse", "motorcycle", "person", "potted plant", "sheep", "couch", "train", "tv")

MAX_JSON = 1024 * 1024 * 1024  # bytes; instances_train2017.json has 450 MB

_STUFF = np.zeros(256, np.uint8)  # stuffthingmaps' values -> classes
_STUFF[np.array(COCO_IDS) - 1] = np.arange(1, 21)
_STUFF[255] = IGNORE


class COCO(AugmentedSegmentation):
    """COCO pictures with VOC's labels: splits train and val (of 2017), or any that the folders have, such as train2014.

    labels: "instances" (drawn from the JSON) or "stuffthingmaps" (PNGs of COCO-Stuff). Where instances of different
        classes overlap, the pixels are ignored.
    min_pixels: only pictures with instances of VOC's classes that have at least this area together (instances only).
    The other arguments are those of AugmentedSegmentation. Reading instances_train2017.json (450 MB of text) needs
    several GB for a while: Python's own objects take up to 25 bytes for a byte of JSON. What is kept of it, flat arrays
    of the 20 classes' outlines, goes to each worker process.
    """

    num_classes = 21
    class_names = VOC_CLASSES
    palette = voc_palette()
    background = 0
    _title, _needs = "COCO", ()

    def __init__(self, *, labels: str = "instances", min_pixels: int = 1000, crop_size: int = 513, **options):
        if labels not in ("instances", "stuffthingmaps"):
            raise DataError(f"labels is {quoted(labels)}; expected instances or stuffthingmaps")
        self._labels, self._min_pixels = labels, min_pixels
        super().__init__(crop_size=crop_size, **options)

    def _list(self) -> list[Sample]:
        year_split = {"train": "train2017", "val": "val2017"}.get(self.split, self.split)
        places = (year_split, f"images/{year_split}")
        folder = next((place for place in places if (self.root / place).is_dir()), year_split)
        if self._labels == "stuffthingmaps":
            return self._pairs(folder, f"stuffthingmaps/{year_split}")
        file = f"annotations/instances_{year_split}.json"
        images, self._outlines = _read_instances(self.root / file, self._min_pixels)
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
        return self._outlines.draw(int(sample.label.rpartition("#")[2]))


def _read_instances(path, min_pixels: int):
    """([file name of each picture], Outlines), for the pictures with VOC's classes."""
    data = read_file(path, limit=MAX_JSON, error=DataError, what="annotation file", too_large="is it COCO's own file?")
    try:
        content = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not COCO's instances file: {type(error).__name__}: {str(error)[:200]}") from None
    del data
    lists = {key: content.get(key) if isinstance(content, dict) else None for key in ("categories", "images",
                                                                                      "annotations")}
    for key, entries in lists.items():
        if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
            raise DataError(f"{path}: not COCO's instances file: \"{key}\" is not a list of objects")
    names = {entry.get("id"): entry.get("name") for entry in lists["categories"] if type(entry.get("id")) is int}
    wrong = [id for id, name in zip(COCO_IDS, COCO_NAMES) if names.get(id, name) != name]
    if wrong:
        raise DataError(f"{path}: category {wrong[0]} is {str(names[wrong[0]])[:80]!r}, in COCO it is "
                        f"{COCO_NAMES[COCO_IDS.index(wrong[0])]!r}; is this COCO's own file?")
    images = _images(path, lists["images"])
    classes = {id: place + 1 for place, id in enumerate(COCO_IDS)}
    parts, areas = {}, {}
    for number, entry in enumerate(lists["annotations"]):
        id, category, image = (entry.get(key) for key in ("id", "category_id", "image_id"))
        which = f"{path}: annotation {str(id)[:40] if id is not None else f'number {number}'}"
        if type(category) is not int or type(image) is not int:
            fault(f"{which}: category_id is {str(category)[:40]!r}, image_id {str(image)[:40]!r}; expected whole "
                  f"numbers")
            continue
        if category not in classes:
            continue
        if image not in images:
            fault(f"{which} is of picture {image}, which is not in the list of pictures")
            continue
        area = entry.get("area", 0)
        try:
            if type(area) not in (int, float) or not 0 <= area < 1e12:
                raise ValueError(f"area is {str(area)[:40]!r}; expected a number of pixels")
            found = _parts(entry.get("segmentation"), images[image])
        except ValueError as error:
            fault(f"{which}: {error}")
            continue
        parts.setdefault(image, []).extend((classes[category], *part) for part in found)
        areas[image] = areas.get(image, 0) + area
    kept = sorted(image for image in parts if areas[image] >= min_pixels and _is_drawable(path, parts[image],
                                                                                          images[image]))
    return ([images[image]["file_name"] for image in kept],
            Outlines([parts[image] for image in kept],
                     [(images[image]["height"], images[image]["width"]) for image in kept]))


def _images(path, entries: list) -> dict[int, dict]:
    """id -> picture, of those that have all they need."""
    images: dict[int, dict] = {}
    for entry in entries:
        id, name, size = entry.get("id"), entry.get("file_name"), (entry.get("height"), entry.get("width"))
        if type(id) is not int or not isinstance(name, str) or not name.isprintable() or not 0 < len(name) < 256 \
                or "\\" in name or ".." in name.split("/"):
            fault(f"{path}: a picture with id {str(id)[:40]!r} and file_name {str(name)[:80]!r}; expected a whole "
                  "number and a name")
        elif not all(type(n) is int and 0 < n <= MAX_SIDE for n in size) or size[0] * size[1] > MAX_PIXELS:
            fault(f"{path}: picture {id} has the size {str(size)[:60]!r}; expected height and width in pixels, of at "
                  f"most "
                  f"{MAX_PIXELS} together")
        elif id in images:
            fault(f"{path}: picture {id} is listed twice")
        else:
            images[id] = entry
    return images


def _is_drawable(path, parts: list, image: dict) -> bool:
    height, width = image["height"], image["width"]
    cover = 0
    for _, runs, numbers in parts:
        if runs:
            cover += height * width
            continue
        corners = numbers.reshape(-1, 2)
        rows, columns = box_of(corners, height, width)
        y = np.clip(corners[:, 1], 0, height)
        cover += (rows.stop - rows.start) * (columns.stop - columns.start) + int(np.abs(np.roll(y, -1) - y).sum())
    if cover > MAX_COVER:
        fault(f"{path}: the {len(parts)} outlines of picture {image['id']} cover {cover} pixels together, over the "
              f"limit of "
              f"{MAX_COVER}")
    return cover <= MAX_COVER


def _parts(segmentation, image: dict) -> list[tuple[bool, np.ndarray]]:
    """[(is_runs, numbers), ...] of one annotation's "segmentation"."""
    if isinstance(segmentation, dict):
        size, counts = segmentation.get("size"), segmentation.get("counts")
        if isinstance(counts, str):
            counts = decompress_counts(counts)
        if not isinstance(counts, list) or not all(type(n) is int and n >= 0 for n in counts):
            raise ValueError("its run lengths are neither text nor a list of whole numbers")
        total = sum(counts)
        if size != [image["height"], image["width"]] or total != image["height"] * image["width"]:
            raise ValueError(f"run lengths of {str(total)[:40]} pixels for size {str(size)[:60]!r}, the picture is "
                             f"{image['height']} x {image['width']}")
        return [(True, np.array(counts, np.int32))]
    if not isinstance(segmentation, list):
        raise ValueError(f"segmentation is {str(segmentation)[:40]!r}; expected polygons or run lengths")
    found = []
    for polygon in segmentation:
        if not isinstance(polygon, list) or not all(type(n) in (int, float) for n in polygon):
            raise ValueError("a polygon that is no list of numbers")
        if len(polygon) < 6 or len(polygon) % 2:
            raise ValueError(f"a polygon of {len(polygon)} numbers; expected at least 6, and an even count")
        if not all(-LARGEST < n < LARGEST for n in polygon):
            raise ValueError(f"a polygon with a corner beyond {LARGEST:g} pixels, or that is no number")
        found.append((False, np.array(polygon, np.float32)))
    return found
