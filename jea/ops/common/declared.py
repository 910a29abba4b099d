"""Which operators have kernels, for what: each says it of itself, beside its own code, and asks the same object.

    SUPPORT = Support("double_norm", cpu=FLOAT, cuda=FLOATS)

`rows` reads these lines from the sources, without Jittor, for `jea info`.
"""
from __future__ import annotations

import ast
from dataclasses import dataclass
from pathlib import Path

FLOAT = ("float32",)
FLOATS = ("float32", "float16", "bfloat16")
WORDS = {"cpu": "the CPU", "cuda": "CUDA"}
_NAMES = {"FLOAT": FLOAT, "FLOATS": FLOATS}


@dataclass(frozen=True)
class Support:
    """The types that an operator's kernels take on a device; none: there is no kernel."""

    operator: str
    cpu: tuple = ()
    cuda: tuple = ()
    onednn: bool = False  # the kernel for the CPU is oneDNN's
    instead: str = "Jittor's own functions"  # what runs where there is no kernel

    def refusal(self, device: str, dtypes=(), *, onednn: bool = True) -> str:
        """Why the kernel does not run there for these types; "" where it does."""
        types = getattr(self, device)
        if not types:
            others = [WORDS[other] for other in WORDS if getattr(self, other)]
            return f"there is no kernel for {WORDS[device]}" + (f", only for {others[0]}" if others else "")
        if device == "cpu" and self.onednn and not onednn:
            return "Jittor runs without oneDNN"
        if any(str(dtype) not in types for dtype in dtypes):
            return f"it takes {', '.join(types)} on {WORDS[device]}"
        return ""


@dataclass(frozen=True)
class Row:
    """What an operator runs on a device: its kernel for these types, or, with the reason, something else."""

    operator: str
    device: str
    dtypes: tuple
    reason: str  # "" where the kernel runs
    instead: str


def _value(node):
    if isinstance(node, ast.Name):
        return _NAMES[node.id]
    if isinstance(node, ast.BinOp):  # FLOATS + ("int32",)
        return _value(node.left) + _value(node.right)
    return ast.literal_eval(node)


def declarations(folder: Path = Path(__file__).parents[1]) -> list:
    """Every Support that the modules of a folder make at their top level, in the order of the operators' names."""
    found = []
    for path in folder.rglob("*.py"):
        for statement in ast.parse(path.read_text(encoding="utf-8")).body:
            for call in ast.walk(statement) if isinstance(statement, ast.Assign) else ():
                if isinstance(call, ast.Call) and getattr(call.func, "id", "") == "Support":
                    found.append(Support(*map(_value, call.args), **{k.arg: _value(k.value) for k in call.keywords}))
    return sorted(found, key=lambda support: support.operator)


def rows(device: str, *, onednn: bool) -> list:
    """A Row for each operator: what it runs on `device` ("cpu" or "cuda"), and why."""
    return [Row(support.operator, device, getattr(support, device), support.refusal(device, onednn=onednn),
                support.instead) for support in declarations()]
