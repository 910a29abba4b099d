"""Kills a process while it saves, again and again. A script: checkpoint_kills.py FOLDER TIMES."""
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from jea.checkpoint import load_npz, save_npz

SAVE_FOREVER = """
import sys, numpy as np
from jea.checkpoint import save_npz
version = int(sys.argv[2])
while True:
    save_npz(sys.argv[1], {f"w{i}": np.full(100_000, version, np.int32) for i in range(8)}, {"version": version})
    print(version, flush=True)
    version += 1
"""


def main(folder, times):
    path = Path(folder) / "last.npz"
    generator, version, torn = random.Random(5), 0, 0
    for _ in range(times):
        process = subprocess.Popen([sys.executable, "-c", SAVE_FOREVER, str(path), str(version)],
                                   stdout=subprocess.PIPE)
        process.stdout.readline()
        time.sleep(generator.uniform(0, 0.05))
        process.send_signal(signal.SIGKILL)
        finished = [version, *map(int, process.stdout.read().split())]
        process.wait()
        tensors, meta = load_npz(path)
        assert meta["version"] in (finished[-1], finished[-1] + 1)  # renamed, and killed before it could say so
        assert len(tensors) == 8 and all((array == meta["version"]).all() for array in tensors.values())
        leftovers = [name for name in os.listdir(folder) if name.endswith(".tmp")]
        assert len(leftovers) <= 1
        torn += len(leftovers)
        version = meta["version"] + 1
    save_npz(path, {"a": np.zeros(1)})
    assert os.listdir(folder) == [path.name]
    print(f"{times} kills, {torn} in the middle of writing")
    assert torn, "no kill hit a save that was under way, so nothing was tested"


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
