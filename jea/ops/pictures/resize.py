"""Bilinear resize with aligned corners, as in all of EANet (upstream: F.interpolate(..., align_corners=True))."""
from __future__ import annotations

from jea._jittor import nn
from jea.ops import kernels
from jea.ops.products.half import single


class _Resize(kernels.Function):
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


def resize_bilinear(x, size, *, impl: str = "auto"):
    """Resize (B, C, H, W) to (B, C, *size), bilinear, corners of input and output aligned.

    y[i, j] is the bilinear interpolation of x at (i (H-1)/(H'-1), j (W-1)/(W'-1)). The gradient is the transposed map.
    The fused kernels (float32) take the sizes at run time; Jittor's own compiles anew for each pair of sizes,
    seconds for every picture of a data set.

    Args:
        x: float (B, C, H, W); half precision becomes float32.
        size: (H', W').
        impl: "auto", "fused" or "ref".
    Raises:
        ValueError: wrong rank, a size below 1, or "fused" where there is no kernel.
    """
    out_h, out_w = (int(n) for n in size)
    if x.ndim != 4 or min(out_h, out_w, *x.shape) < 1:
        raise ValueError(f"resize_bilinear: got shape {tuple(x.shape)} and size {tuple(size)}; "
                         "expected (B, C, H, W) and (height, width), all at least 1")
    x = single(x)
    if (out_h, out_w) == tuple(x.shape[2:]):
        return x
    if kernels.use_fused(impl, name="resize_bilinear", possible=x.dtype == "float32", reason="it takes float32"):
        return _Resize.apply(x, out_h, out_w)
    return nn.interpolate(x, size=(out_h, out_w), mode="bilinear", align_corners=True)
