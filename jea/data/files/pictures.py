"""Reading and writing pictures and label files.

Every fault of a file is a `DataError` that names it. Nothing is decoded before its size is known and allowed.
"""
from __future__ import annotations

import contextlib
import io
import os
import warnings
from pathlib import Path
from typing import Iterator, Sequence, Union

import numpy as np
from PIL import Image

from jea.errors import DataError
from jea.files import write_bytes

PathLike = Union[str, Path]

# 8192 x 8192; a picture of this size needs 0.8 GB as float32.
MAX_PIXELS = 64 * 1024 * 1024
PICTURE_FORMATS = ("JPEG", "PNG", "BMP", "WEBP")

_ORIENTATION = 0x0112
# What to do with an array (H, W, ...) that is stored with each EXIF orientation.
_UPRIGHT = {
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: np.rot90(a),
}


@contextlib.contextmanager
def _opened(path: PathLike, what: str, formats: Sequence[str]) -> Iterator[Image.Image]:
    """A PIL picture, decoded inside the block; all that PIL raises there becomes a DataError."""
    try:
        if os.path.getsize(path) == 0:
            raise DataError(f"{path}: {what} is empty (0 bytes); fetch it again")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PIL warns about sizes and metadata; the limit is checked below
            with Image.open(path, formats=formats) as image:
                width, height = image.size
                if width * height > MAX_PIXELS:
                    raise DataError(f"{path}: {what} of {width} x {height} pixels is over the limit of "
                                    f"{MAX_PIXELS} pixels; make it smaller first")
                yield image
    except DataError:
        raise
    except FileNotFoundError:
        raise DataError(f"{path}: {what} does not exist") from None
    except (IsADirectoryError, PermissionError) as error:
        raise DataError(f"{path}: cannot read {what}: {error.strerror or error}") from None
    except Image.DecompressionBombError:  # PIL's own limit, met before ours
        raise DataError(f"{path}: {what} is over the limit of {MAX_PIXELS} pixels; make it smaller first"
                        ) from None
    except Image.UnidentifiedImageError:
        raise DataError(f"{path}: not a {what} that can be read; expected {', '.join(formats)}") from None
    except Exception as error:  # PIL's decoders raise nearly anything on a broken file
        raise DataError(f"{path}: {what} is broken ({type(error).__name__}: {error}); fetch it again"
                        ) from error


def _upright(image: Image.Image, pixels: np.ndarray) -> np.ndarray:
    try:
        orientation = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # broken metadata of a sound picture: it has no orientation
        orientation = 1
    return _UPRIGHT.get(orientation, lambda a: a)(pixels)


def read_image(path: PathLike, *, exif: bool = False) -> np.ndarray:
    """Read a JPEG, PNG, BMP or WebP picture as (H, W, 3) uint8 RGB.

    Grey, palette and CMYK pictures are converted, 16-bit grey is rounded to 8 bits, transparency is dropped.
    The EXIF orientation is followed only with `exif=True`: VOC's labels belong to the pictures as stored.
    Raises DataError: no such file, not a picture, broken or truncated, more than MAX_PIXELS pixels.
    """
    with _opened(path, "picture", PICTURE_FORMATS) as image:
        if image.mode.startswith("I"):
            grey = (np.array(image).astype(np.int64).clip(0, 65535) + 128) // 257
            pixels = np.repeat(grey.astype(np.uint8)[:, :, None], 3, axis=2)
        else:
            pixels = np.array(image.convert("RGB"))
        if exif:
            pixels = np.ascontiguousarray(_upright(image, pixels))
    return pixels


def read_label(path: PathLike, num_classes: int, *, ignore: int = 255) -> np.ndarray:
    """Read class indices (H, W) uint8 from a palette or grey PNG of 1 to 16 bits.

    Values must lie in [0, num_classes) or equal `ignore`. Raises DataError for any other value (with its
    first position), for a colour-coded label, and for what `read_image` refuses.
    """
    with _opened(path, "label", ("PNG",)) as image:
        if image.mode not in ("P", "L", "1") and not image.mode.startswith("I"):
            raise DataError(
                f"{path}: label is a colour picture (mode {image.mode}); expected class indices in a palette "
                "or grey PNG. If its colours are VOC's, convert it with jea.data: write_index_png(new_path, "
                "colour_to_index(read_image(path), voc_palette()), voc_palette())")
        label = np.array(image)
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


def _grey_step(path: PathLike) -> int:
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


def write_index_png(path: PathLike, array: np.ndarray, palette: np.ndarray) -> None:
    """Write (H, W) class indices as a palette PNG, atomically; palette: (256, 3) uint8."""
    write_bytes(path, encode_index_png(array, palette))


def write_image(path: PathLike, array: np.ndarray) -> None:
    """Write an (H, W, 3) uint8 picture atomically; the format (PNG, JPEG, BMP, WebP) follows the suffix."""
    array = np.asarray(array)
    if array.ndim != 3 or array.shape[2] != 3 or array.dtype != np.uint8:
        raise ValueError(f"write_image takes uint8 (H, W, 3), got {array.dtype} {array.shape}")
    suffix = Path(path).suffix.lower()
    formats = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".bmp": "BMP", ".webp": "WEBP"}
    if suffix not in formats:
        raise ValueError(f"{path}: cannot write pictures with suffix {suffix!r}; use {', '.join(formats)}")
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(array)).save(buffer, formats[suffix], quality=92)
    write_bytes(path, buffer.getvalue())
