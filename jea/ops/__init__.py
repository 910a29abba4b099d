"""Operators. Each stands in a file of its own, with its formula, gradient and reference."""
from jea.ops.attention.double_norm import double_norm
from jea.ops.attention.external_attention import external_attention
from jea.ops.convolution.blocked import (
                                         batch_norm_blocked,
                                         can_block,
                                         conv2d_blocked,
                                         from_blocked,
                                         max_pool_blocked,
                                         to_blocked,
)
from jea.ops.convolution.conv import conv2d_nhwc, conv_nhwc_unavailable, pack_conv
from jea.ops.losses.cross_entropy import cross_entropy
from jea.ops.normalisation.batch_norm import batch_norm
from jea.ops.normalisation.layer_norm import layer_norm
from jea.ops.pictures.max_pool import max_pool_nhwc
from jea.ops.pictures.resize import resize_bilinear
from jea.ops.pictures.soft_split import soft_split
from jea.ops.points.farthest_point import farthest_point_sample
from jea.ops.points.gather_points import gather_points
from jea.ops.points.knn import knn
from jea.ops.points.max_last import max_last
from jea.ops.points.three_interpolate import three_interpolate
from jea.ops.products.linear import linear
from jea.ops.shapes.transpose import transpose

__all__ = ["batch_norm", "batch_norm_blocked", "can_block", "conv2d_blocked", "conv2d_nhwc", "conv_nhwc_unavailable",
           "cross_entropy", "double_norm", "external_attention", "farthest_point_sample", "from_blocked",
           "gather_points", "knn", "layer_norm", "linear", "max_last", "max_pool_blocked", "max_pool_nhwc",
           "pack_conv", "resize_bilinear", "soft_split", "three_interpolate", "to_blocked",
           "transpose"]
