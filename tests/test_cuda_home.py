"""Which CUDA is used, on machines with these drivers, toolkits and wheels, and the CUDA home made of them."""
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from jea.environment import cuda_home, runtime

ROOT = Path(__file__).parent.parent
HOPPER = runtime.Driver("1 GPU of compute capability 9.0, driver for CUDA 13.0", ((9, 0),), (13, 0))

HEADERS_13 = {"toolkit": ("cuda_runtime.h", "crt/host_config.h", "cccl/cub/cub.cuh", "cccl/cub/util.cuh", "cccl/thrust/a.h"),
              "wheels": ("cublas_v2.h", "curand.h", "cufft.h", "cusparse.h")}
LIBRARIES_13 = {"toolkit": ("libcudart.so.13", "libcudadevrt.a"),
                "wheels": ("libcublas.so.13", "libcublasLt.so.13", "libcurand.so.10", "libcufft.so.12",
                           "libcusparse.so.12", "libnvJitLink.so.13", "libnvrtc.so.13")}


def fill(folder, headers=(), libraries=(), lib="lib"):
    for path in [folder / "include" / name for name in headers] + [folder / lib / name for name in libraries]:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"// {path.name}\n")
    return folder


def make_toolkit(folder, version, headers=(), libraries=()):
    """A folder whose bin/nvcc answers as NVIDIA's does."""
    fill(folder, headers, libraries, "lib64")
    (folder / "bin").mkdir(parents=True)
    nvcc = folder / "bin" / "nvcc"
    nvcc.write_text(f"""#!/bin/sh
case "$*" in
  *--version*) echo 'Cuda compilation tools, release {version}, V{version}.88' ;;
  *--dryrun*) echo '#$ TOP={folder}/bin/..' >&2 ;;
  *) echo "$@" ;;
esac
""")
    nvcc.chmod(0o755)
    (folder / "nvvm" / "bin").mkdir(parents=True)
    (folder / "nvvm" / "bin" / "cicc").touch()
    return str(nvcc)


