"""cuDNN's plans for convolutions: which engine computes a shape on this card, found by trial once and kept on disk.

The C++ side (plan.h) builds and tries plans; here stand the table of what was found, below JEA_HOME for each card,
driver and cuDNN, and the addresses of the plans of this process.
"""
from __future__ import annotations

import ctypes
import functools
import hashlib
import json
import os
import re
import struct
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from jea import files
from jea._jittor import jt
from jea.ops import kernels
from jea.ops.common.sources import header

PASSES = ("forward", "data", "weight")
TYPES = {"float32": 0, "float16": 2, "bfloat16": 9}  # cudnnDataType_t
SIZES = ("batch", "height", "width", "channels", "out_channels", "kernel_h", "kernel_w", "stride", "padding",
         "dilation")

_ANSWER = struct.Struct("<9q48q256s")  # Answer in plan.h
_SOURCE = """
    const auto number = [&](const std::string& name) { return (int64_t)data[name]; };
    const jea::Convolution convolution{(jea::Pass)number("pass"), (cudnnDataType_t)number("type"), number("tf32") != 0,
        number("deterministic") != 0, number("batch"), number("height"), number("width"), number("channels"),
        number("out_channels"), number("kernel_h"), number("kernel_w"), number("stride"), number("padding"),
        number("dilation"), number("bias") != 0, number("residual") != 0, number("relu") != 0};
    jea::Engine kept;
    kept.index = number("engine");
    for (int i = 0; i < number("knobs"); i++)
        kept.knobs.emplace_back(number("knob" + std::to_string(i)), number("value" + std::to_string(i)));
    jea::Trial trial;
    trial.engines = (int)number("trials");
    const jea::Answer answer = jea::answer<Scratch>(convolution, kept, trial, cudnn_handle);
    cudaMemcpy(out0_p, &answer, sizeof answer, cudaMemcpyHostToDevice);
"""

trials = 10  # engines tried for a shape; 0: cuDNN's first proposal. Set by choose_by_rule and the self-check.
deterministic = False


@dataclass(frozen=True)
class Plan:
    """How one convolution is run; or why cuDNN does not, in `refused`."""
    address: int = 0
    forward: int = 0  # address of the function that runs it: forward passes
    backward: int = 0  # gradients
    nanoseconds: int = 0  # in the trial; 0 without one
    workspace: int = 0
    tried: int = 0
    engine: int = -1
    knobs: tuple = ()
    refused: str = ""


def choose_by_rule() -> None:
    """Take cuDNN's first proposal among engines that repeat their results bit by bit, instead of the fastest of a
    trial."""
    global trials, deterministic
    trials, deterministic = 0, True
    _plans.clear()
    calls.clear()


def tf32() -> bool:
    """Whether float32 may be multiplied with 10 bits of mantissa; NVIDIA_TF32_OVERRIDE=0, which jea sets, says no."""
    return os.environ.get("NVIDIA_TF32_OVERRIDE") != "0"


def plan(pass_: str, dtype: str, sizes: dict, *, bias: bool = False, residual: bool = False,
         relu: bool = False) -> Plan:
    """The plan for one of PASSES of a convolution with these SIZES. Its first call for a shape waits for the card."""
    key = (pass_, dtype, tf32(), deterministic, bias, residual, relu, *(sizes[name] for name in SIZES))
    found = _plans.get(key)
    if found is None:
        found = _plans[key] = _open(key, sizes)
    return found


_plans: dict = {}
calls: dict = {}  # what operator.conv2d was called with -> its plans
_said: list = []


def _open(key: tuple, sizes: dict) -> Plan:
    pass_, dtype, tf32_, deterministic_, bias, residual, relu = key[:7]
    name = " ".join([pass_, dtype + " tf32" * (tf32_ and dtype == "float32") + " deterministic" * deterministic_,
                     *(word for word, on in (("bias", bias), ("residual", residual), ("relu", relu)) if on),
                     "x".join(str(sizes[size]) for size in SIZES)])
    kept = _table().get(name) if trials else None
    numbers = dict(sizes, type=TYPES[dtype], tf32=int(tf32_), deterministic=int(deterministic_), bias=int(bias),
                   residual=int(residual), relu=int(relu), trials=trials, engine=-1, knobs=0)
    numbers["pass"] = PASSES.index(pass_)
    if kept:
        numbers.update(engine=kept["engine"], knobs=len(kept["knobs"]))
        for i, (knob, value) in enumerate(kept["knobs"]):
            numbers[f"knob{i}"], numbers[f"value{i}"] = knob, value
    elif trials and not _said:
        _said.append(True)
        print(f"jea: trying cuDNN's engines, once for each shape (kept in {folder()})", file=sys.stderr, flush=True)
    with jt.no_grad():
        answer = kernels.cuda_code((_ANSWER.size,), "uint8", [], kernel="convolution/cudnn/plan.cuh", source=_SOURCE,
                                   data=numbers, cudnn=True).numpy()
    found = read_answer(np.ascontiguousarray(answer).tobytes())
    if trials and not found.refused and found.tried:
        _keep(name, found)
    return found


