"""Machines with these drivers, toolkits and wheels, and undecided environments."""
import os

import pytest
from cuda_machines import HEADERS_12, HEADERS_13, LIBRARIES_12, LIBRARIES_13, make_toolkit, make_wheels

from jea import environment
from jea.environment import cuda, cuda_home
from jea.environment.decisions import Decisions

HOPPER = cuda.Driver("1 GPU of compute capability 9.0, driver for CUDA 13.0", ((9, 0),), (13, 0))


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """machine.decide(driver, toolkits, wheels): what is decided there. The environment is put back afterwards."""
    before = dict(os.environ)
    for name in ("JITTOR_HOME", "nvcc_path", "cc_flags", "use_cutt", "use_cutlass", "use_nccl", "nccl_include_path",
                 "nccl_lib_path", "NVIDIA_TF32_OVERRIDE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("JEA_HOME", str(tmp_path / "jea"))

    class Machine:
        folder = tmp_path
        hopper = HOPPER

        @staticmethod
        def decide(driver=HOPPER, toolkits=(), wheels=(), installed=()):
            monkeypatch.setattr(cuda, "ask_driver", lambda: driver)
            monkeypatch.setattr(cuda, "toolkit_places", lambda: [t for t in (*toolkits, cuda_home.wheel_nvcc()) if t])
            monkeypatch.setattr(cuda_home, "wheel_folders", lambda: list(wheels))
            monkeypatch.setattr(cuda_home, "_place", lambda package: "here" if package in installed else "")
            found = Decisions()
            cuda.decide(found)
            return found

        @staticmethod
        def toolkit_13(**changes):
            return make_toolkit(tmp_path / "cuda-13", changes.get("version", "13.0"), HEADERS_13["toolkit"],
                                LIBRARIES_13["toolkit"])

        @staticmethod
        def toolkit_12(**changes):
            return make_toolkit(tmp_path / "cuda-12", changes.get("version", "12.8"), HEADERS_12,
                                changes.get("libraries", LIBRARIES_12))

        @staticmethod
        def wheels(**options):
            return make_wheels(tmp_path / "site" / "nvidia", **options)
    yield Machine
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture
def fresh(monkeypatch, tmp_path):
    """Nothing is decided yet, and the home is an empty folder; what is written into the environment is undone."""
    before = dict(os.environ)
    monkeypatch.setattr(environment, "_decisions", None)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("JITTOR_HOME", "nvcc_path", "use_mkl", "cc_path", "python_config_path"):
        monkeypatch.delenv(name, raising=False)
    yield tmp_path
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture
def script():
    """script(path, text): a shell script that can be run; its path as text."""
    def write(path, text):
        path.write_text("#!/bin/sh\n" + text)
        path.chmod(0o755)
        return str(path)
    return write
