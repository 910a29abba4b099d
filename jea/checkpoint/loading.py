"""Weights into models and out of them, with a strict comparison and nothing half done."""
from __future__ import annotations

import difflib
import json
import os
from dataclasses import dataclass, field

import numpy as np

from jea.checkpoint import keymap, prefixes
from jea.checkpoint.errors import Malformed, listed, shown, writing
from jea.checkpoint.reader import read
from jea.checkpoint.tensors import ITEMSIZE
from jea.checkpoint.writers.jittor import write_jittor_pickle
from jea.checkpoint.writers.npz import save_npz
from jea.checkpoint.writers.safetensors import write_safetensors
from jea.checkpoint.writers.torch import write_pth
from jea.errors import CheckpointError

SUFFIXES = (".npz", ".pkl", ".pth", ".safetensors")
_LOOSELY = ", or load what fits with strict=False (train.py and test.py: --no-strict)"


@dataclass
class LoadReport:
    """Tells what `load_weights` did, in lists of keys (`mismatched`: of texts); `str()` reads well."""

    path: str
    format: str
    wrapper: str = ""
    key_map: str = ""
    meta: dict = field(default_factory=dict)
    loaded: list = field(default_factory=list)
    missing: list = field(default_factory=list)
    unexpected: list = field(default_factory=list)
    mismatched: list = field(default_factory=list)
    dropped: list = field(default_factory=list)
    initialised: list = field(default_factory=list)
    notes: list = field(default_factory=list)

    def __str__(self):
        where = f", under {shown(self.wrapper)!r}" if self.wrapper else ""
        naming = f", names of {self.key_map}" if self.key_map else ""
        lines = [f"{self.path}: {len(self.loaded)} tensors loaded ({self.format}{where}{naming})"]
        for title, keys in (("not in the file", self.missing), ("not in the model", self.unexpected),
                            ("of another shape or type", self.mismatched),
                            ("that the file does not hold for this model, left as initialised", self.initialised)):
            if keys:
                lines.append(f"  {len(keys)} {title}:\n{listed(keys)}")
        if self.dropped:
            lines.append(f"  {len(self.dropped)} without a counterpart here, dropped "
                         f"(such as {shown(self.dropped[0])})")
        return "\n".join(lines + [f"  note: {note}" for note in self.notes])


def load_weights(model, path, *, strict=True, ema=True):
    """Load the checkpoint at `path` into `model` (a Jittor Module) and return a `LoadReport`.

    The file may use the model's own names or those of a `KeyMap` in `model.key_maps`. With
    `strict` any missing, unexpected or wrongly shaped tensor is one `CheckpointError` that lists
    them all, and nothing is loaded; without it, what fits is loaded and the rest is reported. Parameters stay
    the same objects and keep `requires_grad` and their type, so optimizers go on working. `ema`: prefer
    averaged weights (see `read`).
    """
    checkpoint = read(path, ema=ema)
    state = model.state_dict()
    shapes = {key: (tuple(var.shape), str(var.dtype)) for key, var in state.items()}
    arrays, report = match(getattr(model, "key_maps", ()), shapes, checkpoint)
    if strict:
        require_complete(report, shapes)
    if not arrays:
        raise CheckpointError(path, "none of its tensors fits the model; is it the right model?")
    _assign(state, arrays)
    return report


