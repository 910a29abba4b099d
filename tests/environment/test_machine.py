"""The first look at a machine: each thing that it lacks is one line that says what to do, before Jittor fails on it."""
import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from jea.environment import cuda, cuda_home, jittor_home, machine
from jea.environment.compiling import notice
from jea.errors import SetupError

ROOT = Path(__file__).parent.parent.parent


def said(folder, *, before="true", user=0):
    """What check_cache says of a folder, in a process of its own: with other mounts, or as another user."""
    code = f"""
import os
from pathlib import Path
from jea.environment import machine
os.environ["JITTOR_HOME"] = {str(folder)!r}
os.setgroups([]), os.setgid({user}), os.setuid({user})
machine.check_cache(Path({str(folder)!r}))
"""
    command = ["unshare", "-m", "sh", "-c", before + '; exec "$@"', "sh", sys.executable, "-c", code]
    # With the same home: Jittor records another JITTOR_HOME in it, for every process to come.
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=dict(os.environ, HOME=str(folder)))
    if "unshare failed" in done.stderr or "mount:" in done.stderr:
        pytest.skip("no rights to mount here")
    return (done.stderr.strip().splitlines() or [""])[-1]


needs_mounts = pytest.mark.skipif(os.getuid() != 0 or shutil.which("unshare") is None, reason="wants root and unshare")


def test_a_cache_as_it_should_be(tmp_path):
    machine.check_cache(tmp_path / "new" / "cache")
    assert list((tmp_path / "new" / "cache").iterdir()) == []


@needs_mounts
@pytest.mark.parametrize("mount, words", [
    ("-o ro", "it cannot be written (Read-only file system"),
    ("-o noexec", "is mounted noexec: what is compiled there cannot be loaded"),
    ("-o size=64m", " MB are free, compiling Jittor's core takes 400; make room, or "),
    ("-o size=4k", "it cannot be written (No space left on device"),
])
def test_disks(tmp_path, mount, words):
    text = said(tmp_path, before=f"mount -t tmpfs {mount} none {tmp_path}")
    assert text.startswith("jea.errors.SetupError: ") and words in text
    assert "export JITTOR_HOME=/var/tmp/jittor-$USER" in text


@needs_mounts
def test_a_home_of_another_user(tmp_path):
    for folder in (tmp_path, *tmp_path.parents[:-2]):
        os.chmod(folder, 0o755)
    assert "it cannot be written (it belongs to user 0, you are 65534" in said(tmp_path, user=65534)
    shared = tmp_path / "shared"
    inner = shared / "jt1.3.11/g++12/py3.11/Linux/cpu/host"
    inner.mkdir(parents=True)
    for folder in (inner, *inner.parents[:6]):
        os.chmod(folder, 0o777)
    assert said(shared, user=65534) == ""
    (inner / "jittor.lock").touch(0o644)
    text = said(shared, user=65534)
    assert "it belongs to user 0, you are 65534" in text and "jittor.lock" in text


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_network_disk_without_locks(tmp_path, monkeypatch, number):
    def flock(*arguments):
        raise OSError(number, os.strerror(number))
    monkeypatch.setattr(machine.fcntl, "flock", flock)
    with pytest.raises(SetupError, match="its file system has no locks.*export JITTOR_HOME="):
        machine.check_cache(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_another_onednn_in_the_library_path(tmp_path, monkeypatch):
    """Jittor's import ended with "undefined symbol: dnnl_engine_create"."""
    monkeypatch.setenv("JITTOR_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("use_mkl", raising=False)
    other, right = tmp_path / "other", tmp_path / "right"
    for folder in (other, right):
        folder.mkdir()
        (folder / "libdnnl.so.2").write_bytes(b"")
    linked = jittor_home.jittor_cache() / "mkl" / "dnnl_lnx" / "lib" / "libdnnl.so.2"
    linked.parent.mkdir(parents=True)
    linked.symlink_to(right / "libdnnl.so.2")
    monkeypatch.setenv("LD_LIBRARY_PATH", f"{right}:/usr/lib")
    machine.check_library_path()
    monkeypatch.setenv("LD_LIBRARY_PATH", f"/usr/lib:{other}:{right}")
    with pytest.raises(SetupError, match="other/libdnnl.so.2 is another oneDNN.*export "
                                         f"LD_LIBRARY_PATH=/usr/lib:{right}$"):
        machine.check_library_path()
    monkeypatch.setenv("use_mkl", "0")
    machine.check_library_path()


def library(path, *versions):
    names = [*(f"GLIBCXX_{v}".encode() for v in versions), b"GLIBCXX_DEBUG_MESSAGE_LENGTH", b""]
    path.write_bytes(b"\x7fELF" + b"\0".join(names))
    return path


@pytest.mark.parametrize("ours, theirs, refused", [
    (("3.4", "3.4.9", "3.4.28"), ("3.4.9", "3.4.30"), True),
    (("3.4.30",), ("3.4.30",), False),
    (("3.4.33",), ("3.4.30",), False),
])
def test_a_cpp_library_older_than_the_compilers(tmp_path, monkeypatch, script, ours, theirs, refused):
    (tmp_path / "conda").mkdir()
    own, system = library(tmp_path / "conda/libstdc++.so.6", *ours), library(tmp_path / "libstdc++.so.6", *theirs)
    monkeypatch.setenv("cc_path", script(tmp_path / "g++", f"echo {system}"))
    monkeypatch.setattr(machine, "loaded_standard_library", lambda: own)
    if not refused:
        return machine.check_standard_library()
    with pytest.raises(SetupError, match=r"GLIBCXX 3\.4\.28\) is older than .*3\.4\.30.*conda install -c"):
        machine.check_standard_library()


def test_the_library_of_this_process_is_found():
    assert machine.newest_glibcxx(machine.loaded_standard_library()) > (3, 4, 20)
    machine.check_standard_library()


def test_a_compiler_newer_than_cuda_accepts(tmp_path, monkeypatch, script):
    header = tmp_path / "include/crt/host_config.h"
    header.parent.mkdir(parents=True)
    header.write_text("#if __GNUC__ > 13\n#error -- unsupported GNU version!\n")
    toolkit = cuda_home.Toolkit("nvcc", (12, 4), tmp_path)
    for version, words in (("15", "g++ 15 is newer than CUDA 12.4 accepts (up to 13): `apt install g++-13` and export "
                            "cc_path=g++-13"), ("13.2.0", None)):
        monkeypatch.setenv("cc_path", script(tmp_path / "g++", f"echo {version}"))
        problem = cuda.host_compiler_problem(toolkit)
        assert problem is None if words is None else words in problem


def test_memory_that_a_container_may_take(tmp_path):
    whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = tmp_path / "memory.max"
    for text, expected in (("max\n", whole), ("1073741824\n", 1 << 30), (f"{whole * 2}\n", whole)):
        limit.write_text(text)
        assert machine.memory_limit([limit, tmp_path / "none"]) == expected


def test_what_the_first_use_says(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(notice, "compiled_cache", lambda: tmp_path)
    for cores, gigabytes, processes in ((2, 1, 1), (2, 7, 2), (2, 99, 3), (64, 99, 16)):
        monkeypatch.setattr(machine, "memory_limit", lambda size=gigabytes << 30: size)
        monkeypatch.setattr(os, "sched_getaffinity", lambda process, cores=cores: range(cores))
        with notice.CoreCompileNotice():
            pass
        assert f"as many processes as cores and memory allow: {processes})" in capsys.readouterr().err
    assert jittor_home.core_is_compiled(tmp_path) is False
