"""`jea doctor`: one kernel, one convolution, one matrix product on the chosen device, compared with numpy."""
from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time

import numpy as np

from jea import environment
from jea.commands.common import console
from jea.environment import toolchain

LIMIT = 1e-5  # largest error, relative to the largest value: float32 sums of some hundred terms
_TIME_LIMIT = 1800  # seconds: the first import compiles Jittor's core


def check_import(device: str) -> float:
    from jea._jittor import jt
    jt.flags.use_cuda = int(device == "cuda")
    return 0.0


def check_kernel(device: str) -> float:
    """jea's double normalisation, with its gradient: compiled here from a header of the package."""
    from jea._jittor import jt
    from jea.ops import double_norm
    rng = np.random.default_rng(0)
    x, g = (rng.standard_normal((2, 16, 70)).astype(np.float32) for _ in range(2))
    var = jt.array(x)
    y = double_norm(var, impl="fused")
    dx = jt.grad((y * jt.array(g)).sum(), var)
    a = np.exp(x.astype(np.float64))
    a /= a.sum(2, keepdims=True)
    d = a.sum(1, keepdims=True)
    h = (g - (g * a / d).sum(1, keepdims=True)) / d
    return max(_error(y, a / d), _error(dx, a * (h - (a * h).sum(2, keepdims=True))))


def check_convolution(device: str) -> float:
    """3x3 with padding, and its gradients."""
    from jea._jittor import jt, nn
    rng = np.random.default_rng(1)
    x, weight, g = (rng.standard_normal(s).astype(np.float32) for s in ((2, 8, 9, 9), (4, 8, 3, 3), (2, 4, 9, 9)))
    variables = [jt.array(x), jt.array(weight)]
    y = nn.conv2d(*variables, padding=1)
    gradients = jt.grad((y * jt.array(g)).sum(), variables)
    padded = np.pad(x.astype(np.float64), ((0, 0), (0, 0), (1, 1), (1, 1)))
    wanted, dpadded, dweight = np.zeros(g.shape), np.zeros(padded.shape), np.zeros(weight.shape)
    for i in range(3):
        for j in range(3):
            window = (slice(None), slice(None), slice(i, i + 9), slice(j, j + 9))
            wanted += np.einsum("bchw,oc->bohw", padded[window], weight[:, :, i, j])
            dpadded[window] += np.einsum("bohw,oc->bchw", g, weight[:, :, i, j])
            dweight[:, :, i, j] = np.einsum("bohw,bchw->oc", g, padded[window])
    return max(_error(y, wanted), _error(gradients[0], dpadded[:, :, 1:-1, 1:-1]), _error(gradients[1], dweight))


def check_matmul(device: str) -> float:
    from jea._jittor import jt
    rng = np.random.default_rng(2)
    a, b = rng.standard_normal((64, 300)).astype(np.float32), rng.standard_normal((300, 50)).astype(np.float32)
    return _error(jt.matmul(jt.array(a), jt.array(b)), a.astype(np.float64) @ b)


def check_graphs(device: str) -> float:
    """Each kind of jea's channels-last convolution on cuDNN's graph interface, with gradients; float32."""
    from jea.ops.convolution.cudnn import check
    missing = check.missing()
    if missing:
        raise RuntimeError(missing)
    errors, wrong = check.examine("float32")
    if wrong:
        raise RuntimeError("; ".join(f"{kind}: {verdict}" for kind, verdict in wrong.items()))
    return errors


CHECKS = {"import": check_import, "kernel": check_kernel, "convolution": check_convolution, "matmul": check_matmul}
ON_CUDA = {"graphs": check_graphs}  # as well
WHAT = {"import": "Jittor's core, compiled and loaded", "kernel": "a kernel of jea's own, compiled and run",
        "convolution": "3x3, with gradients", "matmul": "64 x 300 by 300 x 50",
        "graphs": "channels-last convolutions on cuDNN's graphs, with gradients"}


def checks_of(device: str) -> dict:
    """name -> function, of all checks on "cpu" or "cuda"."""
    return {**CHECKS, **(ON_CUDA if device == "cuda" else {})}


def _error(var, wanted) -> float:
    got = np.asarray(var.numpy(), np.float64)
    error = np.abs(got - wanted).max() / np.abs(wanted).max()
    return float(error) if np.isfinite(error) else float("inf")