def make_wheels(folder, cudnn="9", nccl=True):
    """site-packages/nvidia as NVIDIA's CUDA 13 wheels fill it."""
    fill(folder / "cu13", HEADERS_13["wheels"], LIBRARIES_13["wheels"])
    parts = ("", "_ops", "_cnn") if cudnn == "9" else ("", "_ops_infer", "_cnn_infer")
    fill(folder / "cudnn", ("cudnn.h", "cudnn_version.h"), [f"libcudnn{part}.so.{cudnn}" for part in parts])
    (folder / "cudnn/include/cudnn_version.h").write_text(f"#define CUDNN_MAJOR {cudnn}\n#define CUDNN_MINOR 19\n")
    if nccl:
        fill(folder / "nccl", ("nccl.h",), ("libnccl.so.2",))
    return sorted(folder.iterdir())


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """machine.decide(driver, toolkits, wheels): what is decided there. The environment is put back afterwards."""
    environment = dict(os.environ)
    for name in ("JITTOR_HOME", "nvcc_path", "cc_flags", "use_cutt", "use_cutlass", "use_nccl", "nccl_include_path",
                 "nccl_lib_path", "NVIDIA_TF32_OVERRIDE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("JEA_HOME", str(tmp_path / "jea"))

    class Machine:
        folder = tmp_path

        @staticmethod
        def decide(driver=HOPPER, toolkits=(), wheels=()):
            monkeypatch.setattr(runtime, "ask_driver", lambda: driver)
            monkeypatch.setattr(runtime, "_toolkit_places", lambda: [t for t in (*toolkits, cuda_home.wheel_nvcc()) if t])
            monkeypatch.setattr(cuda_home, "wheel_folders", lambda: list(wheels))
            found = runtime.Decisions()
            runtime._decide_cuda(found)
            return found

        @staticmethod
        def toolkit_13(**changes):
            return make_toolkit(tmp_path / "cuda-13", changes.get("version", "13.0"), HEADERS_13["toolkit"],
                                LIBRARIES_13["toolkit"])

        @staticmethod
        def wheels(**options):
            return make_wheels(tmp_path / "site" / "nvidia", **options)
    yield Machine
    os.environ.clear()
    os.environ.update(environment)


# -- the decision -----------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("said", ["no NVIDIA driver (libcuda.so.1) on this machine", "the NVIDIA driver sees no GPU"])
def test_no_gpu_means_cpu_whatever_toolkit_lies_around(machine, said):
    found = machine.decide(runtime.Driver(said), [machine.toolkit_13()], machine.wheels())
    assert (found.device, found.device_reason, found.cuda_broken) == ("cpu", said, False)
    assert os.environ["nvcc_path"] == ""  # Jittor aborts the process if it finds an nvcc but no GPU
    assert "NVIDIA_TF32_OVERRIDE" not in os.environ and not (machine.folder / "jea").exists()


def test_driver_without_toolkit(machine):
    found = machine.decide()
    assert found.device == "cpu" and found.cuda_broken and os.environ["nvcc_path"] == ""
    assert found.device_reason.startswith(HOPPER.said) and "pip install 'jea[cuda13]'" in found.device_reason
    del os.environ["nvcc_path"]
    found = machine.decide(runtime.Driver("1 GPU", ((8, 0),), (12, 4)))
    assert "jittor_utils.install_cuda" in found.device_reason  # such a driver does not run CUDA 13


def test_cuda_13_with_cudnn_9_from_the_wheels(machine):
    found = machine.decide(HOPPER, [machine.toolkit_13()], machine.wheels())
    assert found.device == "cuda" and not found.cuda_broken and not found.notes
    assert found.nvcc == os.environ["nvcc_path"] and found.nvcc.startswith(str(machine.folder / "jea" / "cuda"))
    assert "CUDA 13.0" in found.device_reason and "cuDNN 9.19" in found.device_reason
    assert os.environ["use_cutt"] == os.environ["use_cutlass"] == "0"
    home = Path(found.nvcc).parents[1]
    assert os.environ["nccl_lib_path"] == str(home / "lib64") and os.environ["nccl_include_path"] == str(home / "include")
    assert "use_nccl" not in os.environ and "cc_flags" not in os.environ


def test_wheels_alone(machine):
    wheels = machine.wheels()
    make_toolkit(machine.folder / "site/nvidia/cu13", "13.0", HEADERS_13["toolkit"], LIBRARIES_13["toolkit"])
    found = machine.decide(wheels=wheels)
    assert found.device == "cuda" and "site/nvidia/cu13" in found.device_reason


def test_missing_wheels_are_named_with_their_command(machine):
    wheels = machine.wheels()
    shutil.rmtree(machine.folder / "site/nvidia/cudnn")
    (machine.folder / "site/nvidia/cu13/lib/libcufft.so.12").unlink()
    shutil.rmtree(machine.folder / "site/nvidia/nccl")
    nvcc = machine.toolkit_13()
    found = machine.decide(HOPPER, [nvcc], [w for w in wheels if w.exists()])
    assert found.device == "cpu" and found.cuda_broken
    packages = cuda_home.PACKAGES
    assert (f"pip install nvidia-cudnn-cu13=={packages['nvidia-cudnn-cu13']} nvidia-cufft=={packages['nvidia-cufft']}"
            in found.device_reason)


def test_nccl_may_be_missing(machine):
    found = machine.decide(HOPPER, [machine.toolkit_13()], machine.wheels(nccl=False))
    assert found.device == "cuda" and os.environ["use_nccl"] == "0" and "nccl_lib_path" not in os.environ
    assert "pip install nvidia-nccl-cu13==" in found.notes[0]


def test_cuda_13_with_cudnn_8(machine):
    found = machine.decide(HOPPER, [machine.toolkit_13()], machine.wheels(cudnn="8"))
    assert found.device == "cpu" and "cuDNN 8.19" in found.device_reason and "cuDNN 9 is needed" in found.device_reason


def test_cuda_12_with_cudnn_8_is_left_alone(machine):
    nvcc = make_toolkit(machine.folder / "cuda", "12.2", libraries=("libcudart.so", "libcublas.so", "libcudnn.so",
                                                                    "libcudnn_ops_infer.so.8"))
    found = machine.decide(HOPPER, [machine.toolkit_13(), nvcc], machine.wheels())
    assert (found.device, found.nvcc, os.environ["nvcc_path"]) == ("cuda", nvcc, nvcc)
    assert "use_cutt" not in os.environ and "use_nccl" not in os.environ and not (machine.folder / "jea").exists()


def test_cuda_12_without_cudnn_8_gives_way_to_cuda_13(machine):
    nvcc = make_toolkit(machine.folder / "cuda", "12.2", libraries=("libcudart.so", "libcublas.so"))
    found = machine.decide(HOPPER, [nvcc])
    assert found.cuda_broken and "libcudnn.so, libcudnn_ops_infer.so not found" in found.device_reason
    del os.environ["nvcc_path"]
    assert machine.decide(HOPPER, [nvcc, machine.toolkit_13()], machine.wheels()).device == "cuda"


def test_the_cuda_that_jittor_installed_is_left_alone(machine):
    (machine.folder / "home/.cache/jittor/jtcuda").mkdir(parents=True)
    found = machine.decide(HOPPER, [machine.toolkit_13()], machine.wheels())
    assert found.device == "cuda" and "that Jittor installed" in found.device_reason and "nvcc_path" not in os.environ


def test_the_users_choices_win(machine, monkeypatch):
    monkeypatch.setenv("nvcc_path", "/my/nvcc")
    found = machine.decide(HOPPER, [machine.toolkit_13()], machine.wheels())
    assert found.nvcc == "/my/nvcc" == os.environ["nvcc_path"] and "set by the user" in found.device_reason
    monkeypatch.setenv("nvcc_path", "")
    assert "turned off" in machine.decide().device_reason
    monkeypatch.delenv("nvcc_path")
    chosen = {"use_cutt": "1", "nccl_lib_path": "/my/nccl", "cc_flags": "-g", "NVIDIA_TF32_OVERRIDE": "1"}
    for name, value in chosen.items():
        monkeypatch.setenv(name, value)
    found = machine.decide(HOPPER, [str(machine.folder / "cuda-13/bin/nvcc")],
                           sorted((machine.folder / "site/nvidia").iterdir()))
    assert found.device == "cuda" and not found.tf32_off
    assert {name: os.environ[name] for name in chosen} == chosen


@pytest.mark.parametrize("driver, said", [
    (runtime.Driver("1 GPU", ((8, 0),), (12, 4)), "wants a driver for CUDA 13 (580 or newer): update the driver"),
    (runtime.Driver("2 GPUs", ((9, 0), (7, 0)), (13, 0)), "CUDA 13 has no code for compute capability 7.0"),
])
def test_drivers_and_cards_too_old_for_cuda_13(machine, driver, said):
    found = machine.decide(driver, [machine.toolkit_13()], machine.wheels())
    assert found.device == "cpu" and found.cuda_broken and said in found.device_reason


@pytest.mark.parametrize("text, said", [("echo nonsense", "--version is not understood"), (None, "does not run")])
def test_an_nvcc_that_does_not_answer(machine, text, said):
    nvcc = machine.folder / "nvcc"
    nvcc.write_text(f"#!/bin/sh\n{text}" if text else "")
    nvcc.chmod(0o755)
    found = machine.decide(HOPPER, [str(nvcc)])
    assert found.device == "cpu" and said in found.device_reason


def test_a_script_that_calls_nvcc_and_a_link_to_it(machine):
    real = machine.toolkit_13()
    script, link = machine.folder / "nvcc", machine.folder / "link"
    script.write_text(f'#!/bin/sh\nexec {real} "$@"\n')
    script.chmod(0o755)
    link.symlink_to(real)
    for nvcc in (script, link):
        assert cuda_home.read_toolkit(str(nvcc)) == cuda_home.Toolkit(real, (13, 0), machine.folder / "cuda-13")


def test_unwritable_cache(machine, monkeypatch):
    (machine.folder / "file").touch()
    monkeypatch.setenv("JEA_HOME", str(machine.folder / "file"))  # root may write anywhere, but not below a file
    found = machine.decide(HOPPER, [machine.toolkit_13()], machine.wheels())
    assert found.device == "cpu" and found.cuda_broken and "cannot be written" in found.device_reason
    assert "set JEA_HOME" in found.device_reason


def test_float32_stays_float32_unless_asked(machine, monkeypatch):
    found = machine.decide(HOPPER, [machine.toolkit_13()], machine.wheels())
    assert found.tf32_off and os.environ["NVIDIA_TF32_OVERRIDE"] == "0"
    monkeypatch.setattr(runtime, "_decisions", found)
    runtime.allow_tf32()
    assert "NVIDIA_TF32_OVERRIDE" not in os.environ


@pytest.mark.skipif(shutil.which("gcc") is None, reason="gcc is not installed")
def test_the_driver_is_asked(tmp_path):
    """A driver with an A100 and an H100, a driver without cards, and something else of that name."""
    def ask(source):
        (tmp_path / "cuda.c").write_text(source)
        subprocess.run(["gcc", "-shared", "-fPIC", tmp_path / "cuda.c", "-o", tmp_path / "libcuda.so.1"], check=True)
        code = "from jea import runtime; d = runtime.ask_driver(); print(d.said, d.capabilities, d.version, sep='|')"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True,
                              env=dict(os.environ, LD_LIBRARY_PATH=str(tmp_path), nvcc_path=""))
        return done.stdout.strip()
    driver = """
        int cuInit(unsigned f) { return STATUS; } int cuDeviceGetCount(int* n) { *n = COUNT; return 0; }
        int cuDeviceGet(int* d, int i) { *d = i; return 0; } int cuDriverGetVersion(int* v) { *v = 12080; return 0; }
        int cuDeviceGetAttribute(int* v, int a, int d) { *v = a == 75 ? 8 + d : 0; return 0; }
        """
    assert ask(driver.replace("STATUS", "0").replace("COUNT", "2")) == (
        "2 GPUs of compute capability 8.0, 9.0, driver for CUDA 12.8|((8, 0), (9, 0))|(12, 8)")
    assert ask(driver.replace("STATUS", "0").replace("COUNT", "0")).startswith("the NVIDIA driver sees no GPU|()")
    for status, said in ((100, "it sees no GPU; CUDA_VISIBLE_DEVICES"), (803, "its library and the kernel's module are of"),
                         (7, "look at what nvidia-smi says")):
        assert ask(driver.replace("STATUS", str(status)).replace("COUNT", "1")).startswith(
            f"the NVIDIA driver does not start (cuInit error {status}: {said}")
    assert ask("int x;").startswith("libcuda.so.1 is not a usable NVIDIA driver|()")


# -- the home ---------------------------------------------------------------------------------------------------------

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
                 "libcudnn_cnn_train.so", "libcurand.so", "libcufft.so", "libcusparse.so", "libnccl.so", "libcudadevrt.a"):
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
    assert passed("-arch=compute_80", "-code=sm_90", "-code=sm_80") == "-arch=compute_80 -code=sm_90,compute_80 -code=sm_80"


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
from jea import cuda_home
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
    import re
    extra = re.search(r'"cuda13": \[(.*?)\]', (ROOT / "setup.py").read_text(), re.DOTALL).group(1)
    pins = dict(re.findall(r'"([\w-]+)==([\d.]+)', extra))
    assert pins == cuda_home.PACKAGES
