"""Put together what processes with caches of their own have compiled and found:

    python tests/gpu/machine/merge_caches.py HOME COPY...

Kernels that HOME lacks are linked from the copies; of tables (engines, verdicts) all entries are kept.
"""
from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path


def merged(first, second):
    """All entries of two tables; the first one's where both have one."""
    if not (isinstance(first, dict) and isinstance(second, dict)):
        return first
    return {**second,
            **{name: merged(value, second[name]) if name in second else value for name, value in first.items()}}


def merge(home: Path, copy: Path) -> int:
    """The number of files that came from a copy."""
    count = 0
    for source in copy.rglob("*"):
        target = home / source.relative_to(copy)
        if source.is_dir() and not source.is_symlink():
            target.mkdir(exist_ok=True)
        elif source.name in ("engines.json", "verdicts.json") and target.exists():
            target.write_text(json.dumps(merged(json.loads(target.read_text()), json.loads(source.read_text()))))
        elif not os.path.lexists(target):
            try:
                os.link(source, target, follow_symlinks=False)
            except OSError:
                shutil.copy2(source, target, follow_symlinks=False)
            count += 1
    return count


if __name__ == "__main__":
    print(sum(merge(Path(sys.argv[1]), Path(copy)) for copy in sys.argv[2:]), "files came from the copies")