def advice(check: str, device: str, error) -> str:
    """What to do when a check failed: `error` is a number, or what was said."""
    if isinstance(error, float):
        if device == "cuda" and 1e-5 < error < 5e-3 and check != "kernel":
            return ("it computes with TF32, 10 bits of mantissa: leave out --tf32, and unset NVIDIA_TF32_OVERRIDE or "
                    "set it to 0")
        return "it runs and computes something wrong: report this with the output of `jea info`"
    if device == "cuda":
        return {
            "import": "CUDA and Jittor do not go together here: `jea info` shows what was chosen and why. `pip install "
                      "'jea[cuda13]'` brings a set that fits; nvcc_path= turns CUDA off",
            "kernel": "nvcc cannot compile or the card cannot run a kernel: look at the compiler's message above, and "
                      "compare the driver's CUDA version with the toolkit's in `jea info`",
            "convolution": "cuDNN fails: `jea info` shows its version; a driver older than the libraries, or no free "
                           "memory on the card (nvidia-smi), are the usual reasons",
            "matmul": "cuBLAS fails: `jea info` shows its toolkit; no free memory on the card (nvidia-smi) is the "
                      "usual reason",
            "graphs": "jea runs the convolutions of such kinds as Jittor's own, which are slower and right: nothing "
                      "has to be done, but report this with the output of `jea info`",
        }[check]
    return {
        "import": "Jittor's core did not compile or load: g++ and Python's headers are needed (`jea info`, toolchain); "
                  "if they are there, remove the folder that `jea info` calls jittor cache and try again",
        "kernel": "g++ cannot compile jea's kernels: look at its message above; JEA_OPS=ref does without them, slowly",
        "convolution": "oneDNN fails: `jea info` shows which one is used; use_mkl=0 does without it, slowly",
        "matmul": "oneDNN fails: `jea info` shows which one is used; use_mkl=0 does without it, slowly",
    }[check]


def _run_checks(device: str) -> None:
    """In a process of its own, which Jittor may abort: a JSON line before and after each check."""
    for name, check in checks_of(device).items():
        print(json.dumps({"check": name}), flush=True)
        started = time.time()
        try:
            result = {"error": check(device)}
        except Exception as error:  # whatever it is: the report is the purpose
            result = {"said": f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error) else ''}"}
        print(json.dumps({"check": name, "seconds": round(time.time() - started, 1), **result}), flush=True)
        if "said" in result and name == "import":
            return


def examine(device: str) -> dict:
    """Run all checks on "cpu" or "cuda": name -> {"ok", "seconds", "error" or "said", "advice"}."""
    command = [sys.executable, "-m", "jea.commands.doctor", "--run", device]
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, timeout=_TIME_LIMIT)
        out, err, end = done.stdout, done.stderr, _ending(done.returncode)
    except subprocess.TimeoutExpired as expired:
        out, err = ((text or b"").decode(errors="replace") if not isinstance(text, str) else text
                    for text in (expired.stdout, expired.stderr))
        end = f"no answer within {_TIME_LIMIT} seconds"
    results = {}
    for line in out.splitlines():
        if line.startswith('{"check": '):
            entry = json.loads(line)
            results[entry.pop("check")] = entry
    for name, result in results.items():
        if not result:  # begun and not finished
            result["said"] = f"the process ended ({end})"
        if "said" in result:
            result["output"] = [line for line in err.splitlines() if line.strip()][-12:]
        result["ok"] = result.get("error", LIMIT * 2) <= LIMIT
        if not result["ok"]:
            result["advice"] = advice(name, device, result.get("error", result.get("said")))
    for name in checks_of(device):
        results.setdefault(name, {"ok": False, "said": "not reached"})
    return results


def _ending(status: int) -> str:
    if status >= 0:
        return f"status {status}"
    try:
        return signal.Signals(-status).name
    except ValueError:
        return f"signal {-status}"


def main(argv=None) -> int:
    parser = argparse.ArgumentParser(
        prog="jea doctor", description="Compile and run one kernel, one convolution and one matrix product, compare "
        "them with numpy, and say what to do when one fails.", epilog="example: jea doctor --device cuda")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--json", action="store_true", help="as one JSON object")
    parser.add_argument("--run", choices=("cpu", "cuda"), help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if arguments.run:
        _run_checks(arguments.run)
        return 0
    return console.run("doctor", _doctor, arguments)


def _doctor(arguments) -> int:
    toolchain.check()
    device = environment.choose_device(arguments.device)
    if not arguments.json:
        print(f"device: {device} ({environment.prepare().device_reason})", flush=True)
    results = examine(device)
    if arguments.json:
        reason = environment.prepare().device_reason
        print(json.dumps({"device": device, "reason": reason, "checks": results}, indent=1))
    else:
        _print(results)
    return 0 if all(result["ok"] for result in results.values()) else 1


def _print(results: dict) -> None:
    for name, result in results.items():
        label = f"{name} ({WHAT[name]})"
        if result["ok"]:
            error = f", largest error {result['error']:.0e}" if name != "import" else ""
            print(f"  {label}: right, {result['seconds']} s{error}")
            continue
        said = result.get("said") or f"largest error {result['error']:.0e}, allowed is {LIMIT:.0e}"
        print(f"  {label}: FAILED: {said}")
        for line in result.get("output", ()):
            print(f"      {line}")
        if "advice" in result:
            print(f"    {result['advice']}")


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    os._exit(status)  # Jittor's own teardown may crash after the work is done
