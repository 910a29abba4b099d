"""jea against PyTorch on one GPU: whole networks, inference and training, in float32, TF32 and half precision.

    python tests/gpu/measure/bench.py --json OUT.json [--device cuda] [--only 'EANet*'] [--runs 20] [--small]

Every side is a process of its own (the two libraries and TF32 are chosen when they load): PyTorch runs channels-last
with cudnn.benchmark, eager and compiled. Outputs are compared with jea's float32 ones before anything is timed, and the
result says so where PyTorch's TF32 was not on. Inference is timed call by call, training in groups of three steps.
Without PyTorch its sides are left out. --warm only compiles: each side runs once.
"""
from __future__ import annotations

import argparse
import fnmatch
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[3]
sys.path[:0] = [str(ROOT), *(str(ROOT / "tests" / part) for part in ("gpu/measure", "bench", "support"))]
# network -> modes, in the order in which they are measured
NETWORKS = {"EANet-R50": ("float32", "tf32", "bfloat16", "float16"), "EAMLP-14": ("float32", "bfloat16"),
            "EA-PCT": ("float32",), "EA-SAGAN": ("float32",), "attention": ("float32", "bfloat16")}
SIDES = ("jea", "torch eager", "torch compile")
# Largest error of the outputs, relative to their largest value.
LIMITS = {"float32": 1e-4, "tf32": 2e-2, "bfloat16": 0.1, "float16": 2e-2}


def names() -> list:
    """All sides, "EANet-R50/float32/jea", the most wanted ones first."""
    without_torch = importlib.util.find_spec("torch") is None
    found = [f"{network}/{mode}/{side}" for network, modes in NETWORKS.items() for mode in modes for side in SIDES
             if not (without_torch and side != "jea") and not (network != "EANet-R50" and side == "torch compile")]
    return sorted(found, key=lambda name: ("float16" in name.split("/")[1], found.index(name)))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", help="file for the results")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda")
    parser.add_argument("--only", default="*", help="shell pattern of NETWORK/MODE/SIDE")
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--small", action="store_true", help="small inputs: to see that it runs")
    parser.add_argument("--warm", action="store_true", help="compile, time nothing")
    parser.add_argument("--list", action="store_true", help="name the sides and end")
    parser.add_argument("--seconds", type=float, default=1e9, help="begin no side after this time")
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    parser.add_argument("--side", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.list:
        print("\n".join(names()))
        return 0
    if arguments.side:
        return one_side(arguments)
    results, started = {}, time.time()
    with tempfile.TemporaryDirectory() as folder:
        for name in names():
            if fnmatch.fnmatch(name, arguments.only) and time.time() - started < arguments.seconds:
                results[name] = child(arguments, name, folder)
                print(name, json.dumps(results[name]), flush=True)
                if arguments.json:
                    Path(arguments.json).write_text(json.dumps(results, indent=0))
    return 1 if any("error" in result for result in results.values()) else 0


def child(arguments, name: str, folder: str) -> dict:
    command = [sys.executable, __file__, "--side", name, "--folder", folder, "--device", arguments.device, "--runs",
               str(arguments.runs), *(["--small"] if arguments.small else []), *(["--warm"] if arguments.warm else [])]
    environment = dict(os.environ, NVIDIA_TF32_OVERRIDE="0")
    if name.split("/")[1] != "float32":
        del environment["NVIDIA_TF32_OVERRIDE"]
    started = time.time()
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    try:
        return dict(json.loads(done.stdout.splitlines()[-1]), process_s=round(time.time() - started, 1))
    except (IndexError, ValueError):
        return {"error": (done.stderr.strip() or f"status {done.returncode}")[-600:]}


def one_side(arguments) -> int:
    network, mode, side = arguments.side.split("/")
    torch_side = side != "jea"
    if torch_side:
        import torch
        allowed = mode != "float32"
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = allowed
        torch.backends.cudnn.benchmark = True
    else:
        from jea import environment
        environment.choose_device(arguments.device)
        if mode == "tf32":
            environment.allow_tf32()
        from jea._jittor import jt
        jt.flags.use_cuda = int(arguments.device == "cuda")
    import networks
    case = networks.CASES[network](arguments.device, mode, small=arguments.small)
    result = {}
    run, steps = (case.torch if torch_side else case.jea)(Path(arguments.folder), **(
        {"compiled": side.endswith("compile")} if torch_side else {}))
    if run and not arguments.warm:
        result.update(checked(arguments, network, mode, run))
    synchronise = synchroniser(arguments.device, torch_side)
    if run and not callable(run):  # several, by name
        result.update({f"{label}_s": median_time(function, synchronise, arguments, 1)
                       for label, function in run.items()})
    elif run:
        result["inference_s"] = median_time(lambda: run(False), synchronise, arguments, 1)
        print(json.dumps(result), flush=True)
    for label, step in steps.items():
        result[f"{label}_s"] = median_time(step, synchronise, arguments, 3)
    if torch_side:
        result["torch"] = torch.__version__
        if "NVIDIA_TF32_OVERRIDE" in os.environ and mode == "tf32":
            result["error"] = "NVIDIA_TF32_OVERRIDE is set: this was not TF32"
    print(json.dumps(result))
    sys.stdout.flush()
    os._exit(0)


def synchroniser(device: str, torch_side: bool):
    if torch_side:
        import torch
        return torch.cuda.synchronize if device == "cuda" else (lambda: None)
    from jea._jittor import jt
    return lambda: jt.sync_all(True)


def median_time(function, synchronise, arguments, calls: int) -> float | None:
    """Seconds a call; the host waits after each group of calls."""
    for _ in range(1 if arguments.warm else 3):
        function()
    synchronise()
    if arguments.warm:
        return None
    times = []
    for _ in range(max(arguments.runs // calls, 3)):
        started = time.perf_counter()
        for _ in range(calls):
            function()
        synchronise()
        times.append((time.perf_counter() - started) / calls)
    return float(np.median(times))


def checked(arguments, network: str, mode: str, run) -> dict:
    """The error against jea's float32 outputs, which the first side leaves in the folder."""
    if not callable(run):
        return {}
    path, output = Path(arguments.folder, f"{network}.npy"), run(True)
    if mode == "float32" and not path.exists() and arguments.side.endswith("/jea"):
        np.save(path, output)
    if not path.exists():
        return {"error_of_outputs": None}
    wanted = np.load(path)
    error = float(np.abs(output - wanted).max() / np.abs(wanted).max())
    if not error <= LIMITS[mode]:
        raise SystemExit(f"{arguments.side}: outputs differ by {error:.1e} of the largest")
    said = {"error_of_outputs": error}
    if mode == "tf32" and error < 3e-5 and arguments.device == "cuda":
        said["note"] = "TF32 was not on: the outputs are float32's"
    return said


if __name__ == "__main__":
    raise SystemExit(main())
