"""Writes `.pkl` files for plain `jt.load`, without Jittor; the format is described in readers/jittor.py."""
from __future__ import annotations

import hashlib
import pickle

from jea.checkpoint.readers.jittor import TRAILER


def write_jittor_pickle(file, tensors):
    """Write `tensors` (name to array) to an open binary file so that plain `jt.load` reads them."""
    digest = hashlib.sha1()

    class Tee:
        def write(self, data):
            digest.update(data)
            return file.write(data)

    pickle.Pickler(Tee(), protocol=4).dump(dict(tensors))
    file.write(digest.digest() + TRAILER)
