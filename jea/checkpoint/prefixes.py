"""Prefixes that stand before all names of a file because its model was part of something else when it was saved."""
from __future__ import annotations

import os
from collections import Counter

from jea.checkpoint import keymap
from jea.checkpoint.errors import shown

#: What modules around the model put before every name.
_WRAPPERS = {"module.": "DataParallel's", "_orig_mod.": "torch.compile's", "model.": "Lightning's"}
_DEEPEST = 8  # names in one prefix


def without_wrapper_prefixes(tensors, notes):
    """Return (`tensors` without the prefixes of wrappers that all names have, what was stripped); say it in `notes`."""
    parallel = [key for key in tensors if key.startswith("module.")]
    if "n_averaged" in tensors and len(parallel) == len(tensors) - 1:  # torch.optim.swa_utils.AveragedModel
        tensors = {key: tensors[key] for key in parallel}
    stripped = ""
    for _ in range(2):  # one wrapper inside of the other, or DataParallel twice
        for prefix, whose in _WRAPPERS.items():
            if all(key.startswith(prefix) and len(key) > len(prefix) for key in tensors):
                notes.append(f"stripped {whose} {prefix!r} from every key")
                tensors = {key[len(prefix):]: tensor for key, tensor in tensors.items()}
                stripped += prefix
    return tensors, stripped


def shared(keys):
    """Return the prefixes that all of `keys` have, each with a dot at its end, the shortest first."""
    common = os.path.commonprefix(list(keys))
    ends = [at + 1 for at, character in enumerate(common) if character == "."][:_DEEPEST]
    return [common[:end] for end in ends if all(len(key) > end for key in keys)]


def fitting(checkpoint, key_maps, names, notes):
    """Return the tensors of a `Checkpoint` under the names that fit most of a model's `names`.

    Tried are the names as they are, with a prefix that all or most of them share taken away, and with the wrapper's
    prefix that reading took away put back. What was done is said in `notes`.
    """
    tensors = checkpoint.tensors
    best, most, said = tensors, _hits(tensors, key_maps, names), None
    if most == len(tensors):
        return tensors
    for prefix in _common(tensors):
        count = sum(key.startswith(prefix) for key in tensors)
        renamed = {_without(key, prefix): tensor for key, tensor in tensors.items()}
        if len(renamed) == len(tensors) and _hits(renamed, key_maps, names) > most:
            best, most = renamed, _hits(renamed, key_maps, names)
            of = "every key" if count == len(tensors) else f"{count} of {len(tensors)} keys"
            said = f"stripped {shown(prefix)!r} from {of}"
    for start in range(len(checkpoint.prefix)):
        prefix = checkpoint.prefix[start:]
        if start and checkpoint.prefix[start - 1] != ".":
            continue
        renamed = {prefix + key: tensor for key, tensor in tensors.items()}
        if _hits(renamed, key_maps, names) > most:
            best, most = renamed, _hits(renamed, key_maps, names)
            said = f"put {prefix!r} back, as this model's names have it"
    if said:
        notes.append(said)
    return best


def _without(key, prefix):
    return key[len(prefix):] if key.startswith(prefix) and len(key) > len(prefix) else key


def _common(keys):
    """Prefixes that at least half of `keys` have."""
    counts = Counter()
    for key in keys:
        at = key.find(".")
        for _ in range(_DEEPEST):
            if not 0 <= at < 200:
                break
            counts[key[:at + 1]] += 1
            at = key.find(".", at + 1)
    return [prefix for prefix, count in counts.most_common(50) if 2 * count >= len(keys)]


def _hits(keys, key_maps, names):
    key_map = keymap.select(key_maps, keys)
    return sum((key_map.to_ours(key) if key_map else key) in names for key in keys)


def pattern(missing, unexpected):
    """Say what makes the missing names and the unexpected ones the same: "" where nothing does.

    >>> pattern(["a", "b"], ["net.a", "net.b"])
    "2 of the missing names are in the file behind 'net.'"
    """
    for inner, outer, words in ((missing, unexpected, "are in the file behind {!r}"),
                                (unexpected, missing, "are in the file without the {!r} before them")):
        wanted, counts = set(inner), Counter()
        for key in outer:
            at = key.find(".")
            for _ in range(_DEEPEST):
                if at < 0:
                    break
                if key[at + 1:] in wanted:
                    counts[key[:at + 1]] += 1
                at = key.find(".", at + 1)
        if counts:
            prefix, count = counts.most_common(1)[0]
            if count > 1 and 2 * count >= min(len(missing), len(unexpected)):
                return f"{count} of the missing names {words.format(shown(prefix))}"
    return ""
