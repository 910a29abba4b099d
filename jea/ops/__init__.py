"""Operators. Each stands in a file of its own, with its formula, gradient and reference."""
from jea.ops.batch_norm import batch_norm
from jea.ops.blocked import (batch_norm_blocked, can_block, conv2d_blocked, from_blocked, max_pool_blocked,
                             to_blocked)
from jea.ops.conv import conv2d_nhwc, conv_nhwc_unavailable, max_pool_nhwc, pack_conv
from jea.ops.cross_entropy import cross_entropy
from jea.ops.double_norm import double_norm
from jea.ops.external_attention import external_attention
from jea.ops.farthest_point import farthest_point_sample
from jea.ops.gather_points import gather_points
from jea.ops.knn import knn
from jea.ops.layer_norm import layer_norm
from jea.ops.linear import linear
from jea.ops.max_last import max_last
from jea.ops.resize import resize_bilinear
from jea.ops.soft_split import soft_split
from jea.ops.three_interpolate import three_interpolate

__all__ = ["batch_norm", "batch_norm_blocked", "can_block", "conv2d_blocked", "conv2d_nhwc", "conv_nhwc_unavailable",
           "cross_entropy", "double_norm", "external_attention", "farthest_point_sample", "from_blocked",
           "gather_points", "knn", "layer_norm", "linear", "max_last", "max_pool_blocked", "max_pool_nhwc",
           "pack_conv", "resize_bilinear", "soft_split", "three_interpolate", "to_blocked"]
