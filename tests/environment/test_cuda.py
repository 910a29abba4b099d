"""Which CUDA is used, on machines with these drivers, toolkits and wheels."""
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from cuda_machines import HEADERS_13, LIBRARIES_12, LIBRARIES_13, make_toolkit

from jea import environment
from jea.environment import cuda, cuda_home, cuda_packages

ROOT = Path(__file__).parent.parent.parent


@pytest.mark.parametrize("said", ["no NVIDIA driver (libcuda.so.1) on this machine", "the NVIDIA driver sees no GPU"])
def test_no_gpu_means_cpu_whatever_toolkit_lies_around(machine, said):
    found = machine.decide(cuda.Driver(said), [machine.toolkit_13()], machine.wheels())
    assert (found.device, found.device_reason, found.cuda_broken) == ("cpu", said, False)
    assert os.environ["nvcc_path"] == ""  # Jittor aborts the process if it finds an nvcc but no GPU
    assert "NVIDIA_TF32_OVERRIDE" not in os.environ and not (machine.folder / "jea").exists()


def test_driver_without_toolkit(machine):
    found = machine.decide()
    assert found.device == "cpu" and found.cuda_broken and os.environ["nvcc_path"] == ""
    assert found.device_reason.startswith(machine.hopper.said) and "pip install 'jea[cuda13]'" in found.device_reason
    del os.environ["nvcc_path"]
    found = machine.decide(cuda.Driver("1 GPU", ((8, 0),), (12, 4)))
    assert "jittor_utils.install_cuda" in found.device_reason  # such a driver does not run CUDA 13


def test_cuda_13_with_cudnn_9_from_the_wheels(machine):
    found = machine.decide(machine.hopper, [machine.toolkit_13()], machine.wheels())
    assert found.device == "cuda" and not found.cuda_broken and not found.notes
    assert found.nvcc == os.environ["nvcc_path"] and found.nvcc.startswith(str(machine.folder / "jea" / "cuda"))
    assert "CUDA 13.0" in found.device_reason and "cuDNN 9.19" in found.device_reason
    assert os.environ["use_cutt"] == os.environ["use_cutlass"] == "0"
    home = Path(found.nvcc).parents[1]
    assert os.environ["nccl_lib_path"] == str(home / "lib64")
    assert os.environ["nccl_include_path"] == str(home / "include")
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
    found = machine.decide(machine.hopper, [nvcc], [w for w in wheels if w.exists()])
    assert found.device == "cpu" and found.cuda_broken
    packages = cuda_packages.CUDA_13.pins
    assert (f"pip install nvidia-cudnn-cu13=={packages['nvidia-cudnn-cu13']} nvidia-cufft=={packages['nvidia-cufft']}"
            in found.device_reason)


def test_nccl_may_be_missing(machine):
    found = machine.decide(machine.hopper, [machine.toolkit_13()], machine.wheels(nccl=False))
    assert found.device == "cuda" and os.environ["use_nccl"] == "0" and "nccl_lib_path" not in os.environ
    assert "pip install nvidia-nccl-cu13==" in found.notes[0]


def test_cuda_13_with_cudnn_8(machine):
    found = machine.decide(machine.hopper, [machine.toolkit_13()], machine.wheels(cudnn="8"))
    assert found.device == "cpu" and "cuDNN 8.19" in found.device_reason and "cuDNN 9 is needed" in found.device_reason


def test_cuda_12_with_cudnn_8_is_left_alone(machine):
    nvcc = make_toolkit(machine.folder / "cuda", "12.2", libraries=("libcudart.so", "libcublas.so", "libcudnn.so",
                                                                    "libcudnn_ops_infer.so.8"))
    found = machine.decide(machine.hopper, [machine.toolkit_13(), nvcc], machine.wheels())
    assert (found.device, found.nvcc, os.environ["nvcc_path"]) == ("cuda", nvcc, nvcc)
    assert "use_cutt" not in os.environ and "use_nccl" not in os.environ and not (machine.folder / "jea").exists()


def test_cuda_12_without_cudnn_8_gives_way_to_cuda_13(machine):
    nvcc = make_toolkit(machine.folder / "cuda", "12.2", libraries=("libcudart.so", "libcublas.so"))
    found = machine.decide(machine.hopper, [nvcc])
    assert found.cuda_broken and "libcudnn.so, libcudnn_ops_infer.so not found" in found.device_reason
    del os.environ["nvcc_path"]
    assert machine.decide(machine.hopper, [nvcc, machine.toolkit_13()], machine.wheels()).device == "cuda"


# -- CUDA 12 with cuDNN 9 -----------------------------------------------------------------------------------------

AMPERE = cuda.Driver("1 GPU of compute capability 8.0, driver for CUDA 12.4", ((8, 0),), (12, 4))
VOLTA = cuda.Driver("1 GPU of compute capability 7.0, driver for CUDA 13.0", ((7, 0),), (13, 0))


