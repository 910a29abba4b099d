"""The first import of Jittor, which compiles its core: the same objects under the same keys, in less time."""
from __future__ import annotations

import concurrent.futures
import contextlib
import os
import platform
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

from jea.environment import machine
from jea.environment.compiling.precompiled import Precompiled, off, restore_path


@contextlib.contextmanager
def faster():
    """Around `import jittor`. Yields a _Build, which says what it has begun for the kernels."""
    import jittor_utils
    if off() or platform.system() != "Linux" or jittor_utils.cc_type != "g++":
        yield None
        return
    build = _Build(jittor_utils)
    names = {"run_cmd": build.run_cmd, "run_cmds": build.run_cmds, "try_import_jit_utils_core": build.load_tools}
    for name, ours in names.items():
        setattr(jittor_utils, name, ours)
    try:
        yield build
    finally:
        for module in [module for name, module in sys.modules.items() if name.partition(".")[0] in (
                "jittor", "jittor_utils")]:
            for name, ours in names.items():
                if vars(module).get(name) == ours:  # `from jittor_utils import run_cmd`
                    setattr(module, name, build.originals[name])
        build.end()


class _Build:
    """What Jittor calls while it compiles itself, in place of its own functions of the same names."""

    def __init__(self, jittor_utils) -> None:
        self.jittor_utils = jittor_utils
        self.originals = {name: getattr(jittor_utils, name)
                          for name in ("run_cmd", "run_cmds", "try_import_jit_utils_core")}
        self.headers: dict[str, Precompiled] = {}
        self._tools = ""

    @property
    def kernel(self) -> Precompiled | None:
        return self.headers.get("kernel")

    def run_cmd(self, cmd, *arguments, **options):
        """Jittor's tools in several processes; the headers, while the one file that comes after them compiles."""
        words = shlex.split(cmd) if cmd.startswith('"') and " -o " in cmd else []
        output = os.path.basename(words[words.index("-o") + 1]) if "-o" in words else ""
        if output.startswith("jit_utils_core") and self._tools_in_parallel(words):
            self._tools = cmd
            return ""
        if output == "data.o":
            self._start_headers(words, cmd)
        return self.originals["run_cmd"](cmd, *arguments, **options)

    def _tools_in_parallel(self, words: list) -> bool:
        compiler, output = words[0], words[words.index("-o") + 1]
        sources = [word for word in words if word.endswith(".cc")]
        flags = [word for word in words[1:] if word not in ("-o", output, *sources)]
        compiling = [flag for flag in flags if flag != "-shared" and not flag.startswith(("-l", "-L"))]
        with tempfile.TemporaryDirectory(dir=os.path.dirname(output)) as folder:
            objects = [os.path.join(folder, f"{number}.o") for number in range(len(sources))]
            commands = [[compiler, *compiling, "-w", "-c", source, "-o", target]
                        for source, target in zip(sources, objects)]
            with concurrent.futures.ThreadPoolExecutor(machine.compiling_processes()) as pool:
                if any(pool.map(_fails, commands)):
                    return False
            return not _fails([compiler, *objects, *flags, "-o", output])

    def load_tools(self, *arguments, **options):
        self.originals["try_import_jit_utils_core"](*arguments, **options)
        if self._tools and self.jittor_utils.cc:
            self._remember_tools(self._tools)
            self._tools = ""

    def _remember_tools(self, cmd: str) -> None:
        """Write the key of Jittor's tools, which it would otherwise compile a second time, for the key alone.

        Its own function writes it: of a command that does nothing, whose name is then replaced.
        """
        words = shlex.split(cmd)
        key, prefix = Path(words[words.index("-o") + 1] + ".key"), f'"{words[0]}"'
        nothing = '"true"' + cmd[len(prefix):]
        try:
            source = Path(next(word for word in words if word.endswith(".cc")))  # jittor/src/utils/log.cc
            self.jittor_utils.cc.cache_compile(nothing, self.jittor_utils.cache_path, str(source.parents[2]))
            written = key.read_text()
            if not written.startswith(nothing + "\n"):
                raise ValueError(written)
            key.write_text(cmd + written[len(nothing):])
        except Exception:  # Jittor's own errors have no type
            key.unlink(missing_ok=True)

    def _start_headers(self, words: list, cmd: str) -> None:
        compiler, cache = words[0], os.path.dirname(words[words.index("-o") + 1])
        jittor = str(Path(words[words.index("-include") + 1]).parents[2])  # jittor/src/utils/vdp
        kernel = cmd.replace(" -O2 ", " ") + f" {os.environ.get('kernel_flags', '')} -fopenmp -Ofast"
        for kind, flags in (("core", cmd), ("kernel", kernel)):
            header = self.headers[kind] = Precompiled(kind, compiler, flags, cache, jittor)
            with contextlib.suppress(OSError):
                header.start()
                if machine.compiling_processes() == 1:
                    header.finish()

    def run_cmds(self, cmds, *arguments, **options):
        """The longest files first, so that no process is left alone with one at the end."""
        if "core" in self.headers:
            self.headers["core"].finish()
            self.headers["core"].use()
        cmds = sorted(cmds, key=lambda cmd: -os.path.getsize(shlex.split(cmd)[1]))
        return self.originals["run_cmds"](cmds, *arguments, **options)

    def end(self) -> None:
        if "core" in self.headers:
            self.headers["core"].finish()
            self.headers["core"].remove()
        restore_path()


def _fails(command: list) -> bool:
    return subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode != 0
