"""Tables that translate the names of other projects' checkpoints into a model's own, and back."""
from __future__ import annotations

from dataclasses import dataclass
from typing import Callable

import numpy as np

from jea.checkpoint.errors import Malformed, shown

#: BatchNorm's counter of training steps in PyTorch: without a use here, known everywhere and dropped.
COUNTER = "num_batches_tracked"
STATISTICS = ("running_mean", "running_var")  # of a BatchNorm
#: What a state dict holds beside parameters, by the ends of the names.
BUFFERS = (*STATISTICS, COUNTER, "weight_u", "weight_v")


@dataclass(frozen=True)
class KeyMap:
    """Maps the names in one kind of file to a model's names.

    name     what kind of file this is, for reports: "EANet, PyTorch (MenghaoGuo/EANet)"
    marker   a prefix of their keys, or several, whose presence selects this map
    rules    pairs (their prefix, our prefix), longest prefix first; the first that fits is used, and a
             key that none fits keeps its name
    drop     their prefixes that have no counterpart here
    partial  our prefixes that this kind of file does not hold: they stay as initialised
    head     our prefixes of the classifier: left as initialised, and said so, where the file is for other classes
    hint     (our name, shape in the file) -> what to do about a tensor of another shape, or ""
    transposed  our names of matrices that this kind of file holds transposed; such files are read, not written
    twins    pairs (their prefix, their prefix): two names of the same tensors, which have one name here. A file may
             hold one of them, or both with equal values; both are written
    convert  {our name: tensor} as read -> the same as this model keeps it, such as classes in another order
    unit_axes  whether their tensors may have further axes of length 1 at the end; such files are read, not written

    Names are only ever matched by these rules, never by order or suffix.
    """

    name: str
    marker: str
    rules: tuple = ()
    drop: tuple = ()
    partial: tuple = ()
    transposed: tuple = ()
    head: tuple = ()
    hint: Callable | None = None
    twins: tuple = ()
    unit_axes: bool = False
    convert: Callable | None = None

    @property
    def writable(self):
        """Tell whether a whole model can be written in this layout."""
        return not (self.partial or self.transposed or self.unit_axes)

    def to_ours(self, key):
        """Return our name for their `key`."""
        return _first_fit(_first_fit(key, self.twins), self.rules)

    def to_theirs(self, key):
        """Return their name for our `key`; `to_ours` undoes it."""
        backwards = sorted(((ours, theirs) for theirs, ours in self.rules), key=lambda rule: -len(rule[0]))
        return _first_fit(key, backwards)

    def are_twins(self, key, other):
        return _first_fit(key, self.twins) == _first_fit(other, self.twins)

    def with_twins(self, tensors):
        """Return `tensors`, by their names, and those that have twins under both names."""
        backwards = [(second, first) for first, second in self.twins]
        return {name: tensor for key, tensor in tensors.items() for name in (_first_fit(key, backwards), key)}

    def drops(self, key):
        return key.startswith(self.drop) if self.drop else False


def _first_fit(key, rules):
    for prefix, replacement in rules:
        if key.startswith(prefix):
            return replacement + key[len(prefix):]
    return key


def is_counter(key):
    return key == COUNTER or key.endswith("." + COUNTER)


def select(key_maps, keys):
    """Return the first of `key_maps` whose marker begins one of `keys`, or None: then the names are our own."""
    for key_map in key_maps:
        if any(key.startswith(key_map.marker) for key in keys):
            return key_map
    return None


def apply(key_maps, tensors):
    """Rename `tensors` (name to anything).

    Returns (renamed tensors, the KeyMap used or None, the dropped keys). BatchNorm's counters are dropped
    with and without a map. Two keys that become one are an error.
    """
    key_map = select(key_maps, tensors)
    mapped, origin, dropped = {}, {}, []
    for key, tensor in tensors.items():
        if is_counter(key) or (key_map and key_map.drops(key)):
            dropped.append(key)
            continue
        ours = key_map.to_ours(key) if key_map else key
        if ours in mapped and key_map and key_map.are_twins(key, origin[ours]):
            if not np.array_equal(tensor, mapped[ours]):
                raise Malformed(f"{shown(origin[ours])} and {shown(key)} are one tensor in this model, but differ in "
                                f"the file")
            continue
        if ours in mapped:
            raise Malformed(f"{shown(origin[ours])} and {shown(key)} both become {shown(ours)}; the file "
                            f"mixes two naming schemes")
        mapped[ours], origin[ours] = tensor.T if key_map and ours in key_map.transposed else tensor, key
    if key_map and key_map.convert:
        mapped = key_map.convert(mapped)
    return mapped, key_map, dropped
