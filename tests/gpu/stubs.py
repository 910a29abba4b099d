"""A CUDA 13 toolkit whose libraries do nothing, and a driver with two cards that are not there.

With them Jittor compiles every kernel with the real nvcc and "runs" it as nothing: a compile test without a GPU.

    python tests/gpu/stubs.py FOLDER

makes FOLDER/toolkit (headers, compilers and nvcc linked from an installed CUDA 13 and NVIDIA's wheels, libraries made
from the symbol lists of the real ones) and FOLDER/driver (libcuda.so). Put FOLDER/toolkit/bin on PATH and FOLDER/driver
on LD_LIBRARY_PATH, and jea takes them for a machine with two cards, of compute capability 9.0 and 8.0.
"""
from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[2]

# name -> (number in the soname, symbol version or None)
LIBRARIES = {"cudart": (13, "libcudart.so.13"), "cublas": (13, "libcublas.so.13"),
             "cublasLt": (13, "libcublasLt.so.13"), "cudnn": (9, "libcudnn.so.9"), "curand": (10, None),
             "cufft": (12, None), "cusparse": (12, None), "nccl": (2, None)}

# Functions that must do something. Memory is the CPU's.
CUDART = r"""
#include <cstdlib>
#include <cstring>
#define cudaGetDeviceProperties declared_with_another_type
#include <cuda_runtime_api.h>
#undef cudaGetDeviceProperties
extern "C" {
// What a process has copied and waited for, for tests/gpu/copies.py: to the device, to the host, waits (a copy that is
// not asynchronous is one).
long jea_stub_counts[3];
static int counted(int kind) {
    if (kind == cudaMemcpyHostToDevice) jea_stub_counts[0]++;
    if (kind == cudaMemcpyDeviceToHost) jea_stub_counts[1]++;
    return 0;
}
static int waited(int kind) { jea_stub_counts[2]++; return counted(kind); }
int stub_cudaDeviceSynchronize() { jea_stub_counts[2]++; return 0; }
int stub_cudaStreamSynchronize(void*) { jea_stub_counts[2]++; return 0; }
int stub_cudaEventSynchronize(void*) { jea_stub_counts[2]++; return 0; }
int stub_cudaLaunchHostFunc(void*, void (*function)(void*), void* data) { function(data); return 0; }
static int major_of(int device) { return device == 0 ? 9 : 8; }
int stub_cudaGetDeviceCount(int* n) { *n = 2; return 0; }
int stub_cudaGetDevice(int* n) { *n = 0; return 0; }
int stub_cudaMalloc(void** p, size_t n) { *p = calloc(1, n ? n : 1); return 0; }
int stub_cudaMallocHost(void** p, size_t n) { *p = calloc(1, n ? n : 1); return 0; }
int stub_cudaHostAlloc(void** p, size_t n, unsigned) { *p = calloc(1, n ? n : 1); return 0; }
int stub_cudaMallocManaged(void** p, size_t n, unsigned) { *p = calloc(1, n ? n : 1); return 0; }
int stub_cudaFree(void* p) { free(p); return 0; }
int stub_cudaFreeHost(void* p) { free(p); return 0; }
int stub_cudaMemcpy(void* d, const void* s, size_t n, int kind) { memmove(d, s, n); return waited(kind); }
int stub_cudaMemcpyAsync(void* d, const void* s, size_t n, int kind, void*) { memmove(d, s, n); return counted(kind); }
int stub_cudaMemset(void* d, int v, size_t n) { memset(d, v, n); return 0; }
int stub_cudaMemsetAsync(void* d, int v, size_t n, void*) { memset(d, v, n); return 0; }
int stub_cudaMemGetInfo(size_t* f, size_t* t) { *f = *t = size_t(8) << 30; return 0; }
int stub_cudaRuntimeGetVersion(int* v) { *v = 13000; return 0; }
int stub_cudaDriverGetVersion(int* v) { *v = 13000; return 0; }
int stub_cudaStreamCreate(void** s) { *s = (void*)1; return 0; }
int stub_cudaStreamCreateWithFlags(void** s, unsigned) { *s = (void*)1; return 0; }
int stub_cudaEventCreate(void** s) { *s = (void*)1; return 0; }
int stub_cudaEventCreateWithFlags(void** s, unsigned) { *s = (void*)1; return 0; }
int stub_cudaDeviceGetAttribute(int* v, int what, int device) {
    switch (what) {
        case cudaDevAttrComputeCapabilityMajor: *v = major_of(device); break;
        case cudaDevAttrComputeCapabilityMinor: *v = 0; break;
        case cudaDevAttrMultiProcessorCount: *v = 132; break;
        case cudaDevAttrWarpSize: *v = 32; break;
        case cudaDevAttrMaxThreadsPerBlock: case cudaDevAttrMaxBlockDimX: case cudaDevAttrMaxBlockDimY: *v = 1024; break;
        case cudaDevAttrMaxThreadsPerMultiProcessor: *v = 2048; break;
        case cudaDevAttrMaxSharedMemoryPerBlock: *v = 49152; break;
        case cudaDevAttrMaxRegistersPerBlock: *v = 65536; break;
        case cudaDevAttrMaxGridDimX: *v = 2147483647; break;
        case cudaDevAttrMaxGridDimY: case cudaDevAttrMaxGridDimZ: *v = 65535; break;
        default: *v = 1;
    }
    return 0;
}
int stub_cudaGetDeviceProperties(cudaDeviceProp* p, int device) {
    memset(p, 0, sizeof *p);
    strcpy(p->name, "a card that is not there");
    p->major = major_of(device);
    p->multiProcessorCount = 132;
    p->warpSize = 32;
    p->maxThreadsPerBlock = 1024;
    p->totalGlobalMem = size_t(8) << 30;
    p->sharedMemPerBlock = 49152;
    return 0;
}
const char* stub_cudaGetErrorString(int) { return "stub"; }
const char* stub_cudaGetErrorName(int) { return "stub"; }
void* stub___cudaRegisterFatBinary(void*) { static void* one; return &one; }
unsigned stub___cudaPushCallConfiguration() { return 0; }
int stub___cudaPopCallConfiguration(void*, void*, size_t* shared, void*) { if (shared) *shared = 0; return 0; }
}
"""

