"""`jea bench`: what external attention costs on this machine, as text and as pictures.

Comparisons with PyTorch stand in tests/bench, whose measuring functions these are too.
"""
from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from pathlib import Path

import numpy as np

import jea
from jea.commands.common import console
from jea.draw.charts import curve_png

POSITIONS = (1024, 4096, 16384, 65536)


# -- measuring --------------------------------------------------------------------------------------------------------

def interleaved(functions: dict, runs: int, *, turn: float = 0.1, settle: float = 0.02) -> dict:
    """Run the functions in turn, `runs` turns each: name -> {"median": s, "best": s} of one run. Each has run before.

    A turn is one run, or of a short function as many as fill `turn` seconds. Runs that begin within `settle` seconds of
    a turn's start are not counted unless they are longer: another library's threads still spin there, and take a core
    from whoever comes next.
    """
    seconds = {name: [] for name in functions}
    for _ in range(runs):
        for name, function in functions.items():
            begin = end = time.perf_counter()
            while end - begin < turn:
                start = time.perf_counter()
                function()
                end = time.perf_counter()
                if start - begin >= settle or end - start >= settle:
                    seconds[name].append(end - start)
    return {name: {"median": float(np.median(values)), "best": min(values)} for name, values in seconds.items()}


def threads() -> int:
    """What OpenMP gives Jittor."""
    return int(os.environ.get("OMP_NUM_THREADS") or len(os.sched_getaffinity(0)))


def machine() -> dict:
    """What every table of figures needs beside it."""
    from jea.commands.info import cpu_name, version
    return {"cpu": cpu_name(), "threads": threads(), "load": os.getloadavg()[0], "jea": jea.__version__,
            "jittor": version("jittor"), "oneDNN of jea": jea.environment.prepare().onednn, "torch": version("torch"),
            "python": platform.python_version()}


def table(rows: dict, formats: dict | None = None) -> str:
    """name -> {column: number} as text; numbers with three decimals or as `formats` says."""
    columns, formats = list(next(iter(rows.values()))), formats or {}
    lines = [["", *columns]]
    lines += [[name, *(formats.get(c, "{:.3f}").format(row[c]) if row[c] is not None else "-" for c in columns)]
              for name, row in rows.items()]
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    return "\n".join("  ".join(cell.rjust(width) if i else cell.ljust(width)
                               for i, (cell, width) in enumerate(zip(line, widths))) for line in lines)


# -- what is measured -------------------------------------------------------------------------------------------------

def cost(channels: int = 512, height: int = 128, width: int = 128) -> dict:
    """Parameters and multiplications of attention blocks over a feature (1, C, H, W), counted on the modules.

    Self-attention: four 1x1 maps C -> C (query, key, value, output) and two products of N x N with N x C. A map with
    W weights costs W multiplications at each position. The paper prints 292 G and 9.2 G for C = 512 and 128 x 128, with
    bias, BatchNorm and the second memory left out of its count of external attention (unverified here).
    """
    positions = height * width
    block = jea.ExternalAttention(channels)
    bare = jea.ExternalAttention(channels, projections=False)

    def of(module):
        parameters = [v for v in module.parameters() if not v.is_stop_grad()]
        weights = sum(v.numel() for v in parameters if v.ndim > 1)
        return {"parameters": sum(v.numel() for v in parameters), "MACs": weights * positions}
    maps = 4 * channels * channels
    return {"self-attention": {"parameters": maps, "MACs": maps * positions + 2 * positions ** 2 * channels},
            "external attention (the block)": of(block), "external attention (the memories)": of(bare)}


