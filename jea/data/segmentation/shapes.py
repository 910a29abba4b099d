"""`shapes`: a small synthetic segmentation data set in VOC's layout, made on first use.

Scenes of one to five overlapping objects on a textured ground. The classes differ in outline and in texture;
colours are drawn without regard to the class. Files, label values, void borders and lists are as in VOC, so
that the same code runs on both.
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
from typing import Callable, Sequence

import numpy as np

from jea.data.files.labels import encode_index_png
from jea.data.files.pictures import write_image
from jea.data.segmentation.voc import VOCSegmentation
from jea.data.views.crops import IGNORE, resize_bilinear
from jea.draw.palettes import voc_palette
from jea.errors import DataError, shortened
from jea.files import jea_home, write_bytes
from jea.reading import read_file

SHAPES_CLASSES = ("background", "disk", "rectangle", "triangle", "star", "ring", "cross")

_PATTERNS = {"disk": "stripes", "rectangle": "checks", "triangle": "dots", "star": "gradient",
             "ring": "blotches", "cross": "speckle"}

_VERSION = 1
_MAX_SETTINGS = 64 * 1024  # bytes of shapes.json
_SPLITS = ("train", "val", "test")
_SIDE = (96, 176)  # pixels, both ends included
_RADIUS = (20.0, 42.0)  # pixels
_VISIBLE = 0.7  # of each object, at least
_VOID = 1.0  # half width of the border of 255, in pixels

_log = logging.getLogger(__name__)


class Shapes(VOCSegmentation):
    """The shapes data set: splits train (800 pictures), val (100), trainval and test (20, without labels).

    root: where it is or will be made; default $JEA_HOME/shapes-v1, else ~/.cache/jea/shapes-v1.
    split, crop_size, scales: see VOCSegmentation. Raises DataError where it cannot be made.
    """

    def __init__(self, *, root: str | Path | None = None, split: str = "train", crop_size: int = 129,
                 scales: Sequence[float] | None = None):
        if root is None:
            root = jea_home() / f"shapes-v{_VERSION}"
        root = make_shapes(root)
        super().__init__(root=root, split=split, crop_size=crop_size, scales=scales,
                         num_classes=len(SHAPES_CLASSES), class_names=SHAPES_CLASSES)

    @classmethod
    def legend(cls, **arguments):
        return SHAPES_CLASSES, voc_palette()

    def _check_files(self, files, what, path) -> None:
        try:
            super()._check_files(files, what, path)
        except DataError as error:
            raise DataError(f"{error}. Delete {self.root}, and it is made again") from None


def make_shapes(root: str | Path, *, num_train: int = 800, num_val: int = 100, num_test: int = 20,
                seed: int = 0, progress: Callable[[int, int], None] | None = None) -> Path:
    """Make the data set in the folder `root`, unless it is there already; returns `root`.

    It appears whole or not at all, also when several processes make it at once. Picture k of a split depends
    on seed, split and k only. Label files are the same everywhere; the bytes of the JPEGs may vary with
    Pillow's libjpeg.
    progress: called as progress(done, total) after each picture.
    Raises DataError where `root` cannot be written, or holds something else.
    """
    root = Path(root).expanduser()
    settings = {"shapes": _VERSION, "num_train": num_train, "num_val": num_val, "num_test": num_test,
                "seed": seed}
    try:
        if not _is_made(root, settings):
            root.parent.mkdir(parents=True, exist_ok=True)
            temporary = root.with_name(f".{root.name}.{os.getpid()}-{secrets.token_hex(4)}")
            try:
                _build(temporary, settings, progress)
                with contextlib.suppress(OSError):  # another process was first: its folder is checked below
                    os.rename(temporary, root)
            finally:
                shutil.rmtree(temporary, ignore_errors=True)
            if not _is_made(root, settings):
                raise DataError(f"{root}: the shapes data set was made but could not be moved here; "
                                "name another folder")
    except OSError as error:
        raise DataError(f"{root}: cannot make the shapes data set: {error.strerror or error} "
                        f"({error.filename}); name another root, or set JEA_HOME to a folder with 20 MB free"
                        ) from None
    return root


def _is_made(root: Path, settings: dict) -> bool:
    """Whether `root` holds this data set; something else there is an error."""
    try:
        found = json.loads(read_file(root / "shapes.json", limit=_MAX_SETTINGS, error=ValueError))
    except (ValueError, RecursionError):
        if not root.exists() or root.is_dir() and not any(root.iterdir()):
            return False
        found = "a broken shapes.json" if (root / "shapes.json").exists() else "something else"
    if found != settings:
        raise DataError(f"{root}: holds {shortened(found, 400)}, not the shapes data set of {settings}; "
                        "delete it or name another folder")
    return True


def _build(root: Path, settings: dict, progress: Callable[[int, int], None] | None) -> None:
    pictures, labels = root / "JPEGImages", root / "SegmentationClass"
    lists = root / "ImageSets" / "Segmentation"
    for folder in (pictures, labels, lists):
        folder.mkdir(parents=True)
    counts = {split: settings[f"num_{split}"] for split in _SPLITS}
    total, done = sum(counts.values()), 0
    _log.info("making the shapes data set: %d pictures, a few seconds", total)
    ids = {split: [f"{split}_{k:04d}" for k in range(counts[split])] for split in _SPLITS}
    for number, split in enumerate(_SPLITS):
        for k, id in enumerate(ids[split]):
            image, label = draw_scene(np.random.Generator(np.random.PCG64((settings["seed"], number, k))))
            write_image(pictures / f"{id}.jpg", image)
            if split != "test":
                write_bytes(labels / f"{id}.png", encode_index_png(label, voc_palette()))
            done += 1
            if progress is not None:
                progress(done, total)
    ids["trainval"] = ids["train"] + ids["val"]
    for split, names in ids.items():
        write_bytes(lists / f"{split}.txt", "".join(f"{name}\n" for name in names).encode())
    write_bytes(root / "shapes.json", json.dumps(settings).encode())


def draw_scene(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """One scene: picture (H, W, 3) uint8 and label (H, W) uint8 with 255 on the outlines.

    Outlines are exact distances, made of + - * / and sqrt only, so labels are the same on every machine.
    """
    height, width = (_SIDE[0] + int(rng.random() * (_SIDE[1] - _SIDE[0] + 1)) for _ in range(2))
    colours: list[np.ndarray] = []
    canvas = ground(rng, height, width, new_colour(rng, colours))
    label = np.zeros((height, width), np.uint8)
    owner = np.full((height, width), -1)  # which object each pixel shows
    areas: list[int] = []
    for _ in range(1 + int(rng.random() * 5)):
        class_index = 1 + int(rng.random() * (len(SHAPES_CLASSES) - 1))
        placed = _place(rng, SHAPES_CLASSES[class_index], owner, areas)
        if placed is None:
            continue
        box, distance = placed
        texture = _texture(rng, SHAPES_CLASSES[class_index], *distance.shape, new_colour(rng, colours))
        cover = np.clip(0.5 - distance, 0, 1)[:, :, None]  # share of the pixel inside the outline
        canvas[box] += cover * (texture - canvas[box])
        label[box][distance < 0] = class_index
        label[box][np.abs(distance) <= _VOID] = IGNORE
    canvas += 14 * (rng.random(canvas.shape) - 0.5)
    return np.clip(np.rint(canvas), 0, 255).astype(np.uint8), label


def _place(rng, shape: str, owner: np.ndarray, areas: list[int]):
    """Find a place that leaves this object and those below visible enough; enter it into owner and areas.

    Returns the box (two slices) and the signed distance to the outline in it, or None after eight attempts.
    """
    height, width = owner.shape
    for _ in range(8):
        radius = _RADIUS[0] + (_RADIUS[1] - _RADIUS[0]) * rng.random()
        centre_y = radius * 0.6 + (height - 1.2 * radius) * rng.random()
        centre_x = radius * 0.6 + (width - 1.2 * radius) * rng.random()
        angle, squeeze = 2 * math.pi * rng.random(), 0.75 + 0.25 * rng.random()
        reach = int(1.15 * radius) + 3
        rows = np.arange(int(centre_y) - reach, int(centre_y) + reach + 1)
        columns = np.arange(int(centre_x) - reach, int(centre_x) + reach + 1)
        x, y = columns[None, :] - centre_x, rows[:, None] - centre_y
        distance = outline_distance(shape, x, y, radius, angle, squeeze)
        area = int((distance < 0).sum())
        rows_in, columns_in = (rows >= 0) & (rows < height), (columns >= 0) & (columns < width)
        distance = distance[rows_in][:, columns_in]
        top, left = rows[rows_in][0], columns[columns_in][0]
        box = slice(top, top + distance.shape[0]), slice(left, left + distance.shape[1])
        after = owner.copy()
        after[box][distance < 0] = len(areas)
        visible = np.bincount(after[after >= 0], minlength=len(areas) + 1)
        if (visible >= _VISIBLE * np.array([*areas, area])).all():
            owner[:] = after
            areas.append(area)
            return box, distance
    return None


def outline_distance(shape: str, x, y, radius: float, angle: float, squeeze: float) -> np.ndarray:
    """Signed distance in pixels to the outline, negative inside; x (1, W) and y (H, 1) from the centre."""
    if shape == "disk":
        return np.sqrt(x * x + y * y) - 0.85 * radius
    if shape == "ring":
        return np.abs(np.sqrt(x * x + y * y) - 0.72 * radius) - 0.26 * radius
    if shape == "rectangle":
        corners = [(0.8, 0.8), (-0.8, 0.8), (-0.8, -0.8), (0.8, -0.8)]
    elif shape == "triangle":
        corners = [_polar(1.15, k / 3) for k in range(3)]
    elif shape == "star":
        corners = [_polar((1.05, 0.5)[k % 2], k / 10) for k in range(10)]
    else:  # cross
        arm = [(0.95, -0.3), (0.95, 0.3), (0.3, 0.3)]
        turns = ((1, 0), (0, 1), (-1, 0), (0, -1))
        corners = [(u * c - v * s, u * s + v * c) for c, s in turns for u, v in arm]
    cos, sin = math.cos(angle) * radius, math.sin(angle) * radius
    corners = [(squeeze * u * cos - v * sin, squeeze * u * sin + v * cos) for u, v in corners]
    return _polygon_distance(x, y, corners)


def _polar(radius: float, turn: float) -> tuple[float, float]:
    return radius * math.cos(2 * math.pi * turn), radius * math.sin(2 * math.pi * turn)


def _polygon_distance(x, y, corners: Sequence[tuple[float, float]]) -> np.ndarray:
    """Signed distance to a polygon: the nearest of its edges, and inside by the even-odd rule."""
    nearest = np.full(np.broadcast(x, y).shape, np.inf)
    inside = np.zeros(nearest.shape, bool)
    for (ax, ay), (bx, by) in zip(corners, [*corners[1:], corners[0]]):
        ex, ey = bx - ax, by - ay
        px, py = x - ax, y - ay
        along = np.clip((px * ex + py * ey) / (ex * ex + ey * ey), 0, 1)
        dx, dy = px - ex * along, py - ey * along
        nearest = np.minimum(nearest, dx * dx + dy * dy)
        if ey:
            inside ^= ((y < ay) != (y < by)) & (px < py * ex / ey)
    return np.where(inside, -1.0, 1.0) * np.sqrt(nearest)


def new_colour(rng, colours: list[np.ndarray]) -> np.ndarray:
    """Of six random colours the one farthest from those in the scene."""
    candidates = 40 + 175 * rng.random((6, 3))
    gaps = [min((float(np.abs(c - other).sum()) for other in colours), default=0.0) for c in candidates]
    colours.append(candidates[int(np.argmax(gaps))])
    return colours[-1]


def ground(rng, height: int, width: int, colour: np.ndarray) -> np.ndarray:
    """The background (height, width, 3) float64: a faint, broad pattern around a colour."""
    kind = ("gradient", "stripes", "blotches")[int(rng.random() * 3)]
    tone = 30 * (rng.random(3) - 0.5)
    return colour + tone * wave(rng, kind, height, width, 20 + 20 * rng.random())[:, :, None]


def _texture(rng, shape: str, height: int, width: int, colour: np.ndarray) -> np.ndarray:
    """An object's surface (height, width, 3) float64: two strong tones of a colour, patterned by class."""
    tone = 45 * (1 if rng.random() < 0.5 else -1) + 30 * (rng.random(3) - 0.5)
    return colour + tone * wave(rng, _PATTERNS[shape], height, width, 6 + 3 * rng.random())[:, :, None]


