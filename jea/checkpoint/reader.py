"""Reads a checkpoint of any format: what it is says its content, never its name."""
from __future__ import annotations

import os

from jea.checkpoint.choosing import choose
from jea.checkpoint.errors import Malformed, open_regular, reading, shown
from jea.checkpoint.readers.jittor import JittorPickle
from jea.checkpoint.readers.npz import Npz
from jea.checkpoint.readers.safetensors import SafeTensors
from jea.checkpoint.readers.torch import TorchLegacy, TorchZip, is_legacy
from jea.checkpoint.readers.zip import ZipArchive
from jea.checkpoint.tensors import Budget

NOT_CHECKPOINTS = (
    (b"version https://git-lfs", "is a git-lfs pointer, not the file itself; run `git lfs pull`"),
    (b"\x1f\x8b", "is gzip-compressed; unpack it first (gunzip)"),
    (b"BZh", "is bzip2-compressed; unpack it first (bunzip2)"),
    (b"\xfd7zXZ", "is xz-compressed; unpack it first (unxz)"),
    (b"7z\xbc\xaf", "is a 7-Zip archive; unpack it first"),
    (b"Rar!", "is a RAR archive; unpack it first"),
    (b"\x89HDF", "is an HDF5 file (Keras?), which is not read; export the weights as .safetensors or .npz"),
    (b"\x93NUMPY", "is a single numpy array without names; a checkpoint is an .npz of named arrays"),
    (b"PK\x05\x06", "is an empty zip archive; fetch the file again"),
)


def read(path, *, ema=True, wrapper=None):
    """Read the checkpoint at `path` and return a `Checkpoint`.

    Of a file that wraps its state dicts, the averaged weights (`state_dict_ema`, `model_ema`,
    `ema_state_dict`, `params_ema`, `ema`) are preferred unless `ema` is False, then `net`,
    `model`, `state_dict`, `params`, `generator`, then an only other one. These names may stand inside
    of each other; `wrapper` names one explicitly. Averaged weights are what timm and the official EAMLP and
    T2T-ViT code evaluate. DataParallel's `module.` is stripped when every key has it. float16 and bfloat16
    become float32. Nothing else (an optimizer's state) is read from the disk.

    Raises `CheckpointError` for everything that is wrong with the file.
    """
    with opened(path) as source:
        checkpoint = choose(source, ema=ema, wrapper=wrapper)
        widened = [key for key, tensor in checkpoint.tensors.items() if tensor.loaded_dtype != tensor.dtype]
        if widened:
            kinds = sorted({checkpoint.tensors[key].dtype for key in widened})
            checkpoint.notes.append(f"{len(widened)} tensors of type {', '.join(kinds)} widened to float32")
        checkpoint.tensors = {key: tensor.load(source.budget) for key, tensor in checkpoint.tensors.items()}
        return checkpoint


def outline(path, *, ema=True):
    """Read as `read` does, with tensors that are checked against the file's size and not read."""
    with opened(path) as source:
        checkpoint = choose(source, ema=ema)
        for tensor in checkpoint.tensors.values():
            tensor.check()
    return checkpoint


class opened(reading):  # noqa: N801, used like a function
    """Opens a file as a source with `path`, `format`, `root` and `budget`; tensors stay lazy."""

    def __init__(self, path):
        super().__init__(os.fspath(path))

    def __enter__(self):
        with reading(self._path):
            self._file = open_regular(self._path)
            try:
                size = self._file.seek(0, 2)
                self._file.seek(0)
                budget = Budget(size)
                source = _source(self._file, size, budget)
            except BaseException:
                self._file.close()
                raise
        source.path, source.budget = self._path, budget
        self._source = source
        return source

    def __exit__(self, kind, error, traceback):
        self._source.root = None  # its tensors refer to it: without this cycle memory is free at once
        self._source = None
        self._file.close()
        super().__exit__(kind, error, traceback)


def _source(file, size, budget):
    head = file.read(512)
    file.seek(0)
    if not head:
        raise Malformed("is empty (0 bytes); fetch it again")
    if head[4:9] == b"\0\0\0\0{":  # before the others: the length of its header may begin like any of them
        return SafeTensors(file, size)
    for start, problem in NOT_CHECKPOINTS:
        if head.startswith(start):
            raise Malformed(problem)
    if head.startswith(b"PK\x03\x04"):
        archive = ZipArchive(file, size)
        is_torch = any(name.endswith("data.pkl") for name in archive.entries)
        return TorchZip(archive, budget) if is_torch else Npz(archive, budget)
    if is_legacy(head):
        return TorchLegacy(file, size)
    if head[:1] == b"\x80":
        return JittorPickle(file, size)
    if head[257:262] == b"ustar":
        raise Malformed("is a tar archive: unpack it, or, if PyTorch before 0.1.10 saved it, load and "
                        "save it again with a PyTorch of 2017 to 2024")
    text = head.lstrip().lower()
    if text.startswith((b"<!doctype", b"<html", b"<?xml")):
        raise Malformed("is a web page, not a checkpoint: the download got an error or a login page; "
                        "fetch it again")
    if size >= 10 and head[8:9] == b"{":
        return SafeTensors(file, size)
    raise Malformed(f"is no checkpoint that jea knows (it starts with {shown(head[:16])}); read are "
                    f"PyTorch .pth, .safetensors, jea's .npz and Jittor's .pkl")
