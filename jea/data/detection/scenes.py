"""`shape_scenes`: synthetic scenes with boxes and masks, in COCO's format, made on first use.

Two to six overlapping objects on a textured ground, often several of one class, and now and then a crowd of small ones
that is annotated as one region. Outlines, textures and colours are those of the segmentation data set `shapes`.
"""
from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import secrets
import shutil
from pathlib import Path
from typing import Union

import numpy as np

from jea.data.detection.coco import COCOJson
from jea.data.detection.rle import runs_of_mask, text_of_runs
from jea.data.files.pictures import write_image
from jea.data.segmentation import shapes
from jea.errors import DataError, shortened
from jea.files import jea_home, write_bytes
from jea.reading import read_file

CLASSES = shapes.SHAPES_CLASSES[1:]
SIDE = 160  # of the pictures, in pixels
_RADIUS = (15.0, 38.0)
_CROWD_RADIUS = (5.0, 7.0)
_VISIBLE = 0.6  # of each object, at least
_VERSION = 1
_MAX_SETTINGS = 64 * 1024  # bytes of scenes.json
COUNTS = {"train": 2000, "val": 200}

_log = logging.getLogger(__name__)


class ShapeScenes(COCOJson):
    """The scenes: splits train (2000 pictures) and val (200).

    root: where they are or will be made; default $JEA_HOME/shape-scenes-v1, else ~/.cache/jea/shape-scenes-v1. The
    other arguments are DetectionDataset's. DataError where they cannot be made.
    """

    class_names = CLASSES

    def __init__(self, *, root: Union[str, Path, None] = None, min_size: int = SIDE, max_size: int = SIDE, **options):
        root = make_scenes(jea_home() / f"shape-scenes-v{_VERSION}" if root is None else root)
        super().__init__(root=root, min_size=min_size, max_size=max_size, **options)


def make_scenes(root: Union[str, Path], *, counts: dict | None = None, seed: int = 0) -> Path:
    """Make the scenes in the folder `root`, unless they are there; returns it.

    They appear whole or not at all, also when several processes make them at once. Picture k of a split depends on
    seed, split and k alone.
    """
    root, counts = Path(root).expanduser(), dict(COUNTS if counts is None else counts)
    settings = {"shape_scenes": _VERSION, "counts": counts, "seed": seed}
    try:
        if not _is_made(root, settings):
            root.parent.mkdir(parents=True, exist_ok=True)
            temporary = root.with_name(f".{root.name}.{os.getpid()}-{secrets.token_hex(4)}")
            try:
                _build(temporary, settings)
                with contextlib.suppress(OSError):  # another process was first
                    os.rename(temporary, root)
            finally:
                shutil.rmtree(temporary, ignore_errors=True)
            if not _is_made(root, settings):
                raise DataError(f"{root}: the scenes were made but could not be moved here; name another folder")
    except OSError as error:
        raise DataError(f"{root}: cannot make the scenes: {error.strerror or error} ({error.filename}); name another "
                        "root, or set JEA_HOME to a folder with 50 MB free") from None
    return root


def _is_made(root: Path, settings: dict) -> bool:
    try:
        found = json.loads(read_file(root / "scenes.json", limit=_MAX_SETTINGS, error=ValueError))
    except (ValueError, RecursionError):
        if not root.exists() or root.is_dir() and not any(root.iterdir()):
            return False
        found = "a broken scenes.json" if (root / "scenes.json").exists() else "something else"
    if found != settings:
        raise DataError(f"{root}: holds {shortened(found, 400)}, not the scenes of {settings}; delete it or name "
                        "another folder")
    return True


def _build(root: Path, settings: dict) -> None:
    (root / "annotations").mkdir(parents=True)
    _log.info("making the scenes: %d pictures, half a minute", sum(settings["counts"].values()))
    for number, (split, count) in enumerate(settings["counts"].items()):
        (root / split).mkdir()
        content: dict = {"images": [], "annotations": [],
                         "categories": [{"id": 2 * k + 1, "name": name} for k, name in enumerate(CLASSES)]}
        for k in range(count):
            image, objects = draw_scene(np.random.Generator(np.random.PCG64((settings["seed"], number, k))))
            name = f"{split}_{k:05d}.jpg"
            write_image(root / split / name, image)
            content["images"].append({"id": k + 1, "file_name": name, "height": image.shape[0],
                                      "width": image.shape[1]})
            for label, mask, crowd in objects:
                content["annotations"].append(
                    {"id": len(content["annotations"]) + 1, "image_id": k + 1, **_annotation(label, mask, crowd)})
        write_bytes(root / "annotations" / f"{split}.json", json.dumps(content).encode())
    write_bytes(root / "scenes.json", json.dumps(settings).encode())


