"""Tells which published file a checkpoint is."""
from __future__ import annotations

import hashlib
import os

#: git blob id -> what the file is.
KNOWN_BLOBS = {
    "a355b39cad9d64c9128a2ee5d389e2df8584a970": "EAMLP-7 at 384 x 384, model_best.pth.tar (MenghaoGuo/EANet)",
}


def git_blob_id(path) -> str:
    """Return the id under which git stores the file's content, as `git hash-object` prints it.

    The SHA-1, in hexadecimal, of "blob <size>\\0" and the content.

    >>> git_blob_id("model_best.pth.tar") in KNOWN_BLOBS
    """
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        digest = hashlib.sha1(b"blob %d\0" % size)
        for chunk in iter(lambda: file.read(1 << 20), b""):
            digest.update(chunk)
    return digest.hexdigest()
