"""Precompiled headers: faster, and not one instruction or key of Jittor's cache differs for it."""
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from jea import environment
from jea.environment.compiling import core_build, precompiled
from jea.environment.compiling.precompiled import Precompiled

ROOT = Path(__file__).parent.parent.parent
FOLDER_OF_JEA = f"/{precompiled.FOLDER}/"
FLAGS = "-std=c++14 -O2 -Wall -fPIC"

pytestmark = pytest.mark.skipif(not precompiled.compiler_proper("g++"), reason="no g++")


@pytest.fixture
def made(monkeypatch, tmp_path):
    """A header that says that it was taken (MARK), for a cache and a Jittor in `tmp_path`; not compiled yet."""
    monkeypatch.setitem(precompiled.HEADERS, "kernel", ("#define JIT 1", "#include <cmath>", '#include "var.h"'))
    before = os.environ.get("COMPILER_PATH")
    for folder in ("cache/jit", "jittor/src", "elsewhere"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "jittor/src/var.h").write_text("#pragma once\n#define MARK 1\ninline int mark() { return 7; }\n")
    yield header(tmp_path)
    os.environ.pop("COMPILER_PATH", None)
    if before is not None:
        os.environ["COMPILER_PATH"] = before


def header(folder, flags=""):
    flags = f'{FLAGS} {flags} -I"{folder}/jittor/src" -L"{folder}" -lnone'
    return Precompiled("kernel", "g++", flags, folder / "cache", folder / "jittor")


def compiled(path, *flags):
    """(exit status, what g++ says)."""
    done = subprocess.run(["g++", *FLAGS.split(), "-I", str(path.parents[2] / "jittor/src"), "-g", *flags, "-c",
                           str(path), "-o", str(path.with_suffix(".o"))], capture_output=True, text=True)
    return done.returncode, done.stderr


def test_it_is_taken_for_the_files_of_its_cache_alone(made, tmp_path):
    """These files compile with MARK alone, which only the header defines, and only where it is put in front."""
    inside, elsewhere = tmp_path / "cache/jit/a_op.cc", tmp_path / "cache/elsewhere/a_op.cc"
    elsewhere.parent.mkdir()
    for path in (inside, elsewhere):
        path.write_text("#define JIT 1\n#ifndef MARK\n#error no mark\n#endif\n#include <cmath>\n"
                        "int f() { return mark(); }\n")
    assert not made.ready and compiled(inside)[0] == 1
    made.start()
    made.finish()
    assert made.ready and compiled(inside)[0] == 1  # not in use yet
    made.use()
    assert compiled(inside) == (0, "")
    assert compiled(elsewhere)[0] == 1
    preprocessed = subprocess.run(["g++", "-E", str(inside)], capture_output=True, text=True)
    assert "no mark" in preprocessed.stderr
    assert compiled(inside, "-DOTHER=1", "-O0") == (0, "")  # g++ refuses it for other flags, and reads it as text
    precompiled.restore_path()
    assert compiled(inside)[0] == 1


def test_errors_are_those_of_the_compiler_alone(made, tmp_path):
    path = tmp_path / "cache/jit/b_op.cc"
    path.write_text('#define JIT 1\n#include <cmath>\n#include "var.h"\nint f() { return marks(); }\n')
    alone = compiled(path)
    made.start()
    made.finish()
    made.use()
    assert alone == compiled(path) and alone[0] == 1 and "b_op.cc:4:" in alone[1]


def test_another_header_another_key(made, tmp_path):
    """g++ takes one that was made from headers which have changed since; its folder's name does not let it."""
    made.start()
    made.finish()
    made.use()
    assert header(tmp_path).folder == made.folder and header(tmp_path, "-Lx -lm -Wextra").folder == made.folder
    assert header(tmp_path, "-O3").folder != made.folder
    (tmp_path / "jittor/src/var.h").write_text("#pragma once\n#define MARK 2\ninline int mark() { return 8888; }\n")
    other = header(tmp_path)
    assert other.folder != made.folder and not other.ready
    other.start()
    assert not made.folder.exists()
    other.finish()
    other.use()
    path = tmp_path / "cache/jit/c_op.cc"
    path.write_text("#define JIT 1\n#include <cmath>\nstatic_assert(MARK == 2, \"\");\n")
    assert compiled(path) == (0, "")


