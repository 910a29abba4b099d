"""Operators. Each stands in a file of its own, with its formula, gradient and reference."""
from jea.ops.batch_norm import batch_norm
from jea.ops.conv import conv2d_nhwc, conv_nhwc_unavailable, max_pool_nhwc, pack_conv
from jea.ops.double_norm import double_norm
from jea.ops.resize import resize_bilinear

__all__ = ["batch_norm", "conv2d_nhwc", "conv_nhwc_unavailable", "double_norm", "max_pool_nhwc", "pack_conv",
           "resize_bilinear"]