# Convolutions of the older interface: one algorithm that needs no workspace. The graph interface writes down what it is
# told.
CUDNN = r"""
#include <cstring>
#include <cudnn.h>
#include "cudnn_recorder.h"
extern "C" {
#define BY_HEURISTICS(name) int stub_##name(void*, void*, void*, void*, void*, int, int* n, void* p) { \
    memset(p, 0, sizeof(cudnnConvolutionFwdAlgoPerf_t)); *n = 1; return 0; }
BY_HEURISTICS(cudnnGetConvolutionForwardAlgorithm_v7)
BY_HEURISTICS(cudnnGetConvolutionBackwardDataAlgorithm_v7)
BY_HEURISTICS(cudnnGetConvolutionBackwardFilterAlgorithm_v7)
#define BY_TRIAL(name) int stub_##name(void*, void*, void*, void*, void*, void*, void*, void*, int, int* n, void* p, \
    void*, size_t) { memset(p, 0, sizeof(cudnnConvolutionFwdAlgoPerf_t)); *n = 1; return 0; }
BY_TRIAL(cudnnFindConvolutionForwardAlgorithmEx)
BY_TRIAL(cudnnFindConvolutionBackwardDataAlgorithmEx)
BY_TRIAL(cudnnFindConvolutionBackwardFilterAlgorithmEx)
#define WORKSPACE(name) int stub_##name(void*, void*, void*, void*, void*, int, size_t* n) { *n = 0; return 0; }
WORKSPACE(cudnnGetConvolutionForwardWorkspaceSize)
WORKSPACE(cudnnGetConvolutionBackwardDataWorkspaceSize)
WORKSPACE(cudnnGetConvolutionBackwardFilterWorkspaceSize)
}
"""

