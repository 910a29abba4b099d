"""Training in one and in several processes of one thread each: pictures per second over the same global batch.

    python tests/bench/bm_ranks.py                                    # 1 and 2 processes, the default config
    python tests/bench/bm_ranks.py --config classification_eamlp_tiny_shapes --ranks 1 2 4 --json ranks.json

Each run is `train.py` itself, under mpirun for several processes; the numbers of processes take turns. The figure is
the median over the steps after the first ten, in which kernels are compiled and workers start. Needs Open MPI.
"""
from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
from jea.commands.bench import machine, table  # noqa: E402
from jea.commands.common.session import DEFAULT_CONFIG  # noqa: E402


def pictures_per_second(config: str, ranks: int, steps: int, overrides) -> list:
    """Of each step after the tenth."""
    with tempfile.TemporaryDirectory() as out:
        command = [sys.executable, str(ROOT / "train.py"), "--config", config, "--out", f"{out}/run", "--stop-after",
                   str(steps), "--device", "cpu", "train.log_every=1", "train.num_workers=1", *overrides]
        if ranks > 1:
            root = ["--allow-run-as-root"] if os.geteuid() == 0 else []
            command = ["mpirun", *root, "--oversubscribe", "--bind-to", "none", "-np", str(ranks), *command]
        done = subprocess.run(command, env=dict(os.environ, OMP_NUM_THREADS="1"), capture_output=True, text=True)
        log = Path(out, "run", "log.jsonl")
        entries = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
        if len(entries) < steps:
            raise SystemExit(f"{' '.join(command)} ended with status {done.returncode}:\n{done.stderr[-3000:]}")
    return [entry["images_per_second"] for entry in entries if "images_per_second" in entry and entry["step"] > 10]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default=DEFAULT_CONFIG)
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2], help="numbers of processes (1 2)")
    parser.add_argument("--steps", type=int, default=40, help="of each run (40)")
    parser.add_argument("--runs", type=int, default=3, help="of each number of processes (3)")
    parser.add_argument("--json", metavar="FILE")
    parser.add_argument("overrides", nargs="*", metavar="block.key=value")
    arguments = parser.parse_args()
    if max(arguments.ranks) > 1 and not shutil.which("mpirun"):
        raise SystemExit("mpirun is not installed: Open MPI brings it (packages openmpi-bin and libopenmpi-dev)")
    rates = {ranks: [] for ranks in arguments.ranks}
    for _ in range(arguments.runs):
        for ranks in arguments.ranks:
            rates[ranks] += pictures_per_second(arguments.config, ranks, arguments.steps, arguments.overrides)
    medians = {ranks: float(np.median(values)) for ranks, values in rates.items()}
    first = medians[arguments.ranks[0]]
    rows = {f"{ranks} processes": {"pictures/s": rate, "ratio": rate / first} for ranks, rate in medians.items()}
    result = {"machine": machine(), "config": arguments.config, "ranks": rows}
    print("\n".join(f"{key}: {value}" for key, value in result["machine"].items()), "\n")
    print(table(rows))
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
