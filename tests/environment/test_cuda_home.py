"""The CUDA home that is made of a CUDA 13 toolkit and NVIDIA's wheels."""
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from jea.environment import cuda_home, cuda_packages

ROOT = Path(__file__).parent.parent.parent


def prepare(machine):
    nvcc = machine.folder / "cuda-13" / "bin" / "nvcc"
    toolkit = cuda_home.read_toolkit(str(nvcc) if nvcc.exists() else machine.toolkit_13())
    return cuda_home.prepare(toolkit, machine.folder / "homes")


@pytest.fixture
def whole(machine, monkeypatch):
    wheels = machine.wheels()
    monkeypatch.setattr(cuda_home, "wheel_folders", lambda: wheels)
    return machine


def test_what_the_home_holds(whole):
    home = Path(prepare(whole).nvcc).parents[1]
    assert home.name.startswith("cuda13.0-cudnn9.19-") and home.parent == whole.folder / "homes"
    for name in ("libcudart.so", "libcublas.so", "libcublasLt.so", "libcudnn.so", "libcudnn_ops_infer.so",
                 "libcudnn_cnn_train.so", "libcurand.so", "libcufft.so", "libcusparse.so", "libnccl.so",
                 "libcudadevrt.a"):
        assert (home / "lib64" / name).is_file(), name
    assert (home / "lib64/libcudnn_ops_infer.so").resolve().name == "libcudnn_ops.so.9"
    for own, real in (("cuda_runtime.h", "cuda_runtime_real.h"), ("cudnn.h", "cudnn_real.h"),
                      ("cub/cub.cuh", "cub/cub_real.cuh")):
        assert f'#include "{Path(real).name}"' in (home / "include" / own).read_text()
        assert (home / "include" / real).read_text() == f"// {Path(own).name}\n"
    assert (home / "include/cub/util.cuh").is_file() and (home / "include/thrust/a.h").is_file()
    assert "NPP_MAX_32U" in (home / "include/npp.h").read_text()
    record = json.loads((home / "made_from.json").read_text())
    assert record["cuda"] == "13.0" and record["cudnn"] == "9.19"


def test_nvcc_of_the_home(whole):
    nvcc = prepare(whole).nvcc
    def passed(*arguments):
        return subprocess.run([nvcc, *arguments], capture_output=True, text=True, check=True).stdout.strip()
    assert passed("-std=c++14", "-c", "a b.cu") == "-std=c++17 -c a b.cu"
    assert passed("-arch=compute_90", "-code=sm_90") == "-arch=compute_90 -code=sm_90,compute_90"
    # The portable form of the oldest, for cards newer than Jittor knows: it takes them for 9.0.
    several = passed("-arch=compute_80", "-code=sm_90", "-code=sm_80")
    assert several == "-arch=compute_80 -code=sm_90,compute_80 -code=sm_80"


def test_the_home_is_made_once_and_anew_when_its_sources_change(whole):
    first = prepare(whole).nvcc
    inode = os.stat(first).st_ino
    assert prepare(whole).nvcc == first and os.stat(first).st_ino == inode
    (whole.folder / "site/nvidia/cudnn/include/cudnn_version.h").write_text(
        "#define CUDNN_MAJOR 9\n#define CUDNN_MINOR 20\n")
    assert prepare(whole).nvcc != first


def test_a_home_with_a_broken_link_is_made_anew(whole):
    home = Path(prepare(whole).nvcc).parents[1]
    link = home / "lib64" / "libcufft.so"
    link.unlink()
    link.symlink_to("/nowhere")
    assert Path(prepare(whole).nvcc).parents[1] == home
    assert link.exists() and [p.name for p in home.parent.iterdir()] == [home.name]


def test_several_processes_make_the_home_at_once(whole):
    code = """
import sys
from pathlib import Path
from jea.environment import cuda_home
cuda_home.wheel_folders = lambda: sorted(Path(sys.argv[1], "site/nvidia").iterdir())
print(cuda_home.prepare(cuda_home.read_toolkit(sys.argv[2]), Path(sys.argv[1], "homes")).nvcc)
"""
    started = [subprocess.Popen([sys.executable, "-c", code, str(whole.folder), nvcc], cwd=ROOT, text=True,
                                env=dict(os.environ, nvcc_path=""), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
               for nvcc in [whole.toolkit_13()] * 6]
    said = set()
    for process in started:
        out, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
        said.add(out.strip())
    assert len(said) == 1 and len(list((whole.folder / "homes").iterdir())) == 1
    assert os.access(said.pop(), os.X_OK)


def test_setup_brings_the_same_packages():
    """setup.py cannot import jea: its extra repeats the pins."""
    for packages in (cuda_packages.CUDA_13, cuda_packages.CUDA_12):
        extra = re.search(rf'"{packages.extra}": \[(.*?)\]', (ROOT / "setup.py").read_text(), re.DOTALL).group(1)
        assert dict(re.findall(r'"([\w-]+)==([\d.]+)', extra)) == packages.pins
        assert {package for _, _, package in packages.needed if package} <= packages.pins.keys()


def test_ci_installs_the_same_packages():
    code = re.search(r"pins=\$\(python -c '(.*)'\)", (ROOT / ".ci" / "run").read_text()).group(1)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.split() == [f"{name}=={version}" for name, version in cuda_packages.CUDA_13.pins.items()]
