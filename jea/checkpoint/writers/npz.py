"""Writes jea's own checkpoint format; it is described in readers/npz.py."""
from __future__ import annotations

import json
import zipfile

import numpy as np

from jea.checkpoint.errors import shown, writing
from jea.checkpoint.readers.npz import META
from jea.checkpoint.tensors import ITEMSIZE
from jea.errors import CheckpointError


def save_npz(path, tensors, meta=None):
    """Write `tensors` (any str to numpy array) and `meta` (anything JSON can hold) to `path`,
    atomically.

    The same content gives the same bytes.  Raises `CheckpointError` for what the format cannot hold,
    and when the disk is full; what was at `path` before is then untouched.
    """
    arrays = {}
    for key, value in tensors.items():
        array = np.asarray(value)
        if type(key) is not str or not key or key == META or "\0" in key or len(_utf8(path, key)) > 60_000:
            raise CheckpointError(path, f"{shown(repr(key))} cannot be the name of a tensor in an .npz file")
        if array.dtype.name not in ITEMSIZE:
            raise CheckpointError(path, f"{shown(key)} has type {array.dtype}; checkpoints hold plain "
                                        f"numbers")
        arrays[key] = array
    try:
        text = json.dumps(meta or {}, sort_keys=True, allow_nan=False).encode()
    except (TypeError, ValueError) as error:
        raise CheckpointError(path, f"the meta data cannot be written as JSON: {error}") from error
    arrays[META] = np.frombuffer(text, np.uint8)
    with writing(path) as file:
        with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
            for key, array in arrays.items():
                member = zipfile.ZipInfo(f"{key}.npy")  # dated 1980, so that equal content gives equal bytes
                with archive.open(member, "w", force_zip64=True) as stream:
                    _write_array(stream, array)


def _utf8(path, key):
    try:
        return key.encode()
    except UnicodeEncodeError as error:
        raise CheckpointError(path, f"{shown(key)} is not valid text, so it cannot name a tensor") from error


def _write_array(stream, array):
    array = np.asarray(array, array.dtype.newbyteorder("<"), order="C")
    np.lib.format.write_array_header_1_0(stream, np.lib.format.header_data_from_array_1_0(array))
    if array.size:
        stream.write(array.reshape(-1).view(np.uint8).data)