def match(key_maps, shapes, checkpoint):
    """Compare a `Checkpoint` with a model's `shapes` ({key: (shape, dtype)}).

    Returns ({our key: array in the model's shape and type}, LoadReport).
    """
    notes = list(checkpoint.notes)
    try:
        mapped, key_map, dropped = keymap.apply(key_maps, prefixes.fitting(checkpoint, key_maps, shapes, notes))
    except Malformed as error:
        raise CheckpointError(checkpoint.path, str(error)) from error
    report = LoadReport(checkpoint.path, checkpoint.format, checkpoint.wrapper,
                        key_map=key_map.name if key_map else "", meta=checkpoint.meta, dropped=dropped, notes=notes)
    arrays, reset = {}, []
    head, hint = (tuple(key_map.head), key_map.hint) if key_map else ((), None)
    for key, array in mapped.items():
        if key not in shapes:
            report.unexpected.append(key)
            continue
        shape, dtype = shapes[key]
        if key_map and key_map.unit_axes and set(array.shape[len(shape):]) == {1}:
            array = array.reshape(array.shape[:len(shape)])
        problem = _misfit(array, shape, dtype)
        if problem and key.startswith(head) and array.shape[1:] == shape[1:]:
            reset.append(key)
            report.notes.append(f"{key}: {problem}: dropped")
        elif problem:
            advice = hint(key, array.shape) if hint else ""
            report.mismatched.append(f"{key}: {problem}{advice and f'; {advice}'}")
        else:
            with np.errstate(over="ignore"):  # an infinity that appears here is reported below
                arrays[key] = array.astype(dtype, copy=False).reshape(shape)
    partial = tuple(key_map.partial) if key_map else ()
    absent = [key for key in shapes if key not in mapped]
    report.initialised = reset + [key for key in absent if key.startswith(partial)]
    report.missing = [key for key in absent if not key.startswith(partial)]
    report.loaded = list(arrays)
    narrowed = [key for key in arrays if mapped[key].dtype.itemsize > arrays[key].dtype.itemsize]
    if narrowed:
        report.notes.append(f"{len(narrowed)} tensors narrowed to the model's type (such as {narrowed[0]}, "
                            f"{mapped[narrowed[0]].dtype} to {arrays[narrowed[0]].dtype})")
    broken = [key for key, array in arrays.items()
              if array.dtype.kind == "f" and not np.isfinite(array).all()]
    if broken:
        report.notes.append(f"{len(broken)} tensors hold NaN or infinity: "
                            f"{', '.join(map(shown, broken[:20]))}")
    return arrays, report


def _misfit(array, shape, dtype):
    """Say why `array` cannot become `shape` and `dtype`, or "". Jittor writes a scalar as shape (1,)."""
    if array.shape != shape and not (array.size == 1 and {array.shape, shape} == {(), (1,)}):
        return f"shape {_text(array.shape)} in the file, {_text(shape)} in the model"
    kind, wanted = array.dtype.kind, np.dtype(dtype).kind
    if kind != wanted and not (kind in "iub" and wanted in "iub"):
        return f"type {array.dtype} in the file, {dtype} in the model"
    if wanted in "iub" and not np.array_equal(array, array.astype(dtype)):
        return f"values beyond the model's {dtype}"
    return ""


def _text(shape):
    return "(" + ", ".join(map(str, shape)) + ")"


def require_complete(report, shapes, *, otherwise=_LOOSELY):
    """Raise one `CheckpointError` that lists everything in `report` that is missing or too much.

    `otherwise`: what its advice adds to checking the model.
    """
    if not (report.missing or report.unexpected or report.mismatched):
        return
    parts = [f"does not fit the model: {len(report.missing)} missing, {len(report.unexpected)} unexpected, "
             f"{len(report.mismatched)} of another shape or type; {len(report.loaded)} fit. Nothing was "
             f"loaded."]
    if report.missing:
        parts.append(f"  in the model, not in the file:\n{listed(report.missing)}")
    if report.unexpected:
        nearest = [_with_nearest(key, shapes) for key in report.unexpected[:20]] + report.unexpected[20:]
        parts.append(f"  in the file, not in the model:\n{listed(nearest)}")
    if report.mismatched:
        parts.append(f"  of another shape or type:\n{listed(report.mismatched)}")
    pattern = prefixes.pattern(report.missing, report.unexpected)
    if pattern:
        parts.append(f"  {pattern}.")
    parts.append(f"  Check the model's name and arguments (classes, depth){otherwise}.")
    raise CheckpointError(report.path, "\n".join(parts))


