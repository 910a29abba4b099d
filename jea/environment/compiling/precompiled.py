"""Precompiled headers for what Jittor compiles: g++ spends most of a kernel's time on reading the same headers again.

No flag is added: the whole command is the key in Jittor's cache, which programs without jea share, and another flag
would have both compile everything anew in turn. But g++ looks for cc1plus, its compiler proper, in COMPILER_PATH first.
A script of that name there puts the header in front of the files of this one cache, and hands on all else as it is.
Kernels stay the same to the last instruction; what does not compile that way is compiled without.
"""
from __future__ import annotations

import fcntl
import hashlib
import os
import shlex
import shutil
import subprocess
from pathlib import Path

FORMAT = 1  # of what lies in the folder; another number makes another folder
FOLDER = "precompiled"

HEADERS = {
    # What nearly every kernel includes. asm_tuner.py, which calls g++ for Jittor, adds -g.
    "kernel": ("#define JIT 1", "#include <cmath>", "#include <assert.h>", '#include "var.h"', '#include "fused_op.h"',
               '#include "executor.h"', '#include "ops/op_register.h"'),
    "core": ("#include <Python.h>", "#include <algorithm>", "#include <chrono>", "#include <cmath>",
             "#include <fstream>", "#include <iomanip>", "#include <mutex>", "#include <sstream>",
             "#include <unordered_map>", "#include <unordered_set>", '#include "common.h"', '#include "var.h"',
             '#include "op.h"', '#include "fused_op.h"', '#include "op_compiler.h"', '#include "executor.h"',
             '#include "ops/op_register.h"', '#include "opt/pass_manager.h"', '#include "opt/kernel_ir.h"',
             '#include "utils/seh.h"', '#include "utils/str_utils.h"', '#include "mem/allocator.h"',
             '#include "misc/cuda_flags.h"', '#include "pyjt/py_converter.h"', '#include "pyjt/py_arg_printer.h"',
             '#include "var_holder.h"'),
}

# These declare otherwise what the core's header defines.
WITHOUT = ("common_op_type.cc", "conv_tuner.cc", "cuda_flags.cc", "fp16_op_type.cc", "op_compiler.cc", "py_array_op.cc",
           "pyjt_jit_flags.cc")

SCRIPT = """#!/bin/sh
# Made by jea (compiling/precompiled.py): g++'s cc1plus, with a precompiled header in front of Jittor's files.
own=
for argument do
  case $argument in
    -E | -M | -MM | -fsyntax-only | {without}) own=; break ;;
    {files}) own=1 ;;
  esac
done
if [ "$own" ] && [ -f {header}.gch ] && {compiler} -include {header} "$@" 2>/dev/null; then exit 0; fi
exec {compiler} "$@"
"""