def test_what_inherits_it_and_what_was_there(made, tmp_path, monkeypatch):
    monkeypatch.setenv("COMPILER_PATH", f"/my/tools:{tmp_path}/other/precompiled/kernel-0123")
    made.start()
    made.finish()
    made.use()
    assert os.environ["COMPILER_PATH"] == f"{made.folder}:/my/tools"
    made.use()
    assert os.environ["COMPILER_PATH"] == f"{made.folder}:/my/tools"
    assert header(tmp_path).proper == made.proper and FOLDER_OF_JEA not in made.proper
    precompiled.restore_path()
    assert os.environ["COMPILER_PATH"] == "/my/tools"


def test_two_processes_at_once(made, tmp_path):
    """One compiles; the other goes on without, and disturbs nothing."""
    made.start()
    second = header(tmp_path)
    second.start()
    second.finish()
    second.use()
    assert not second.ready and str(second.folder) not in os.environ.get("COMPILER_PATH", "")
    made.finish()
    assert second.ready and sorted(path.name for path in made.folder.iterdir() if path.is_file()) == [
        "header.h", "header.h.gch"]


def test_a_cache_that_cannot_be_written_and_other_compilers(tmp_path, monkeypatch):
    class Flags:
        cc_type, cc_path, cc_flags, cache_path, jittor_path = "g++", "g++", FLAGS, str(tmp_path / "file"), str(tmp_path)
    (tmp_path / "file").touch()
    monkeypatch.delenv("COMPILER_PATH", raising=False)
    precompiled.for_kernels(Flags)
    Flags.cache_path = str(tmp_path)
    Flags.cc_type = "clang"
    precompiled.for_kernels(Flags)
    Flags.cc_type = "g++"
    monkeypatch.setenv("JEA_PRECOMPILED", "0")
    precompiled.for_kernels(Flags)
    Flags.cc_path = "no-such-compiler"
    monkeypatch.delenv("JEA_PRECOMPILED")
    precompiled.for_kernels(Flags)
    assert "COMPILER_PATH" not in os.environ and not (tmp_path / precompiled.FOLDER).exists()


@pytest.mark.skipif(shutil.which("objcopy") is None, reason="wants binutils")
def test_a_kernel_is_the_same_to_the_last_instruction(tmp_path):
    """A kernel that was compiled with the header, and its command, as Jittor remembers it, run without."""
    code = """
import os, random
from jea._jittor import jt
x = jt.array([1.5, 2.5])
y = jt.code((2,), "float32", [x], cpu_src=f"for (int i = 0; i < 2; i++) @out(i) = @in0(i) * {random.random()}f;")
print(jt.flags.cache_path, os.environ["COMPILER_PATH"])
print((y.sum() + jt.exp(x).sum()).item())
"""
    before = dict(os.environ)
    before.pop("COMPILER_PATH", None)
    said = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    cache, path = said.split()[:2]
    assert path.startswith(f"{cache}/{precompiled.FOLDER}/kernel-")
    library = max(Path(cache, "jit").glob("code*_op.so"), key=lambda path: path.stat().st_mtime_ns)
    command = Path(f"{library}.key").read_text().splitlines()[0]
    assert "asm_tuner.py" in command and precompiled.FOLDER not in command and "-include" not in command
    source = library.with_suffix(".cc")
    (tmp_path / source.name).write_bytes(source.read_bytes())
    other = tmp_path / library.name
    subprocess.run(command.replace(str(library), str(other)).replace(str(source), str(tmp_path / source.name)),
                   shell=True, check=True, env=before)
    for section in (".text", ".rodata", ".data", ".dynsym"):
        for file, name in ((library, "with"), (other, "without")):
            subprocess.run(["objcopy", "-O", "binary", "--set-section-flags", f"{section}=alloc", "-j", section, file,
                            tmp_path / name], check=True)
        assert (tmp_path / "with").read_bytes() == (tmp_path / "without").read_bytes(), section
    assert library.stat().st_size > 10_000


