"""What must be true before `import jittor`: oneDNN where Jittor looks for it, CUDA decided, a compiler at hand.

`prepare()` runs when jea is imported. It only sets environment variables and links oneDNN's files: nothing is
compiled and Jittor is not imported. Jittor itself is imported in one place, jea/_jittor.py.
"""
from __future__ import annotations

import contextlib
import ctypes
import importlib.metadata
import importlib.util
import json
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

from jea.environment import cuda_home
from jea.errors import SetupError
from jea.files import jea_home

# Jittor takes the first folder here whose name starts with "dnnl" and skips its download if this one is filled.
ONEDNN_FOLDER = "dnnl_lnx_2.2.0_cpu_gomp"
ONEDNN_PACKAGES = ("onednn-cpu-gomp", "onednn-devel-cpu-gomp")
ONEDNN_VERSION = "2022.2.1"


@dataclass
class Decisions:
    """What `prepare` found and chose, each with its reason: the material of `jea info`."""
    device: str = "cpu"  # "cpu" or "cuda": what `--device auto` will use
    device_reason: str = ""
    cuda_broken: bool = False  # a GPU is there, but Jittor cannot use it
    nvcc: str = ""
    tf32_off: bool = False  # CUDA's libraries are told to keep float32
    onednn: str = ""  # version, "jittor's own download" or "" when there is none
    onednn_reason: str = ""
    notes: list = field(default_factory=list)


_decisions: Decisions | None = None


def prepare() -> Decisions:
    """Set up the environment for `import jittor`, once per process. Never compiles, never raises."""
    global _decisions
    if _decisions is None:
        found = Decisions()
        if "jittor" in sys.modules:
            found.notes.append("jittor was imported before jea: its own choices stand")
            found.device = "cuda" if getattr(sys.modules["jittor"], "has_cuda", 0) else "cpu"
            found.device_reason = "as Jittor chose"
            found.onednn_reason = "as Jittor chose"
        else:
            _mend_home_record()
            _set_up_onednn(found)
            _decide_cuda(found)
            _find_python_config()
            _decide_mpi()
            os.environ.setdefault("log_silent", "1")
        _decisions = found
    return _decisions


# -- Jittor's home ----------------------------------------------------------------------------------------------

def jittor_home() -> Path:
    """The folder that holds .cache/jittor: $JITTOR_HOME, else the last one that Jittor recorded, else the home."""
    if os.environ.get("JITTOR_HOME"):
        return Path(os.path.abspath(os.environ["JITTOR_HOME"]))
    recorded = _read_home_record().get("JITTOR_HOME")
    return Path(recorded) if recorded else Path.home()


def jittor_cache() -> Path:
    return jittor_home() / ".cache" / "jittor"


def _home_record() -> Path:
    return Path.home() / ".cache" / "jittor" / "config.json"


def _read_home_record() -> dict:
    # Another process may be in the middle of Jittor's non-atomic write: look again before calling it broken.
    for _ in range(20):
        try:
            data = json.loads(_home_record().read_text())
            return data if isinstance(data, dict) else {}
        except FileNotFoundError:
            return {}
        except (OSError, ValueError):
            time.sleep(0.05)
    return {}


def _mend_home_record() -> None:
    """Write Jittor's record of its home atomically, so that Jittor finds it as it wants it and does not write.

    Jittor writes it in place: two processes with different homes have read it half-written and died.
    """
    path, home = _home_record(), str(jittor_home())
    try:
        current = json.loads(path.read_text()) if path.exists() else {}
        if isinstance(current, dict) and current.get("JITTOR_HOME", str(Path.home())) == home:
            return
    except (OSError, ValueError):
        pass
    record = dict(_read_home_record(), JITTOR_HOME=home)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(json.dumps(record))
        os.replace(temporary, path)
    except OSError:
        temporary.unlink(missing_ok=True)  # a read-only home: Jittor will say so itself


# -- oneDNN -----------------------------------------------------------------------------------------------------

def _set_up_onednn(found: Decisions) -> None:
    if os.environ.get("use_mkl") == "0":
        found.onednn_reason = "turned off by use_mkl=0"
        return
    if platform.system() != "Linux" or platform.machine() != "x86_64":
        found.onednn, found.onednn_reason = "jittor's own download", "no wheel for this platform"
        return
    base = jittor_cache() / "mkl"
    target = base / ONEDNN_FOLDER
    library = target / "lib" / "libmkldnn.so"
    if library.is_file() and not library.is_symlink():
        found.onednn, found.onednn_reason = "jittor's own download", str(target)
        return
    headers, shared_object = _installed_onednn()
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


def _installed_onednn() -> tuple[dict, Path | None]:
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


# -- CUDA -------------------------------------------------------------------------------------------------------

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
    return Driver(f"{len(capabilities)} GPU{'s' if len(capabilities) > 1 else ''} of compute capability {cards}, driver for "
                  f"CUDA {version[0]}.{version[1]}", tuple(capabilities), version)