@pytest.mark.parametrize("driver", [AMPERE, VOLTA])
def test_cuda_12_of_the_system_with_cudnn_9_from_its_wheel(machine, driver):
    found = machine.decide(driver, [machine.toolkit_12()], machine.wheels(), installed=("nvidia-cudnn-cu12",
                                                                                        "nvidia-nccl-cu12"))
    assert found.device == "cuda" and not found.cuda_broken and not found.notes
    assert found.nvcc == os.environ["nvcc_path"] and found.nvcc.startswith(str(machine.folder / "jea" / "cuda"))
    assert "CUDA 12.8" in found.device_reason and "cuDNN 9.19" in found.device_reason
    assert os.environ["use_cutt"] == os.environ["use_cutlass"] == "0" and "use_nccl" not in os.environ
    home = Path(found.nvcc).parents[1]
    assert (home / "include/cuda_runtime.h").read_text() == "// cuda_runtime.h\n"  # whose members are all there
    assert '#include "cudnn_real.h"' in (home / "include/cudnn.h").read_text()
    assert (home / "lib64/libcudnn_ops_infer.so").resolve().name == "libcudnn_ops.so.9"
    assert (home / "lib64/libcublas.so").resolve().name == "libcublas.so.12"  # not that of the wheels of CUDA 13
    assert found.fitting.startswith("jea[cuda12] (CUDA 12 with cuDNN 9; drivers 525 or newer")


def test_what_cuda_12_lacks_is_named_with_its_command(machine):
    pins = cuda_packages.CUDA_12.pins
    nvcc = machine.toolkit_12(libraries=LIBRARIES_12[:3] + LIBRARIES_12[4:])
    for installed in ((), ("nvidia-cudnn-cu13", "nvidia-nccl-cu13")):  # another version's cuDNN is none
        found = machine.decide(AMPERE, [nvcc], machine.wheels() if installed else [], installed=installed)
        assert found.device == "cpu" and found.cuda_broken
        assert (f"pip install nvidia-cudnn-cu12=={pins['nvidia-cudnn-cu12']} "
                f"nvidia-curand-cu12=={pins['nvidia-curand-cu12']}") in found.device_reason
        del os.environ["nvcc_path"]
    (machine.folder / "cuda-12/include/cub/cub.cuh").unlink()
    assert "lacks cub/cub.cuh: it is not whole" in machine.decide(AMPERE, [nvcc]).device_reason


def test_either_toolkit_that_fits(machine):
    """CUDA 13 first, where the driver takes it and its wheels are there; else CUDA 12."""
    toolkits, wheels = [machine.toolkit_12(), machine.toolkit_13()], machine.wheels()
    for driver, installed, version in ((machine.hopper, ("nvidia-cudnn-cu13",), "13.0"),
                                       (machine.hopper, ("nvidia-cudnn-cu12",), "12.8"),
                                       (VOLTA, ("nvidia-cudnn-cu12",), "12.8")):
        found = machine.decide(driver, toolkits, wheels, installed=installed)
        assert found.device == "cuda" and f"CUDA {version}" in found.device_reason, found.device_reason
        del os.environ["nvcc_path"]


@pytest.mark.parametrize("driver, fits, command", [
    (cuda.Driver("a GPU", ((9, 0),), (13, 1)), "jea[cuda13] (CUDA 13 with cuDNN 9; drivers 580 or newer)",
     "pip install 'jea[cuda13]'"),
    (AMPERE, "jea[cuda12] (CUDA 12 with cuDNN 9; drivers 525 or newer; nvcc comes with NVIDIA's toolkit",
     "pip install 'jea[cuda12]'"),
    (VOLTA, "jea[cuda12] (", "pip install 'jea[cuda12]'"),
    (cuda.Driver("a GPU", ((8, 0),), (11, 8)), "none: the driver is too old for CUDA 12", "update it"),
])
def test_the_one_command_that_fits_the_driver(machine, driver, fits, command):
    found = machine.decide(driver)
    assert found.fitting.startswith(fits) and command in found.device_reason
    assert found.device_reason.count("jea[cuda") <= 1 and found.cuda_broken
    assert ("nvcc is in no package of Python's index" in found.device_reason) == ("cuda12" in command)


def test_a_toolkit_that_the_driver_does_not_take_is_not_all_that_is_said(machine):
    found = machine.decide(AMPERE, [machine.toolkit_13()], machine.wheels())
    assert "wants a driver for CUDA 13" in found.device_reason and "pip install 'jea[cuda12]'" in found.device_reason


