"""Compiles, without a GPU, every CUDA kernel that jea needs: all operators, inference and training of all models.

    python tests/gpu/compile.py [--work FOLDER] [--only PATTERN] [--archs 75,80,90,100,120] [--host] [--seconds N]

With stub libraries (stubs.py) Jittor takes this machine for one with cards of compute capability 8.0 and 9.0. Every
part runs with an nvcc that only writes down what it is asked for; the real one compiles each kernel once, with the
same arguments, for both cards, on all cores: the whole source is checked, and the device's code made (what follows is
g++'s work and the linker's). So nothing has to be left out: the models share most of their kernels, and a model that
adds none costs seconds. A kernel that Jittor compiles for the host while CUDA is on fails too: its operands would go to
the host and back, without a word; and so does a training step that copies more than its batch to the device and its
losses back, or in which the host waits (copies.py). What an operator computes this does not show: for that there are
tests/ops/*/test_*_cuda.py and, on a GPU, the tests marked `cuda`. FOLDER keeps Jittor's core, and which kernels
were compiled, for the next time. What the time limit cuts off is named, and is no error: a slow machine is none.
Without nvcc it says so and ends with status 0.
"""
from __future__ import annotations

import argparse
import concurrent.futures
import fnmatch
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", help="folder for stubs, Jittor's cache and results (default: a temporary one)")
    parser.add_argument("--only", default="*", help="shell pattern of what to compile: 'op *', 'model eanet*'")
    parser.add_argument("--seconds", type=int, default=1140, help="time limit")
    parser.add_argument("--archs", type=lambda text: text.split(","), default=[], metavar="75,80,90,100,120",
                        help="compute capabilities to compile for, instead of those of the stubs' cards")
    parser.add_argument("--host", action="store_true", help="look for kernels of the host only: nvcc compiles none")
    parser.add_argument("--json", help="file for the results")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        return ask_for_all(arguments.only, Path(arguments.child))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # with the child
    sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]
    os.environ.setdefault("nvcc_path", "")  # importing jea decides nothing about CUDA here
    from jea.environment import cuda_home
    nvcc = cuda_home.wheel_nvcc() or shutil.which("nvcc")
    if not nvcc:
        print("compile: nvcc is not installed (pip install 'jea[cuda13]' brings it): nothing to do")
        return 0
    with tempfile.TemporaryDirectory() as temporary:
        return run(Path(arguments.work or temporary).absolute(), arguments)


def run(work: Path, arguments) -> int:
    import stubs
    started = time.time()
    deadline = started + arguments.seconds
    stubs.make(work / "stubs")
    home, asked, compiled = (work / name for name in ("home", "asked", "compiled"))
    shutil.rmtree(asked, ignore_errors=True)
    for folder in (home, asked, compiled):
        folder.mkdir(parents=True, exist_ok=True)
    for kernels in home.glob(".cache/jittor/**/jit"):  # what only pretends to be compiled must be asked for again
        shutil.rmtree(kernels)
    environment = stubs.environment(work)
    command = [sys.executable, "-W", "ignore", str(Path(__file__).absolute()), "--child", str(asked), "--only",
               arguments.only]
    with open(work / "log.txt", "w", encoding="utf-8") as log:
        process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=log, text=True, cwd=ROOT,
                                   start_new_session=True)
    timer = threading.Timer(arguments.seconds, end, (process,))
    timer.start()
    expected, parts, ready = [], [], None
    nvcc = work / "stubs" / "toolkit" / "bin" / "nvcc.real"
    pool = concurrent.futures.ThreadPoolExecutor(os.cpu_count())
    try:
        for line in process.stdout:
            if line.startswith("["):
                expected, ready = json.loads(line), time.time() - started
            elif line.startswith("{"):
                part = json.loads(line)
                part["kernels"] = {name: pool.submit(compile_kernel, nvcc, asked / name, compiled, deadline,
                                                     arguments.archs)
                                   for name in part["kernels"] if not arguments.host}
                parts.append(part)
            else:
                print(line, end="", flush=True)
        process.wait()
        if ready is not None and not arguments.host and fnmatch.fnmatch(NCCL,
                                                                        arguments.only) and shutil.which("mpirun"):
            part = ask_under_mpirun(environment, deadline)
            known = {name for other in parts for name in other["kernels"]}
            part["kernels"] = {path.name: pool.submit(compile_kernel, nvcc, path, compiled, deadline, arguments.archs)
                               for path in asked.glob("[!.]*") if path.name not in known}
            parts.append(part)
        pool.shutdown()
    finally:
        timer.cancel()
        end(process)
        pool.shutdown(cancel_futures=True)
    for part in parts:
        part["kernels"] = {name: future.result() for name, future in part["kernels"].items()}
    late = time.time() >= deadline
    report = {"parts": parts, "missed": [name for name in expected if name not in {part["name"] for part in parts}],
              "core_seconds": ready, "seconds": round(time.time() - started, 1)}
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(report, indent=1))
    broken_off = not late and (not parts or bool(report["missed"]))
    if broken_off:
        print("".join((work / "log.txt").read_text(errors="replace").splitlines(keepends=True)[-20:]))
    return show(report, broken_off)