@pytest.mark.skipif(sys.version_info >= (3, 13), reason="Jittor alone cannot be imported from Python 3.13 on")
def test_a_program_without_jea_compiles_nothing_anew():
    """It shares the cache and its keys, and neither changes what the other has compiled."""
    work = """
import jittor as jt
x = jt.code((2,), "float32", [jt.array([1.5, 2.5])], cpu_src="for (int i = 0; i < 2; i++) @out(i) = @in0(i) + 125;")
print(x.numpy().tolist(), jt.flags.cache_path)
"""
    environment.prepare()  # what it decides for Jittor stands in this process's environment
    known = None
    for first in ("from jea import _jittor", "", "from jea import _jittor"):
        done = subprocess.run([sys.executable, "-c", first + work], cwd=ROOT, capture_output=True, text=True,
                              env=dict(os.environ, COMPILER_PATH=precompiled.others_path()))
        assert done.returncode == 0 and done.stdout.startswith("[126.5, 127.5]"), done.stderr
        cache = Path(done.stdout.split()[-1])
        files = {path: path.stat().st_mtime_ns for pattern in ("*.so", "../*.so", "*.key", "obj_files/*", "jit/*.so")
                 for path in cache.glob(pattern)}
        known = known or files
        assert len(known) > 300 and all(files[path] == time for path, time in known.items())


class FakeJittor:
    """jittor_utils, as far as the first import's helper needs it."""
    cc = None

    def __init__(self, folder):
        self.cache_path, self.ran = str(folder), []

    def run_cmd(self, cmd, *arguments, **options):
        self.ran.append(cmd)
        return "ran"

    def run_cmds(self, cmds, *arguments, **options):
        self.ran += cmds

    def try_import_jit_utils_core(self, silent=None):
        if list(Path(self.cache_path).glob("jit_utils_core*.so")):
            self.cc = self

    def cache_compile(self, cmd, cache, jittor):
        assert subprocess.run(cmd, shell=True).returncode == 0
        output = cmd.split('-o "')[1].split('"')[0]
        Path(output + ".key").write_text(f"{cmd}\n# the hashes of {jittor}\n")


def test_jittors_tools_are_compiled_once(tmp_path):
    """In several processes, and under the key of the command that would have compiled them in one."""
    source = tmp_path / "jittor/src/utils"
    source.mkdir(parents=True)
    for name in ("log", "tracer"):
        (source / f"{name}.cc").write_text(f"int {name}() {{ return 1; }}\n")
    jittor = FakeJittor(tmp_path)
    build = core_build._Build(jittor)
    output = tmp_path / "jit_utils_core.so"
    command = f'"{shutil.which("g++")}" "{source}/log.cc" "{source}/tracer.cc" -fPIC -lstdc++ -shared -O2 -o "{output}"'
    build.load_tools()
    assert build.run_cmd(command) == "" and jittor.ran == [] and output.is_file()
    build.load_tools()
    assert Path(f"{output}.key").read_text() == f"{command}\n# the hashes of {tmp_path}/jittor\n"
    assert build.run_cmd("git status") == "ran" and sorted(p.name for p in tmp_path.iterdir()) == [
        "jit_utils_core.so", "jit_utils_core.so.key", "jittor"]
    # What does not compile is left to Jittor, with its own words.
    (source / "log.cc").write_text("int log() { return }\n")
    output.unlink()
    assert build.run_cmd(command) == "ran" and jittor.ran[-1] == command and not output.exists()


def test_a_key_that_jittor_would_write_otherwise_is_not_written(tmp_path):
    class Other(FakeJittor):
        def cache_compile(self, cmd, cache, jittor):
            super().cache_compile(cmd.replace("-O2", "-O2 -DJT_X=1"), cache, jittor)
    (tmp_path / "jittor/src/utils").mkdir(parents=True)
    (tmp_path / "jittor/src/utils/log.cc").write_text("int log_() { return 1; }\n")
    jittor = Other(tmp_path)
    build = core_build._Build(jittor)
    build.run_cmd(f'"g++" "{tmp_path}/jittor/src/utils/log.cc" -shared -fPIC -O2 -o "{tmp_path}/jit_utils_core.so"')
    build.load_tools()
    assert not (tmp_path / "jit_utils_core.so.key").exists() and jittor.cc is jittor


def test_the_longest_files_come_first(tmp_path):
    for name, size in (("a.cc", 10), ("b.cc", 30), ("c.cc", 20)):
        (tmp_path / name).write_bytes(bytes(size))
    jittor = FakeJittor(tmp_path)
    core_build._Build(jittor).run_cmds([f'"g++" "{tmp_path / name}" -c' for name in ("a.cc", "b.cc", "c.cc")])
    assert [cmd.split('"')[3][-4:] for cmd in jittor.ran] == ["b.cc", "c.cc", "a.cc"]
