"""A CUDA home that Jittor 1.3.11 accepts, made from CUDA 12 or 13 and cuDNN 9: a toolkit, NVIDIA's wheels, or both.

Jittor is written for CUDA up to 12 and cuDNN 8. The home consists of links to the real files and of a few small ones
that bridge the difference: nvcc compiles as C++17 (CUDA's C++ library wants it), members that left cudaDeviceProp,
names that left CUB, NPP's limits, cuDNN's parts under their old names, and its old recurrent interface, which then
fails at run time with CUDNN_STATUS_NOT_SUPPORTED. Convolutions and matrix products are the real ones.
"""
from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sysconfig
import tempfile
from dataclasses import dataclass
from pathlib import Path

from jea.environment import cuda_headers, cuda_packages

FORMAT = 2  # of what build() writes; another number makes another folder

class HomeError(Exception):
    """No CUDA home can be made; the message says why, and the remedy where there is one."""


@dataclass(frozen=True)
class Toolkit:
    """An nvcc that answers, and where it belongs."""
    nvcc: str  # the compiler itself, not a wrapper around it
    version: tuple  # (13, 0)
    home: Path


@dataclass(frozen=True)
class CudaHome:
    nvcc: str
    nccl_include: str  # "" without NCCL
    nccl_library: str
    made_from: str  # for people


def read_toolkit(nvcc: str) -> Toolkit:
    """Ask an nvcc for its version and home. HomeError if it does not answer.

    A script that calls the real nvcc answers for that one: the libraries stand beside the real one.
    """
    real = os.path.realpath(nvcc)  # a link to nvcc does not find its own parts
    try:
        text, dry = (subprocess.run([real, *arguments], capture_output=True, text=True, timeout=60)
                     for arguments in (["--version"], ["--dryrun", "-x", "cu", "-c", os.devnull]))
    except (OSError, subprocess.SubprocessError) as error:
        raise HomeError(f"{nvcc} does not run ({error})") from error
    version = re.search(r"release (\d+)\.(\d+)", text.stdout)
    if not version:
        raise HomeError(f"{nvcc} --version is not understood")
    top = re.search(r"^#\$ TOP=(.+)$", dry.stderr + dry.stdout, re.MULTILINE)
    home = Path(os.path.realpath(top.group(1).strip())) if top else Path(real).parent.parent
    if (home / "bin" / "nvcc").is_file():
        real = str(home / "bin" / "nvcc")
    return Toolkit(real, (int(version.group(1)), int(version.group(2))), home)


def wheel_folders() -> list:
    """The folders of NVIDIA's wheels in this environment: site-packages/nvidia/cu13, nvidia/cudnn, nvidia/nccl ..."""
    bases = {sysconfig.get_path(name) for name in ("purelib", "platlib")}
    for package in (*cuda_packages.CUDA_13.pins, *cuda_packages.CUDA_12.pins):
        place = _place(package)
        if place:
            bases.add(place)
    found = []
    for base in sorted(filter(None, bases)):
        root = Path(base, "nvidia")
        if root.is_dir():
            found += [p for p in sorted(root.iterdir(), key=lambda p: (p.name != "cu13", p.name)) if p.is_dir()]
    return found


def _place(package: str) -> str:
    """The folder into which a package is installed, "" where it is not."""
    try:
        return str(importlib.metadata.distribution(package).locate_file(""))
    except importlib.metadata.PackageNotFoundError:
        return ""


def folders_for(version: tuple) -> list:
    """The wheels' folders that belong to a version of CUDA: those of 13 share cu13; cuDNN's and NCCL's are of the
    version whose package is installed."""
    major, chosen = min(version[0], 13), []
    for folder in wheel_folders():
        if folder.name in ("cudnn", "nccl"):
            others = [m for m in (12, 13) if m != major and _place(f"nvidia-{folder.name}-cu{m}")]
            if others and not _place(f"nvidia-{folder.name}-cu{major}"):
                continue
        elif (folder.name == "cu13") != (major == 13) and folder.name != "cudnn_frontend":
            continue
        chosen.append(folder)
    return chosen