def end(process: subprocess.Popen) -> None:
    """End the child and its compilers."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)


NCCL = "nccl"


def ask_under_mpirun(environment: dict, deadline: float) -> dict:
    """Jittor's NCCL part: compiled, loaded by two ranks with a card each, and asked for a sum over the ranks."""
    code = """if True:
        import os
        from jea._jittor import jt
        from jittor import compile_extern
        jt.flags.use_cuda = 1
        jt.ones(4).mpi_all_reduce("mean").sync()
        print("ranks:", jt.world_size, "NCCL:", compile_extern.nccl_ops is not None, flush=True)
        os._exit(0)"""
    started = time.time()
    command = ["mpirun", "--allow-run-as-root", "--oversubscribe", "--bind-to", "none", "-np", "2", sys.executable,
               "-c", code]
    try:
        done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True,
                              timeout=max(deadline - started, 0.1))
    except subprocess.TimeoutExpired:
        return {"name": NCCL, "late": True, "seconds": time.time() - started}
    right = done.stdout.count("ranks: 2 NCCL: True") == 2  # without MPI's own end, which the stubs may not survive
    return {"name": NCCL, "seconds": round(time.time() - started, 1),
            **({} if right else {"error": f"status {done.returncode}: {done.stdout[-500:]}{done.stderr[-1500:]}"})}


def show(report: dict, broken_off: bool) -> int:
    """A line for each group of parts, and all that failed."""
    groups, failed, cut = {}, 0, set(report["missed"])
    for part in report["parts"]:
        kind, *rest = part["name"].split()
        label = f"{kind} {family(rest[0])}" if kind == "model" else kind
        group = groups.setdefault(label, [0, 0, 0.])
        group[0] += 1
        group[1] += len(part["kernels"])
        group[2] += sum(kernel["seconds"] for kernel in part["kernels"].values())
        errors = [part["error"]] if part.get("error") else []
        errors += [f"{name}:\n{kernel['error']}" for name, kernel in part["kernels"].items() if kernel.get("error")]
        errors += [f"runs on the host while CUDA is on: {kernel}" for kernel in part.get("on_host", ())]
        for error in errors:
            failed += 1
            print(f"compile: FAILED: {part['name']}: {error}")
        if part.get("late") or any(kernel.get("late") for kernel in part["kernels"].values()):
            cut.add(part["name"])
    for label, (count, kernels, seconds) in groups.items():
        print(f"compile: {label:18} {count:3} parts, {kernels:4} kernels of their own, {seconds:5.0f} s of nvcc")
    if report["core_seconds"] is None:
        print("compile: Jittor's core was not compiled")
    else:
        print(f"compile: {failed} failed; {report['seconds']:.0f} s, of them Jittor's core "
              f"{report['core_seconds']:.0f} s")
    if cut:
        print(f"compile: not reached: {', '.join(sorted(cut))}")
    return 1 if failed or broken_off else 0