def test_the_cuda_that_jittor_installed_is_left_alone(machine):
    (machine.folder / "home/.cache/jittor/jtcuda").mkdir(parents=True)
    found = machine.decide(machine.hopper, [machine.toolkit_13()], machine.wheels())
    assert found.device == "cuda" and "that Jittor installed" in found.device_reason and "nvcc_path" not in os.environ


def test_the_users_choices_win(machine, monkeypatch):
    monkeypatch.setenv("nvcc_path", "/my/nvcc")
    found = machine.decide(machine.hopper, [machine.toolkit_13()], machine.wheels())
    assert found.nvcc == "/my/nvcc" == os.environ["nvcc_path"] and "set by the user" in found.device_reason
    monkeypatch.setenv("nvcc_path", "")
    assert "turned off" in machine.decide().device_reason
    monkeypatch.delenv("nvcc_path")
    chosen = {"use_cutt": "1", "nccl_lib_path": "/my/nccl", "cc_flags": "-g", "NVIDIA_TF32_OVERRIDE": "1"}
    for name, value in chosen.items():
        monkeypatch.setenv(name, value)
    found = machine.decide(machine.hopper, [str(machine.folder / "cuda-13/bin/nvcc")],
                           sorted((machine.folder / "site/nvidia").iterdir()))
    assert found.device == "cuda" and not found.tf32_off
    assert {name: os.environ[name] for name in chosen} == chosen


@pytest.mark.parametrize("driver, said", [
    (cuda.Driver("1 GPU", ((8, 0),), (12, 4)), "wants a driver for CUDA 13 (580 or newer): update the driver"),
    (cuda.Driver("2 GPUs", ((9, 0), (7, 0)), (13, 0)), "CUDA 13 has no code for compute capability 7.0"),
])
def test_drivers_and_cards_too_old_for_cuda_13(machine, driver, said):
    found = machine.decide(driver, [machine.toolkit_13()], machine.wheels())
    assert found.device == "cpu" and found.cuda_broken and said in found.device_reason


@pytest.mark.parametrize("text, said", [("echo nonsense", "--version is not understood"), (None, "does not run")])
def test_an_nvcc_that_does_not_answer(machine, text, said):
    nvcc = machine.folder / "nvcc"
    nvcc.write_text(f"#!/bin/sh\n{text}" if text else "")
    nvcc.chmod(0o755)
    found = machine.decide(machine.hopper, [str(nvcc)])
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
    found = machine.decide(machine.hopper, [machine.toolkit_13()], machine.wheels())
    assert found.device == "cpu" and found.cuda_broken and "cannot be written" in found.device_reason
    assert "set JEA_HOME" in found.device_reason


def test_another_cuda_in_the_library_path_is_noted(machine, monkeypatch):
    wheels = machine.wheels()
    other = machine.folder / "other"
    other.mkdir()
    (other / "libcudnn.so.9").touch()
    (other / "libcufft.so.11").touch()  # of another major version, which nothing here asks for
    monkeypatch.setenv("LD_LIBRARY_PATH", f"{machine.folder / 'site/nvidia/cudnn/lib'}:{other}")
    notes = machine.decide(machine.hopper, [machine.toolkit_13()], wheels).notes
    assert len(notes) == 1
    assert f"LD_LIBRARY_PATH puts {other / 'libcudnn.so.9'} before the library of CUDA 13.0" in notes[0]


def test_float32_stays_float32_unless_asked(machine, monkeypatch):
    found = machine.decide(machine.hopper, [machine.toolkit_13()], machine.wheels())
    assert found.tf32_off and os.environ["NVIDIA_TF32_OVERRIDE"] == "0"
    monkeypatch.setattr(environment, "_decisions", found)
    environment.allow_tf32()
    assert "NVIDIA_TF32_OVERRIDE" not in os.environ


@pytest.mark.skipif(shutil.which("gcc") is None, reason="gcc is not installed")
def test_the_driver_is_asked(tmp_path):
    """A driver with an A100 and an H100, a driver without cards, and something else of that name."""
    def ask(source):
        (tmp_path / "cuda.c").write_text(source)
        subprocess.run(["gcc", "-shared", "-fPIC", tmp_path / "cuda.c", "-o", tmp_path / "libcuda.so.1"], check=True)
        code = ("from jea.environment import cuda; d = cuda.ask_driver(); "
                "print(d.said, d.capabilities, d.version, sep='|')")
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
    for status, said in ((100, "it sees no GPU; CUDA_VISIBLE_DEVICES"), (803, "its library and the kernel's module are "
                                                                              "of"),
                         (7, "look at what nvidia-smi says")):
        assert ask(driver.replace("STATUS", str(status)).replace("COUNT", "1")).startswith(
            f"the NVIDIA driver does not start (cuInit error {status}: {said}")
    assert ask("int x;").startswith("libcuda.so.1 is not a usable NVIDIA driver|()")


