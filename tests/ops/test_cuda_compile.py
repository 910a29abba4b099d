"""Every CUDA header of jea/ops compiles alone, for each architecture, where nvcc is installed."""
import os
import shutil
import subprocess
from pathlib import Path

import pytest

OPS = Path(__file__).parents[2] / "jea" / "ops"
ARCHITECTURES = (75, 80, 90)

# Templates are compiled for the types that the operators use.
INSTANCES = {
    "double_norm.cuh": """
        #include <cuda_fp16.h>
        #include <cuda_bf16.h>
        template <class T>
        void use(const jea::DoubleNorm& d, T* t, float* f) {
            jea::double_norm_forward(d, 0.f, t, t, f, f);
            jea::double_norm_backward(d, t, f, t, t, f);
        }
        #if JEA_ARCH == 90
        template void use(const jea::DoubleNorm&, __half*, float*);
        template void use(const jea::DoubleNorm&, __nv_bfloat16*, float*);
        #endif
        template void use(const jea::DoubleNorm&, float*, float*);
        """,
}


def find_nvcc():
    places = [os.environ.get("nvcc_path"), shutil.which("nvcc"), "/usr/local/cuda/bin/nvcc"]
    places += map(str, sorted(Path("/usr/local").glob("cuda-*/bin/nvcc"), reverse=True))
    return next((p for p in places if p and os.access(p, os.X_OK)), None)


needs_nvcc = pytest.mark.skipif(find_nvcc() is None, reason="nvcc is not installed")


def compile_for(header: Path, architecture: int, folder: Path) -> subprocess.CompletedProcess:
    """With Jittor's flags that matter: fast mathematics, C++17 (what CUDA 13 wants, Jittor's headers take C++14)."""
    source = folder / f"{header.stem}.cu"
    source.write_text(f'#include "{header}"\n{INSTANCES.get(header.name, "")}')
    return subprocess.run(
        [find_nvcc(), "-std=c++17", "-Xcicc", "-O1", "-Xptxas", "-O0", "--use_fast_math", "-Werror", "all-warnings",
         f"-arch=sm_{architecture}", f"-DJEA_ARCH={architecture}", f"-I{OPS}", "-cubin",
         "-o", str(folder / f"{header.stem}_{architecture}.cubin"), str(source)], capture_output=True, text=True)


def test_there_are_cuda_headers():
    assert {"batch_norm.cuh", "double_norm.cuh", "layer_norm.cuh", "resize.cuh"} <= {p.name for p in OPS.glob("*.cuh")}
    assert set(INSTANCES) <= {p.name for p in OPS.glob("*.cuh")}


@needs_nvcc
@pytest.mark.parametrize("header", sorted(OPS.glob("*.cuh")), ids=lambda path: path.stem)
def test_header_compiles(header, tmp_path):
    for architecture in ARCHITECTURES:
        done = compile_for(header, architecture, tmp_path)
        assert done.returncode == 0, f"sm_{architecture}: {done.stdout}{done.stderr}"


@needs_nvcc
def test_a_wrong_identifier_is_noticed(tmp_path):
    text = (OPS / "double_norm.cuh").read_text()
    broken = tmp_path / "double_norm.cuh"
    broken.write_text(text.replace("sum_over_memories(sum)", "sum_over_memorys(sum)"))
    assert broken.read_text() != text
    done = compile_for(broken, 90, tmp_path)
    assert done.returncode != 0 and "sum_over_memorys" in done.stdout + done.stderr
