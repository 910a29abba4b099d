"""Whether CUDA is used, and which: the driver is asked, then the toolkits that lie around."""
from __future__ import annotations

import ctypes
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from jea.environment import cuda_home, cuda_packages
from jea.environment.decisions import Decisions
from jea.environment.jittor_home import jittor_cache
from jea.files import jea_home


@dataclass(frozen=True)
class Driver:
    """What the NVIDIA driver says."""
    said: str  # for people: the cards and the driver's version, or why there are none
    capabilities: tuple = ()  # of each card, such as (9, 0)
    version: tuple = (0, 0)  # the newest CUDA that it can run


_CUINIT_ERRORS = {
    100: "it sees no GPU; CUDA_VISIBLE_DEVICES hides them, or the container was started without --gpus",
    802: "the cards' NVSwitch fabric is not ready; the service nvidia-fabricmanager must run",
    803: "its library and the kernel's module are of different versions; restart the machine after an update",
    804: "its library is newer than this card's driver allows; remove the package cuda-compat from the library path",
    999: "unknown error, often after sleep; reload the kernel's module nvidia_uvm or restart the machine",
}


def ask_driver() -> Driver:
    """The cards that the NVIDIA driver offers. Asks the driver: an nvcc proves nothing."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return Driver("no NVIDIA driver (libcuda.so.1) on this machine")
    number, more = ctypes.c_int(), ctypes.c_int()
    try:
        status = driver.cuInit(0)
        if status != 0:
            said = _CUINIT_ERRORS.get(status, "look at what nvidia-smi says")
            return Driver(f"the NVIDIA driver does not start (cuInit error {status}: {said})")
        if driver.cuDeviceGetCount(ctypes.byref(number)) != 0 or number.value == 0:
            return Driver("the NVIDIA driver sees no GPU")
        capabilities = []
        for index in range(number.value):
            device, values = ctypes.c_int(), []
            driver.cuDeviceGet(ctypes.byref(device), index)
            for attribute in (75, 76):  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, _MINOR
                driver.cuDeviceGetAttribute(ctypes.byref(more), attribute, device)
                values.append(more.value)
            capabilities.append(tuple(values))
        driver.cuDriverGetVersion(ctypes.byref(more))
    except AttributeError:
        return Driver("libcuda.so.1 is not a usable NVIDIA driver")
    version = (more.value // 1000, more.value % 1000 // 10)
    cards = ", ".join(sorted({f"{major}.{minor}" for major, minor in capabilities}))
    return Driver(f"{len(capabilities)} GPU{'s' if len(capabilities) > 1 else ''} of compute capability {cards}, "
                  f"driver for CUDA {version[0]}.{version[1]}", tuple(capabilities), version)


def decide(found: Decisions) -> None:
    if os.environ.get("nvcc_path") == "":
        found.device_reason = "CUDA turned off by nvcc_path="
        return
    driver = ask_driver()
    if not driver.capabilities:
        # Jittor aborts the process if it finds an nvcc but no GPU.
        found.device_reason = driver.said
        os.environ["nvcc_path"] = ""
        return
    found.fitting = cuda_packages.said(driver.version, driver.capabilities)
    if "nvcc_path" in os.environ:
        found.nvcc, reason = os.environ["nvcc_path"], f"nvcc_path={os.environ['nvcc_path']} set by the user"
    elif (jittor_cache() / "jtcuda").is_dir():
        reason = "the CUDA that Jittor installed"
    else:
        try:
            reason = _choose_toolkit(found, driver)
        except (cuda_home.HomeError, OSError) as error:
            found.cuda_broken = True
            found.device_reason = f"{driver.said}, but {error}"
            os.environ["nvcc_path"] = ""
            return
        os.environ["nvcc_path"] = found.nvcc
    found.device, found.device_reason = "cuda", f"{driver.said}; {reason}"
    # Jittor's convolutions would take TF32, with 10 bits of mantissa, on their own.
    found.tf32_off = os.environ.setdefault("NVIDIA_TF32_OVERRIDE", "0") == "0"


def toolkit_places() -> list:
    """Where an nvcc may be, in order."""
    places = [shutil.which("nvcc"), "/usr/local/cuda/bin/nvcc", "/usr/bin/nvcc", "/opt/cuda/bin/nvcc"]
    places += map(str, sorted(Path("/usr/local").glob("cuda-*/bin/nvcc"), reverse=True))
    places.append(cuda_home.wheel_nvcc())
    return list({os.path.realpath(p): p for p in places if p and os.access(p, os.X_OK)}.values())


def _choose_toolkit(found: Decisions, driver: Driver) -> str:
    """Set found.nvcc and the environment; returns the reason. HomeError with all that speaks against each toolkit."""
    toolkits, problems = [], []
    for nvcc in toolkit_places():
        try:
            toolkits.append(cuda_home.read_toolkit(nvcc))
        except cuda_home.HomeError as error:
            problems.append(str(error))
    for toolkit in toolkits:
        if toolkit.version[0] <= 12:
            problem = jittors_own_problem(toolkit) or host_compiler_problem(toolkit)
            if not problem:
                found.nvcc = toolkit.nvcc
                return f"CUDA {toolkit.version[0]}.{toolkit.version[1]} at {toolkit.home}"
            problems.append(problem)
    for toolkit in sorted(toolkits, key=lambda toolkit: toolkit.version[0] <= 12):
        if toolkit.version[0] >= 12:
            try:
                return _use_home(found, driver, toolkit)
            except cuda_home.HomeError as error:
                problems.append(str(error))
    fitting = cuda_packages.fitting(driver.version, driver.capabilities)
    if not any(cuda_packages.packages_of(toolkit.version) is fitting for toolkit in toolkits):
        advice = cuda_packages.advice(driver.version, driver.capabilities)
        problems.append(f"no CUDA toolkit (nvcc) {'for this driver ' if toolkits else ''}was found; {advice}")
    raise cuda_home.HomeError("; ".join(problems))


def jittors_own_problem(toolkit) -> str | None:
    """Why Jittor cannot use a CUDA toolkit up to 12 as it is, or None. Jittor aborts instead of saying so."""
    folders = [toolkit.home / "bin", toolkit.home / "lib64", toolkit.home / "targets/x86_64-linux/lib",
               Path("/usr/lib/x86_64-linux-gnu"), Path("/usr/lib")]
    wanted = ["libcudart.so", "libcublas.so", "libcudnn.so"]
    if toolkit.version[0] >= 11:
        wanted.append("libcudnn_ops_infer.so")  # cuDNN 8 split the library; cuDNN 9 renamed its parts
    missing = [name for name in wanted if not any(glob for d in folders for glob in d.glob(name + "*"))]
    if missing:
        return (f"{', '.join(missing)} not found beside {toolkit.nvcc} (Jittor alone wants cuDNN 8, which "
                f"`{os.path.basename(sys.executable)} -m jittor_utils.install_cuda` installs with its own CUDA)")
    return None


def host_compiler_problem(toolkit) -> str | None:
    """Why a CUDA toolkit refuses the g++ that is here, or None: it is newer than the toolkit knows."""
    compiler = os.environ.get("cc_path") or "g++"
    roots = [toolkit.home, toolkit.home / "targets" / "x86_64-linux", *cuda_home.wheel_folders()]
    header = next((path for path in (root / "include/crt/host_config.h" for root in roots) if path.is_file()), None)
    newest = re.search(r"__GNUC__ > (\d+)", header.read_text(errors="replace")) if header else None
    try:
        said = subprocess.run([compiler, "-dumpversion"], capture_output=True, text=True, timeout=60).stdout
    except (OSError, subprocess.SubprocessError):
        return None  # the toolchain's own check says it
    version = re.match(r"\d+", said)
    if not newest or not version or int(version.group()) <= int(newest.group(1)):
        return None
    limit = newest.group(1)
    return (f"{compiler} {said.strip()} is newer than CUDA {toolkit.version[0]}.{toolkit.version[1]} accepts (up to "
            f"{limit}): `apt install g++-{limit}` and export cc_path=g++-{limit}, or take a newer CUDA")


def _use_home(found: Decisions, driver: Driver, toolkit) -> str:
    """Make a CUDA home of CUDA 12 or 13 with cuDNN 9 and choose it; returns the reason."""
    packages, major = cuda_packages.packages_of(toolkit.version), toolkit.version[0]
    if driver.version < packages.lowest_driver:
        raise cuda_home.HomeError(f"CUDA {major}.{toolkit.version[1]} at {toolkit.home} wants a driver "
                                  f"for CUDA {packages.lowest_driver[0]} ({packages.drivers}): update the driver")
    old = [c for c in driver.capabilities if c < packages.lowest_capability]
    if old:
        raise cuda_home.HomeError(f"CUDA {major} has no code for compute capability {old[0][0]}.{old[0][1]} "
                                  f"({packages.capabilities})")
    problem = host_compiler_problem(toolkit)
    if problem:
        raise cuda_home.HomeError(problem)
    home = cuda_home.prepare(toolkit, jea_home() / "cuda")
    found.nvcc = home.nvcc
    # Jittor would download these two, written for CUDA 11, and NCCL's sources.
    os.environ.setdefault("use_cutt", "0")
    os.environ.setdefault("use_cutlass", "0")
    if home.nccl_library:
        os.environ.setdefault("nccl_include_path", home.nccl_include)
        os.environ.setdefault("nccl_lib_path", home.nccl_library)
    else:
        os.environ.setdefault("use_nccl", "0")
        name = next(name for name in packages.pins if "nccl" in name)
        found.notes.append("NCCL is missing, which several GPUs under mpirun need: pip install "
                           f"{name}=={packages.pins[name]}")
    found.notes += [f"LD_LIBRARY_PATH puts {path} before the library of {home.made_from}: take its folder out if CUDA "
                    "fails"
                    for path in _other_libraries(Path(home.nvcc).parents[1] / "lib64")]
    return f"{home.made_from}, made fit for Jittor in {Path(home.nvcc).parents[1]}"


def _other_libraries(ours: Path) -> list:
    """Libraries in LD_LIBRARY_PATH that the loader takes instead of those of the CUDA home."""
    folders = [Path(folder) for folder in os.environ.get("LD_LIBRARY_PATH", "").split(os.pathsep) if folder]
    names = [path.name for path in sorted(ours.glob("*.so.*"))]
    return [str(folder / name) for folder in folders for name in names
            if (folder / name).exists() and (folder / name).resolve() != (ours / name).resolve()]
