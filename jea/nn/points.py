"""Layers of point cloud networks (PCT).

Features are matrices (C, B N) of the whole batch, the points of a cloud side by side: a convolution of kernel 1 is then
one plain matrix product, which is what Jittor is fastest at.
"""
from __future__ import annotations

import math

from jea._jittor import jt, nn
from jea.nn import precision
from jea.nn.external_attention import Attends
from jea.nn.fold import Foldable, fold_norms
from jea.nn.norm import BatchNorm1d
from jea.ops import double_norm, farthest_point_sample, gather_points, max_last, transpose


def split_clouds(x, batch: int):
    """(C, B N) -> (B, C, N)"""
    return x.reshape(x.shape[0], batch, -1).transpose(1, 0, 2)


def join_clouds(x):
    """(B, C, N) -> (C, B N)"""
    return x.transpose(1, 0, 2).reshape(x.shape[1], -1)


def sampled(xyz, samples: int) -> tuple:
    """Farthest points of clouds (B, N, 3): their indices (B, M) and coordinates (B, M, 3)."""
    chosen = farthest_point_sample(xyz, samples)
    return chosen, transpose(gather_points(transpose(xyz, (0, 2, 1)), chosen), (0, 2, 1))


def normalised(bn, x, relu: bool = True):
    """BatchNorm, and ReLU, of (C, M)."""
    if bn.folded:  # as it is: a reshape would part the ReLU from the bias, two passes instead of one
        return bn(x, relu=relu)
    return bn(x.unsqueeze(0), relu=relu).squeeze(0)


class PointConv(nn.Module):
    """Convolution of kernel 1, (in, M) -> (out, M); weight (out, in, 1), bias and initialisation as of Conv1d."""

    def __init__(self, in_channels: int, out_channels: int, bias: bool = True):
        bound = 1 / math.sqrt(in_channels)
        self.weight = (jt.rand((out_channels, in_channels, 1)) * 2 - 1) * bound
        self.bias = (jt.rand((out_channels,)) * 2 - 1) * bound if bias else None

    def matrix(self):
        return self.weight.reshape(self.weight.shape[:2])

    def execute(self, x):
        y = precision.matmul(self.matrix(), x)
        return y if self.bias is None else y + self.bias.unsqueeze(-1)


