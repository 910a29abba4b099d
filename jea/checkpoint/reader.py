"""Reads a checkpoint of any format: what it is says its content, never its name."""
from __future__ import annotations

import os
import stat
from dataclasses import dataclass, field

from jea.checkpoint.errors import Malformed, reading, shown
from jea.checkpoint.readers.jittor import JittorPickle
from jea.checkpoint.readers.npz import Npz
from jea.checkpoint.readers.pickle_machine import Symbol
from jea.checkpoint.readers.safetensors import SafeTensors
from jea.checkpoint.readers.torch import TorchLegacy, TorchZip, is_legacy
from jea.checkpoint.readers.zip import ZipArchive
from jea.checkpoint.tensors import Budget, LazyTensor
from jea.errors import CheckpointError

#: Names under which checkpoints keep the model's state dict, most telling first.
EMA_WRAPPERS = ("state_dict_ema", "model_ema", "ema_state_dict", "params_ema", "ema")
WRAPPERS = ("net", "model", "state_dict", "params", "generator")
_NESTED = 4  # how deep these may stand inside of each other

_NOT_CHECKPOINTS = (
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


@dataclass
class Checkpoint:
    """What a checkpoint file holds.

    ``tensors`` is the model's state dict as C-contiguous native numpy arrays (tensors that shared memory in
    the file may share it here), found under ``wrapper`` ("" for a bare state dict, "model/state_dict" for a
    wrapper in another). ``meta`` has the other
    entries as plain Python values, without the tensors in them; ``notes`` says in words what was passed over
    or changed. ``format`` is "torch-zip", "torch-legacy", "safetensors", "npz" or "jittor-pkl".
    """

    path: str
    format: str
    tensors: dict
    wrapper: str = ""
    meta: dict = field(default_factory=dict)
    notes: list = field(default_factory=list)


def read(path, *, ema=True, wrapper=None):
    """Read the checkpoint at ``path`` and return a :class:`Checkpoint`.

    Of a file that wraps its state dicts, the averaged weights (``state_dict_ema``, ``model_ema``,
    ``ema_state_dict``, ``params_ema``, ``ema``) are preferred unless ``ema`` is False, then ``net``,
    ``model``, ``state_dict``, ``params``, ``generator``, then an only other one. These names may stand inside
    of each other; ``wrapper`` names one explicitly. Averaged weights are what timm and the official EAMLP and
    T2T-ViT code evaluate. DataParallel's ``module.`` is stripped when every key has it. float16 and bfloat16
    become float32. Nothing else (an optimizer's state) is read from the disk.

    Raises :class:`CheckpointError` for everything that is wrong with the file.
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
    """As :func:`read`, with tensors that are checked against the file's size and not read."""
    with opened(path) as source:
        checkpoint = choose(source, ema=ema)
        for tensor in checkpoint.tensors.values():
            tensor.check()
    return checkpoint


class opened(reading):  # noqa: N801, used like a function
    """The open file as a source with ``path``, ``format``, ``root`` and ``budget``; tensors stay lazy."""

    def __init__(self, path):
        super().__init__(os.fspath(path))

    def __enter__(self):
        with reading(self._path):
            self._file = _open_file(self._path)
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


def _open_file(path):
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        raise CheckpointError(path, "no such file; check the path") from None
    if stat.S_ISDIR(mode):
        raise CheckpointError(path, "is a folder; give the checkpoint file in it")
    if not stat.S_ISREG(mode):
        raise CheckpointError(path, "is not a regular file")
    return open(path, "rb")


def _source(file, size, budget):
    head = file.read(512)
    file.seek(0)
    if not head:
        raise Malformed("is empty (0 bytes); fetch it again")
    if head[4:9] == b"\0\0\0\0{":  # before the others: the length of its header may begin like any of them
        return SafeTensors(file, size)
    for start, problem in _NOT_CHECKPOINTS:
        if head.startswith(start):
            raise Malformed(problem)
    if head.startswith(b"PK\x03\x04"):
        archive = ZipArchive(file, size)
        is_torch = any(name.endswith("data.pkl") for name in archive.entries)
        return TorchZip(archive, budget) if is_torch else Npz(archive, budget)
    if is_legacy(head):
        return TorchLegacy(file, size)
    if head[:1] == b"\x80":
        return JittorPickle(file)
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


def choose(source, *, ema=True, wrapper=None):
    """The :class:`Checkpoint` in ``source`` with its tensors still lazy."""
    root, notes = source.root, []
    if not isinstance(root, dict):
        raise Malformed(f"holds {_outline(root)}, not a state dict; save model.state_dict() instead")
    if source.format == "npz":
        root = _grouped(root)
    candidates = _state_dicts(root)
    chosen = _pick(candidates, ema, wrapper, notes)
    keys, state = candidates[chosen] if chosen else ((), root)
    tensors = {key: value for key, value in state.items()
               if type(key) is str and isinstance(value, LazyTensor)}
    if not tensors:
        raise Malformed("holds no tensors under names, so there is nothing to load")
    rest = {key: value for key, value in state.items() if key not in tensors}
    if chosen:
        if rest:
            notes.append(f"not tensors, left out: {', '.join(shown(key) for key in list(rest)[:20])}")
        rest = _without(root, keys)
    meta, left_out = _plain_meta(rest)
    meta.update(getattr(source, "meta", {}))
    if left_out:
        notes.append(f"tensors not read: those in {', '.join(shown(key) for key in left_out[:20])}")
    tensors = _without_wrapper_prefixes(tensors, notes)
    return Checkpoint(source.path, source.format, tensors, chosen, meta, notes)


def _state_dicts(root):
    """{name: (its keys, state dict)} of those under any key of ``root``, and of those that are wrapped more than once,
    by names that are known: "model/state_dict"."""
    known, found = EMA_WRAPPERS + WRAPPERS, {}
    stateful = {}  # by identity, so that a huge dict under many keys is looked at once
    level = [((key,), value) for key, value in root.items() if type(key) is str]
    for _ in range(_NESTED):
        inner = []
        for keys, value in level:
            if not isinstance(value, dict):
                continue
            if id(value) not in stateful:
                stateful[id(value)] = any(isinstance(item, LazyTensor) and type(key) is str
                                          for key, item in value.items())
            if stateful[id(value)]:
                found.setdefault("/".join(keys), (keys, value))
            elif keys[0] in known:
                inner += [((*keys, key), value[key]) for key in known if key in value]
        level = inner
    return found


def _without(entries, keys):
    """``entries`` without what stands under ``keys``, nor the dicts around it that hold nothing else."""
    rest = {key: value for key, value in entries.items() if key != keys[0]}
    around = _without(entries[keys[0]], keys[1:]) if len(keys) > 1 else {}
    return {**rest, keys[0]: around} if around else rest


_AVERAGED = ", averaged weights, which timm and the official EAMLP and T2T-ViT code evaluate"


def _pick(candidates, ema, wrapper, notes):
    """The name of the state dict that is meant; "": that of the file itself."""
    if wrapper is not None:
        if wrapper and wrapper not in candidates:
            raise Malformed(f"has no state dict under {shown(wrapper)!r}; it has: "
                            f"{', '.join(map(shown, list(candidates)[:20])) or 'none that is wrapped'}")
        return wrapper
    names = EMA_WRAPPERS + WRAPPERS
    known = sorted((name for name, (keys, _) in candidates.items() if set(keys) <= set(names)),
                   key=lambda name: (name.count("/"), [names.index(key) for key in candidates[name][0]]))
    averaged = [name for name in known if set(candidates[name][0]) & set(EMA_WRAPPERS)]
    others = [name for name in known if name not in averaged]
    order = averaged + others if ema else others + averaged
    if order:
        if len(order) > 1:
            chosen = order[0] in averaged and bool(others)
            notes.append(f"took {order[0]!r}{_AVERAGED * chosen}; the file also has {', '.join(order[1:])}"
                         f"{' (ema=False, or --no-ema, takes it)' * chosen}")
        if not ema and order[0] in averaged:
            notes.append(f"{order[0]!r} is the only state dict in the file; averaged weights were not wanted")
        return order[0]
    if len(candidates) > 1:
        raise Malformed(f"holds several state dicts and it is not clear which is meant: "
                        f"{', '.join(map(shown, list(candidates)[:20]))}; "
                        "jea.checkpoint.read(path, wrapper=...) reads one of them")
    for name in candidates:
        notes.append(f"took the only state dict in the file, {shown(name)!r}")
        return name
    return ""


def _grouped(root):
    """jea's training checkpoints group their keys by prefix: "model/...", "optimizer/..."."""
    if not all("/" in key.strip("/") for key in root) \
            or not any(key.partition("/")[0] in WRAPPERS + EMA_WRAPPERS for key in root):
        return root
    groups = {}
    for key, tensor in root.items():
        group, _, rest = key.partition("/")
        groups.setdefault(group, {})[rest] = tensor
    return groups


#: What modules around the model put before every key.
_PREFIXES = {"module.": "DataParallel's", "_orig_mod.": "torch.compile's"}


def _without_wrapper_prefixes(tensors, notes):
    parallel = [key for key in tensors if key.startswith("module.")]
    if "n_averaged" in tensors and len(parallel) == len(tensors) - 1:  # torch.optim.swa_utils.AveragedModel
        tensors = {key: tensors[key] for key in parallel}
    for _ in range(2):  # one wrapper inside of the other, or DataParallel twice
        for prefix, whose in _PREFIXES.items():
            if all(key.startswith(prefix) and len(key) > len(prefix) for key in tensors):
                notes.append(f"stripped {whose} {prefix!r} from every key")
                tensors = {key[len(prefix):]: tensor for key, tensor in tensors.items()}
    return tensors


# -- plain values

_MAX_NODES, _MAX_DEPTH, _MAX_TEXT = 20_000, 20, 10_000
_MAX_ENTRIES = 1_000
_TOO_MUCH = "..."


def _plain_meta(entries):
    """``entries`` as plain Python values, and the names of those left out because tensors are in them."""
    meta, left_out, seen = {}, [], 0
    for key, value in entries.items():
        converter = _Plain()
        plain = converter.convert(value, 0)
        if converter.tensors:
            left_out.append(str(key))
        else:
            meta[converter.key(key)] = plain
        seen += converter.nodes
        if len(meta) >= _MAX_ENTRIES or seen > 10 * _MAX_NODES:
            meta[_TOO_MUCH] = "further entries were left out"
            break
    return meta, left_out


class _Plain:
    """Copies one nested value within limits, so that shared and cyclic ones cannot blow up."""

    def __init__(self):
        self.nodes, self.tensors = 0, 0

    def key(self, key):
        return key if type(key) is not bytes else shown(key)

    def convert(self, value, depth):
        self.nodes += 1
        if self.nodes > _MAX_NODES or depth > _MAX_DEPTH:
            return _TOO_MUCH
        if value is None or type(value) in (bool, int, float):
            return value
        if type(value) is str:
            return value if len(value) <= _MAX_TEXT else value[:_MAX_TEXT] + _TOO_MUCH
        if isinstance(value, dict):
            return {self.key(key): self.convert(item, depth + 1) for key, item in self._first(value.items())}
        if type(value) in (list, tuple):
            return [self.convert(item, depth + 1) for item in self._first(value)]
        if isinstance(value, LazyTensor):
            self.tensors += 1
            return _outline(value)
        return str(value) if isinstance(value, Symbol) else _outline(value)

    def _first(self, items):
        for item in items:
            if self.nodes > _MAX_NODES:
                return
            yield item


def _outline(value):
    if isinstance(value, LazyTensor):
        return f"tensor {value.dtype} {tuple(value.shape)}"
    if isinstance(value, (bytes, memoryview)):
        return f"{len(value)} bytes"
    return f"a value of type {type(value).__name__}"
