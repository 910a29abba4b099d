"""What must be true before `import jittor`: oneDNN where Jittor looks for it, CUDA decided, a compiler at hand.

Importing jea decides nothing: it asks no driver, runs no program and writes no file. `prepare()` does, once, at the
first use of Jittor or for a command that reports what was found. It sets environment variables and links files; nothing
is compiled. Jittor itself is imported in one place, jea/_jittor.py.
"""
from __future__ import annotations

import os
import sys

from jea.errors import SetupError

_decisions = None


def prepare():
    """Set up the environment for `import jittor`, once per process; returns the decisions.Decisions. Compiles nothing
    and never raises."""
    # Here and not above: whoever imports jea pays for none of it, and Ctrl-C meets little before a command's own care.
    from jea.environment import cuda, jittor_home, mpi, onednn, toolchain
    from jea.environment.decisions import Decisions
    global _decisions
    if _decisions is None:
        found = Decisions()
        if "jittor" in sys.modules:
            found.notes.append("jittor was imported before jea: its own choices stand")
            found.device = "cuda" if getattr(sys.modules["jittor"], "has_cuda", 0) else "cpu"
            found.device_reason = "as Jittor chose"
            found.onednn_reason = "as Jittor chose"
        else:
            jittor_home.mend_record()
            onednn.set_up(found)
            cuda.decide(found)
            toolchain.find_python_config()
            mpi.decide()
            os.environ.setdefault("log_silent", "1")
        _decisions = found
    return _decisions


def choose_device(wanted: str, option: str = "--device ") -> str:
    """"cpu" or "cuda" for a `--device auto|cpu|cuda`; SetupError when CUDA is asked for and cannot be had. option: what
    the message calls it."""
    found = prepare()
    if wanted == "cuda" and found.device != "cuda":
        raise SetupError(f"{option}cuda: {found.device_reason}. Use {option}cpu, or mend that.")
    return found.device if wanted == "auto" else wanted


def allow_tf32() -> None:
    """Undo jea's NVIDIA_TF32_OVERRIDE=0 (for --tf32). Before Jittor is imported: its libraries read it when they
    load."""
    if prepare().tf32_off:
        os.environ.pop("NVIDIA_TF32_OVERRIDE", None)


class _BeforeJittor:
    """Asked first whenever a module is imported; prepares for Jittor, whoever imports it, and finds nothing itself."""

    @staticmethod
    def find_spec(name, path=None, target=None):
        if name == "jittor":
            prepare()


def prepare_before_jittor() -> None:
    """Have `prepare` run before a plain `import jittor` after `import jea` too: Jittor aborts the process where it
    finds an nvcc and no GPU, and downloads what is installed already."""
    if not any(isinstance(finder, _BeforeJittor) for finder in sys.meta_path):
        sys.meta_path.insert(0, _BeforeJittor())