class OffsetAttention(Foldable, Attends):
    """PCT's offset attention, (C, B N) -> (C, B N), with one of two maps:

        r = M_v Norm(M_k x)                        external: memories linear_0 = M_k (S, C), linear_1 = M_v (C, S)
        r = (W_v x + b_v) Norm((W_k x)^T W_k x)    self: queries and keys share W_k; no 1/sqrt(d)
        y = x + relu(BN(W_t (x - r) + b_t))

    Norm is the double normalisation (jea.ops.double_norm): softmax over the N positions, in `self` over the keys, then
    L1 over the memories, in `self` over the queries. `self` is upstream's layer. `external` is our reading of the
    paper: the map and its values are replaced, by memories that are bias-free and not tied; the offset x - r, its
    convolution, norm, ReLU and residual stay.
    """

    def __init__(self, channels: int, attention: str, num_memories: int):
        self.attention = attention
        self.map_axes = "bsn" if attention == "external" else None
        if attention == "external":
            self.linear_0 = PointConv(channels, num_memories, bias=False)
            self.linear_1 = PointConv(num_memories, channels, bias=False)
        else:
            self.k_conv = PointConv(channels, channels // 4, bias=False)  # upstream's q_conv holds the same weight
            self.v_conv = PointConv(channels, channels)
        self.trans_conv = PointConv(channels, channels)
        self.after_norm = BatchNorm1d(channels)

    def execute(self, x, batch: int, return_attention: bool = False):
        """return_attention: also return the external attention's map, (B, S, N)."""
        attention = None
        if self.attention == "external":
            attention = double_norm(split_clouds(self.linear_0(x), batch), layout="bsn")  # B S N
            r = self.linear_1(join_clouds(attention))
        else:
            r = _self_attention(self.k_conv(x), self.v_conv(x), batch)
        y = x + normalised(self.after_norm, self.trans_conv(x - r))
        return (y, attention) if return_attention else y

    def fold(self):
        """See jea.nn.fold.folded."""
        fold_norms(vars(self), ("trans_conv", "after_norm"))
        return self


class LocalAggregation(Foldable):
    """Features of groups: two convolutions with BatchNorm and ReLU over each neighbour's [f - centre, centre], then the
    maximum over the group (PCT's Local_op)."""

    def __init__(self, channels: int):
        """channels: of input and output features; upstream's in_channels counts both halves, 2 channels."""
        self.conv1, self.conv2 = PointConv(channels, channels, bias=False), PointConv(channels, channels, bias=False)
        self.bn1, self.bn2 = BatchNorm1d(channels), BatchNorm1d(channels)

    def execute(self, features, centres, neighbours):
        """features (C/2, P); int32 indices into P: centres (M,), neighbours (M, K). -> (C, M)"""
        half = features.shape[0]
        weight = self.conv1.matrix()
        difference, own = weight[:, :half], weight[:, half:]
        # W [f - c, c] = W_1 f + (W_2 - W_1) c: products of points instead of products of all neighbours.
        c = gather_points(features.unsqueeze(0), centres.unsqueeze(0)).squeeze(0)
        x = gather_points(precision.matmul(difference, features).unsqueeze(0), neighbours.unsqueeze(0),
                          centres=precision.matmul(own - difference, c).unsqueeze(0))  # 1 C M K
        x = x.reshape(x.shape[1], -1)
        x = normalised(self.bn2, self.conv2(normalised(self.bn1, x)))
        return max_last(x.reshape(x.shape[0], *neighbours.shape))

    def fold(self):
        """See jea.nn.fold.folded."""
        fold_norms(vars(self), ("conv1", "bn1"), ("conv2", "bn2"))
        return FoldedAggregation(self)


class FoldedAggregation(nn.Module):
    """A LocalAggregation without BatchNorm: the biases, which are the same for all neighbours, are added to the centres
    and after the maximum."""

    def __init__(self, model):
        """model: a LocalAggregation with folded norms."""
        half = model.conv1.weight.shape[1] // 2
        weight = model.conv1.matrix()
        self.difference, self.centre = weight[:, :half], weight[:, half:] - weight[:, :half]
        self.conv2, self.bias1, self.bias2 = model.conv2.matrix(), model.conv1.bias, model.conv2.bias
        jt.sync([self.difference, self.centre, self.conv2])

    def execute(self, features, centres, neighbours):
        """As LocalAggregation."""
        c = gather_points(features.unsqueeze(0), centres.unsqueeze(0)).squeeze(0)
        c = precision.matmul(self.centre, c) + self.bias1.unsqueeze(-1)
        x = gather_points(precision.matmul(self.difference, features).unsqueeze(0), neighbours.unsqueeze(0),
                          centres=c.unsqueeze(0))  # 1 C M K
        x = precision.matmul(self.conv2, nn.relu(x).reshape(x.shape[1], -1))
        return nn.relu(max_last(x.reshape(x.shape[0], *neighbours.shape)) + self.bias2.unsqueeze(-1))


def _self_attention(keys, values, batch: int):
    """W_v x Norm(k^T k) of each cloud: (C', B N), (C, B N) -> (C, B N)"""
    if jt.flags.use_cuda:
        keys, values = split_clouds(keys, batch), split_clouds(values, batch)
        attention = double_norm(precision.matmul(transpose(keys, (0, 2, 1)), keys), layout="bsn")  # B N N
        return join_clouds(precision.matmul(values, attention))
    # On the CPU Jittor's product of two matrices is oneDNN's, its batched product a plain loop.
    n = keys.shape[1] // batch
    outputs = []
    for k, v in zip(jt.split(keys, n, dim=1), jt.split(values, n, dim=1)):
        attention = double_norm(jt.matmul(k.transpose(1, 0), k), layout="bsn")  # N N
        outputs.append(jt.matmul(v, attention))
    return jt.concat(outputs, dim=1)
