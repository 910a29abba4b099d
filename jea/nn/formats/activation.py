"""The Activation, its layouts, and the choice of a network's format."""
from __future__ import annotations

import contextlib
import functools
from typing import NamedTuple

from jea._jittor import jt
from jea.nn import precision
from jea.nn.formats.way import note
from jea.ops import can_block, conv_nhwc_unavailable, from_blocked, kernels, to_blocked, transpose
from jea.ops.convolution.cudnn import check as cudnn
from jea.ops.products.half import single

LAYOUTS = ("nchw", "blocked", "nhwc")


class Format(NamedTuple):
    """What a network runs in: a layout, the type of its activations, and why it was chosen."""
    layout: str
    dtype: str
    reason: str = ""


class Activation:
    """A picture's channels: a Var, the layout that it lies in, and the format of the network that it goes through."""

    __slots__ = ("var", "layout", "format")

    def __init__(self, var, layout: str, format: Format):
        self.var, self.layout, self.format = var, layout, format

    @property
    def channels(self) -> int:
        shape = self.var.shape
        return shape[3] if self.layout == "nhwc" else shape[1] * (shape[4] if self.layout == "blocked" else 1)

    @property
    def size(self) -> tuple:
        """Height and width."""
        return tuple(self.var.shape[1:3] if self.layout == "nhwc" else self.var.shape[2:4])

    @property
    def shape(self) -> tuple:
        """(B, C, H, W), however it lies."""
        return (self.var.shape[0], self.channels, *self.size)

    @property
    def dtype(self) -> str:
        return str(self.var.dtype)

    def like(self, var):
        """Another Var that lies as this one does."""
        return Activation(var, self.layout, self.format)

    def to(self, layout: str, why: str = "the network's format"):
        """The same values in another layout."""
        if layout == self.layout:
            return self
        var = self.var
        if self.layout != "nchw":
            var = from_blocked(var) if self.layout == "blocked" else transpose(var, (0, 3, 1, 2))
        if layout != "nchw":
            var = to_blocked(var) if layout == "blocked" else transpose(var, (0, 2, 3, 1))
        note("convert", f"{self.layout} -> {layout}: {why}", self.shape)
        return Activation(var, layout, self.format)

    def __add__(self, other):
        return self.like(self.var + other.to(self.layout).var)

    def __mul__(self, factor):
        """Times a number or a Var of one value."""
        return self.like(self.var * factor)


# -- the choice, once for a network ----------------------------------------------------------------------------------

_inference = False  # inside `inference`: weights are packed
_asked = None  # inside `using`: a layout


@contextlib.contextmanager
def inference(dtype: str):
    """A fused network runs in the block: formats for packed weights, with activations and products in `dtype`."""
    global _inference
    before, _inference = _inference, True
    try:
        with precision.autocast(dtype):
            yield
    finally:
        _inference = before


def inferring() -> bool:
    """Whether a fused network runs."""
    return _inference


@contextlib.contextmanager
def using(layout: str):
    """Networks in the block take this layout, whatever would be chosen: to compare formats."""
    global _asked
    before, _asked = _asked, layout
    try:
        yield
    finally:
        _asked = before


def chosen(*channels: int) -> Format:
    """The format for a network whose layers have these numbers of channels, on the device that is on."""
    dtype = precision.current()
    if _asked is not None:
        return Format(_asked, dtype, "it was asked for")
    if jt.flags.use_cuda:
        missing = "JEA_OPS=ref" if kernels.references_only() else cudnn.missing(dtype)
        return Format("nchw", dtype, missing) if missing else Format("nhwc", dtype, "cuDNN's graphs")
    missing = conv_nhwc_unavailable() or ("JEA_OPS=ref" if kernels.references_only() else "")
    if missing:
        return Format("nchw", dtype, missing)
    if _inference:
        return Format("nhwc", dtype, "oneDNN with packed weights")
    if can_block(*channels):
        return Format("blocked", dtype, "oneDNN, with gradients")
    return Format("nchw", dtype, f"its channels {channels} are no multiples of the blocks")


def enter(x, *channels: int, wide: bool = False) -> Activation:
    """A Var (B, C, H, W) at the entrance of a network whose layers have these numbers of channels.

    wide: between the layers of a fused network activations are float32 on the CPU; operands are rounded in products.
    """
    if isinstance(x, Activation):
        return x
    format = chosen(*channels)
    if wide and _inference and not jt.flags.use_cuda:
        format = format._replace(dtype="float32")
    note("enter", f"{format.layout} {format.dtype}: {format.reason}", tuple(x.shape))
    x = Activation(x, "nchw", format)
    return x.to(format.layout if format.layout != "blocked" or can_block(x.channels) else "nchw")


def plain(x):
    """(B, C, H, W) in float32: what leaves a network. A Var stays as it is."""
    return single(x.to("nchw", "the end of the network").var) if isinstance(x, Activation) else x


def on_pictures(run):
    """Decorator of a layer's execute, which is written for Activations, so that it also takes and gives Vars."""
    @functools.wraps(run)
    def execute(self, x, *args, **options):
        if isinstance(x, Activation):
            return run(self, x, *args, **options)
        format = chosen() if _inference else Format("nchw", precision.current(), "a layer on its own")
        residual = options.get("residual")
        if residual is not None and not isinstance(residual, Activation):
            options["residual"] = Activation(residual, "nchw", format)
        found = run(self, Activation(x, "nchw", format), *args, **options)
        parts = found if isinstance(found, tuple) else (found,)
        parts = tuple(part.to("nchw").var if isinstance(part, Activation) else part for part in parts)
        return parts if isinstance(found, tuple) else parts[0]
    return execute
