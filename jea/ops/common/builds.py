"""What a kernel's failed build says.

Jittor compiles an operator when its result is first needed. If that fails, the compiler's text goes to the terminal,
with line numbers of a file that Jittor made, and the exception speaks of wrong arguments. `told` puts in its place: the
operator, the compiler's text at the header's own lines, and the way out.
"""
from __future__ import annotations

import functools
import re
import subprocess
from pathlib import Path

FOLDER = Path(__file__).parents[1]
_SOURCE = re.compile(r"(/\S+_op\.cc)\b")
_COMMAND = re.compile(r"Run cmd failed: (.+)")
_HEADER = re.compile(r'^#line 1 "(jea/ops/[^"]+)"', re.MULTILINE)
_CALL = re.compile(r"jea::(\w+)\s*(?:<[^;(]*>)?\(")
_COLOURS = re.compile(r"\x1b\[[0-9;]*[mK]")
LINES = 12  # of the compiler's text


class BuildError(RuntimeError):
    """A kernel of jea's could not be compiled."""


def explained(error: BaseException) -> BuildError | None:
    """A BuildError that says what Jittor's error does not, if that is the failed build of one of jea's kernels."""
    text = _COLOURS.sub("", str(error))
    source, command = _SOURCE.search(text), _COMMAND.search(text)
    if not source or not command:
        return None
    try:
        code = Path(source[1]).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    header = _HEADER.search(code)
    if not header:
        return None  # one of Jittor's own
    functions = sorted(set(_CALL.findall(code[code.rindex("jit_run"):])))
    return BuildError(
        f"{', '.join(operators(functions)) or header[1]}: the kernel in {header[1]} could not be compiled.\n"
        f"{_compilers_text(command[1], source[1])}\n"
        "JEA_OPS=ref does without jea's kernels, more slowly; `jea doctor` checks the compilers.")


def operators(functions) -> list:
    """The operators whose modules call one of these functions of a header."""
    if not functions:
        return []
    wanted = re.compile(r"\b(?:%s)\b" % "|".join(map(re.escape, functions)))
    return sorted({name for path in FOLDER.rglob("*.py") if path.parent != FOLDER
                   for text in [path.read_text(encoding="utf-8")] if wanted.search(text)
                   for name in re.findall(r'^\w+ = Support\(\s*"(\w+)"', text, re.MULTILINE)})


def _compilers_text(command: str, source: str) -> str:
    """What the compiler says, asked once more: the first time its text went to the terminal."""
    try:
        done = subprocess.run(command, shell=True, capture_output=True, text=True, errors="replace", timeout=300)
    except subprocess.TimeoutExpired:
        return "  The compiler did not come to an end within 5 minutes."
    if done.returncode == 0:
        return "  A second attempt succeeded: the first was ended, by a lack of memory perhaps. Run it again."
    text = _COLOURS.sub("", done.stderr + done.stdout).split("Traceback (most recent call last)")[0]
    lines = [line for line in text.replace(f"{source}:", "the call: ").splitlines() if line.strip()]
    first = next((i for i, line in enumerate(lines) if "error" in line), 0)
    shown = lines[first:first + LINES]
    more = len(lines) - first - len(shown)
    return "\n".join(f"  {line}" for line in shown) + (f"\n  ... {more} lines more" if more > 0 else "")


def told(function):
    """The function of Jittor's, whose failed builds of jea's kernels raise a BuildError."""
    @functools.wraps(function)
    def call(*args, **kwargs):
        try:
            return function(*args, **kwargs)
        except RuntimeError as error:
            better = explained(error)
            if better is None:
                raise
            raise better from None
    return call


def tell(jt) -> None:
    """Where Jittor runs what it was asked for, failed builds are told in our words from now on."""
    for name in ("numpy", "item", "sync", "fetch_sync", "tolist", "__float__", "__int__", "__bool__"):
        if name in vars(jt.Var):
            setattr(jt.Var, name, told(getattr(jt.Var, name)))
    if isinstance(vars(jt.Var).get("data"), property) or hasattr(jt.Var.data, "__get__"):
        data = vars(jt.Var)["data"]
        jt.Var.data = property(told(data.__get__), data.__set__)
    for name in ("sync", "sync_all"):
        setattr(jt, name, told(getattr(jt, name)))
