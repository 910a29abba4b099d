"""Chooses which of the state dicts in a file is meant, and tells what else the file holds."""
from __future__ import annotations

from dataclasses import dataclass, field

from jea.checkpoint.errors import Malformed, shown
from jea.checkpoint.plain import outlined, plain_meta
from jea.checkpoint.prefixes import without_wrapper_prefixes
from jea.checkpoint.tensors import LazyTensor, UnreadTensor

#: Names under which checkpoints keep the model's state dict, most telling first.
EMA_WRAPPERS = ("state_dict_ema", "model_ema", "ema_state_dict", "params_ema", "ema")
WRAPPERS = ("net", "model", "state_dict", "params", "generator")
_NESTED = 4  # how deep these may stand inside of each other


@dataclass
class Checkpoint:
    """Hold what a checkpoint file holds.

    `tensors` is the model's state dict as C-contiguous native numpy arrays (tensors that shared memory in the file may
    share it here), found under `wrapper` ("" for a bare state dict, "model/state_dict" for a wrapper in another) and
    without the `prefix` that a wrapper such as DataParallel put before all of their names. `meta` has the other
    entries as plain Python values, without the tensors in them; `notes` says in words what was passed over or
    changed. `format` is "torch-zip", "torch-legacy", "safetensors", "npz" or "jittor-pkl".
    """

    path: str
    format: str
    tensors: dict
    wrapper: str = ""
    meta: dict = field(default_factory=dict)
    notes: list = field(default_factory=list)
    prefix: str = ""


def choose(source, *, ema=True, wrapper=None):
    """Return the `Checkpoint` in `source` with its tensors still lazy."""
    root, notes = source.root, []
    if not isinstance(root, dict):
        raise Malformed(f"holds {outlined(root)}, not a state dict; save model.state_dict() instead")
    if source.format == "npz":
        root = _grouped(root)
    candidates = _state_dicts(root)
    chosen = _pick(candidates, ema, wrapper, notes)
    keys, state = candidates[chosen] if chosen else ((), root)
    tensors = {key: value for key, value in state.items()
               if type(key) is str and isinstance(value, LazyTensor)}
    if not tensors:
        raise Malformed("holds no tensors under names, so there is nothing to load")
    unread = {key: value for key, value in tensors.items() if isinstance(value, UnreadTensor)}
    if unread:
        key, tensor = next(iter(unread.items()))
        raise Malformed(f"{len(unread)} of its {len(tensors)} weights are of types that are not read, such as "
                        f"{shown(key)!r} of type {tensor.dtype} (it names {tensor.names}); convert them where the file "
                        f"was made")
    rest = {key: value for key, value in state.items() if key not in tensors}
    if chosen:
        if rest:
            notes.append(f"not tensors, left out: {', '.join(shown(key) for key in list(rest)[:20])}")
        rest = _without(root, keys)
    meta, left_out = plain_meta(rest)
    meta.update(getattr(source, "meta", {}))
    if left_out:
        notes.append(f"tensors not read: those in {', '.join(left_out[:20])}")
    tensors, prefix = without_wrapper_prefixes(tensors, notes)
    return Checkpoint(source.path, source.format, tensors, chosen, meta, notes, prefix)


def _state_dicts(root):
    """{name: (its keys, state dict)} of those under any key of `root`, and of those that are wrapped more than once,
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
                stateful[id(value)] = any(isinstance(item, LazyTensor) and not isinstance(item, UnreadTensor)
                                          and type(key) is str for key, item in value.items())
            if stateful[id(value)]:
                found.setdefault("/".join(keys), (keys, value))
            elif keys[0] in known:
                inner += [((*keys, key), value[key]) for key in known if key in value]
        level = inner
    return found


def _without(entries, keys):
    """Return `entries` without what stands under `keys`, nor the dicts around it that hold nothing else."""
    rest = {key: value for key, value in entries.items() if key != keys[0]}
    around = _without(entries[keys[0]], keys[1:]) if len(keys) > 1 else {}
    return {**rest, keys[0]: around} if around else rest


_AVERAGED = ", averaged weights, which timm and the official EAMLP and T2T-ViT code evaluate"


def _pick(candidates, ema, wrapper, notes):
    """Return the name of the state dict that is meant; "": that of the file itself."""
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
            notes.append(f"took {order[0]!r}{_AVERAGED * chosen}; the file also has {', '.join(order[1:21])}"
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
