"""Compiles, without a GPU, every CUDA kernel that jea needs: all operators, inference and training of all models.

    python tests/gpu/compile.py [--work FOLDER] [--only PATTERN] [--seconds N]

With stub libraries (stubs.py) Jittor takes this machine for one with cards of compute capability 8.0 and 9.0. nvcc
compiles each kernel for both, and running it does nothing. What an operator computes this does not show: for that there
are tests/ops/test_cuda_kernels.py and, on a GPU, the tests marked `cuda`. FOLDER keeps Jittor's core and the kernels for
the next time. What the time limit cuts off is named, and is no error: a slow machine is none. Without nvcc it says so and
ends with status 0.
"""
from __future__ import annotations

import argparse
import fnmatch
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
    parser.add_argument("--work", help="folder for the stubs and Jittor's cache (default: a temporary one)")
    parser.add_argument("--only", default="*", help="shell pattern of what to compile: 'op *', 'model eanet*'")
    parser.add_argument("--seconds", type=int, default=1140, help="time limit")
    parser.add_argument("--json", help="file for the results")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        return compile_all(arguments.only)
    sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]
    os.environ.setdefault("nvcc_path", "")  # importing jea decides nothing about CUDA here
    from jea import cuda_home
    nvcc = cuda_home.wheel_nvcc() or shutil.which("nvcc")
    if not nvcc:
        print("compile: nvcc is not installed (pip install 'jea[cuda13]' brings it): nothing to do")
        return 0
    with tempfile.TemporaryDirectory() as temporary:
        return run(Path(arguments.work or temporary).absolute(), arguments)


def run(work: Path, arguments) -> int:
    import stubs
    started = time.time()
    work.mkdir(parents=True, exist_ok=True)
    if not (work / "stubs").is_dir():
        stubs.make(work / "stubs")
    home = work / "home"
    home.mkdir(exist_ok=True)
    environment = {name: value for name, value in os.environ.items()
                   if name not in ("nvcc_path", "JEA_OPS", "JEA_HOME")}
    environment.update(HOME=str(home), JITTOR_HOME=str(home), LD_LIBRARY_PATH=str(work / "stubs" / "driver"),
                       PATH=f"{work / 'stubs' / 'toolkit' / 'bin'}:{os.environ['PATH']}",
                       PYTHONPATH=f"{ROOT}:{os.environ.get('PYTHONPATH', '')}")
    command = [sys.executable, str(Path(__file__).absolute()), "--child", "--only", arguments.only]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True, cwd=ROOT,
                               start_new_session=True)
    expected, results, late = [], [], threading.Event()

    def stop():
        late.set()
        os.killpg(process.pid, signal.SIGKILL)  # the compilers too
    timer = threading.Timer(arguments.seconds, stop)
    timer.start()
    for line in process.stdout:
        if line.startswith("["):
            expected = json.loads(line)
        elif line.startswith("{"):
            result = json.loads(line)
            results.append(result)
            print(f"compile: {result['name']:44} {result['seconds']:6.1f} s  {result.get('error') or 'compiled'}",
                  flush=True)
        else:
            print(line, end="", flush=True)
    status = process.wait()
    timer.cancel()
    failed = [result["name"] for result in results if result.get("error")]
    missed = [name for name in expected if name not in {result["name"] for result in results}]
    print(f"compile: {len(results)} parts, {len(failed)} failed, {len(missed)} not reached, {time.time() - started:.0f} s")
    if missed:
        print(f"compile: not reached: {', '.join(missed)}")
    if arguments.json:
        Path(arguments.json).write_text(json.dumps({"results": results, "missed": missed, "status": status}, indent=1))
    broken_off = (missed or not expected) and not late.is_set()
    return 1 if failed or broken_off else 0


# -- the child: its Jittor has the stubs ---------------------------------------------------------------------

def compile_all(pattern: str) -> int:
    from jea._jittor import jt
    if not jt.has_cuda or sorted(jt.flags.cuda_archs) != [80, 90]:
        print(f"compile: Jittor did not take the stubs: has_cuda {jt.has_cuda}, architectures {jt.flags.cuda_archs}")
        return 1
    jt.flags.use_cuda = 1
    chosen = {name: function for name, function in parts().items() if fnmatch.fnmatch(name, pattern)}
    print(json.dumps(list(chosen)), flush=True)
    for name, function in chosen.items():
        started, result = time.time(), {"name": name}
        try:
            jt.sync(flattened(function()))  # Jittor compiles what is asked for and no more
        except Exception as error:  # the compiler's own text goes to stderr
            lines = [line for line in str(error).splitlines() if line.strip()]
            result["error"] = next((line for line in lines if "error" in line.lower()), repr(error))[:300]
        print(json.dumps(dict(result, seconds=round(time.time() - started, 1))), flush=True)
        jt.clean_graph()
    sys.stdout.flush()
    os._exit(0)  # without the teardown, which the stubs may not survive


def flattened(outputs) -> list:
    """All Vars in nested lists and tuples."""
    if isinstance(outputs, (tuple, list)):
        return [var for output in outputs for var in flattened(output)]
    return [outputs] if outputs is not None else []