def _annotation(label: int, mask, crowd: bool) -> dict:
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    runs = runs_of_mask(mask)
    box = [columns[0], rows[0], columns[-1] + 1 - columns[0], rows[-1] + 1 - rows[0]]
    return {"category_id": 2 * label + 1, "bbox": [float(v) for v in box], "area": float(mask.sum()),
            "iscrowd": int(crowd),
            "segmentation": {"size": list(mask.shape), "counts": runs if crowd else text_of_runs(runs)}}


def draw_scene(rng: np.random.Generator) -> tuple[np.ndarray, list]:
    """One scene: picture (SIDE, SIDE, 3) uint8 and its objects, [(class, mask (SIDE, SIDE) bool, crowd), ...]."""
    colours: list = []
    canvas = shapes.ground(rng, SIDE, SIDE, shapes.new_colour(rng, colours))
    owner, areas, labels = np.full((SIDE, SIDE), -1), [], []
    crowd = int(rng.random() * len(CLASSES)) if rng.random() < 0.1 else None
    if crowd is not None:
        centre = 30 + (SIDE - 60) * rng.random(2)
        for _ in range(5 + int(rng.random() * 4)):
            radius = _CROWD_RADIUS[0] + (_CROWD_RADIUS[1] - _CROWD_RADIUS[0]) * rng.random()
            _add(rng, canvas, owner, areas, labels, crowd, radius, centre + 36 * (rng.random(2) - 0.5), colours, 0.3)
    small = len(labels)
    for _ in range(2 + int(rng.random() * 5)):
        known = labels[small:]
        again = known and rng.random() < 0.4
        label = known[int(rng.random() * len(known))] if again else int(rng.random() * len(CLASSES))
        for _ in range(8):
            radius = _RADIUS[0] + (_RADIUS[1] - _RADIUS[0]) * rng.random()
            centre = radius * 0.7 + (SIDE - 1.4 * radius) * rng.random(2)
            if _add(rng, canvas, owner, areas, labels, label, radius, centre, colours, _VISIBLE):
                break
    canvas += 14 * (rng.random(canvas.shape) - 0.5)
    objects = [(labels[k], owner == k, False) for k in range(small, len(labels))]
    if small:
        region = (owner >= 0) & (owner < small)
        if region.any():
            objects.append((crowd, region, True))
    return np.clip(np.rint(canvas), 0, 255).astype(np.uint8), [o for o in objects if o[1].any()]


def _add(rng, canvas, owner, areas, labels, label, radius, centre, colours, visible) -> bool:
    """Draw an object on top, unless too little would be left of one."""
    angle, squeeze = 2 * math.pi * rng.random(), 0.75 + 0.25 * rng.random()
    low, high = (np.clip(np.rint(centre + side * (1.2 * radius + 3)).astype(int), 0, SIDE) for side in (-1, 1))
    if (high <= low).any():
        return False
    box = slice(low[0], high[0]), slice(low[1], high[1])
    y, x = np.arange(low[0], high[0])[:, None] - centre[0], np.arange(low[1], high[1])[None, :] - centre[1]
    name = CLASSES[label]
    distance = shapes.outline_distance(name, x, y, radius, angle, squeeze)
    after = owner.copy()
    after[box][distance < 0] = len(areas)
    area = int((distance < 0).sum())
    left = np.bincount(after[after >= 0], minlength=len(areas) + 1)
    if area == 0 or (left < visible * np.array([*areas, area])).any():
        return False
    texture = shapes._texture(rng, name, *distance.shape, shapes.new_colour(rng, colours))
    canvas[box] += np.clip(0.5 - distance, 0, 1)[:, :, None] * (texture - canvas[box])
    owner[:] = after
    areas.append(area)
    labels.append(label)
    return True
