"""Every convolution of EANet-R50 (output stride 8) on a GPU: jea's on cuDNN's graphs beside PyTorch's, channels-last.

    python tests/gpu/measure/convolutions.py OUT.json --side jea|torch|values [--dtype float32] [--tf32]
        [--training] [--stub]

jea: the fastest engine of each shape and pass, in microseconds, from the trial. torch: the same from CUDA events, with
cudnn.benchmark. values: conv2d against Jittor's own convolution at real sizes, with gradients.
"""
from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(ROOT))


def shapes(batch: int, size: int) -> list:
    """(count, batch, size, channels, out_channels, kernel, stride, dilation)."""
    s2 = (size + 1) // 2
    s4, s8 = (s2 + 1) // 2, ((s2 + 1) // 2 + 1) // 2
    found = [(1, size, 3, 64, 3, 2, 1), (1, s2, 64, 64, 3, 1, 1), (1, s2, 64, 128, 3, 1, 1),
             (1, s4, 128, 64, 1, 1, 1), (3, s4, 64, 64, 3, 1, 1), (3, s4, 64, 256, 1, 1, 1), (1, s4, 128, 256, 1, 1, 1),
             (2, s4, 256, 64, 1, 1, 1),
             (1, s4, 256, 128, 1, 1, 1), (1, s4, 128, 128, 3, 2, 1), (4, s8, 128, 512, 1, 1, 1),
             (1, s4, 256, 512, 1, 2, 1), (3, s8, 512, 128, 1, 1, 1), (3, s8, 128, 128, 3, 1, 1),
             (1, s8, 512, 256, 1, 1, 1), (1, s8, 256, 256, 3, 1, 1), (5, s8, 256, 256, 3, 1, 2),
             (6, s8, 256, 1024, 1, 1, 1), (1, s8, 512, 1024, 1, 1, 1), (5, s8, 1024, 256, 1, 1, 1),
             (1, s8, 1024, 512, 1, 1, 1), (1, s8, 512, 512, 3, 1, 2), (1, s8, 512, 512, 3, 1, 8),
             (1, s8, 512, 512, 3, 1, 16), (3, s8, 512, 2048, 1, 1, 1), (1, s8, 1024, 2048, 1, 1, 1),
             (2, s8, 2048, 512, 1, 1, 1), (1, s8, 2048, 512, 3, 1, 1), (2, s8, 512, 512, 1, 1, 1),
             (1, s8, 512, 256, 3, 1, 1), (1, s8, 256, 21, 1, 1, 1)]
    return [(count, batch, *rest) for count, *rest in found]


def label(shape) -> str:
    count, batch, size, c, o, k, stride, dilation = shape
    return f"{count} x {batch}x{size}x{size} {c}->{o} {k}x{k} s{stride} d{dilation}"


