"""The self-check of cuDNN's graph interface: each kind of convolution against numpy, at its first use on a card.

The verdicts are kept beside the engines, for this card, driver, cuDNN, jea and kernels. What is wrong or fails is
turned off: its convolutions run as Jittor's. A check during which the process dies counts as failed at the next start.
"""
from __future__ import annotations

import functools
import os
import re
import sys

import numpy as np

import jea
from jea._jittor import jt
from jea.ops.convolution.cudnn import plans

RIGHT, DIED = "right", "two processes died while it was checked (`jea doctor` checks it again)"
# Largest error, relative to the largest value: of the result's dtype, and of TF32's operands.
TOLERANCES = {"float32": 1e-5, "float16": 1e-3, "bfloat16": 8e-3, "tf32": 2e-3}


def kind(dtype: str, sizes: dict, *, epilogue: bool) -> str:
    """What a convolution has in common with those of its kind: "float16 3x3 strided"."""
    words = [dtype + " tf32" * (dtype == "float32" and plans.tf32()),
             "1x1" if sizes["kernel_h"] * sizes["kernel_w"] == 1
             else "3x3"]
    words += ["strided"] * (sizes["stride"] > 1) + ["dilated"] * (sizes["dilation"] > 1)
    return " ".join(words + ["with bias, residual, ReLU"] * epilogue)


def unavailable(dtype: str, sizes: dict, *, epilogue: bool = False) -> str:
    """Why cuDNN's graph interface is not used for such a convolution; "" where it is. Checks a kind at its first
    use."""
    problem = missing(dtype)
    if problem:
        return problem
    name = kind(dtype, sizes, epilogue=epilogue)
    verdict = _verdicts().get(name)
    if verdict is None or verdict.startswith("begun "):
        died = deaths(verdict)
        verdict = DIED if died > 1 else _run_check(name, dtype, sizes, epilogue, died)
    return "" if verdict in (RIGHT, _CHECKING) else verdict


_CHECKING = "is being checked"  # its own convolutions run


def deaths(verdict: str | None) -> int:
    """How many processes have died in a check, by its entry "begun 1 by 4711": a process that lives is still at it."""
    if verdict is None:
        return 0
    begun, process = map(int, re.findall(r"\d+", verdict))
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return begun
    except OSError:
        pass
    return begun - (process != os.getpid())


def missing(dtype: str = "float32") -> str:
    """What of the machine speaks against it, before any kernel runs."""
    if not jt.flags.use_cuda:
        return "it runs on CUDA, and CUDA is off"
    if not _cudnn9():
        return "it wants cuDNN 9, and Jittor runs with an older one or none"
    capability = min(jt.flags.cuda_archs, default=0)
    if capability < 70:
        return f"it wants a card of compute capability 7.0 or newer; this one has {capability / 10}"
    if dtype == "bfloat16" and capability < 80:
        return f"bfloat16 wants a card of compute capability 8.0 or newer; this one has {capability / 10}"
    return ""


@functools.lru_cache(maxsize=None)
def _cudnn9() -> bool:
    import ctypes
    try:
        ctypes.CDLL("libcudnn.so.9")
    except OSError:
        return False
    return getattr(jt, "cudnn", None) is not None


def examine(dtype: str) -> tuple:
    """(largest error of all kinds, {kind: what is wrong}): checks every kind anew and keeps the verdicts."""
    last_error.clear()
    wrong = {}
    for kernel, stride, dilation, epilogue in ((1, 1, 1, False), (1, 2, 1, False), (1, 1, 1, True), (3, 1, 1, False),
                                               (3, 2, 1, False), (3, 1, 2, False), (3, 1, 1, True)):
        sizes = {"kernel_h": kernel, "kernel_w": kernel, "stride": stride, "dilation": dilation}
        name = kind(dtype, sizes, epilogue=epilogue)
        verdict = _run_check(name, dtype, sizes, epilogue)
        if verdict != RIGHT:
            wrong[name] = verdict
    return max(last_error.values(), default=0.), wrong


last_error: dict = {}  # kind -> the largest of its check in this process


def verdicts() -> dict:
    """kind -> "right" or what is wrong, of all kinds met so far on this card."""
    return dict(_verdicts())


def _key() -> str:
    return f"jea {jea.__version__} {plans.sources()}"


@functools.lru_cache(maxsize=1)
def _verdicts() -> dict:
    return dict(plans.read_json(plans.folder() / "verdicts.json").get(_key(), {}))


def _keep(name: str, verdict: str | None) -> None:
    found = _verdicts()
    path = plans.folder() / "verdicts.json"
    found.update({other: said for other, said in plans.read_json(path).get(_key(), {}).items() if other not in found})
    found[name] = verdict
    if verdict is None:
        del found[name]
    plans.write_json(path, {_key(): {kind: said for kind, said in found.items() if said != _CHECKING}})


