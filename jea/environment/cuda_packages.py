"""NVIDIA's wheels from which a CUDA home can be made (cuda_home.py), pinned: one set for each version of CUDA.

No wheel of CUDA 12 holds the compiler: nvidia-cuda-nvcc-cu12 (up to 12.9.86, the newest) has ptxas, libnvvm and
headers, and neither nvcc nor the cicc that it calls. So with CUDA 12 nvcc is the system's.
"""
from __future__ import annotations

import os
import sys
from dataclasses import dataclass


@dataclass(frozen=True)
class Packages:
    """A set of wheels.

    pins: package -> version, as in setup.py's extra. needed: (header, library, package) of what must be found.
    lowest_driver: the CUDA that the driver must support; drivers: which ones do. lowest_capability: of the cards.
    """

    extra: str
    pins: dict
    needed: tuple
    lowest_driver: tuple
    drivers: str
    lowest_capability: tuple
    capabilities: str
    compiler: str = ""  # the package that brings nvcc


def _needed(runtime, crt, cccl, cublas, cudnn, curand, cufft, cusparse, nvjitlink, nvrtc) -> tuple:
    return (("cuda_runtime.h", "libcudart.so", runtime), ("crt/host_config.h", None, crt), ("cub/cub.cuh", None, cccl),
            ("cublas_v2.h", "libcublas.so", cublas), ("cudnn.h", "libcudnn.so", cudnn),
            ("curand.h", "libcurand.so", curand), ("cufft.h", "libcufft.so", cufft),
            ("cusparse.h", "libcusparse.so", cusparse), (None, "libnvJitLink.so", nvjitlink),
            (None, "libnvrtc.so", nvrtc))  # cuDNN compiles some of its kernels at run time


# The sets that PyTorch's builds use: CUDA 13.0 update 2, which was compiled and ran (tests/gpu), and CUDA 12.8.
CUDA_13 = Packages(
    extra="cuda13", compiler="nvidia-cuda-nvcc", lowest_driver=(13, 0), drivers="580 or newer",
    lowest_capability=(7, 5), capabilities="7.5 is its lowest",
    pins={
        "nvidia-cuda-nvcc": "13.0.88",
        "nvidia-nvvm": "13.0.88",
        "nvidia-cuda-crt": "13.0.88",
        "nvidia-cuda-runtime": "13.0.96",
        "nvidia-cuda-cccl": "13.0.85",
        "nvidia-cuda-nvrtc": "13.0.88",
        "nvidia-cublas": "13.1.0.3",
        "nvidia-cudnn-cu13": "9.19.0.56",
        "nvidia-curand": "10.4.0.35",
        "nvidia-cufft": "12.0.0.61",
        "nvidia-cusparse": "12.6.3.3",
        "nvidia-nvjitlink": "13.0.88",
        "nvidia-nccl-cu13": "2.28.9",
    },
    needed=_needed("nvidia-cuda-runtime", "nvidia-cuda-crt", "nvidia-cuda-cccl", "nvidia-cublas", "nvidia-cudnn-cu13",
                   "nvidia-curand", "nvidia-cufft", "nvidia-cusparse", "nvidia-nvjitlink", "nvidia-cuda-nvrtc"))
CUDA_12 = Packages(
    extra="cuda12", lowest_driver=(12, 0), drivers="525 or newer", lowest_capability=(5, 0),
    capabilities="5.0 is its lowest",
    pins={
        "nvidia-cuda-runtime-cu12": "12.8.90",
        "nvidia-cuda-nvrtc-cu12": "12.8.93",
        "nvidia-cublas-cu12": "12.8.4.1",
        "nvidia-cudnn-cu12": "9.19.0.56",
        "nvidia-curand-cu12": "10.3.9.90",
        "nvidia-cufft-cu12": "11.3.3.83",
        "nvidia-cusparse-cu12": "12.5.8.93",
        "nvidia-nvjitlink-cu12": "12.8.93",
        "nvidia-nccl-cu12": "2.28.9",
    },
    needed=_needed("nvidia-cuda-runtime-cu12", "", "", "nvidia-cublas-cu12", "nvidia-cudnn-cu12", "nvidia-curand-cu12",
                   "nvidia-cufft-cu12", "nvidia-cusparse-cu12", "nvidia-nvjitlink-cu12", "nvidia-cuda-nvrtc-cu12"))


def packages_of(version: tuple) -> Packages:
    """The set for a toolkit's version."""
    return CUDA_12 if version[0] <= 12 else CUDA_13


def fitting(driver_version: tuple, capabilities: tuple = ()) -> Packages | None:
    """The newest set that a driver and all its cards run; None: no set does."""
    for packages in (CUDA_13, CUDA_12):
        if driver_version >= packages.lowest_driver and all(c >= packages.lowest_capability for c in capabilities):
            return packages
    return None


def advice(driver_version: tuple, capabilities: tuple = ()) -> str:
    """What to install for a driver and cards, where there is no toolkit yet."""
    packages = fitting(driver_version, capabilities)
    if packages is None:
        return "the driver is too old for CUDA 12 with cuDNN 9 (525 or newer): update it"
    if packages.compiler:
        return f"install one for this Python with: pip install 'jea[{packages.extra}]'"
    return ("this driver and card fit CUDA 12, whose nvcc is in no package of Python's index: install NVIDIA's toolkit "
            "(cuda-nvcc-12-8 of its package repository, or conda's cuda-nvcc=12.8), and what it lacks with: pip "
            f"install 'jea[{packages.extra}]' (or, with cuDNN 8, Jittor's own CUDA: "
            f"`{os.path.basename(sys.executable)} -m jittor_utils.install_cuda`)")


def said(driver_version: tuple, capabilities: tuple) -> str:
    """Which set fits a driver and its cards, for `jea info`."""
    packages = fitting(driver_version, capabilities)
    if packages is None:
        return "none: " + advice(driver_version, capabilities)
    return (f"jea[{packages.extra}] (CUDA {packages.lowest_driver[0]} with cuDNN 9; drivers {packages.drivers}" +
            ("" if packages.compiler else "; nvcc comes with NVIDIA's toolkit, not from Python's index") + ")")