def jea_side(arguments, chosen) -> dict:
    from jea._jittor import jt
    jt.flags.use_cuda = 1
    from jea.ops.convolution.cudnn import plans
    results = {}
    for shape in chosen:
        count, batch, size, c, o, k, stride, dilation = shape
        sizes = dict(zip(plans.SIZES, (batch, size, size, c, o, k, k, stride, dilation * (k // 2), dilation)))
        entry, started = {}, time.time()
        for pass_ in plans.PASSES if arguments.training else ("forward",):
            entry[pass_] = told(plans.plan(pass_, arguments.dtype, sizes))
        if not arguments.training:
            entry["bias relu"] = told(plans.plan("forward", arguments.dtype, sizes, bias=True, relu=True))
            entry["all"] = told(plans.plan("forward", arguments.dtype, sizes, bias=True, residual=True, relu=True))
        results[label(shape)] = dict(entry, seconds=round(time.time() - started, 2))
        write(arguments, results)
    return results


def told(plan) -> object:
    return plan.refused or round(plan.nanoseconds / 1000, 1)


def torch_side(arguments, chosen) -> dict:
    import torch
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = arguments.tf32
    torch.backends.cudnn.benchmark = True
    dtype, results = getattr(torch, arguments.dtype), {}
    for shape in chosen:
        count, batch, size, c, o, k, stride, dilation = shape
        x = torch.randn(batch, c, size, size, device="cuda", dtype=dtype).to(memory_format=torch.channels_last)
        w = torch.randn(o, c, k, k, device="cuda", dtype=dtype).to(memory_format=torch.channels_last)
        geometry = ([stride] * 2, [dilation * (k // 2)] * 2, [dilation] * 2)

        def forward():
            return torch.nn.functional.conv2d(x, w, None, *geometry)
        entry = {"forward": timed(torch, forward)}
        if arguments.training:
            dy = torch.randn_like(forward())
            for pass_, mask in (("data", [True, False, False]), ("weight", [False, True, False])):
                entry[pass_] = timed(torch, lambda mask=mask: torch.ops.aten.convolution_backward(
                    dy, x, w, None, *geometry, False, [0, 0], 1, mask))
        results[label(shape)] = entry
        write(arguments, results)
    return results


def timed(torch, function, runs: int = 10) -> float:
    function(), function()
    times = []
    for _ in range(runs):
        before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        before.record()
        function()
        after.record()
        after.synchronize()
        times.append(before.elapsed_time(after))
    return round(min(times) * 1000, 1)


def values_side(arguments, chosen) -> dict:
    import numpy as np

    from jea._jittor import jt
    jt.flags.use_cuda = 1
    from jea.ops.convolution import cudnn
    results = {}
    for shape in (chosen[0], chosen[5], chosen[9], chosen[22]):
        count, batch, size, c, o, k, stride, dilation = shape
        x, w = jt.randn(batch, size, size, c), jt.randn(o, c, k, k)
        geometry = {"stride": stride, "padding": dilation * (k // 2), "dilation": dilation}
        found = []
        for impl in ("ref", "fused"):
            y = cudnn.conv2d(x, w, **geometry, impl=impl)
            found.append([var.numpy() for var in (y, *jt.grad((y * y).sum(), [x, w]))])
        results[label(shape)] = {what: float(np.abs(a - b).max() / np.abs(a).max())
                                 for what, a, b in zip(("y", "dx", "dw"), *found)}
        write(arguments, results)
    return results


def write(arguments, results) -> None:
    Path(arguments.out).write_text(json.dumps(results, indent=0))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out")
    parser.add_argument("--side", choices=("jea", "torch", "values"), required=True)
    parser.add_argument("--dtype", default="float32", choices=("float32", "float16", "bfloat16"))
    parser.add_argument("--tf32", action="store_true")
    parser.add_argument("--training", action="store_true")
    arguments = parser.parse_args()
    if arguments.side != "torch":
        from jea import environment
        environment.choose_device("cuda")
        if arguments.tf32:
            environment.allow_tf32()
    elif not arguments.tf32:
        os.environ["NVIDIA_TF32_OVERRIDE"] = "0"
    chosen = shapes(*((2, 257) if arguments.training else (1, 513)))
    started = time.time()
    results = {"jea": jea_side, "torch": torch_side, "values": values_side}[arguments.side](arguments, chosen)
    counts = {name: int(name.split()[0]) for name in results}
    passes = sorted({pass_ for entry in results.values() for pass_ in entry if pass_ != "seconds"})
    totals = {pass_: round(sum(counts[name] * entry[pass_] for name, entry in results.items()
                               if isinstance(entry.get(pass_), float)) / 1000, 3) for pass_ in passes}
    mode = arguments.dtype + " TF32" * arguments.tf32
    print(json.dumps({"side": arguments.side, "mode": mode, "training": arguments.training,
                      "worst" if arguments.side == "values" else "ms a network": totals,
                      "refused": [(name, entry[p]) for name, entry in results.items() for p in passes
                                  if isinstance(entry.get(p), str)], "seconds": round(time.time() - started, 1)}))
    return 0


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    os._exit(status)