def _decide_cuda(found: Decisions) -> None:
    if os.environ.get("nvcc_path") == "":
        found.device_reason = "CUDA turned off by nvcc_path="
        return
    driver = ask_driver()
    if not driver.capabilities:
        # Jittor aborts the process if it finds an nvcc but no GPU.
        found.device_reason = driver.said
        os.environ["nvcc_path"] = ""
        return
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


def _toolkit_places() -> list:
    """Where an nvcc may be, in order."""
    places = [shutil.which("nvcc"), "/usr/local/cuda/bin/nvcc", "/usr/bin/nvcc", "/opt/cuda/bin/nvcc"]
    places += map(str, sorted(Path("/usr/local").glob("cuda-*/bin/nvcc"), reverse=True))
    places.append(cuda_home.wheel_nvcc())
    return list({os.path.realpath(p): p for p in places if p and os.access(p, os.X_OK)}.values())


def _choose_toolkit(found: Decisions, driver: Driver) -> str:
    """Set found.nvcc and the environment; returns the reason. HomeError with all that speaks against each toolkit."""
    toolkits, problems = [], []
    for nvcc in _toolkit_places():
        try:
            toolkits.append(cuda_home.read_toolkit(nvcc))
        except cuda_home.HomeError as error:
            problems.append(str(error))
    for toolkit in toolkits:
        if toolkit.version[0] <= 12:
            problem = jittors_own_problem(toolkit)
            if not problem:
                found.nvcc = toolkit.nvcc
                return f"CUDA {toolkit.version[0]}.{toolkit.version[1]} at {toolkit.home}"
            problems.append(problem)
    for toolkit in toolkits:
        if toolkit.version[0] > 12:
            try:
                return _use_cuda13(found, driver, toolkit)
            except cuda_home.HomeError as error:
                problems.append(str(error))
    if not toolkits:
        problems.append("no CUDA toolkit (nvcc) was found; install one for this Python with: pip install 'jea[cuda13]'"
                        if driver.version >= cuda_home.LOWEST_DRIVER else "no CUDA toolkit (nvcc) was found; "
                        f"`{os.path.basename(sys.executable)} -m jittor_utils.install_cuda` installs one for Jittor")
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
        return (f"{', '.join(missing)} not found beside {toolkit.nvcc} (Jittor wants cuDNN 8); "
                f"`{os.path.basename(sys.executable)} -m jittor_utils.install_cuda` installs a complete CUDA for Jittor")
    return None


def _use_cuda13(found: Decisions, driver: Driver, toolkit) -> str:
    if driver.version < cuda_home.LOWEST_DRIVER:
        raise cuda_home.HomeError(f"CUDA {toolkit.version[0]}.{toolkit.version[1]} at {toolkit.home} wants a driver for "
                                  "CUDA 13 (580 or newer): update the driver")
    old = [c for c in driver.capabilities if c < cuda_home.LOWEST_CAPABILITY]
    if old:
        raise cuda_home.HomeError(f"CUDA 13 has no code for compute capability {old[0][0]}.{old[0][1]} (7.5 is its lowest); "
                                  f"`{os.path.basename(sys.executable)} -m jittor_utils.install_cuda` installs CUDA 12")
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
        found.notes.append("NCCL is missing, which several GPUs under mpirun need: pip install "
                           f"nvidia-nccl-cu13=={cuda_home.PACKAGES['nvidia-nccl-cu13']}")
    return f"{home.made_from}, made fit for Jittor in {Path(home.nvcc).parents[1]}"


def allow_tf32() -> None:
    """Undo jea's NVIDIA_TF32_OVERRIDE=0 (for --tf32). Before Jittor is imported: its libraries read it when they load."""
    if prepare().tf32_off:
        os.environ.pop("NVIDIA_TF32_OVERRIDE", None)


def choose_device(wanted: str) -> str:
    """"cpu" or "cuda" for a `--device auto|cpu|cuda`; SetupError when CUDA is asked for and cannot be had."""
    found = prepare()
    if wanted == "cuda" and found.device != "cuda":
        raise SetupError(f"--device cuda: {found.device_reason}. Use --device cpu, or mend that.")
    return found.device if wanted == "auto" else wanted


# -- MPI ----------------------------------------------------------------------------------------------------------

def _decide_mpi() -> None:
    if os.environ.get("use_mpi") == "0":
        for name in ("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK"):
            os.environ.pop(name, None)  # Jittor crashes where one is on and the other off


@contextlib.contextmanager
def mpi_only_under_mpirun():
    """Around `import jittor`, which would compile its MPI part wherever there is an mpicc. The user's use_mpi stands."""
    turned_off = not {"OMPI_COMM_WORLD_SIZE", "use_mpi"} & os.environ.keys()
    if turned_off:
        os.environ["use_mpi"] = "0"
    try:
        yield
    finally:
        if turned_off:
            del os.environ["use_mpi"]  # a program that runs mpirun hands its environment on