def wheel_nvcc() -> str:
    """The compiler of the wheel nvidia-cuda-nvcc 13, or ""."""
    return next((str(f / "bin" / "nvcc") for f in wheel_folders() if os.access(f / "bin" / "nvcc", os.X_OK)), "")


class _Sources:
    """Headers and libraries of a toolkit; wheels fill its gaps."""

    def __init__(self, toolkit: Toolkit) -> None:
        target = toolkit.home / "targets" / "x86_64-linux"
        roots = [toolkit.home, target, *folders_for(toolkit.version)]
        includes = [root / "include" for root in roots]
        self.includes = _existing(folder for include in includes for folder in (include, include / "cccl"))
        self.libraries = _existing([root / name for root in roots for name in ("lib64", "lib")])

    def header(self, name: str) -> Path | None:
        return next((folder / name for folder in self.includes if (folder / name).is_file()), None)

    def shared_object(self, name: str) -> Path | None:
        """lib.so, or the lib.so.N that a wheel has instead."""
        for folder in self.libraries:
            found = sorted(folder.glob(name + "*"))
            if found:
                return found[0]
        return None


def _existing(folders) -> list:
    unique = {}
    for folder in folders:
        if folder.is_dir():
            unique.setdefault(os.path.realpath(folder), folder)
    return list(unique.values())


def missing_packages(toolkit: Toolkit) -> list:
    """The wheels that would complete this toolkit, pinned; the name of a header that no wheel brings."""
    sources, packages = _Sources(toolkit), cuda_packages.packages_of(toolkit.version)
    lacking = [package or header for header, library, package in packages.needed
               if (header and not sources.header(header)) or (library and not sources.shared_object(library))]
    roots = (toolkit.home, *folders_for(toolkit.version))
    if "nvidia-nvvm" in packages.pins and not any((root / "nvvm" / "bin" / "cicc").is_file() for root in roots):
        lacking.append("nvidia-nvvm")
    return [f"{name}=={packages.pins[name]}" if name in packages.pins else name for name in lacking]


def prepare(toolkit: Toolkit, folder: Path) -> CudaHome:
    """The CUDA home for a CUDA 12 or 13 toolkit below `folder`; made now unless it is there.

    Its name is made from the versions and places of what it links to. It is written to a temporary folder and renamed:
    several processes may do the same at once.

    Raises:
        HomeError: parts are missing (the message has the pip command), or `folder` cannot be written.
    """
    missing = missing_packages(toolkit)
    own = [name for name in missing if name.endswith((".h", ".cuh"))]
    if own:
        raise HomeError(f"CUDA {_dotted(toolkit.version)} at {toolkit.home} lacks {', '.join(own)}: it is not whole; "
                        "install NVIDIA's toolkit again")
    if missing:
        raise HomeError(f"CUDA {_dotted(toolkit.version)} at {toolkit.home} lacks what Jittor needs; install it with: "
                        f"pip install {' '.join(missing)}")
    sources, pins = _Sources(toolkit), cuda_packages.packages_of(toolkit.version).pins
    cudnn = _cudnn_version(sources.header("cudnn.h"))
    if cudnn < (9, 0):
        name = next(name for name in pins if "cudnn" in name)
        raise HomeError(f"cuDNN {_dotted(cudnn)} beside CUDA {_dotted(toolkit.version)}: cuDNN 9 is needed; install it "
                        f"with: pip install {name}=={pins[name]}")
    record = {"format": FORMAT, "cuda": _dotted(toolkit.version), "cudnn": _dotted(cudnn), "nvcc": toolkit.nvcc,
              "sources": {str(f): f.stat().st_mtime_ns for f in (*sources.includes, *sources.libraries)}}
    key = hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()[:12]
    home = Path(folder) / f"cuda{record['cuda']}-cudnn{record['cudnn']}-{key}"
    try:
        if not _is_whole(home):
            _build_atomically(home, toolkit, sources, record)
    except OSError as error:
        raise HomeError(f"the CUDA home cannot be written to {home} ({error.strerror}: {error.filename}); set JEA_HOME "
                        "to a folder that can be written") from error
    nccl = sources.header("nccl.h") and sources.shared_object("libnccl.so")
    return CudaHome(str(home / "bin" / "nvcc"), str(home / "include") if nccl else "",
                    str(home / "lib64") if nccl else "",
                    f"CUDA {record['cuda']} ({toolkit.home}) and cuDNN {record['cudnn']}")


