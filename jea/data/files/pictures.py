"""Reading and writing pictures and label files.

Every fault of a file is a `DataError` that names it. Nothing is decoded before its size is known and allowed.
"""
from __future__ import annotations

import contextlib
import io
import warnings
from pathlib import Path
from typing import Iterator, Sequence

import numpy as np
from PIL import Image

from jea.errors import DataError
from jea.files import write_bytes
from jea.reading import check_regular

# 8192 x 8192; a picture of this size needs 0.8 GB as float32.
MAX_PIXELS = 64 * 1024 * 1024
PICTURE_FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "GIF", "TIFF")
SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif", ".tif", ".tiff")
WRITTEN = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".bmp": "BMP", ".webp": "WEBP"}  # by `write_image`

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
def opened(path: str | Path, what: str, formats: Sequence[str]) -> Iterator[Image.Image]:
    """A PIL picture, decoded inside the block; all that PIL raises there becomes a DataError."""
    try:
        check_regular(path, error=DataError, what=what)
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


def upright(image: Image.Image, pixels: np.ndarray) -> np.ndarray:
    """The pixels of an opened picture, turned as its EXIF orientation asks for."""
    turn = _UPRIGHT.get(_orientation(image))
    return pixels if turn is None else np.ascontiguousarray(turn(pixels))


def _orientation(image: Image.Image) -> int:
    try:
        return image.getexif().get(_ORIENTATION, 1)
    except Exception:  # broken metadata of a sound picture: it has no orientation
        return 1


def is_rotated(path: str | Path) -> bool:
    """Whether a picture's EXIF data ask to turn or mirror it. Reads its header; raises DataError as `read_image`."""
    with opened(path, "picture", PICTURE_FORMATS) as image:
        return _orientation(image) in _UPRIGHT


def read_image(path: str | Path, *, exif: bool = False) -> np.ndarray:
    """Read a JPEG, PNG, BMP, WebP, GIF or TIFF picture as (H, W, 3) uint8 RGB; of several frames the first.

    Grey, palette and CMYK pictures are converted, 16-bit grey is rounded to 8 bits, transparency is dropped.
    The EXIF orientation is followed only with `exif=True`: VOC's labels belong to the pictures as stored.
    Raises DataError: no such file, not a picture, broken or truncated, more than MAX_PIXELS pixels.
    """
    with opened(path, "picture", PICTURE_FORMATS) as image:
        return pixels_of(image, path, exif=exif)


def pixels_of(image: Image.Image, name: str | Path, *, exif: bool) -> np.ndarray:
    """A PIL picture as `read_image` gives it, (H, W, 3) uint8; `name` is for messages."""
    if image.mode.startswith("I"):
        grey = (np.array(image).astype(np.int64).clip(0, 65535) + 128) // 257
        pixels = np.repeat(grey.astype(np.uint8)[:, :, None], 3, axis=2)
    elif image.mode == "F":
        raise DataError(f"{name}: picture of floating-point numbers; save it as 8-bit RGB")
    else:
        pixels = np.array(image.convert("RGB"))
    return upright(image, pixels) if exif else pixels


def write_image(path: str | Path, array: np.ndarray) -> None:
    """Write an (H, W, 3) uint8 picture atomically; the format (PNG, JPEG, BMP, WebP) follows the suffix."""
    array = np.asarray(array)
    if array.ndim != 3 or array.shape[2] != 3 or array.dtype != np.uint8:
        raise ValueError(f"write_image takes uint8 (H, W, 3), got {array.dtype} {array.shape}")
    suffix = Path(path).suffix.lower()
    if suffix not in WRITTEN:
        raise ValueError(f"{path}: cannot write pictures with suffix {suffix!r}; use {', '.join(WRITTEN)}")
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(array)).save(buffer, WRITTEN[suffix], quality=92)
    write_bytes(path, buffer.getvalue())