def operators(runs: int) -> dict:
    """Forward and backward of the attention's operators, kernel against reference: name -> milliseconds."""
    from jea._jittor import jt
    from jea.ops import double_norm, external_attention

    def run(function, inputs):
        def once():
            y = function(*inputs)
            jt.sync([y, *jt.grad((y * y).sum(), inputs)])
        once()
        return once
    rows = {}
    for b, s, n in ((1, 64, 4225), (8, 64, 16641)):
        x = jt.randn(b, s, n)
        rows[f"double_norm {b} x {s} x {n}"] = {
            impl: run(lambda v, impl=impl: double_norm(v, impl=impl), [x]) for impl in ("auto", "ref")}
    inputs = [jt.randn(1, 4225, 512), jt.randn(64, 512) * 0.1, jt.randn(64, 512) * 0.1]
    rows["external_attention 1 x 4225 x 512, 64"] = {
        impl: run(lambda *v, impl=impl: external_attention(*v, impl=impl), inputs) for impl in ("auto", "ref")}
    result = {}
    for name, functions in rows.items():
        seconds = interleaved(functions, runs)
        auto, ref = (seconds[impl]["median"] * 1e3 for impl in ("auto", "ref"))
        result[name] = {"jea ms": auto, "reference ms": ref, "reference / jea": ref / auto}
    return result


def scaling(runs: int, positions=POSITIONS, channels: int = 512, largest_map: int = 2 ** 28) -> dict:
    """Forward time over the number of positions: external attention, and softmax(x x^T) x while N^2 <= largest_map."""
    from jea._jittor import jt, nn
    from jea.ops import external_attention, transpose
    memories = [jt.randn(64, channels) * 0.1 for _ in range(2)]
    rows = {}
    for n in positions:
        x = jt.randn(1, n, channels) * 0.1
        functions = {"external": lambda: external_attention(x, *memories).sync()}
        if n * n <= largest_map:
            functions["self"] = lambda: jt.matmul(
                nn.softmax(jt.matmul(x[0], transpose(x[0], (1, 0))), dim=-1), x[0]).sync()
        with jt.no_grad():
            for function in functions.values():
                function()
            seconds = interleaved(functions, runs)
        rows[f"N = {n}"] = {f"{kind} ms": seconds[kind]["median"] * 1e3 if kind in seconds else None
                            for kind in ("external", "self")}
    return rows


def scaling_png(path, rows: dict, *, title: str) -> None:
    """The rows of `scaling` as curves of log10 milliseconds over log2 positions."""
    curves = {}
    for column in next(iter(rows.values())):
        points = [(int(name.split()[-1]), row[column]) for name, row in rows.items() if row[column] is not None]
        curves[column] = tuple(np.array(v) for v in (np.log2([n for n, _ in points]), np.log10([t for _, t in points])))
    curve_png(path, {"log10": curves}, title=title, xlabel="log2 of the positions")


def main(argv=None) -> int:
    parser = argparse.ArgumentParser(
        prog="jea bench", description="Measure external attention on this machine. Comparisons with PyTorch: "
        "tests/bench/bm_*.py in a checkout.", epilog="example: jea bench --cost")
    parser.add_argument("--cost", action="store_true", help="only count parameters and multiplications; measures "
                                                            "nothing")
    parser.add_argument("--runs", type=int, default=9, help="timed runs of each side (9)")
    parser.add_argument("--out", default="results/bench", help="folder for bench.json and scaling.png (results/bench)")
    arguments = parser.parse_args(argv)
    if arguments.runs < 1:
        parser.error(f"--runs is {arguments.runs}; expected at least 1")
    return console.run("bench", _bench, arguments)


def _bench(arguments) -> None:
    result = {"cost of 1 x 512 x 128 x 128": cost()}
    units = {"parameters": "{:,}", "MACs": "{:,}"}
    out = Path(arguments.out)
    if not arguments.cost:
        out.mkdir(parents=True, exist_ok=True)  # fail now, not after measuring
        result = {"machine": machine(), **result, "operators, forward and backward": operators(arguments.runs),
                  "forward over 512 channels": scaling(arguments.runs)}
    for title, rows in result.items():
        text = "\n".join(f"{k}: {v}" for k, v in rows.items()) if title == "machine" else table(rows, units)
        print(f"{title}\n{text}\n")
    if not arguments.cost:
        from jea.files import replacing
        with replacing(out / "bench.json") as file:
            file.write(json.dumps(result, indent=1).encode())
        scaling_png(out / "scaling.png", result["forward over 512 channels"], title="forward time, ms, 512 channels")
        print(f"written to {out}: bench.json, scaling.png")


if __name__ == "__main__":
    sys.exit(main())