# With JEA_STUB_ASKED=FOLDER kernels of Jittor's are not compiled: the arguments are written down there, and a library
# that does nothing, with the function that Jittor looks for, is put in the kernel's place. Else it is the real nvcc.
NVCC = r"""#!/bin/sh
case "$JEA_STUB_ASKED:$1" in
  :*) ;;
  *:*/jit/*_op.cc)
    for library do :; done
    class=$(grep -o '[A-Za-z0-9_]*Op::jit_run' "$1" | tail -n 1)
    class=${class%::jit_run}
    made=$JEA_STUB_ASKED.libraries/$class.so
    if [ ! -e "$made" ]; then
      mkdir -p "$JEA_STUB_ASKED.libraries"
      echo "void _ZN6jittor${#class}${class}7jit_runEv(void* op) {}" |
        gcc -shared -fPIC -x c - -o "$made.$$" && mv "$made.$$" "$made" || exit 1
    fi
    cp "$made" "$library" || exit 1
    name=${1##*/}
    printf '%s\0' "$@" >"$JEA_STUB_ASKED/.$name" && mv "$JEA_STUB_ASKED/.$name" "$JEA_STUB_ASKED/$name"
    exit ;;
esac
exec "$0.real" "$@"
"""

DRIVER = r"""
int cuInit(unsigned flags) { return 0; }
int cuDriverGetVersion(int* v) { *v = 13000; return 0; }
int cuDeviceGetCount(int* n) { *n = 2; return 0; }
int cuDeviceGet(int* device, int index) { *device = index; return 0; }
int cuDeviceGetAttribute(int* v, int what, int device) { *v = what == 75 ? 9 - device : 0; return 0; }
"""


def run(*command) -> str:
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    if done.returncode != 0:
        raise SystemExit(f"stubs: {' '.join(map(str, command))} failed:\n{done.stdout}{done.stderr}")
    return done.stdout


def make_library(name: str, real: Path, include: Path, out: Path, work: Path) -> None:
    number, version = LIBRARIES[name]
    symbols = {line.split()[-1].split("@")[0] for line in run("nm", "-D", "--defined-only", real).splitlines()
               if line.split()[-2] in "TWi"} - {"_init", "_fini"}
    objects = []
    special = {"cudart": CUDART, "cudnn": CUDNN}.get(name)
    if special:
        (work / f"{name}.cc").write_text(special)
        objects.append(work / f"{name}.o")
        run("g++", "-c", "-fPIC", "-w", f"-I{include}", f"-I{Path(__file__).parent}", work / f"{name}.cc", "-o",
            objects[0])
        ours = [line.split()[-1] for line in run("nm", "--defined-only", objects[0]).splitlines() if " T stub_" in line]
        renames = [part for symbol in ours for part in ("--redefine-sym", f"{symbol}={symbol[len('stub_'):]}")]
        run("objcopy", *renames, objects[0])
        symbols -= {symbol[len("stub_"):] for symbol in ours}
    (work / f"{name}.c").write_text("".join(f"long {symbol}(void) {{ return 0; }}\n" for symbol in sorted(symbols)))
    flags = []
    if version:
        (work / f"{name}.map").write_text(f"{version} {{ global: *; }};\n")
        flags = [f"-Wl,--version-script={work / (name + '.map')}"]
    soname = f"lib{name}.so.{number}"
    run("gcc", "-w", "-shared", "-fPIC", "-fno-builtin", work / f"{name}.c", *objects, *flags, f"-Wl,-soname,{soname}",
        "-o", out / soname)
    (out / f"lib{name}.so").symlink_to(soname)