class Precompiled:
    """One header, for one compiler, its flags and one of Jittor's caches. `flags`: of a command or of jt.flags."""

    def __init__(self, kind: str, compiler: str, flags: str, cache: str, jittor: str) -> None:
        self.kind, self.compiler, self.cache, self.jittor = kind, compiler, Path(cache), Path(jittor)
        self.flags = header_flags(flags) + ["-g"] * (kind == "kernel")
        self.proper = compiler_proper(compiler)
        self.folder = self.cache / FOLDER / f"{kind}-{self._key()}"
        self.header = self.folder / "header.h"
        self._process = self._lock = None

    def _key(self) -> str:
        """Of all that makes the header what it is: g++ refuses one of another g++ or with other flags, but not one that
        was made from other headers."""
        parts = [str(FORMAT), *HEADERS[self.kind], *self.flags, self.proper, _stamp(self.proper)]
        source = self.jittor / "src"
        parts += sorted(f"{path.relative_to(source)} {_stamp(path)}" for path in source.rglob("*.h"))
        return hashlib.md5("\n".join(parts).encode()).hexdigest()[:12]

    @property
    def ready(self) -> bool:
        return Path(f"{self.header}.gch").is_file()

    def start(self) -> None:
        """Begin to compile the header, unless it is there or another process is at it. OSError where that cannot be."""
        if self.ready or not self.proper:
            return
        for old in self.folder.parent.glob(f"{self.kind}-*"):
            if old != self.folder:
                shutil.rmtree(old, ignore_errors=True)
        proper = Path(self.proper)
        script = self.folder / proper.parents[1].name / proper.parent.name / proper.name  # x86_64-linux-gnu/12/cc1plus
        script.parent.mkdir(parents=True, exist_ok=True)
        self._lock = open(self.header, "a+", encoding="utf-8")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return self._unlock()
        self.header.write_text("\n".join(HEADERS[self.kind]) + "\n", encoding="utf-8")
        script.write_text(SCRIPT.format(header=shlex.quote(str(self.header)), compiler=shlex.quote(self.proper),
                                        without=" | ".join(f"*/{name}" for name in WITHOUT),
                                        files=" | ".join(self._files())), encoding="utf-8")
        script.chmod(0o755)
        command = [self.compiler, "-x", "c++-header", str(self.header), *self.flags, "-w", "-o", f"{self.header}.new"]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                                         env=dict(os.environ, COMPILER_PATH=others_path()))

    def _files(self) -> list:
        cache, jittor = shlex.quote(str(self.cache)), shlex.quote(str(self.jittor))
        if self.kind == "kernel":
            return [f"{cache}/jit/*_op.cc"]
        return [f"{jittor}/src/*.cc", f"{jittor}/extern/*.cc", f"{cache}/gen/*.cc", f"{cache}/custom_ops/*.cc"]

    def finish(self) -> None:
        """Wait for what `start` has begun."""
        if self._process is None:
            return
        try:
            if self._process.wait() == 0:
                os.replace(f"{self.header}.new", f"{self.header}.gch")
        finally:
            if self._process.poll() is None:
                self._process.kill()
            self._process = self._unlock()

    def _unlock(self) -> None:
        self._lock.close()
        self._lock = None

    def use(self) -> None:
        """Have every g++ that this process and its children start use it for this cache's files."""
        if self.ready:
            os.environ["COMPILER_PATH"] = os.pathsep.join(filter(None, (str(self.folder), others_path())))

    def remove(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)


def _stamp(path) -> str:
    try:
        known = os.stat(path)
    except OSError:
        return ""
    return f"{known.st_size} {known.st_mtime_ns}"


def others_path() -> str:
    """COMPILER_PATH without jea's own, which a program that jea has started inherits."""
    folders = os.environ.get("COMPILER_PATH", "").split(os.pathsep)
    return os.pathsep.join(folder for folder in folders if folder and Path(folder).parent.name != FOLDER)


def restore_path() -> None:
    if others_path():
        os.environ["COMPILER_PATH"] = others_path()
    else:
        os.environ.pop("COMPILER_PATH", None)


def compiler_proper(compiler: str) -> str:
    """Where this g++ has its cc1plus, "" where it does not say so."""
    try:
        said = subprocess.run([compiler, "-print-prog-name=cc1plus"], capture_output=True, text=True, timeout=60,
                              env=dict(os.environ, COMPILER_PATH=others_path())).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""
    return os.path.abspath(said) if os.path.isabs(said) and os.path.isfile(said) else ""


def header_flags(command: str) -> list:
    """The flags of a command that a header depends on: without files, libraries and warnings."""
    kept, words = [], iter(shlex.split(command))
    for word in words:
        if word in ("-o", "-include", "-x"):
            next(words, None)
        elif word.startswith("-") and word not in ("-c", "-shared") and not word.startswith(
                ("-l", "-L", "-W", "-fdiagnostics")):
            kept.append(word)
    return kept


def off() -> bool:
    return os.environ.get("JEA_PRECOMPILED") == "0"


def for_kernels(flags, begun: Precompiled | None = None) -> None:
    """Have Jittor's kernels compiled with a precompiled header from now on, which takes two or three seconds once.

    `flags`: jt.flags. `begun`: one that has been started, which will be the right one if it was guessed right.
    """
    if off() or flags.cc_type != "g++":
        return
    try:
        header = Precompiled("kernel", flags.cc_path, flags.cc_flags, flags.cache_path, flags.jittor_path)
        if begun is not None:
            begun.finish()
        header.start()
        header.finish()
        header.use()
    except OSError:
        pass  # a cache that cannot be written: kernels compile as they always did