def wave(rng, pattern: str, height: int, width: int, period: float) -> np.ndarray:
    """A pattern (height, width) in [-1, 1], turned and shifted at random; period in pixels."""
    angle, phase = 2 * math.pi * rng.random(), rng.random()
    if pattern == "blotches":
        coarse = rng.random((max(2, round(height / period)), max(2, round(width / period)), 1))
        return 2 * resize_bilinear(coarse.astype(np.float32), (height, width))[:, :, 0].astype(np.float64) - 1
    y, x = np.arange(height)[:, None], np.arange(width)[None, :]
    u = (x * math.cos(angle) + y * math.sin(angle)) / period + phase
    v = (y * math.cos(angle) - x * math.sin(angle)) / period + phase
    if pattern == "gradient":
        return 2 * (u - u.min()) / (np.ptp(u) + 1e-9) - 1
    if pattern == "stripes":
        return np.sin(2 * math.pi * u)
    if pattern == "checks":
        return np.where((np.floor(u) + np.floor(v)) % 2 < 1, 1.0, -1.0)
    if pattern == "dots":
        return np.where((u % 1 - 0.5) ** 2 + (v % 1 - 0.5) ** 2 < 0.1, 1.0, -0.5)
    return np.where((np.sin(11 * np.floor(2 * u) + 7 * np.floor(2 * v)) * 1000) % 1 < 0.5, 1.0, -1.0)  # speckle