def make(folder: Path) -> None:
    """Everything below `folder`, unless it is there, as this file makes it. Renamed into place at the end."""
    made_by = hashlib.sha256(Path(__file__).read_bytes() + Path(__file__).with_name("cudnn_recorder.h").read_bytes())
    made_by, stamp = made_by.hexdigest(), folder / "made_by"
    if stamp.is_file() and stamp.read_text() == made_by:
        return
    from jea.environment import cuda_home
    nvcc = cuda_home.wheel_nvcc() or shutil.which("nvcc") or "/usr/local/cuda/bin/nvcc"
    toolkit = cuda_home.read_toolkit(nvcc)
    missing = cuda_home.missing_packages(toolkit)
    if missing:
        raise SystemExit(f"stubs: the headers are missing; pip install {' '.join(missing)}")
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        real = cuda_home.prepare(toolkit, work / "homes")
        home = Path(real.nvcc).parents[1]
        made = folder.with_name(folder.name + ".tmp")
        shutil.rmtree(made, ignore_errors=True)
        for name in ("toolkit/bin", "toolkit/include/cub", "toolkit/lib64", "driver"):
            (made / name).mkdir(parents=True)
        for entry in Path(toolkit.nvcc).parent.iterdir():
            name = {"nvcc": "nvcc.real"}.get(entry.name, entry.name)
            if name in ("nvcc.real", "nvcc.profile"):  # nvcc looks for the rest beside its own true place
                shutil.copy2(entry, made / "toolkit" / "bin" / name)
            else:
                (made / "toolkit" / "bin" / name).symlink_to(entry)
        (made / "toolkit" / "bin" / "nvcc").write_text(NVCC)
        (made / "toolkit" / "bin" / "nvcc").chmod(0o755)
        nvvm = next(root / "nvvm" for root in (toolkit.home, *cuda_home.wheel_folders()) if (root / "nvvm").is_dir())
        (made / "toolkit" / "nvvm").symlink_to(nvvm)
        for entry in (home / "include").iterdir():  # the true headers, not the home's own
            if entry.is_symlink():
                (made / "toolkit" / "include" / entry.name.replace("_real.h", ".h")).symlink_to(os.readlink(entry))
        for entry in (home / "include" / "cub").iterdir():
            if entry.is_symlink():
                (made / "toolkit" / "include" / "cub" / entry.name.replace("_real", "")).symlink_to(os.readlink(entry))
        for name in LIBRARIES:
            make_library(name, home / "lib64" / f"lib{name}.so", made / "toolkit" / "include",
                         made / "toolkit" / "lib64", work)
        for part in ("ops", "cnn"):  # Jittor loads them by name
            (made / "toolkit" / "lib64" / f"libcudnn_{part}.so").symlink_to("libcudnn.so.9")
        for name in ("libnvJitLink.so", "libcudadevrt.a", "libcudart_static.a"):
            (made / "toolkit" / "lib64" / name).symlink_to(os.readlink(home / "lib64" / name))
        (work / "driver.c").write_text(DRIVER)
        run("gcc", "-shared", "-fPIC", "-Wl,-soname,libcuda.so.1", work / "driver.c", "-o",
            made / "driver" / "libcuda.so.1")
        (made / "driver" / "libcuda.so").symlink_to("libcuda.so.1")
        (made / "made_by").write_text(made_by)
        for name in ("toolkit/include", "toolkit/lib64"):  # by which jea knows its CUDA home, and Jittor its core
            if (folder / name).is_dir():
                before = (folder / name).stat()
                os.utime(made / name, ns=(before.st_atime_ns, before.st_mtime_ns))
    shutil.rmtree(folder, ignore_errors=True)
    os.rename(made, folder)


def environment(work: Path) -> dict:
    """The environment in which Jittor takes work/stubs for a machine with two cards; kernels do nothing, and what was
    asked for is in work/asked. Jittor's core stays in work/home."""
    found = {name: value for name, value in os.environ.items() if name not in ("nvcc_path", "JEA_OPS", "JEA_HOME")}
    toolkit = work / "stubs" / "toolkit" / "bin"
    found.update(HOME=str(work / "home"), JITTOR_HOME=str(work / "home"), JEA_STUB_ASKED=str(work / "asked"),
                 LD_LIBRARY_PATH=str(work / "stubs" / "driver"), PATH=f"{toolkit}:{os.environ['PATH']}",
                 PYTHONPATH=f"{ROOT}:{os.environ.get('PYTHONPATH', '')}")
    return found


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[2]))
    make(Path(sys.argv[1]).absolute())
