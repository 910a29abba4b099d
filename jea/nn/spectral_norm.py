"""Spectral normalisation (Miyato et al., arXiv 1802.05957), with the semantics and names of PyTorch's spectral_norm.

    weight = weight_orig / sigma,   sigma = u^T W v,   W = weight_orig as a matrix (first axis, all others)

Training makes one power iteration v = unit(W^T u), u = unit(W v) at each call and stores u and v; evaluation takes them
as stored. The gradient goes through weight_orig and through sigma, with u and v as constants.
"""
from __future__ import annotations

import math

import numpy as np

from jea._jittor import jt, nn
from jea.nn import formats, precision
from jea.nn.fold import Foldable
from jea.ops import pack_conv
from jea.ops.products.half import single

EPSILON = 1e-6  # StudioGAN's


class SpectralNorm(Foldable):
    """Base of the layers below: weight_orig, weight_u (O,) and weight_v (I ...,), orthogonal weights at the start."""

    def __init__(self, shape, *, eps: float = EPSILON):
        self.eps = eps
        self.weight_orig = jt.array(orthogonal(shape))
        self.weight_u = _unit(jt.randn(shape[0]), eps).stop_grad()
        self.weight_v = _unit(jt.randn(math.prod(shape[1:])), eps).stop_grad()

    def normalised_weight(self):
        """weight_orig / sigma. While training this is one step of the power iteration: call it once per forward."""
        if "weight" in vars(self):  # folded
            return self.weight
        matrix = self.weight_orig.reshape(self.weight_orig.shape[0], -1)
        u, v = self.weight_u, self.weight_v
        if self.is_training():
            with jt.no_grad():
                v = _unit(nn.matmul(u.unsqueeze(0), matrix)[0], self.eps)
                u = _unit(nn.matmul(matrix, v.unsqueeze(1))[:, 0], self.eps)
                self.weight_u.update(u)
                self.weight_v.update(v)
        # In float64: an error of sigma is one of all that follows, and Jittor's float32 sums and divisions make some.
        self._sigma = (nn.matmul(matrix, v.unsqueeze(1))[:, 0].float64() * u.float64()).sum()
        return self.weight_orig * (1 / self._sigma).float32()

    def fold(self):
        """Replace weight_orig, u and v by `weight`, which they make as they are stored. See jea.nn.fold.folded."""
        weight = self.weight_orig.numpy().astype(np.float64)
        sigma = self.weight_u.numpy().astype(np.float64) @ weight.reshape(len(weight), -1) @ self.weight_v.numpy()
        self.weight = jt.array((weight / sigma).astype(np.float32)).stop_grad()
        del self.weight_orig, self.weight_u, self.weight_v
        return self


class SNConv2d(SpectralNorm):
    """Convolution with stride 1 and "same" padding: (B, C, H, W) -> (B, out_channels, H, W), Var or Activation."""

    packed = None

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, *, bias: bool = True):
        super().__init__((out_channels, in_channels, kernel_size, kernel_size))
        self.padding = kernel_size // 2
        self.bias = jt.zeros((out_channels,)) if bias else None

    def execute(self, x):
        if not isinstance(x, formats.Activation):
            return formats.plain(self(formats.enter(x)))
        weight = None if self.packed else self.normalised_weight()
        y = formats.convolution(x, weight, self.bias, padding=self.padding, packed=self.packed)
        return y.like(single(y.var))

    def pack(self, dtype: str) -> None:
        if formats.chosen().layout == "nhwc" and not jt.flags.use_cuda:
            self.packed = pack_conv(self.weight, self.bias, padding=self.padding, dtype=dtype)
            self.weight = self.bias = None


class SNLinear(SpectralNorm):
    """(B, in_features) -> (B, out_features)."""

    def __init__(self, in_features: int, out_features: int, *, bias: bool = True):
        super().__init__((out_features, in_features))
        self.bias = jt.zeros((out_features,)) if bias else None

    def execute(self, x):
        # few rows: in the CPU's half precision they stay float32
        product = nn.matmul_transpose if precision.half_on_cpu() else precision.matmul_transpose
        y = product(x, self.normalised_weight())
        return y if self.bias is None else y + self.bias


class SNEmbedding(SpectralNorm):
    """Rows of a table, chosen by one-hot (or mixed) labels: (B, num_embeddings) -> (B, embedding_dim)."""

    def __init__(self, num_embeddings: int, embedding_dim: int):
        super().__init__((num_embeddings, embedding_dim))

    def execute(self, y):
        return nn.matmul(y, self.normalised_weight())


def spectral_norms(network):
    """The sum of all sigma of the last forward: a number for the log, and NaN as soon as any weight is, which a ReLU in
    between would hide from the loss (Jittor's relu(NaN) is 0)."""
    return jt.concat([layer._sigma for layer in network.modules() if isinstance(layer, SpectralNorm)]).sum().stop_grad()


def orthogonal(shape) -> np.ndarray:
    """A random float32 array that, as a matrix (first axis, all others), has orthonormal rows or columns, uniform
    among those (Saxe et al., arXiv 1312.6120). Drawn from Jittor's generator."""
    rows, columns = shape[0], math.prod(shape[1:])
    normal = jt.randn(max(rows, columns), min(rows, columns)).numpy()
    q, r = np.linalg.qr(normal)
    q = q * np.where(np.diag(r) < 0, -1, 1)  # without it the signs would be those that LAPACK prefers
    return np.ascontiguousarray((q.T if rows < columns else q).reshape(shape), np.float32)


def _unit(x, eps: float):
    wide = x.float64()
    return (wide / jt.maximum((wide * wide).sum().sqrt(), eps)).float32()
