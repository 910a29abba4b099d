"""Every CUDA header of jea/ops compiles alone, for each architecture, where nvcc is installed."""
import os
import shutil
import subprocess
from pathlib import Path

import pytest

OPS = Path(__file__).parents[2] / "jea" / "ops"
ARCHITECTURES = (75, 80, 90)

# Templates are compiled for the types that the operators use.
_FOR_ALL_FLOATS = """
    #include <cuda_fp16.h>
    #include <cuda_bf16.h>
    template <class T>
    void use(const jea::SIZES& d, T* t, float* f, int* i) { CALLS }
    #if JEA_ARCH == 90
    template void use(const jea::SIZES&, __half*, float*, int*);
    template void use(const jea::SIZES&, __nv_bfloat16*, float*, int*);
    #endif
    template void use(const jea::SIZES&, float*, float*, int*);
    """
INSTANCES = {name: _FOR_ALL_FLOATS.replace("SIZES", sizes).replace("CALLS", calls) for name, sizes, calls in (
    ("attention/double_norm.cuh", "DoubleNorm",
     "jea::double_norm_forward<true, 64>(d, 0.f, t, t, f, f); jea::double_norm_backward<true, 64>(d, t, f, t, t, f);"
     "jea::double_norm_forward<false, 512>(d, 0.f, t, t, f, f); jea::double_norm_backward<false, 8>(d, t, f, t, t, "
     "f);"),
    ("training/cross_entropy.cuh", "CrossEntropy",
     "jea::cross_entropy_forward(d, t, i, f, f, f); jea::cross_entropy_backward(d, t, i, f, f, f, t);"),
    ("products/linear.cuh", "LinearEpilogue",
     "jea::linear_forward(d, t, t, t, t); jea::linear_backward(d, t, t, t, t, t, f);"),
    ("normalisation/batch_norm.cuh", "BatchNorm",
     "jea::batch_norm_forward(d, t, f, f, f, f, t, t, f, f, f);"
     "jea::batch_norm_backward(d, t, t, t, f, f, f, t, f, f, t, f);"),
    ("convolution/cudnn/epilogue.cuh", "Epilogue",
     "jea::epilogue(d, t, f, t, t); jea::relu_backward(d, t, t, t); jea::bias_backward(d, t, f);"),
    ("normalisation/batch_norm_nhwc.cuh", "BatchNormNhwc",
     "jea::batch_norm_forward(d, t, f, f, f, f, t, t, f, f, f);"
     "jea::batch_norm_backward(d, t, t, t, f, f, f, t, f, f, t, f);"),
    ("normalisation/layer_norm.cuh", "LayerNorm",
     "jea::layer_norm_forward<3, 4>(d, f, f, f, f, f); jea::layer_norm_backward<32, 1>(d, f, f, f, f, f, f, f, f);"),
    ("pictures/max_pool.cuh", "MaxPool",
     "jea::max_pool(d, t, t, (signed char*)i); jea::max_pool_backward(d, t, (signed char*)i, t);"),
    ("pictures/resize_nhwc.cuh", "ResizeNhwc", "jea::resize_forward(d, t, f); jea::resize_backward(d, f, t);"),
    ("shapes/transpose.cuh", "Transpose", "jea::transpose(d, t, t);"),
    ("pictures/soft_split.cuh", "SoftSplit", "jea::soft_split_forward(d, t, t); jea::soft_split_backward(d, t, t);"),
)}
INSTANCES["detection/masks.cuh"] = """
    template void jea::paste_masks(const jea::Paste&, const float*, const float*, float*);
    template void jea::paste_masks(const jea::Paste&, const float*, const float*, unsigned char*);
    """


# which is not there wherever nvcc is: tests/gpu/compile.py compiles these
WITH_CUDNN = {OPS / "convolution/conv_half.cuh", OPS / "convolution/cudnn/plan.cuh"}


def find_nvcc():
    places = [os.environ.get("nvcc_path"), shutil.which("nvcc"), "/usr/local/cuda/bin/nvcc"]
    places += map(str, sorted(Path("/usr/local").glob("cuda-*/bin/nvcc"), reverse=True))
    return next((p for p in places if p and os.access(p, os.X_OK)), None)


needs_nvcc = pytest.mark.skipif(find_nvcc() is None, reason="nvcc is not installed")


def compile_for(header: Path, architecture: int, folder: Path) -> subprocess.CompletedProcess:
    """With Jittor's flags that matter: fast mathematics, C++17 (what CUDA 13 wants, Jittor's headers take C++14)."""
    source = folder / f"{header.stem}.cu"
    uses = {Path(name).name: text for name, text in INSTANCES.items()}
    source.write_text(f'#include "{header}"\n{uses.get(header.name, "")}')
    return subprocess.run(
        [find_nvcc(), "-std=c++17", "-Xcicc", "-O1", "-Xptxas", "-O0", "--use_fast_math", "-Werror", "all-warnings",
         f"-arch=sm_{architecture}", f"-DJEA_ARCH={architecture}", f"-I{OPS}", "-cubin",
         "-o", str(folder / f"{header.stem}_{architecture}.cubin"), str(source)], capture_output=True, text=True)


def test_there_are_cuda_headers():
    headers = {str(p.relative_to(OPS)) for p in OPS.rglob("*.cuh")}
    assert {"normalisation/batch_norm.cuh", "normalisation/layer_norm.cuh", "pictures/resize.cuh", "points/points.cuh",
            *INSTANCES} <= headers


@needs_nvcc
@pytest.mark.parametrize("header", sorted(set(OPS.rglob("*.cuh")) - WITH_CUDNN), ids=lambda path: path.stem)
def test_header_compiles(header, tmp_path):
    for architecture in ARCHITECTURES:
        done = compile_for(header, architecture, tmp_path)
        assert done.returncode == 0, f"sm_{architecture}: {done.stdout}{done.stderr}"


@needs_nvcc
def test_a_wrong_identifier_is_noticed(tmp_path):
    text = (OPS / "attention/double_norm.cuh").read_text()
    broken = tmp_path / "double_norm.cuh"
    broken.write_text(text.replace("join_many(", "join_meny("))
    assert broken.read_text() != text
    done = compile_for(broken, 90, tmp_path)
    assert done.returncode != 0 and "join_meny" in done.stdout + done.stderr
