"""Bilinear resize with aligned corners, as in all of EANet (upstream: F.interpolate(..., align_corners=True))."""
from __future__ import annotations

from jea._jittor import jt, nn
from jea.ops import kernels
from jea.ops.common.declared import FLOAT, FLOATS, Support
from jea.ops.function import Function
from jea.ops.products.half import single
from jea.ops.shapes.transpose import transpose

SUPPORT = Support("resize_bilinear", cpu=FLOAT, cuda=FLOATS)


class _Resize(Function):
    def execute(self, x, out_h, out_w):
        self.shape = tuple(x.shape)
        b, c = self.shape[:2]
        return kernels.code((b, c, out_h, out_w), x.dtype, [x], kernel="pictures/resize", source="""
            jea::resize_forward(in0_p, out0_p, in0_shape0 * in0_shape1, in0_shape2, in0_shape3,
                                out0_shape2, out0_shape3);""")

    def grad(self, dy):
        return kernels.code(self.shape, dy.dtype, [dy], kernel="pictures/resize", source="""
            jea::resize_backward(in0_p, out0_p, in0_shape0 * in0_shape1, out0_shape2, out0_shape3,
                                 in0_shape2, in0_shape3);""")


_NHWC_SIZES = """
    const auto number = [&](const char* name) { return (int)data[name]; };
    const jea::ResizeNhwc sizes{number("batch"), number("height"), number("width"), number("channels"),
                                number("out_height"), number("out_width")};
"""


class _ResizeNhwcCuda(Function):
    def execute(self, x, out_h, out_w):
        self.shape, self.dtype = tuple(x.shape), x.dtype
        b, h, w, c = self.shape
        self.numbers = {"batch": b, "height": h, "width": w, "channels": c, "out_height": out_h, "out_width": out_w}
        return kernels.cuda_code((b, out_h, out_w, c), "float32", [x], kernel="pictures/resize_nhwc.cuh",
                                 data=self.numbers, source=_NHWC_SIZES + "jea::resize_forward(sizes, in0_p, out0_p);")

    def grad(self, dy):
        return kernels.cuda_code(self.shape, self.dtype, [dy], kernel="pictures/resize_nhwc.cuh", data=self.numbers,
                                 source=_NHWC_SIZES + "jea::resize_backward(sizes, in0_p, out0_p);")


def resize_bilinear_reference(x, size, *, layout: str = "nchw"):
    """resize_bilinear composed of Jittor's own functions."""
    if layout == "nhwc":
        return transpose(resize_bilinear_reference(transpose(x, (0, 3, 1, 2)), size), (0, 2, 3, 1))
    return nn.interpolate(x, size=size, mode="bilinear", align_corners=True)


def resize_bilinear(x, size, *, layout: str = "nchw", impl: str = "auto"):
    """Resize (B, C, H, W) to (B, C, *size), bilinear, corners of input and output aligned.

    y[i, j] is the bilinear interpolation of x at (i (H-1)/(H'-1), j (W-1)/(W'-1)). The gradient is the transposed map.
    The fused kernels take the sizes at run time; Jittor's own compiles anew for each pair of sizes, seconds for every
    picture of a data set.

    Args:
        x: float (B, C, H, W), or (B, H, W, C) in the layout "nhwc"; half precision becomes float32.
        size: (H', W').
        layout: "nchw" or "nhwc". The kernel for the latter is CUDA's.
        impl: "auto", "fused" or "ref".
    Raises:
        ValueError: unknown layout, wrong rank, a size below 1, or "fused" where there is no kernel.
    """
    if layout not in ("nchw", "nhwc"):
        raise ValueError(f'resize_bilinear: layout is {layout!r}; expected "nchw" or "nhwc"')
    out_h, out_w = (int(n) for n in size)
    if x.ndim != 4 or min(out_h, out_w, *x.shape) < 1:
        raise ValueError(f"resize_bilinear: got shape {tuple(x.shape)} and size {tuple(size)}; "
                         f"expected {'(B, C, H, W)' if layout == 'nchw' else '(B, H, W, C)'} and (height, width), "
                         "all at least 1")
    if (out_h, out_w) == tuple(x.shape[2:] if layout == "nchw" else x.shape[1:3]):
        return single(x)
    if layout == "nhwc":
        if kernels.use_fused(impl, SUPPORT, x,
                             unless="" if jt.flags.use_cuda else "on the CPU it takes the layout nchw"):
            return _ResizeNhwcCuda.apply(x, out_h, out_w)
        return resize_bilinear_reference(single(x), (out_h, out_w), layout=layout)
    x = single(x)
    if kernels.use_fused(impl, SUPPORT, x):
        return _Resize.apply(x, out_h, out_w)
    return resize_bilinear_reference(x, (out_h, out_w))
