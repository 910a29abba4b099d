"""Bytes a second of the kernels that are bound by memory, beside the copy's, on a GPU.

    python tests/gpu/measure/bandwidth.py OUT.json [--runs 20]

Bytes are those that must move: each input read once, each output written once.
"""
from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda")
    parser.add_argument("--warm", help="I/N: only compile, one Nth of the kernels")
    arguments = parser.parse_args()
    from jea import environment
    environment.choose_device(arguments.device)
    from jea._jittor import jt
    jt.flags.use_cuda = int(arguments.device == "cuda")
    results, small = {}, arguments.device == "cpu"
    part, parts = map(int, (arguments.warm or "0/1").split("/"))
    for name, make in list(cases(jt, small).items())[part::parts]:
        try:
            size, function = make()
            if arguments.warm:
                jt.sync(as_list(function()))
                continue
            seconds, kernels = time_of(jt, function, arguments.runs), kernel_time(jt, function)
            results[name] = {"microseconds": round(seconds * 1e6, 1), "of kernels": round(kernels * 1e6, 1),
                             "GB_per_s": round(1e-9 * size / min(seconds, kernels), 1)}
        except Exception as error:  # the next one may do
            results[name] = {"error": str(error).strip().splitlines()[0][:300] if str(error) else repr(error)}
        arguments.out.write_text(json.dumps(results, indent=0))
        print(name, json.dumps(results[name]), flush=True)
    arguments.out.write_text(json.dumps(results, indent=0))
    return 1 if any("error" in row for row in results.values()) else 0


def as_list(result) -> list:
    """jt.sync takes no single Var."""
    return result if isinstance(result, list) else [result]


def time_of(jt, function, runs: int, calls: int = 10) -> float:
    """Median time of a call, in groups of `calls` that the host does not wait for."""
    times = []
    for run in range(runs + 1):
        jt.sync_all(True)
        started = time.perf_counter()
        kept = [function() for _ in range(calls)]
        jt.sync([var for result in kept for var in as_list(result)])
        jt.sync_all(True)
        times.append((time.perf_counter() - started) / calls)
        del kept
    return float(np.median(times[1:] or times))


def kernel_time(jt, function, calls: int = 10) -> float:
    """Seconds of a call's kernels by Jittor's profiler, which waits for each: small ones look slower than they are."""
    with jt.profile_scope() as report:
        for _ in range(calls):
            jt.sync(as_list(function()))
    column = report[0].index("TotalTime")
    return sum(float(row[column]) for row in report[1:]) / 1e9 / calls


def cases(jt, small: bool) -> dict:
    from jea.ops import batch_norm, double_norm, transpose
    found = {}

    def random(shape, dtype):
        var = jt.randn(*shape)
        var = var if dtype == "float32" else var.cast(dtype)
        var.sync()
        return var, var.numel() * (4 if dtype == "float32" else 2)

    def copy():
        x, size = random((1 << 14 if small else 1 << 26,), "float32")
        return 2 * size, lambda: x + 1.0
    found["copy 256 MB"] = copy

    def norm(shape, dtype, layout, backward):
        def make():
            x, size = random(shape if layout == "bsn" else (shape[0], shape[2], shape[1]), dtype)
            g, _ = random(x.shape, dtype)
            if not backward:
                return 2 * size, lambda: double_norm(x, layout=layout, impl="fused")
            return 5 * size, lambda: jt.grad((double_norm(x, layout=layout, impl="fused") * g).float32().sum(), x)
        return make
    for shape in ((1, 64, 65),) if small else ((64, 64, 16641), (8, 64, 16641), (1, 64, 4225)):
        for dtype in ("float32",) if small else ("float32", "float16", "bfloat16"):
            for layout in ("bsn", "bns"):
                for backward in (False, True):
                    name = f"double_norm {dtype} {layout} {'x'.join(map(str, shape))}" + " with gradient" * backward
                    found[name] = norm(shape, dtype, layout, backward)

    def turn(shape, axes, dtype):
        def make():
            x, size = random(shape, dtype)
            return 2 * size, lambda: transpose(x, axes)
        return make
    for shape, axes in (((1, 8, 9, 9), (0, 2, 3, 1)),) if small else (
            ((8, 256, 129, 129), (0, 2, 3, 1)), ((8, 129, 129, 256), (0, 3, 1, 2)), ((4096, 8192), (1, 0)),
            ((64, 197, 6, 64), (0, 2, 3, 1)), ((1, 512, 65, 65), (0, 2, 3, 1))):
        for dtype in ("float32",) if small else ("float32", "float16"):
            found[f"transpose {dtype} {'x'.join(map(str, shape))} to {axes}"] = turn(shape, axes, dtype)

    def bn(shape, dtype):
        def make():
            x, size = random(shape, dtype)
            w, b = jt.ones((shape[1],)), jt.zeros((shape[1],))
            return 3 * size, lambda: batch_norm(x, w, b, relu=True)[0]
        return make
    for shape in ((2, 8, 9, 9),) if small else ((8, 256, 65, 65), (8 * 65 * 65, 256)):
        for dtype in ("float32",) if small else ("float32", "bfloat16"):
            found[f"batch_norm + ReLU {dtype} {'x'.join(map(str, shape))}"] = bn(shape, dtype)
    return found


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    os._exit(status)
