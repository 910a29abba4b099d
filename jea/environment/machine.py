"""A first look at the machine, before Jittor fails on it minutes later: the cache's disk, memory, the C++ library."""
from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import re
import shutil
import subprocess
from pathlib import Path

from jea.environment.jittor_home import compiled_cache, core_is_compiled, jittor_cache
from jea.errors import SetupError

JITTORS_SHARE = 3 << 30  # bytes that Jittor reckons with for each compiling process
CORE_MB = 400  # disk that Jittor's core and the kernels of a model take
_ELSEWHERE = "set JITTOR_HOME to a folder of your own on a local disk: export JITTOR_HOME=/var/tmp/jittor-$USER"
_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL}


def check() -> None:
    """SetupError for the first thing that would keep Jittor from compiling or loading what it compiled."""
    check_cache(jittor_cache())
    check_library_path()
    check_standard_library()


def check_cache(folder: Path) -> None:
    """SetupError unless Jittor can write, lock and run what lies in its cache."""
    probe = folder / f".jea-{os.getpid()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _refuse_foreign_files(folder)
        with open(probe, "wb") as file:
            file.write(bytes(1 << 16))
            file.flush()
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        said = "its file system has no locks (a network disk?)" if error.errno in _NO_LOCKS else \
            f"it cannot be written ({error.strerror}: {error.filename or probe})"
        raise SetupError(f"Jittor's cache {folder}: {said}; {_ELSEWHERE}") from error
    finally:
        try:
            probe.unlink()
        except OSError:
            pass
    if os.statvfs(folder).f_flag & os.ST_NOEXEC:
        raise SetupError(f"Jittor's cache {folder} is mounted noexec: what is compiled there cannot be loaded; "
                         f"{_ELSEWHERE}")
    free = shutil.disk_usage(folder).free >> 20
    if free < CORE_MB and not _core_is_there():
        raise SetupError(f"Jittor's cache {folder}: {free} MB are free, compiling Jittor's core takes {CORE_MB}; make "
                         f"room, or {_ELSEWHERE}")


def _core_is_there() -> bool:
    cache = compiled_cache()
    return cache is not None and core_is_compiled(cache)


def _refuse_foreign_files(folder: Path) -> None:
    """Where another user has filled the cache, its lock and records cannot be written."""
    # jt<version>/<compiler>/<Python>/<system>/<processor>/<host>/jittor.lock
    levels = ["jt*" + "/*" * depth for depth in range(6)] + ["jt*" + "/*" * 5 + "/jittor.lock"]
    for path in (folder, *(path for level in levels for path in folder.glob(level))):
        owner = path.stat().st_uid
        if owner != os.getuid() and not os.access(path, os.W_OK):
            raise OSError(errno.EACCES, f"it belongs to user {owner}, you are {os.getuid()}", str(path))


_CGROUP = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


def memory_limit(files=_CGROUP) -> int:
    """Bytes of memory that this process may take: the machine's, or what its container (cgroup) allows."""
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for path in files:
        try:
            text = Path(path).read_text(encoding="ascii").strip()
        except (OSError, UnicodeDecodeError):
            continue
        if text.isdecimal() and int(text) > 0:
            limits.append(int(text))
    return min(limits)


def compiling_processes() -> int:
    """In how many processes Jittor compiles its core: as many as there are cores, and one, and 3 GB for each."""
    return min(16, len(os.sched_getaffinity(0)) + 1, max(1, memory_limit() // JITTORS_SHARE))


def memory_for_compiling() -> int:
    """What Jittor is told that the machine has: it divides that by 3 GB."""
    return compiling_processes() * JITTORS_SHARE


def check_library_path() -> None:
    """SetupError where LD_LIBRARY_PATH has another oneDNN, which the loader would take for the one that Jittor
    links."""
    if os.environ.get("use_mkl") == "0":
        return
    own = {os.path.realpath(path) for path in (jittor_cache() / "mkl").glob("dnnl*/lib/libdnnl.so.2")}
    for folder in filter(None, os.environ.get("LD_LIBRARY_PATH", "").split(os.pathsep)):
        for name in ("libdnnl.so.2", "libmkldnn.so"):
            path = os.path.join(folder, name)
            if os.path.exists(path) and os.path.realpath(path) not in own:
                raise SetupError(f"LD_LIBRARY_PATH: {path} is another oneDNN than jea's and would be loaded instead of "
                                 f"it; take {folder} out: export LD_LIBRARY_PATH={_without(folder)}")


def _without(folder: str) -> str:
    return os.pathsep.join(part for part in os.environ["LD_LIBRARY_PATH"].split(os.pathsep) if part not in ("", folder))


# -- libstdc++ --------------------------------------------------------------------------------------------------------

def check_standard_library() -> None:
    """SetupError where this process has a C++ library older than the compiler's, as conda environments do: what Jittor
    compiles would then not load ("GLIBCXX_3.4.30 not found")."""
    compiler = os.environ.get("cc_path") or "g++"
    try:
        said = subprocess.run([compiler, "-print-file-name=libstdc++.so.6"], capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.SubprocessError):
        return
    ours, theirs = loaded_standard_library(), Path(said.stdout.strip())
    if ours is None or not theirs.is_absolute() or os.path.realpath(ours) == os.path.realpath(theirs):
        return
    have, need = newest_glibcxx(ours), newest_glibcxx(theirs)
    if have and need and have < need:
        raise SetupError(f"{ours} (GLIBCXX {_dotted(have)}) is older than {compiler}'s own (GLIBCXX {_dotted(need)}), "
                         "so that compiled code will not load; update it: conda install -c conda-forge "
                         f"'libstdcxx-ng>=13', or start Python with LD_PRELOAD={theirs}")


def loaded_standard_library() -> Path | None:
    """The libstdc++ that this process uses, as the loader found it."""
    try:
        ctypes.CDLL("libstdc++.so.6")
        with open("/proc/self/maps", encoding="utf-8", errors="replace") as file:
            return next((Path(line.split(maxsplit=5)[5].strip()) for line in file if "/libstdc++.so" in line), None)
    except (OSError, IndexError):
        return None


def newest_glibcxx(library: Path) -> tuple:
    """(3, 4, 30): the newest of the versions whose names a libstdc++ holds; () where it holds none."""
    try:
        found = re.findall(rb"GLIBCXX_(\d+)\.(\d+)\.(\d+)", library.read_bytes())
    except OSError:
        return ()
    return max((tuple(map(int, numbers)) for numbers in found), default=())


def _dotted(version: tuple) -> str:
    return ".".join(map(str, version))
