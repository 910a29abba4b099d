"""oneDNN, the library of convolutions and matrix products on the CPU, linked to where Jittor looks for it."""
from __future__ import annotations

import importlib.metadata
import os
import platform
from pathlib import Path

from jea.environment.decisions import Decisions
from jea.environment.jittor_home import jittor_cache

# Jittor takes the first folder here whose name starts with "dnnl" and skips its download if this one is filled.
ONEDNN_FOLDER = "dnnl_lnx_2.2.0_cpu_gomp"
ONEDNN_PACKAGES = ("onednn-cpu-gomp", "onednn-devel-cpu-gomp")
ONEDNN_VERSION = "2022.2.1"


def set_up(found: Decisions) -> None:
    if os.environ.get("use_mkl") == "0":
        found.onednn_reason = "turned off by use_mkl=0"
        return
    if platform.system() != "Linux":
        found.onednn, found.onednn_reason = "jittor's own download", "no wheel for this platform"
        return
    if platform.machine() != "x86_64":
        _without_a_wheel(found)
        return
    base = jittor_cache() / "mkl"
    target = base / ONEDNN_FOLDER
    library = target / "lib" / "libmkldnn.so"
    if library.is_file() and not library.is_symlink():
        found.onednn, found.onednn_reason = "jittor's own download", str(target)
        return
    headers, shared_object = installed()
    if shared_object is None:
        if library.is_file():  # linked by another environment that is still there
            found.onednn, found.onednn_reason = ONEDNN_VERSION, str(library.resolve())
            return
        os.environ["use_mkl"] = "0"
        found.onednn_reason = ("not installed: convolutions are about 130 times slower. Install it with: pip install "
                               + " ".join(f"{p}=={ONEDNN_VERSION}" for p in ONEDNN_PACKAGES))
        return
    try:
        for relative, source in headers.items():
            _link(source, target / "include" / relative)
        for name in ("libdnnl.so.2", "libdnnl.so", "libmkldnn.so"):  # the name that Jittor tests for comes last
            _link(shared_object, target / "lib" / name)
    except OSError as error:
        os.environ["use_mkl"] = "0"
        found.onednn_reason = f"cannot be linked into {target}: {error.strerror}: {error.filename}"
        return
    found.onednn, found.onednn_reason = ONEDNN_VERSION, str(shared_object)


def _without_a_wheel(found: Decisions) -> None:
    """aarch64: Jittor would download oneDNN 2.2, and its import would fail where its server cannot be reached."""
    machine = platform.machine()
    library = jittor_cache() / "mkl" / f"{ONEDNN_FOLDER}_{machine}" / "lib" / "libmkldnn.so"
    if library.is_file() or os.environ.get("use_mkl") == "1":
        found.onednn, found.onednn_reason = "jittor's own download", str(library)
        return
    os.environ["use_mkl"] = "0"
    found.onednn_reason = f"has no wheel for {machine}: convolutions are about 130 times slower. " + (
        "use_mkl=1 lets Jittor download it from its own server" if machine == "aarch64" else
        "A machine with an x86-64 processor has it")


def installed() -> tuple[dict, Path | None]:
    """Headers (path under include/ -> file) and libdnnl.so.2 of the installed wheels."""
    headers, shared_object = {}, None
    for package in ONEDNN_PACKAGES:
        try:
            files = importlib.metadata.files(package) or []
        except importlib.metadata.PackageNotFoundError:
            return {}, None
        for file in files:
            path = Path(os.path.normpath(file.locate()))
            if path.name == "libdnnl.so.2" and path.is_file():
                shared_object = path
            elif "include" in path.parts and path.suffix in (".h", ".hpp") and path.is_file():
                below = path.parts[len(path.parts) - path.parts[::-1].index("include"):]
                headers["/".join(below)] = path
    return headers, shared_object if headers else None


def _link(source: Path, link: Path) -> None:
    """Make `link` a symlink to `source` atomically: several processes may do the same at once."""
    source = Path(os.path.realpath(source))
    if link.is_symlink() and Path(os.path.realpath(link)) == source:
        return
    link.parent.mkdir(parents=True, exist_ok=True)
    temporary = link.with_name(f".{link.name}.{os.getpid()}")
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(source)
    os.replace(temporary, link)
