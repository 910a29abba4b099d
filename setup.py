"""Packaging of jea. `pip install -e .` brings Jittor and, on Linux x86-64, oneDNN from the package index."""
import re
import sys
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
VERSION = re.search(r'^__version__ = "(.+)"', (ROOT / "jea/__init__.py").read_text(), re.M).group(1)
BUNDLED = re.findall(r"^  file: (\S+)$", (ROOT / "weights/index.yaml").read_text(), re.M)
NEWEST_PYTHON = 13  # Jittor wants numpy below 2; numpy 1.26, the last such one, builds from source on 3.13
if sys.version_info >= (3, NEWEST_PYTHON + 1):  # pip would say which Python is required, and not what to do
    raise SystemExit(f"jea: Python 3.{sys.version_info.minor} is too new for Jittor. Put Python 3.{NEWEST_PYTHON} "
                     f"beside it: `uv venv --python 3.{NEWEST_PYTHON} .venv` or `pyenv install 3.{NEWEST_PYTHON}`, and "
                     "install there")
LINUX_X86 = 'platform_system == "Linux" and platform_machine == "x86_64"'

setup(
    name="jea",
    version=VERSION,
    description="External Attention (Guo et al., 2021) in Jittor: models, training, operators, checkpoint converter",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    packages=find_packages(include=["jea", "jea.*"]),
    package_data={"jea": [f"ops/{folders}/*.{ending}" for folders in ("*", "*/*") for ending in ("h", "cuh")]},
    # An installed wheel finds the configs and the demo weights here when there is no checkout (jea/files.py).
    data_files=[("share/jea/configs", sorted(str(p.relative_to(ROOT)) for p in (ROOT / "configs").glob("*.yaml"))),
                ("share/jea/weights", ["weights/index.yaml", *(f"weights/{name}" for name in BUNDLED)])],
    python_requires=f">=3.9,<3.{NEWEST_PYTHON + 1}",
    install_requires=[
        "jittor==1.3.11.0",  # jea mends known faults of this very version (environment/, nn/)
        "numpy>=1.22,<2",
        "pillow>=10.1",
        "pyyaml>=6.0",
        # Jittor 1.3 speaks the oneDNN 2 interface; 2022.2.1 (oneDNN 2.6) is the last such release on the index.
        f"onednn-cpu-gomp==2022.2.1; {LINUX_X86}",
        f"onednn-devel-cpu-gomp==2022.2.1; {LINUX_X86}",
    ],
    extras_require={
        "digits": ["scikit-learn"],  # its package holds the pictures of data.name=digits
        "detection": ["pycocotools>=2.0.7"],
        # CUDA 13 with cuDNN 9 for jea/environment/cuda_home.py: CUDA 13.0 update 2, the set that PyTorch's CUDA 13
        # builds use.
        "cuda13": [
            "nvidia-cuda-nvcc==13.0.88",
            "nvidia-nvvm==13.0.88",
            "nvidia-cuda-crt==13.0.88",
            "nvidia-cuda-runtime==13.0.96",
            "nvidia-cuda-cccl==13.0.85",
            "nvidia-cuda-nvrtc==13.0.88",
            "nvidia-cublas==13.1.0.3",
            "nvidia-cudnn-cu13==9.19.0.56",
            "nvidia-curand==10.4.0.35",
            "nvidia-cufft==12.0.0.61",
            "nvidia-cusparse==12.6.3.3",
            "nvidia-nvjitlink==13.0.88",
            "nvidia-nccl-cu13==2.28.9",
        ],
        # CUDA 12 with cuDNN 9, for drivers from 525 on: all but the compiler, which no wheel of CUDA 12 holds.
        "cuda12": [
            "nvidia-cuda-runtime-cu12==12.8.90",
            "nvidia-cuda-nvrtc-cu12==12.8.93",
            "nvidia-cublas-cu12==12.8.4.1",
            "nvidia-cudnn-cu12==9.19.0.56",
            "nvidia-curand-cu12==10.3.9.90",
            "nvidia-cufft-cu12==11.3.3.83",
            "nvidia-cusparse-cu12==12.5.8.93",
            "nvidia-nvjitlink-cu12==12.8.93",
            "nvidia-nccl-cu12==2.28.9",
        ],
        # jea export: ONNX files, compared by ONNX Runtime. Newer ml_dtypes want numpy 2, which Jittor cannot read.
        "onnx": ["onnx>=1.16", "onnxruntime>=1.17", "ml_dtypes<0.6"],
        "points": ["h5py>=3"],  # ModelNet40 and ShapeNetPart in their HDF5 form
        "tensorboard": ["tensorboard"],  # train.py writes event files when it is installed
        "test": ["pytest>=7", "h5py>=3", "onnx>=1.16", "onnxruntime>=1.17", "ml_dtypes<0.6", "pycocotools>=2.0.7",
                 "scikit-learn"],
    },
    entry_points={"console_scripts": ["jea = jea.commands.cli:main"]},
    classifiers=[
        "License :: OSI Approved :: Apache Software License",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
)
