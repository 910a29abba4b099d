"""Where the time of a training step and of an inference goes, kernel by kernel, by Jittor's profiler (which adds some).

    python tests/gpu/measure/kernels_by_time.py OUT.json [--device cuda] [--network EANet-R50]
        [--modes float32 bfloat16] [--small]

What was compiled for the CPU while CUDA is on is marked "ON THE CPU": it copies to the host and back.
"""
from __future__ import annotations

import argparse
import json
import os
import re
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
sys.path[:0] = [str(ROOT), *(str(ROOT / "tests" / part) for part in ("gpu/measure", "bench", "support"))]


def rows(report: list, steps: int) -> list:
    """[{"kernel", "ms", "calls", "on_cpu"}], most time first; times and calls of one step."""
    head, found = report[0], []
    at = {name: head.index(name) for name in ("Name", "Count", "TotalTime")}
    for row in report[1:]:
        name = row[at["Name"]]
        found.append({"kernel": described(name), "ms": round(float(row[at["TotalTime"]]) / 1e6 / steps, 4),
                      "calls": round(float(row[at["Count"]]) / steps, 2), "on_cpu": "JIT_cpu:1" in name})
    return sorted(found, key=lambda row: -row["ms"])


def described(name: str) -> str:
    """A kernel in few words, from its key: the operators that it joins, or the functions of jea's that it calls; and
    its types."""
    types = "/".join(sorted(set(re.findall(r"\b(float32|float16|bfloat16|float64|int32|uint8)\b",
                                           name.split("\u00abHEADER")[0]))))
    if "\u00abCODE:" in name:
        words = [one for one in re.findall(r"jea::(\w+)", name.split("\u00abCODE:")[-1]) if one[0].islower()
                 or one in ("Forward", "Backward")]
        return f"jea {' '.join(dict.fromkeys(words))} {types}"[:110]
    words = re.findall(r"opkey\d+:(\w+)", name) or [re.split("\u00ab", name)[0]]
    words += re.findall(r"OP:(?!void)(\w+)", name)
    return f"{' '.join(words)} {types}"[:110]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda")
    parser.add_argument("--network", default="EANet-R50")
    parser.add_argument("--modes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--small", action="store_true")
    arguments = parser.parse_args()
    from jea import environment
    environment.choose_device(arguments.device)
    from jea._jittor import jt
    jt.flags.use_cuda = int(arguments.device == "cuda")
    import networks
    results = {}
    for mode in arguments.modes:
        with tempfile.TemporaryDirectory() as folder:
            run, steps = networks.CASES[arguments.network](arguments.device, mode,
                                                           small=arguments.small).jea(Path(folder))
        parts = {"inference": lambda: run(False), **steps} if callable(run) else steps
        for label, function in parts.items():
            for _ in range(3):
                function()
            jt.sync_all(True)
            with jt.profile_scope() as report:
                for _ in range(5):
                    function()
                jt.sync_all(True)
            found = rows(report, 5)
            results[f"{mode} {label}"] = found
            arguments.out.write_text(json.dumps(results, indent=0))
            print(f"{arguments.network} {mode} {label}: {sum(row['ms'] for row in found):.2f} ms in kernels")
            for row in found[:16]:
                print(f"  {row['ms']:8.3f} ms {row['calls']:6.1f} x {row['kernel']}{'  ON THE CPU' * row['on_cpu']}")
            sys.stdout.flush()
    return 0


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    os._exit(status)