def read_answer(data: bytes) -> Plan:
    """What plan.h's Answer says."""
    values = _ANSWER.unpack(data)
    address, forward, backward, workspace, nanoseconds, _, tried, engine, count = values[:9]
    knobs = tuple(zip(values[9:57:2], values[10:57:2]))[:count]
    refused = values[57].split(b"\0")[0].decode(errors="replace")
    if not address and not refused:
        refused = "no plan came back"
    return Plan(address, forward, backward, nanoseconds, workspace, tried, engine, knobs, refused)


# -- what stays on disk ----------------------------------------------------------------------------------------------

@functools.lru_cache(maxsize=None)
def card() -> str:
    """The card, its driver and cuDNN, as a name for a folder: engines and verdicts hold for these."""
    parts = []
    try:
        driver, text = ctypes.CDLL("libcuda.so.1"), ctypes.create_string_buffer(128)
        driver.cuDeviceGetName(text, len(text), 0)
        parts.append(text.value.decode(errors="replace"))
        version = ctypes.c_int()
        driver.cuDriverGetVersion(ctypes.byref(version))
        parts.append(f"cuda{version.value}")
    except (OSError, AttributeError):
        parts.append("unknown card")
    try:
        parts.append(f"driver{Path('/sys/module/nvidia/version').read_text().strip()}")
    except OSError:
        pass
    try:
        cudnn = ctypes.CDLL("libcudnn.so.9").cudnnGetVersion
        cudnn.restype = ctypes.c_size_t
        parts.append(f"cudnn{cudnn()}")
    except (OSError, AttributeError):
        pass
    return re.sub(r"[^A-Za-z0-9.]+", "-", "-".join(parts)).strip("-")


def folder() -> Path:
    """Where this card's engines and verdicts are kept."""
    return files.jea_home() / "convolutions" / card()


def sources() -> str:
    """A short name for the kernels' text: what was seen of others says nothing."""
    texts = (header(f"convolution/cudnn/{name}") for name in ("plan.cuh", "call.cuh", "epilogue.cuh"))
    return hashlib.sha256("".join((*texts, _SOURCE)).encode()).hexdigest()[:12]


def read_json(path: Path) -> dict:
    """A table; {} where it is missing or broken: it can be made again."""
    try:
        found = json.loads(path.read_text())
        return found if isinstance(found, dict) else {}
    except (OSError, ValueError):
        return {}


def write_json(path: Path, table: dict) -> None:
    """Keep a table; not being able to costs time at the next start, and no more."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        files.write_bytes(path, (json.dumps(table, indent=1) + "\n").encode())
    except OSError as error:
        if "unwritten" not in _said:
            _said.append("unwritten")
            print(f"jea: {path} cannot be written ({error.strerror}): cuDNN's engines are tried again at the next "
                  "start",
                  file=sys.stderr)


@functools.lru_cache(maxsize=1)
def _table() -> dict:
    return {name: entry for name, entry in read_json(folder() / "engines.json").items() if _is_entry(entry)}


def _is_entry(entry) -> bool:
    try:
        return int(entry["engine"]) >= 0 and all(int(knob) >= 0 and int(value) >= 0 for knob, value in entry["knobs"])
    except (TypeError, KeyError, ValueError):
        return False


def _keep(name: str, found: Plan) -> None:
    table = _table()
    table.update({other: entry for other, entry in read_json(folder() / "engines.json").items()
                  if _is_entry(entry) and other not in table})  # of another process
    table[name] = {"engine": found.engine, "knobs": [list(knob) for knob in found.knobs],
                   "microseconds": round(found.nanoseconds / 1000, 1), "workspace": found.workspace,
                   "tried": found.tried}
    write_json(folder() / "engines.json", table)