def _with_nearest(key, names):
    nearest = difflib.get_close_matches(key[:200], names, 1, 0.8)
    return f"{key} (the nearest name in the model is {nearest[0]})" if nearest else key


def _assign(state, arrays):
    from jea._jittor import jt
    fresh = {key: jt.array(np.ascontiguousarray(array).reshape(array.shape), dtype=str(state[key].dtype))
             for key, array in arrays.items()}
    jt.sync(list(fresh.values()))
    for key, value in fresh.items():
        state[key].update(value)  # keeps no graph, and the Var stays the object that optimizers hold


def save_weights(model, path, *, meta=None, layout="auto"):
    """Save the weights of `model` (a Jittor Module) to `path`, atomically; the suffix chooses the format.

    `.npz` (jea's own), `.pkl` (plain `jt.load` reads it) and `.safetensors` hold our names. `.pth`
    (`torch.load(weights_only=True)` reads it) holds the upstream project's names if the model has a full
    key map, and our own otherwise; `layout="ours"` or `"upstream"` insists, for any format. `meta`:
    values to store beside the tensors (.npz: anything JSON can hold; .safetensors: as JSON text; the others
    hold none).
    """
    tensors = {key: var.numpy() for key, var in model.state_dict().items()}
    write(path, rename_for(path, tensors, getattr(model, "key_maps", ()), layout), meta=meta)


def rename_for(path, tensors, key_maps, layout="auto"):
    """Return `tensors` under the names that a file of `path`'s suffix should have; see `save_weights`."""
    if layout not in ("auto", "ours", "upstream"):
        raise ValueError(f"layout is {layout!r}; it must be 'auto', 'ours' or 'upstream'")
    full = next((key_map for key_map in key_maps if key_map.writable), None)
    if layout == "ours" or (layout == "auto" and not (full and _suffix(path) == ".pth")):
        return tensors
    if full is None:
        raise CheckpointError(path, "this model has no map to upstream's names; use layout='ours' (jea "
                                    "convert: --names jea)")
    renamed = {full.to_theirs(key): array for key, array in tensors.items()}
    if [full.to_ours(key) for key in renamed] != list(tensors):
        raise CheckpointError(path, f"the map to the names of {full.name} cannot be undone; use "
                                    f"layout='ours'")
    return full.with_twins(renamed)


def _suffix(path):
    suffix = os.path.splitext(os.fspath(path))[1].lower()
    if suffix not in SUFFIXES:
        raise CheckpointError(path, f"the suffix {suffix!r} says no format; use one of {', '.join(SUFFIXES)}")
    return suffix


def write(path, tensors, *, meta=None, wrapper=""):
    """Write named arrays to `path` in the format of its suffix; `wrapper` (.pth only) nests them."""
    suffix = _suffix(path)
    if wrapper and suffix != ".pth":
        raise CheckpointError(path, f"only a .pth file wraps its state dict (in {wrapper!r})")
    if suffix == ".npz":
        save_npz(path, tensors, meta)
        return
    tensors = {key: np.asarray(array) for key, array in tensors.items()}
    for key, array in tensors.items():
        if not _is_text(key):
            raise CheckpointError(path, f"{shown(key)} is not valid text, so it cannot name a tensor")
        if array.dtype.name not in ITEMSIZE:
            raise CheckpointError(path, f"{shown(key)} has type {array.dtype}; checkpoints hold plain "
                                        f"numbers")
    with writing(path) as file:
        if suffix == ".pth":
            write_pth(file, tensors, wrapper)
        elif suffix == ".pkl":
            write_jittor_pickle(file, tensors)
        else:
            write_safetensors(file, tensors, _text_meta(meta))


def _is_text(key):
    try:
        key.encode()
    except UnicodeEncodeError:
        return False
    return True


def _text_meta(meta):
    return {key: value if isinstance(value, str) else json.dumps(value)
            for key, value in (meta or {}).items()}
