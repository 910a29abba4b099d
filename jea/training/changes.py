"""In what the options of a resumed run differ from those that it was saved with."""
from __future__ import annotations

from jea.errors import shortened
from jea.training.log import plain

ELSEWHERE = ("root",)  # of the data block: the same data may have moved
BATCHES = ("batch_size", "seed")  # of the train block: they decide which samples come when


def compare(meta: dict, task) -> tuple:
    """(what may not differ, what may), each a list of "train.lr 0.04, now 0.001".

    meta: of last.npz. What decides which samples come when may not differ: the data set and its options, batch size and
    seed; the task neither.
    """
    moved, changed = [], []
    now = plain(task.description)
    if meta.get("seed", task.options.seed) != task.options.seed:
        moved.append(f"was trained with seed {meta['seed']}, the config says {task.options.seed}")
    if meta.get("task", now["task"]) != now["task"]:
        moved.append(f"task {meta['task']}, now {now['task']}")
    if meta.get("samples") is not None and meta["samples"] != len(task.loader.dataset):
        moved.append(f"{meta['samples']} samples to train on, now {len(task.loader.dataset)}")
    for block in ("model", "data", "train"):
        before = meta.get(block)
        if not isinstance(before, dict):
            continue
        defaults = task.defaults(block)
        for key in dict.fromkeys([*before, *now[block]]):
            # An option that an earlier version did not have is as it is now.
            old, new = before.get(key, defaults.get(key)), now[block].get(key, defaults.get(key))
            if old == new or block == "train" and (key not in before or key in ("seed", "init_weights")):
                continue
            text = f"{block}.{key} {_shown(old)}, now {_shown(new)}"
            fixed = key in BATCHES if block == "train" else block == "data" and key not in ELSEWHERE
            (moved if fixed else changed).append(text)
    return moved, changed


def _shown(value) -> str:
    return "null" if value is None else shortened(value, 60)