def family(name: str) -> str:
    from jea.models import MODELS
    return MODELS[name]


def compile_kernel(nvcc: Path, job: Path, compiled: Path, deadline: float, archs=()) -> dict:
    """Compile what was written down in `job`, unless the same was compiled before."""
    source, *arguments = job.read_text().split("\0")[:-1]
    if archs:
        arguments = [a for a in arguments if not a.startswith(("-arch", "-code", "-gencode"))]
        arguments += [f"-gencode=arch=compute_{arch},code=sm_{arch}" for arch in archs]
    arguments = [a for before, a in zip(["", *arguments], arguments) if a not in ("-shared", "-Xlinker", "-o")
                 and before not in ("-Xlinker", "-o") and not a.startswith(("-l", "-L"))]
    key = hashlib.sha256("\0".join([Path(source).read_text(), *arguments]).encode()).hexdigest()
    started, mark = time.time(), compiled / key
    if mark.exists():
        return {"seconds": 0.}
    binary = compiled / f"{key}.fatbin"
    try:
        done = subprocess.run([str(nvcc), source, *arguments, "-fatbin", "-o", str(binary)], stdout=subprocess.PIPE,
                              stderr=subprocess.STDOUT, text=True, timeout=max(deadline - started, 0.1))
    except subprocess.TimeoutExpired:
        return {"seconds": time.time() - started, "late": True}
    finally:
        binary.unlink(missing_ok=True)
    result = {"seconds": time.time() - started}
    if done.returncode:
        lines = [line for line in done.stdout.replace(source, "").splitlines() if line.strip()]
        return dict(result, error="\n".join([line for line in lines if "error:" in line][:5] or lines[:5]))
    mark.touch()
    return result


# -- the child: its Jittor has the stubs ---------------------------------------------------------------------

def ask_for_all(pattern: str, asked: Path) -> int:
    from parts import flattened, parts

    from jea._jittor import jt
    if not jt.has_cuda or sorted(jt.flags.cuda_archs) != [80, 90]:
        print(f"compile: Jittor did not take the stubs: has_cuda {jt.has_cuda}, architectures {jt.flags.cuda_archs}")
        return 1
    jt.flags.use_cuda = 1
    chosen = {name: function for name, function in parts().items() if fnmatch.fnmatch(name, pattern)}
    print(json.dumps(list(chosen)), flush=True)
    known, folder = set(), Path(jt.flags.cache_path) / "jit"
    on_host = host_kernels(folder)  # of Jittor's own start
    for name, function in chosen.items():
        started, result = time.time(), {"name": name}
        try:
            jt.sync(flattened(function()))  # Jittor compiles what is asked for and no more
        except Exception as error:  # of the part itself: the compiler's own come later
            lines = [line for line in str(error).splitlines() if line.strip()]
            result["error"] = next((line for line in lines if "error" in line.lower()), repr(error))[:300]
        jt.clean_graph()
        kernels = {path.name for path in asked.glob("[!.]*")} - known
        known |= kernels
        result["on_host"] = sorted(host_kernels(folder) - on_host)
        on_host |= set(result["on_host"])
        print(json.dumps(dict(result, kernels=sorted(kernels), seconds=round(time.time() - started, 1))), flush=True)
    sys.stdout.flush()
    os._exit(0)  # without the teardown, which the stubs may not survive


def host_kernels(folder: Path) -> set:
    """The names of the kernels in Jittor's cache that run on the host: its compiler defines JIT_cpu in them."""
    return {path.name for path in folder.glob("*_op.cc")
            if any(line.split() == ["#define", "JIT_cpu", "1"] for line in path.read_text().splitlines()[:40])}


if __name__ == "__main__":
    raise SystemExit(main())
