"""Compiles, without a GPU, every CUDA kernel that jea needs: all operators, inference and training of all models.

    python tests/gpu/compile.py [--work FOLDER] [--only PATTERN] [--host] [--seconds N]

With stub libraries (stubs.py) Jittor takes this machine for one with cards of compute capability 8.0 and 9.0. Every
part runs with an nvcc that only writes down what it is asked for; the real one compiles each kernel once, with the
same arguments, for both cards, on all cores: the whole source is checked, and the device's code made (what follows is
g++'s work and the linker's). So nothing has to be left out: the models share most of their kernels, and a model that
adds none costs seconds. A kernel that Jittor compiles for the host while CUDA is on fails too: its operands would go to
the host and back, without a word. What an operator computes this does not show: for that there are
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
    environment = {name: value for name, value in os.environ.items()
                   if name not in ("nvcc_path", "JEA_OPS", "JEA_HOME")}
    environment.update(HOME=str(home), JITTOR_HOME=str(home), LD_LIBRARY_PATH=str(work / "stubs" / "driver"),
                       PATH=f"{work / 'stubs' / 'toolkit' / 'bin'}:{os.environ['PATH']}", JEA_STUB_ASKED=str(asked),
                       PYTHONPATH=f"{ROOT}:{os.environ.get('PYTHONPATH', '')}")
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
                part["kernels"] = {name: pool.submit(compile_kernel, nvcc, asked / name, compiled, deadline)
                                   for name in part["kernels"] if not arguments.host}
                parts.append(part)
            else:
                print(line, end="", flush=True)
        process.wait()
        if ready is not None and not arguments.host and fnmatch.fnmatch(NCCL,
                                                                        arguments.only) and shutil.which("mpirun"):
            part = ask_under_mpirun(environment, deadline)
            known = {name for other in parts for name in other["kernels"]}
            part["kernels"] = {path.name: pool.submit(compile_kernel, nvcc, path, compiled, deadline)
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


def compile_kernel(nvcc: Path, job: Path, compiled: Path, deadline: float) -> dict:
    """Compile what was written down in `job`, unless the same was compiled before."""
    source, *arguments = job.read_text().split("\0")[:-1]
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


def flattened(outputs) -> list:
    """All Vars in nested lists and tuples."""
    if isinstance(outputs, (tuple, list)):
        return [var for output in outputs for var in flattened(output)]
    return [outputs] if outputs is not None else []


# Configs without a step here: pictures that are not there, and detectors, whose step follows indices that a kernel
# found.
NOT_HERE = ("imagenet", "instance_segmentation", "detection")


def parts() -> dict:
    """name -> function that needs the kernels: operators, optimizers, a training step of each demo's config, models."""
    from jea.models import MODELS
    found = {f"op {name}": function for name, function in operators().items()}
    found.update({f"optimizer {name}": (lambda name=name: optimize(name)) for name in ("SGD", "Adam", "AdamW")})
    found.update({f"config {path.stem}": (lambda path=path: step_of_config(path))
                  for path in sorted((ROOT / "configs").glob("*_tiny_*.yaml"))
                  if not any(word in path.stem for word in NOT_HERE)})
    # Each family's small one first. Detectors decide on the host what runs next, by values that no stub computes.
    for name in sorted((name for name in MODELS if MODELS[name] != "detection"), key=lambda name: "tiny" not in name):
        found[f"model {name} inference"] = (lambda name=name: infer(name))
        found[f"model {name} training step"] = (lambda name=name: train(name))
        for dtype in ("float16", "bfloat16") if name in HALF else ():
            found[f"model {name} {dtype} training step"] = (lambda name=name, dtype=dtype: train(name, dtype))
    return found


def _gradient(output, *inputs):
    from jea._jittor import jt
    loss = sum((v.float32() * v.float32()).sum() for v in flattened(output))
    gradients = jt.grad(loss, list(inputs))
    wrong = [(tuple(g.shape), tuple(v.shape)) for g, v in zip(gradients, inputs) if g.shape != v.shape]
    assert not wrong, f"error: shapes of gradients and of their inputs differ: {wrong}"
    return gradients