def mpi_rank() -> int:
    """The number of this process among those that mpirun (Open MPI) started, from 0."""
    return int(os.environ.get("OMPI_COMM_WORLD_RANK", "0"))


def mpi_size() -> int:
    """How many processes mpirun started; 1 without mpirun."""
    return int(os.environ.get("OMPI_COMM_WORLD_SIZE", "1"))


# -- compiler and Python headers ----------------------------------------------------------------------------------

def _python_config_candidates() -> list[str]:
    """Where Jittor 1.3.11 looks for python3.x-config."""
    minor, folder = sys.version_info.minor, os.path.dirname(sys.executable)
    return [os.environ.get("python_config_path", ""), f"{folder}/python3.{minor}-config", sys.executable + "-config",
            f"/usr/bin/python3.{minor}-config", f"/usr/local/bin/python3.{minor}-config", f"{folder}/python3-config"]


def _find_python_config() -> None:
    """Point Jittor at the interpreter's own python3-config, which it misses in virtual environments."""
    if any(map(os.path.isfile, _python_config_candidates())):
        return
    name = f"python3.{sys.version_info.minor}-config"
    for folder in (sysconfig.get_config_var("BINDIR"), os.path.join(sys.base_prefix, "bin"),
                   os.path.dirname(os.path.realpath(sys.executable))):
        if folder and os.path.isfile(os.path.join(folder, name)):
            os.environ["python_config_path"] = os.path.join(folder, name)
            return


def check_toolchain() -> None:
    """SetupError with the remedy if Jittor is missing or could not compile here."""
    if importlib.util.find_spec("jittor") is None:
        raise SetupError(f"Jittor is not installed for {sys.executable}: `pip install jittor==1.3.11.0`, or install jea "
                         "itself with pip, which brings it.")
    if mpi_size() > 1 and not shutil.which(os.environ.get("mpicc_path") or "mpicc"):
        raise SetupError("started by mpirun, but there is no mpicc, with which Jittor compiles its MPI part. Install it: "
                         "`apt install libopenmpi-dev` (Debian, Ubuntu), or set mpicc_path.")
    if platform.system() != "Linux":
        return  # Jittor's own rules apply there
    compiler = os.environ.get("cc_path") or "g++"
    if not shutil.which(compiler):
        raise SetupError(f"no C++ compiler ({compiler}): Jittor compiles its kernels with g++. Install it: "
                         "`apt install g++` (Debian, Ubuntu), `dnf install gcc-c++` (Fedora), or set cc_path.")
    version = f"3.{sys.version_info.minor}"
    packages = f"`apt install python{version}-dev` (Debian, Ubuntu) or `dnf install python{version}-devel` (Fedora)"
    configs = [p for p in _python_config_candidates() if p and os.path.isfile(p)]
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


# -- the first import ---------------------------------------------------------------------------------------------

class CoreCompileNotice:
    """Tells the user, on stderr, that the first import compiles Jittor's core, and how far it is.

    Jittor's own messages are off by then (log_silent): they are many and speak to its developers.
    """

    OBJECTS = 150  # what Jittor 1.3.11 compiles for the CPU; only for the progress line

    def __init__(self) -> None:
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> "CoreCompileNotice":
        folder = jittor_cache_path()
        if folder is None or core_is_compiled(folder):
            return self
        print("jea: first use of Jittor with this Python: compiling its core, once, about two minutes "
              f"(kept in {folder})", file=sys.stderr, flush=True)
        self._started = time.time()
        self._thread = threading.Thread(target=self._watch, args=(folder,), daemon=True)
        self._thread.start()
        return self

    def _watch(self, folder: Path) -> None:
        on_terminal = sys.stderr.isatty()
        while not self._stop.wait(1.0 if on_terminal else 30.0):
            done = min(sum(1 for _ in folder.glob("**/obj_files/*.o")), self.OBJECTS)
            seconds = time.time() - self._started
            line = f"jea: compiling Jittor's core: {done}/{self.OBJECTS} files, {seconds:.0f} s"
            print("\r" + line if on_terminal else line, end="" if on_terminal else "\n", file=sys.stderr, flush=True)

    def __exit__(self, *error) -> None:
        if self._thread is not None:
            self._stop.set()
            self._thread.join()
            end = "\n" if sys.stderr.isatty() else ""
            if error[0] is None:
                print(f"{end}jea: Jittor's core is ready ({time.time() - self._started:.0f} s)", file=sys.stderr)


def jittor_cache_path() -> Path | None:
    """Jittor's cache folder for this compiler, Python and machine, or None where Jittor is not installed."""
    limit = sys.getrecursionlimit()
    try:
        import jittor_utils  # small: finds the compiler and the folder, compiles nothing
    except (ImportError, RuntimeError, OSError):
        return None
    finally:
        sys.setrecursionlimit(limit)
    return Path(jittor_utils.cache_path)


def core_is_compiled(folder: Path) -> bool:
    return any(folder.glob("jittor_core*.so")) or any(folder.glob("cu*/jittor_core*.so"))
