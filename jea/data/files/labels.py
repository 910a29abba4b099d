"""Reading and writing label files: a class index per pixel, in palette or grey PNGs."""
from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image

from jea.data.files.pictures import opened, upright
from jea.errors import DataError
from jea.files import write_bytes


def read_label(path: str | Path, num_classes: int, *, ignore: int = 255, exif: bool = False) -> np.ndarray:
    """Read class indices (H, W) uint8 from a palette or grey PNG of 1 to 16 bits.

    exif: follow the EXIF orientation, which some tools write into PNGs too. Values must lie in [0, num_classes) or
    equal `ignore`. Raises DataError for any other value (with its first position), for a colour-coded label, and for
    what `read_image` refuses.
    """
    with opened(path, "label", ("PNG",)) as image:
        if image.mode not in ("P", "L", "1") and not image.mode.startswith("I"):
            raise DataError(
                f"{path}: label is a colour picture (mode {image.mode}); expected class indices in a palette "
                "or grey PNG. If its colours are VOC's, convert it with jea.data: write_index_png(new_path, "
                "colour_to_index(read_image(path), voc_palette()), voc_palette())")
        label = np.array(image)
        if exif:
            label = upright(image, label)
    if label.dtype == bool:
        label = label.astype(np.uint8)
    elif image.mode == "L":
        label = label // _grey_step(path)
    wrong = ((label < 0) | (label >= num_classes)) & (label != ignore)
    if wrong.any():
        row, column = np.argwhere(wrong)[0]
        raise DataError(f"{path}: label value {label[row, column]} at row {row}, column {column} "
                        f"({wrong.sum()} such pixels); expected 0 to {num_classes - 1}, or {ignore} for "
                        "ignored. Is num_classes right?")
    return label.astype(np.uint8)


def _grey_step(path: str | Path) -> int:
    """PIL stretches grey of 2 and 4 bits to 0..255; the factor, from the depth in the PNG header."""
    with open(path, "rb") as file:
        depth = file.read(25)[24]
    return 255 // (2 ** depth - 1) if depth < 8 else 1


def encode_index_png(array: np.ndarray, palette: np.ndarray, *, grey: bool = False) -> bytes:
    """A palette PNG of (H, W) indices in 0..255, as VOC's own label files; palette: (256, 3) uint8.

    grey: a grey PNG of 8 bits instead, as the servers of Cityscapes and ADE20K take.
    """
    array = np.asarray(array)
    in_range = not array.size or 0 <= array.min() <= array.max() <= 255
    if array.ndim != 2 or array.dtype.kind not in "iu" or not in_range:
        raise ValueError(f"an index PNG takes integers (H, W) from 0 to 255, got {array.dtype} {array.shape}")
    image = Image.fromarray(np.ascontiguousarray(array, np.uint8))
    if not grey:
        image.putpalette(np.asarray(palette, np.uint8).tobytes())
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=False)
    return buffer.getvalue()


def write_index_png(path: str | Path, array: np.ndarray, palette: np.ndarray) -> None:
    """Write (H, W) class indices as a palette PNG, atomically; palette: (256, 3) uint8."""
    write_bytes(path, encode_index_png(array, palette))


def colour_to_index(image: np.ndarray, palette: np.ndarray) -> np.ndarray:
    """Turn a colour-coded label (H, W, 3) uint8 into class indices (H, W) uint8, exactly.

    palette: (n, 3) uint8, n <= 256; the first entry of equal colours counts. A colour that is not in it is a
    ValueError that names the colour and its first position.
    """
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise ValueError(f"colour_to_index takes uint8 (H, W, 3), got {image.dtype} {image.shape}")
    weights = np.array([65536, 256, 1])
    codes, first = np.unique(palette.astype(np.int64) @ weights, return_index=True)
    pixels = image.astype(np.int64) @ weights
    place = np.minimum(np.searchsorted(codes, pixels), len(codes) - 1)
    wrong = codes[place] != pixels
    if wrong.any():
        row, column = np.argwhere(wrong)[0]
        colour = tuple(int(v) for v in image[row, column])
        raise ValueError(f"colour {colour} at row {row}, column {column} is not in the palette of "
                         f"{len(palette)} colours")
    return first[place].astype(np.uint8)