def _dotted(version) -> str:
    return ".".join(map(str, version))


def _cudnn_version(header: Path) -> tuple:
    beside = header.with_name("cudnn_version.h")
    text = beside.read_text(errors="replace") if beside.is_file() else ""
    found = [re.search(rf"#define CUDNN_{part}\s+(\d+)", text) for part in ("MAJOR", "MINOR")]
    return tuple(int(match.group(1)) for match in found) if all(found) else (0, 0)


def _is_whole(home: Path) -> bool:
    """Whether a home is there and nothing that it links to is gone."""
    if not (home / "made_from.json").is_file():
        return False
    parts = ("include", "include/cub", "lib64")
    return all(os.path.exists(entry) for part in parts for entry in (home / part).iterdir())


def _build_atomically(home: Path, toolkit: Toolkit, sources: _Sources, record: dict) -> None:
    home.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{home.name}.", dir=home.parent))
    try:
        _build(temporary, toolkit, sources)
        (temporary / "made_from.json").write_text(json.dumps(record, indent=1))
        temporary.chmod(0o755)
        try:
            os.rename(temporary, home)
        except OSError:
            if _is_whole(home):
                return  # another process was faster
            os.rename(home, temporary / "broken")  # something that it linked to has gone
            os.rename(temporary, home)
            shutil.rmtree(home / "broken")
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _build(home: Path, toolkit: Toolkit, sources: _Sources) -> None:
    for name in ("bin", "include/cub", "lib64"):
        (home / name).mkdir(parents=True)
    written = {"cudnn.h": cuda_headers.CUDNN_H,
               **({"cuda_runtime.h": cuda_headers.RUNTIME_H} if toolkit.version >= (13, 0) else {})}
    for folder in sources.includes:
        for entry in sorted(folder.iterdir()):
            if entry.name == "cub":
                if not any((home / "include" / "cub").iterdir()):  # never of two versions
                    for header in entry.iterdir():
                        name = "cub_real.cuh" if header.name == "cub.cuh" else header.name
                        _link(header, home / "include" / "cub" / name)
            else:
                name = entry.stem + "_real.h" if entry.name in written else entry.name
                _link(entry, home / "include" / name)
    for name, text in {**written, "cub/cub.cuh": cuda_headers.CUB_CUH}.items():
        (home / "include" / name).write_text(text)
    if not (home / "include" / "npp.h").exists():
        (home / "include" / "npp.h").write_text(cuda_headers.NPP_H)
    libraries = home / "lib64"
    for folder in sources.libraries:
        for entry in sorted(folder.iterdir()):
            if entry.is_file() and (".so" in entry.suffixes or entry.name in ("libcudadevrt.a", "libcudart_static.a")):
                _link(entry, libraries / entry.name)
    for entry in sorted(libraries.glob("*.so.*")):  # wheels have lib.so.N only; Jittor looks for lib.so
        _link(entry, libraries / (entry.name.split(".so.")[0] + ".so"))
    for old, new in (("ops_infer", "ops"), ("ops_train", "ops"), ("cnn_infer", "cnn"), ("cnn_train", "cnn")):
        part = libraries / f"libcudnn_{new}.so"
        _link(part if part.exists() else libraries / "libcudnn.so", libraries / f"libcudnn_{old}.so")
    nvcc = home / "bin" / "nvcc"
    nvcc.write_text(cuda_headers.NVCC.replace("NVCC", toolkit.nvcc))
    nvcc.chmod(0o755)


def _link(source: Path, link: Path) -> None:
    """The first source of a name wins."""
    if not os.path.lexists(link):
        link.symlink_to(os.path.realpath(source))
