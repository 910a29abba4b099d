"""Jittor, a compiler and Python's headers: what must be there before Jittor can compile."""
from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
import sysconfig

from jea.environment import mpi
from jea.errors import SetupError

JITTOR = "1.3.11.0"  # jea mends known faults of this very version


def python_configs() -> list[str]:
    """Where Jittor 1.3.11 looks for python3.x-config."""
    minor, folder = sys.version_info.minor, os.path.dirname(sys.executable)
    return [os.environ.get("python_config_path", ""), f"{folder}/python3.{minor}-config", sys.executable + "-config",
            f"/usr/bin/python3.{minor}-config", f"/usr/local/bin/python3.{minor}-config", f"{folder}/python3-config"]


def find_python_config() -> None:
    """Point Jittor at the interpreter's own python3-config, which it misses in virtual environments."""
    if any(map(os.path.isfile, python_configs())):
        return
    name = f"python3.{sys.version_info.minor}-config"
    for folder in (sysconfig.get_config_var("BINDIR"), os.path.join(sys.base_prefix, "bin"),
                   os.path.dirname(os.path.realpath(sys.executable))):
        if folder and os.path.isfile(os.path.join(folder, name)):
            os.environ["python_config_path"] = os.path.join(folder, name)
            return


def check_versions() -> None:
    """SetupError for a numpy that Jittor cannot use, or another Jittor than jea was made for."""
    if version("numpy").partition(".")[0] not in ("", "0", "1"):
        raise SetupError(f"numpy {version('numpy')}: Jittor {JITTOR} knows numpy 1 only and would compute garbage with "
                         f"it. Install the last one: {os.path.basename(sys.executable)} -m pip install 'numpy<2'")
    if version("jittor") not in ("", JITTOR):
        raise SetupError(f"Jittor {version('jittor')}: jea is made for {JITTOR} and mends faults of that version. "
                         f"Install it: {os.path.basename(sys.executable)} -m pip install jittor=={JITTOR}")


def version(package: str) -> str:
    """The installed version of a package; "" where the index of installed packages does not know it."""
    try:
        return importlib.metadata.version(package) or ""
    except importlib.metadata.PackageNotFoundError:
        return ""


def check() -> None:
    """SetupError with the remedy if Jittor is missing or could not compile here."""
    if importlib.util.find_spec("jittor") is None:
        raise SetupError(f"Jittor is not installed for {sys.executable}: `pip install jittor=={JITTOR}`, or install "
                         "jea itself with pip, which brings it.")
    check_versions()
    if mpi.size() > 1 and not shutil.which(os.environ.get("mpicc_path") or "mpicc"):
        raise SetupError("started by mpirun, but there is no mpicc, with which Jittor compiles its MPI part. Install "
                         "it: `apt install libopenmpi-dev` (Debian, Ubuntu), or set mpicc_path.")
    if platform.system() != "Linux":
        return  # Jittor's own rules apply there
    compiler = os.environ.get("cc_path") or "g++"
    if not shutil.which(compiler):
        raise SetupError(f"no C++ compiler ({compiler}): Jittor compiles its kernels with g++. Install it: "
                         "`apt install g++` (Debian, Ubuntu), `dnf install gcc-c++` (Fedora), or set cc_path.")
    version = f"3.{sys.version_info.minor}"
    packages = f"`apt install python{version}-dev` (Debian, Ubuntu) or `dnf install python{version}-devel` (Fedora)"
    configs = [p for p in python_configs() if p and os.path.isfile(p)]
    if not configs:
        raise SetupError(f"python{version}-config not found: Jittor needs Python's headers. Install them: {packages}, "
                         "or set python_config_path.")
    try:
        flags = subprocess.run([configs[0], "--includes"], capture_output=True, text=True, timeout=60).stdout.split()
    except (OSError, subprocess.SubprocessError) as error:
        raise SetupError(f"{configs[0]} does not run ({error}): set python_config_path to a working one.") from error
    if not any(os.path.isfile(os.path.join(flag[2:], "Python.h")) for flag in flags if flag.startswith("-I")):
        raise SetupError(f"Python.h not found where {configs[0]} points ({' '.join(flags) or 'nowhere'}). "
                         f"Install Python's headers: {packages}.")