def parts() -> dict:
    """name -> function that needs the kernels: the operators, the optimizers, the models."""
    from jea.models import MODELS
    found = {f"op {name}": function for name, function in operators().items()}
    found.update({f"optimizer {name}": (lambda name=name: optimize(name)) for name in ("SGD", "Adam", "AdamW")})
    for name in sorted(MODELS, key=lambda name: "tiny" not in name):  # each family's small one first
        found[f"model {name} inference"] = (lambda name=name: infer(name))
        found[f"model {name} training step"] = (lambda name=name: train(name))
    return found


def _gradient(output, *inputs):
    from jea._jittor import jt
    loss = sum((v.float32() * v.float32()).sum() for v in flattened(output))
    return jt.grad(loss, list(inputs))


def operators() -> dict:
    """Every public operator that has a path on CUDA; a new one is missing here until it is added."""
    from jea import ops
    from jea._jittor import jt

    def on_cpu_only():
        assert ops.conv_nhwc_unavailable()

    def norm(dtype, layout, impl="fused"):
        x = jt.randn(2, 64, 5, 64) if layout == "bnhs" else jt.randn(2, 64, 63)
        x = x.cast(dtype) if dtype != "float32" else x
        return lambda: _gradient(ops.double_norm(x, layout=layout, impl=impl), x)

    def batch(statistics, residual, relu):
        x, r, w, b = jt.randn(2, 3, 5, 7), jt.randn(2, 3, 5, 7), jt.ones((3,)), jt.zeros((3,))
        return lambda: _gradient(ops.batch_norm(x, w, b, statistics=(b, w) if statistics else None,
                                                residual=r if residual else None, relu=relu, impl="fused")[0], x, w, b, r)

    def points(function):
        xyz, features = jt.rand(2, 40, 3), jt.randn(2, 6, 40)
        return lambda: function(xyz, features)

    x4, logits, labels = jt.randn(2, 3, 8, 8), jt.randn(2, 5, 9), jt.zeros((2, 9)).int32()
    rows, weight, bias = jt.randn(6, 16), jt.ones((16,)), jt.zeros((16,))
    matrix, sequence = jt.randn(8, 16), jt.randn(2, 5, 16)
    found = {f"double_norm {dtype} {layout}": norm(dtype, layout)
             for layout in ("bsn", "bns", "bnhs") for dtype in ("float32", "float16", "bfloat16")}
    found.update({f"batch_norm {statistics}{residual}{relu}": batch(statistics, residual, relu)
                  for statistics in (0, 1) for residual in (0, 1) for relu in (0, 1)})
    found.update({
        "double_norm reference": norm("float32", "bsn", "ref"),
        "layer_norm": lambda: _gradient(ops.layer_norm(rows, weight, bias, impl="fused"), rows, weight, bias),
        "resize_bilinear": lambda: _gradient(ops.resize_bilinear(x4, (11, 5), impl="fused"), x4),
        "external_attention": lambda: _gradient(
            ops.external_attention(sequence, matrix, matrix, return_attention=True), sequence, matrix),
        "cross_entropy": lambda: _gradient(ops.cross_entropy(logits, labels), logits),
        "linear": lambda: _gradient(ops.linear(rows, matrix, gelu=True), rows, matrix),
        "soft_split": lambda: _gradient(ops.soft_split(x4, kernel_size=3, stride=2, padding=1), x4),
        "farthest_point_sample": points(lambda xyz, f: ops.farthest_point_sample(xyz, 8, impl="fused")),
        "knn": points(lambda xyz, f: ops.knn(xyz[:, :5], xyz, 4, impl="fused")),
        "gather_points": points(lambda xyz, f: _gradient(
            ops.gather_points(f, jt.zeros((2, 4, 3)).int32(), impl="fused"), f)),
        "max_last": points(lambda xyz, f: _gradient(ops.max_last(f, impl="fused"), f)),
        "three_interpolate": points(lambda xyz, f: _gradient(
            ops.three_interpolate(xyz[:, :20], xyz, f[:, :, :20], impl="fused"), f)),
    })
    without_cuda = {name: on_cpu_only for name in ("conv2d_nhwc", "max_pool_nhwc", "pack_conv", "conv_nhwc_unavailable",
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


def inputs(name: str):
    """What the model is called with: small, and of a size that it takes."""
    from jea._jittor import jt
    from jea.models import MODELS
    family = MODELS[name]
    if family in ("eanet", "eanet_jseg"):
        return (jt.randn(2, 3, 65, 65),)
    if family == "eamlp":
        return (jt.randn(2, 3, 64, 64) if "tiny" in name else jt.randn(2, 3, 224, 224),)
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
        if MODELS[name] == "eagan":
            return run_gan(model)
        arguments = inputs(name)
        fused = [jea.fuse(model)(*arguments)] if MODELS[name] == "eanet" else []
        return flattened([model(*arguments), fused])


def train(name: str) -> list:
    from jea._jittor import jt
    from jea.models import MODELS
    model = create(name)
    trained = [model.generator, model.discriminator] if MODELS[name] == "eagan" else [model]
    for part in trained:
        outputs = flattened(run_gan(model) if MODELS[name] == "eagan" else model(*inputs(name)))
        jt.optim.SGD(part.parameters(), lr=0.1, momentum=0.9).step(sum((v * v).mean() for v in outputs))
    return [var for part in trained for var in part.parameters()]


def run_gan(model):
    from jea._jittor import jt
    labels = jt.zeros((2,)).int32()
    pictures = model.generator(jt.randn(2, model.z_dim), labels)
    return [pictures, model.discriminator(pictures, labels)]


if __name__ == "__main__":
    raise SystemExit(main())
