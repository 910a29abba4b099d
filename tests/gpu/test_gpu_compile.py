"""tests/gpu/compile.py itself: what its stand-in for nvcc writes down, and what it makes of the compiler's answers."""
import ctypes
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))
import compile as gpu  # noqa: E402
import copies  # noqa: E402
import stubs  # noqa: E402


def script(path, text):
    path.write_text("#!/bin/sh\n" + text)
    path.chmod(0o755)
    return path


@pytest.fixture
def asked(tmp_path):
    """A kernel that was asked for."""
    (tmp_path / "compiled").mkdir()
    (tmp_path / "source.cc").write_text("__global__ void f() {}")
    arguments = [str(tmp_path / "source.cc"), "-std=c++17", "-lcudart", "-L/lib", "-Xlinker", "-rpath=/lib", "-shared",
                 "-code=sm_90", "-o", "library.so"]
    (tmp_path / "asked").write_text("".join(argument + "\0" for argument in arguments))
    return tmp_path / "asked"


def compile_with(nvcc, asked, seconds=60):
    return gpu.compile_kernel(nvcc, asked, asked.parent / "compiled", time.time() + seconds)


def test_a_kernel_is_compiled_once(asked, tmp_path):
    nvcc = script(tmp_path / "nvcc", f'echo "$@" >>{tmp_path}/calls\n')
    for _ in range(2):
        assert not {"error", "late"} & set(compile_with(nvcc, asked))
    call, = (tmp_path / "calls").read_text().splitlines()
    source, *rest = call.split()
    assert source.endswith("source.cc") and rest[:4] == ["-std=c++17", "-code=sm_90", "-fatbin", "-o"]
    (tmp_path / "source.cc").write_text("__global__ void g() {}")
    compile_with(nvcc, asked)
    assert len((tmp_path / "calls").read_text().splitlines()) == 2  # another text is another kernel


def test_other_architectures(asked, tmp_path):
    nvcc = script(tmp_path / "nvcc", f'echo "$@" >>{tmp_path}/calls\n')
    gpu.compile_kernel(nvcc, asked, tmp_path / "compiled", time.time() + 60, ["75", "120"])
    call = (tmp_path / "calls").read_text()
    assert "-code=sm_90" not in call.split() and call.count("-gencode") == 2
    assert "-gencode=arch=compute_75,code=sm_75" in call and "-gencode=arch=compute_120,code=sm_120" in call


def test_copies_of_a_step_are_limited():
    batch, phases = {"image": np.zeros(3), "label": np.zeros(2), "size": [1]}, [1, 2]
    assert copies.allowed(batch, phases, False) == {"to the device": 4, "to the host": 2, "waits": 0}
    copies.check({"to the device": 4, "to the host": 4, "waits": 0}, batch, phases, True)
    for name in ("to the device", "to the host", "waits"):
        found = dict(copies.allowed(batch, phases, True))
        found[name] += 1
        with pytest.raises(AssertionError, match=f"copies of a training step: .*{name}"):
            copies.check(found, batch, phases, True)


def test_errors_and_the_time_limit(asked, tmp_path):
    nvcc = script(tmp_path / "nvcc", "echo 'source.cc(3): error: identifier \"x\" is undefined'; echo more; exit 2\n")
    for _ in range(2):  # what failed is tried again
        assert compile_with(nvcc, asked)["error"] == 'source.cc(3): error: identifier "x" is undefined'
    assert compile_with(script(tmp_path / "nvcc", "exec sleep 60\n"), asked, seconds=0.3)["late"]
    assert not list((tmp_path / "compiled").iterdir())


def report(**kernel):
    parts = [{"name": "op linear", "kernels": {}}, {"name": "model eanet_tiny inference", "kernels": {"k": {
        "seconds": 1., **kernel}}}]
    return {"parts": parts, "missed": [], "core_seconds": 2., "seconds": 3.}


def test_what_is_shown(capsys):
    assert gpu.show(report(), broken_off=False) == 0
    shown = capsys.readouterr().out
    assert "model eanet " in shown and "0 failed" in shown and "not reached" not in shown
    assert gpu.show(report(error="identifier x"), broken_off=False) == 1
    assert "FAILED: model eanet_tiny inference: k:\nidentifier x" in capsys.readouterr().out
    assert gpu.show(report(late=True), broken_off=False) == 0  # a slow machine is no error
    assert "not reached: model eanet_tiny inference" in capsys.readouterr().out
    assert gpu.show(dict(report(), missed=["op knn"]), broken_off=True) == 1


def test_a_kernel_of_the_host_fails(tmp_path, capsys):
    (tmp_path / "transpose_hash_1_op.cc").write_text("#define JIT 1\n#define JIT_cpu 1\n\n#include \"var.h\"\n")
    (tmp_path / "sum_hash_2_op.cc").write_text("#define JIT 1\n#define JIT_cuda 1\n\n#include \"var.h\"\n")
    assert gpu.host_kernels(tmp_path) == {"transpose_hash_1_op.cc"}
    found = report()
    found["parts"][0]["on_host"] = ["transpose_hash_1_op.cc"]
    assert gpu.show(found, broken_off=False) == 1
    assert "FAILED: op linear: runs on the host while CUDA is on: transpose_hash_1_op.cc" in capsys.readouterr().out


@pytest.mark.skipif(shutil.which("gcc") is None, reason="gcc is not installed")
def test_the_stand_in_for_nvcc(tmp_path):
    (tmp_path / "jit").mkdir()
    (tmp_path / "asked").mkdir()
    kernel, library = tmp_path / "jit" / "sum_hash_1_op.cc", tmp_path / "jit" / "sum_hash_1_op.so"
    kernel.write_text("void ReduceOp::jit_run();\nnamespace jittor { void CodeOp::jit_run() {} }\n")
    nvcc = script(tmp_path / "nvcc", stubs.NVCC.split("\n", 1)[1])
    script(tmp_path / "nvcc.real", 'echo real "$@"\n')

    def run(source, folder):
        return subprocess.run([str(nvcc), str(source), "-I a b", "-o", str(library)], capture_output=True, text=True,
                              check=True, env=dict(os.environ, JEA_STUB_ASKED=folder)).stdout
    assert run(kernel, str(tmp_path / "asked")) == ""
    assert ctypes.CDLL(str(library))._ZN6jittor6CodeOp7jit_runEv
    written = (tmp_path / "asked" / kernel.name).read_text().split("\0")
    assert written == [str(kernel), "-I a b", "-o", str(library), ""]
    assert run(kernel, "").startswith("real ") and run(tmp_path / "core.cc",
                                                       str(tmp_path / "asked")).startswith("real ")
    assert [path.name for path in (tmp_path / "asked").iterdir()] == [kernel.name]