def _run_check(name: str, dtype: str, sizes: dict, epilogue: bool, died: int = 0) -> str:
    _keep(name, f"begun {died + 1} by {os.getpid()}")
    _verdicts()[name] = _CHECKING
    before, plans.trials = plans.trials, 0
    try:
        with jt.flag_scope(no_grad=0):
            errors = compare(dtype, kernel=min(max(sizes["kernel_h"], sizes["kernel_w"]), 3),
                             stride=min(sizes["stride"], 2), dilation=min(sizes["dilation"], 2), epilogue=epilogue)
        last_error[name] = max(errors.values())
        limit = TOLERANCES["tf32" if dtype == "float32" and plans.tf32() else dtype]
        wrong = {what: error for what, error in errors.items() if not error <= limit}
        verdict = RIGHT if not wrong else "wrong on this card: " + ", ".join(
            f"{what} differs by {error:.0e} of the largest (allowed {limit:.0e})" for what, error in wrong.items())
    except Exception as error:  # whatever it is: this path is left
        verdict = f"it fails on this card: {str(error).strip().splitlines()[0] if str(error) else type(error).__name__}"
    except BaseException:  # Ctrl-C says nothing about the card
        _keep(name, None)
        raise
    finally:
        plans.trials = before
    _keep(name, verdict)
    if verdict != RIGHT:
        print(f"jea: convolutions of the kind {name} are Jittor's own from now on: {verdict}", file=sys.stderr,
              flush=True)
    return verdict


def compare(dtype: str, *, kernel: int, stride: int, dilation: int, epilogue: bool) -> dict:
    """conv2d and its gradients on small operands against numpy in float64: what -> error relative to the largest."""
    from jea.ops.convolution.cudnn import operator
    rng = np.random.default_rng(0)
    padding = dilation * (kernel // 2)
    batch, height, width, channels, out_channels = 2, 11, 9, 32, 16
    out = [(size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1 for size in (height, width)]
    shapes = {"x": (batch, height, width, channels), "weight": (out_channels, channels, kernel, kernel)}
    if epilogue:
        shapes.update(bias=(out_channels,), residual=(batch, *out, out_channels))
    values = {name: jt.array(rng.standard_normal(shape).astype(np.float32)) for name, shape in shapes.items()}
    values = {name: var if dtype == "float32" or name == "bias" else var.cast(dtype) for name, var in values.items()}
    g = jt.array(rng.standard_normal((batch, *out, out_channels)).astype(np.float32))
    g = g if dtype == "float32" else g.cast(dtype)
    # The operator's two halves, without Jittor's operators that a loss would take: they would have to be compiled.
    geometry = (stride, padding, dilation)
    sizes, shape = operator.sizes_of(values["x"], values["weight"], *geometry)
    call, refused = operator.planned(sizes, shape, dtype, {"bias": epilogue, "residual": epilogue, "relu": epilogue},
                                     (True, True))
    if call is None:
        raise RuntimeError(refused)
    halves = operator.Convolution()
    y = halves.execute(values["x"], values["weight"], values.get("bias"), values.get("residual"), call)
    gradients = dict(zip(("x", "weight", "bias", "residual"), halves.grad(g)))
    numbers = {name: var.float32().numpy().astype(np.float64) for name, var in values.items()}
    wanted = convolution(numbers["x"], numbers["weight"], stride, padding, dilation)
    wanted += numbers.get("residual", 0) + numbers.get("bias", 0)
    dy = g.float32().numpy().astype(np.float64)
    if epilogue:
        dy = np.where(y.float32().numpy() > 0, dy, 0)
        wanted = np.maximum(wanted, 0)
    dx, dw = gradients_of(numbers["x"], numbers["weight"], dy, stride, padding, dilation)
    expected = {"x": dx, "weight": dw, "bias": dy.sum((0, 1, 2)), "residual": dy}
    errors = {"the result": _error(y, wanted)}
    errors.update({f"the gradient of {name}": _error(gradients[name], expected[name]) for name in values})
    return errors


def _error(var, wanted) -> float:
    error = np.abs(var.float32().numpy().astype(np.float64) - wanted).max() / np.abs(wanted).max()
    return float(error) if np.isfinite(error) else float("inf")


def _taps(x, kernel: int, stride: int, padding: int, dilation: int):
    """The padded picture, and (row, column, slices of the picture that a tap of the kernel meets)."""
    padded = np.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    reach = dilation * (kernel - 1)
    return padded, [(i, j, (slice(None), slice(i * dilation, padded.shape[1] - reach + i * dilation, stride),
                            slice(j * dilation, padded.shape[2] - reach + j * dilation, stride)))
                    for i in range(kernel) for j in range(kernel)]


def convolution(x, weight, stride: int, padding: int, dilation: int):
    """Channels-last convolution in numpy: x (B, H, W, I), weight (O, I, k, k)."""
    padded, taps = _taps(x, weight.shape[2], stride, padding, dilation)
    return sum(padded[window] @ weight[:, :, i, j].T for i, j, window in taps)


def gradients_of(x, weight, dy, stride: int, padding: int, dilation: int) -> tuple:
    """Its gradients: of x, of weight."""
    padded, taps = _taps(x, weight.shape[2], stride, padding, dilation)
    dx, dw = np.zeros(padded.shape), np.zeros(weight.shape)
    for i, j, window in taps:
        dx[window] += dy @ weight[:, :, i, j]
        dw[:, :, i, j] = np.einsum("bhwo,bhwi->oi", dy, padded[window])
    return dx[:, padding:dx.shape[1] - padding, padding:dx.shape[2] - padding], dw