def operators() -> dict:
    """Every public operator that has a path on CUDA; a new one is missing here until it is added."""
    from jea import ops
    from jea._jittor import jt

    def on_cpu_only():
        assert ops.conv_nhwc_unavailable()

    def norm(dtype, layout, impl="fused"):
        x = of_type(dtype, *((2, 64, 5, 64) if layout == "bnhs" else (2, 64, 63)))
        return lambda: _gradient(ops.double_norm(x, layout=layout, impl=impl), x)

    def batch(statistics, residual, relu):
        x, r, w, b = jt.randn(2, 3, 5, 7), jt.randn(2, 3, 5, 7), jt.ones((3,)), jt.zeros((3,))
        return lambda: _gradient(ops.batch_norm(x, w, b, statistics=(b, w) if statistics else None,
                                                residual=r if residual else None, relu=relu, impl="fused")[0], x, w,
                                                b, r)

    def batch_nhwc(dtype, training, residual, relu):
        x, r, w, b = of_type(dtype, 2, 5, 7, 8), of_type(dtype, 2, 5, 7, 8), jt.ones((8,)), jt.zeros((8,))
        return lambda: _gradient(ops.batch_norm(x, w, b, statistics=None if training else (b, w), layout="nhwc",
                                                relu=relu, residual=r if residual else None, impl="fused")[0], x, w,
                                                b, r)

    def of_type(dtype, *shape):
        return jt.randn(*shape) if dtype == "float32" else jt.randn(*shape).cast(dtype)

    def linear(dtype, bias, gelu, summand):
        x, w, b, s = (of_type(dtype, *shape) for shape in ((6, 16), (8, 16), (8,), (6, 8)))
        inputs = [x, w] + [b] * bias + [s] * summand
        return lambda: _gradient(ops.linear(x, w, b if bias else None, gelu=bool(gelu), summand=s if summand else None,
                                            impl="fused"), *inputs)

    def graph_conv(dtype, kernel, epilogue):
        from jea.ops.convolution.cudnn import check, conv2d, plans
        x, w = of_type(dtype, 2, 9, 9, 8), jt.randn(16, 8, kernel, kernel)
        inputs = {"x": x, "weight": w,
                  **({"bias": jt.randn(16), "residual": of_type(dtype, 2, 9, 9, 16)} if epilogue else {})}

        def function():
            before = plans.plan, check.unavailable
            check.unavailable = lambda *_, **__: ""
            outputs = []
            try:
                for fused in (True, False) if epilogue else (True,):  # no plan comes of kernels that do nothing
                    plans.plan = lambda *_, **given: plans.Plan(address=1, forward=1, backward=1,
                                                                refused="" if fused or not any(
                        v for k, v in given.items() if k in ("bias", "residual", "relu")) else "not fused")
                    outputs += _gradient(conv2d(**inputs, relu=bool(epilogue), padding=kernel // 2, impl="fused"),
                                         *inputs.values())
            finally:
                plans.plan, check.unavailable = before
            return outputs
        return function

    def graph_plan():
        from jea.ops.convolution.cudnn import plans
        return plans.plan("forward", "float32", dict.fromkeys(plans.SIZES, 1)) and None

    def cross_entropy(dtype, smoothing):
        logits = of_type(dtype, 2, 5, 9)
        return lambda: _gradient(ops.cross_entropy(logits, labels, label_smoothing=smoothing, impl="fused"), logits)

    def soft_split(dtype, channels_last):
        x = of_type(dtype, 2, 3, 8, 8)
        return lambda: _gradient(ops.soft_split(x, kernel_size=3, stride=2, padding=1, impl="fused",
                                                channels_last=bool(channels_last)), x)

    def resize_nhwc(dtype, channels):
        x = of_type(dtype, 2, 5, 7, channels)
        return lambda: _gradient(ops.resize_bilinear(x, (11, 5), layout="nhwc", impl="fused"), x)

    def max_pool(dtype):
        x = of_type(dtype, 2, 5, 7, 8)
        return lambda: _gradient(ops.max_pool_nhwc(x, impl="fused"), x)

    def transpose(dtype, *axes):
        x = of_type(dtype, *range(2, 2 + len(axes)))
        return lambda: _gradient(ops.transpose(x, axes, impl="fused"), x)

    def points(function):
        xyz, features = jt.rand(2, 40, 3), jt.randn(2, 6, 40)
        return lambda: function(xyz, features)

    dtypes = ("float32", "float16", "bfloat16")
    x4, labels = jt.randn(2, 3, 8, 8), jt.zeros((2, 9)).int32()
    rows, weight, bias = jt.randn(6, 16), jt.ones((16,)), jt.zeros((16,))
    matrix, sequence = jt.randn(8, 16), jt.randn(2, 5, 16)
    found = {f"double_norm {dtype} {layout}": norm(dtype, layout)
             for layout in ("bsn", "bns", "bnhs") for dtype in dtypes}
    found.update({f"batch_norm {statistics}{residual}{relu}": batch(statistics, residual, relu)
                  for statistics in (0, 1) for residual in (0, 1) for relu in (0, 1)})
    found.update({f"batch_norm nhwc {dtype} {training}{residual}{relu}": batch_nhwc(dtype, training, residual,
                                                                                    bool(relu))
                  for dtype in dtypes for training, residual, relu in ((1, 0, 1), (1, 1, 1), (1, 0, 0), (0, 1, 1))})
    found.update({f"linear {dtype} {bias}{gelu}{summand}": linear(dtype, bias, gelu, summand) for dtype in dtypes
                  for bias, gelu, summand in ((0, 0, 0), (1, 0, 0), (0, 1, 0), (1, 1, 0), (0, 0, 1), (1, 0, 1))})
    found.update({f"cross_entropy {dtype} {smoothing}": cross_entropy(dtype, smoothing)
                  for dtype in dtypes for smoothing in (0., 0.1)})
    found.update({f"soft_split {dtype} {last}": soft_split(dtype, last) for dtype in dtypes for last in (0, 1)})
    found.update({f"resize_bilinear nhwc {dtype}": resize_nhwc(dtype, 8) for dtype in dtypes})
    found.update({f"max_pool_nhwc {dtype}": max_pool(dtype) for dtype in dtypes})
    found.update({f"transpose {dtype} {''.join(map(str, axes))}": transpose(dtype, *axes) for dtype in dtypes
                  for axes in ((1, 0), (0, 2, 1), (3, 1, 0, 2))})
    found.update({f"conv2d on cuDNN's graphs {dtype} {kernel}x{kernel} {epilogue}": graph_conv(dtype, kernel, epilogue)
                  for dtype in dtypes for kernel in (1, 3) for epilogue in (0, 1)})
    found.update({
        "plans for cuDNN's graphs": graph_plan,
        "double_norm reference": norm("float32", "bsn", "ref"),
        "layer_norm": lambda: _gradient(ops.layer_norm(rows, weight, bias, impl="fused"), rows, weight, bias),
        "resize_bilinear": lambda: _gradient(ops.resize_bilinear(x4, (11, 5), impl="fused"), x4),
        "external_attention": lambda: _gradient(
            ops.external_attention(sequence, matrix, matrix, return_attention=True), sequence, matrix),
        "farthest_point_sample": points(lambda xyz, f: ops.farthest_point_sample(xyz, 8, impl="fused")),
        "knn": points(lambda xyz, f: ops.knn(xyz[:, :5], xyz, 4, impl="fused")),
        "gather_points": points(lambda xyz, f: _gradient(
            ops.gather_points(f, jt.zeros((2, 4, 3)).int32(), impl="fused"), f)),
        "max_last": points(lambda xyz, f: _gradient(ops.max_last(f, impl="fused"), f)),
        "three_interpolate": points(lambda xyz, f: _gradient(
            ops.three_interpolate(xyz[:, :20], xyz, f[:, :, :20], impl="fused"), f)),
    })
    without_cuda = {name: on_cpu_only for name in ("conv2d_nhwc", "pack_conv", "conv_nhwc_unavailable",
                                                   "batch_norm_blocked", "can_block", "conv2d_blocked", "from_blocked",
                                                   "max_pool_blocked", "to_blocked")}
    known = {name.split()[0] for name in found} | set(without_cuda)

    def complete():
        unknown = set(ops.__all__) - known
        assert not unknown, f"tests/gpu/compile.py does not know {', '.join(sorted(unknown))}"
    return {**found, "all are here": complete}


def optimize(name: str) -> list:
    from jea._jittor import jt, nn
    layer = nn.Linear(5, 3)
    options = {"momentum": 0.9, "weight_decay": 1e-4} if name == "SGD" else {"weight_decay": 0.05}
    getattr(jt.optim, name)(layer.parameters(), lr=0.1, **options).step((layer(jt.randn(2, 5)) ** 2).sum())
    return list(layer.parameters())


def step_of_config(path: Path) -> list:
    """One training step with the task's own losses, on the demo's data."""
    from jea import config
    from jea.tasks import create_task
    from jea.training.phase import Phase, run_step
    task = create_task(config.load(path, ["train.batch_size=4", "train.num_workers=0"]))
    phases = task.phases(10)
    for phase in phases:
        if phase.average:
            phase.average.reset()
    task.begin_training()
    Phase._check_finite = lambda *_: None  # nothing was computed
    run_step(phases, next(iter(task.batches(0, 0))), 0, task.options)
    return [var for module in task.modules.values() for var in module.parameters()]


def inputs(name: str):
    """What the model (of a pair the generator) is called with: small, and of a size that it takes."""
    from jea._jittor import jt
    from jea.models import MODELS
    family = MODELS[name]
    if family in ("eanet", "eanet_jseg"):
        return (jt.randn(2, 3, 65, 65),)
    if family == "eamlp":
        return (jt.randn(2, 3, 224, 224),)
    if family == "eagan":
        from jea.models import model_arguments
        return (jt.randn(2, model_arguments(name)["z_dim"].default), jt.array([0, 1]).int32())
    if family == "inception":
        return (jt.randn(1, 3, 299, 299),)
    if family == "ea_point":
        points = jt.rand(2, 3, 1024)
        return (points, jt.zeros((2, 16))) if "partseg" in name else (points,)
    raise ValueError(f"tests/gpu/compile.py has no inputs for the family {family}")


def create(name: str, **kwargs):
    from jea.models import create_model
    return create_model(name, **kwargs)


def infer(name: str) -> list:
    import jea
    from jea._jittor import jt
    from jea.models import MODELS
    model = create(name)
    model.eval()
    with jt.no_grad():
        fused = [jea.fuse(model)(*inputs(name))] if MODELS[name].startswith("eanet") else []
        return flattened([outputs_of(model, name), fused])


HALF = ("eanet_tiny", "eanet_jseg_resnet50", "eamlp_tiny", "ea_pct_tiny_cls", "ea_pct_tiny_partseg", "ea_sagan_tiny")


def train(name: str, dtype: str = "float32") -> list:
    from jea._jittor import jt
    from jea.models import MODELS
    from jea.nn import precision
    model = create(name)
    trained = [model.generator, model.discriminator] if MODELS[name] == "eagan" else [model]
    for part in trained:
        with precision.autocast(dtype):
            outputs = flattened(outputs_of(model, name))
        jt.optim.SGD(part.parameters(), lr=0.1, momentum=0.9).step(sum((v * v).mean() for v in outputs))
    return [var for part in trained for var in part.parameters()]


def outputs_of(model, name: str):
    """What the model computes; of a pair the pictures and their scores."""
    from jea.models import MODELS
    arguments = inputs(name)
    if MODELS[name] != "eagan":
        return model(*arguments)
    pictures = model.generator(*arguments)
    return [pictures, model.discriminator(pictures, arguments[1])]


if __name__ == "__main__":
    raise SystemExit(main())
