"""External attention: the map between a feature and two small learned memories (paper, section 3).

    A = Norm(F M_k^T),   F_out = A M_v,   F in R^(N x C),  M_k, M_v in R^(S x C)

Norm is the double normalisation of jea.ops.double_norm. The cost is O(N S C): linear in the positions.
"""
from __future__ import annotations

import numpy as np

from jea._jittor import jt, nn
from jea.checkpoint.keymap import KeyMap
from jea.errors import ConfigError, quoted
from jea.nn import formats, precision
from jea.nn.blocks import Conv, Linear, conv_norm, copy_transposed, init_normal_fan_out, project
from jea.nn.fold import Foldable, fold
from jea.nn.formats import enter, plain
from jea.nn.norm import BatchNorm2d
from jea.ops import double_norm, external_attention, transpose

_LAYOUTS = ("auto", "bcn", "bnc")


class Attends:
    """Mixin of the layers with external attention: execute(..., return_attention=True) also returns the map.

    `map_axes` says how it lies: "bsn" is (B, S, N), "bhns" (B, heads, N, S); None: this layer's attention is no
    external one. jea.attention_maps finds the layers by it.
    """

    map_axes: str | None = "bsn"


class ExternalAttention(Foldable, Attends):
    """External attention with one head, as a drop-in block (upstream model_torch.py, External_attention).

        h = conv1(x);  A = double_norm(linear_0 h);  y = relu(BN(conv2(linear_1 A)) + x)

    `linear_0` is the key memory M_k, `linear_1` the value memory M_v; both are bias-free. They start with equal
    values (M_v = M_k^T, drawn with standard deviation sqrt(2 / C)) and train independently, as upstream's do once
    they are on a GPU. Parameter names are upstream's.

    Args:
        channels: C of the input and the output.
        num_memories: S, rows of the memories; 64 in the paper.
        layout: of 3-D input: "bcn" (B, C, N), "bnc" (B, N, C), or "auto": told by which axis has C entries, and a
            ValueError if both have. (B, C, H, W) needs no telling.
        projections: False leaves out conv1, conv2, BatchNorm, residual and ReLU: y = double_norm(x M_k^T) M_v. With
            eps=0 that is the `ExternalAttention(d_model, S)` of xmu-xiaoma666/External-Attention-pytorch.
        eps: added to the denominator of the L1 step of the double normalisation.

    Shape:
        Input (B, C, H, W), (B, C, N) or (B, N, C); output alike.
    """

    folded = False

    def __init__(self, channels: int, num_memories: int = 64, *, layout: str = "auto", projections: bool = True,
                 eps: float = 1e-9):
        for name, value in (("channels", channels), ("num_memories", num_memories)):
            if not isinstance(value, int) or value < 1:
                raise ConfigError(f"ExternalAttention: {name} is {quoted(value)}; expected a positive integer")
        if layout not in _LAYOUTS:
            raise ConfigError(f"ExternalAttention: layout is {quoted(layout)}; expected one of {', '.join(_LAYOUTS)}")
        self.channels, self.num_memories, self.layout, self.eps = channels, num_memories, layout, eps
        self.projections = projections
        if projections:
            self.conv1 = Conv(channels, channels, 1)
        trailing = (1,) if projections else ()  # upstream keeps the memories as Conv1d weights, the bare form as Linear
        self.linear_0 = _Memory((num_memories, channels) + trailing)
        self.linear_1 = _Memory((channels, num_memories) + trailing)
        if projections:
            self.conv2 = nn.Sequential(Conv(channels, channels, 1, bias=False), BatchNorm2d(channels))
            init_normal_fan_out(self.conv1.weight)
            init_normal_fan_out(self.conv2[0].weight)
        init_normal_fan_out(self.linear_1.weight)
        # Upstream writes both through one storage, and this draw last.
        copy_transposed(self.linear_1.weight, self.linear_0.weight)
        if not projections:
            self.key_maps = (KeyMap(name="ExternalAttention, PyTorch (xmu-xiaoma666)", marker="mk.",
                                    rules=(("mk.", "linear_0."), ("mv.", "linear_1."))),)

    def execute(self, x, return_attention: bool = False):
        """Args:
            x: input, see the class; with projections also an Activation (jea.nn.formats).
            return_attention: also return the map A, (B, S, N).
        """
        if isinstance(x, formats.Activation):
            y, attention = self._attend(x, return_attention)
            return (y, attention) if return_attention else y
        shape = tuple(x.shape)
        tokens = self._tokens(shape)
        if self.projections:
            x = transpose(x, (0, 2, 1)) if tokens else x
            y, attention = self._attend(enter(x.reshape(shape[0], self.channels, -1, 1), self.channels,
                                              self.num_memories), return_attention)
            y = plain(y)
            y = transpose(y.squeeze(-1), (0, 2, 1)) if tokens else y.reshape(shape)
        else:
            m_k, m_v = self._memories()
            x = x if tokens else x.reshape(shape[0], self.channels, -1)
            found = external_attention(*precision.operands(x, m_k, transpose(m_v, (1, 0))), eps=self.eps,
                                       layout="bnc" if tokens else "bcn", return_attention=return_attention)
            y, attention = found if return_attention else (found, None)
            y = y.reshape(shape)
        return (y, attention) if return_attention else y

    def _attend(self, x, return_attention):
        """The block on an Activation; also the map, or None."""
        if self.folded:
            attention = formats.double_norm(self.linear_0(x, wide=True), eps=self.eps)
            y = self.linear_1(attention, residual=x, relu=True)
            b, s, h, w = attention.shape
            return y, plain(attention).reshape(b, s, h * w) if return_attention else None
        y, attention = formats.between_memories(self.conv1(x), *self._memories(), eps=self.eps,
                                                return_attention=return_attention)
        return conv_norm(*self.conv2, y, residual=x), attention

    def _memories(self) -> tuple:
        """M_k (S, C) and M_v transposed, (C, S)."""
        shape = (self.num_memories, self.channels)
        return self.linear_0.weight.reshape(shape), self.linear_1.weight.reshape(shape[::-1])

    def fold(self):
        """Nothing is between conv1 and linear_0, nor between linear_1, conv2 and BatchNorm: they become two maps."""
        if self.projections:
            key, value = (layer.weight.numpy().reshape(layer.weight.shape[:2]).astype(np.float64)
                          for layer in (self.linear_0, self.linear_1))
            conv, norm = self.conv2
            scale, bias = fold(None, norm, self.channels)
            self.linear_0 = _one_by_one(key @ self.conv1.weight.numpy()[:, :, 0, 0], key @ self.conv1.bias.numpy())
            self.linear_1 = _one_by_one(conv.weight.numpy()[:, :, 0, 0] @ value, bias)
            self.linear_1.scale = scale
            self.folded, self.conv1, self.conv2 = True, None, None
        return self

    def _tokens(self, shape) -> bool:
        """Whether the shape is (B, N, C)."""
        c = self.channels
        if min(shape) < 1:
            raise ValueError(f"ExternalAttention({c}): got shape {shape}; expected at least 1 along each axis")
        if len(shape) == 4 and shape[1] == c:
            return False
        if len(shape) == 3:
            layout = self.layout
            if layout == "auto" and shape[1] == shape[2] == c:
                raise ValueError(f"ExternalAttention({c}): shape {shape} can be (B, C, N) or (B, N, C); "
                                 'say layout="bcn" or layout="bnc" in the constructor')
            if layout in ("auto", "bcn") and shape[1] == c:
                return False
            if layout in ("auto", "bnc") and shape[2] == c:
                return True
        raise ValueError(f"ExternalAttention({c}): got shape {shape}; expected (B, {c}, H, W), (B, {c}, N) or "
                         f"(B, N, {c}) with layout {self.layout!r}")


def _one_by_one(weight, bias) -> Conv:
    """A convolution of these weights (O, I) and bias, numpy."""
    conv = Conv(weight.shape[1], weight.shape[0], 1)
    conv.weight, conv.bias = (jt.array(v.astype(np.float32)) for v in (weight[:, :, None, None], bias))
    return conv


class _Memory(nn.Module):
    """Holds a memory's weight, (out, in) or, as of Conv1d, (out, in, 1), under upstream's name."""

    def __init__(self, shape: tuple):
        self.weight = jt.zeros(shape)


class MultiHeadExternalAttention(Foldable, Attends):
    """Multi-head external attention (paper, section 3.3; upstream multi_head_attention_torch.py).

        h = trans_dims(x), split into H' = 4 num_heads heads of width dim / num_heads
        A = double_norm(linear_0 h) per head, over the tokens;  y = proj(merge(linear_1 A))

    The memories (64 rows) are shared by all heads and have biases. The first Linear widens to 4 dim, so that the
    module has more parameters than self-attention: 8 dim^2 + ... (dim 384, 6 heads: 1,189,888).

    Args:
        dim: features C of a token.
        num_heads: heads before the factor of four; dim must be divisible by it.
        attn_drop, proj_drop: dropout of the map and of the output.

    Shape:
        (B, N, C) -> (B, N, C). Upstream's `qkv_bias` and `qk_scale` have no effect there and do not exist here.
    """

    coef, map_axes = 4, "bhns"

    def __init__(self, dim: int, num_heads: int = 8, *, attn_drop: float = 0.0, proj_drop: float = 0.0):
        if dim < 1 or num_heads < 1 or dim % num_heads:
            raise ConfigError(f"MultiHeadExternalAttention: dim {dim} is not a positive multiple of num_heads "
                              f"{num_heads}")
        self.dim, self.num_heads = dim, num_heads * self.coef
        head_width, memories = dim // num_heads, 256 // self.coef
        self.trans_dims = Linear(dim, dim * self.coef)
        self.linear_0 = Linear(head_width, memories)
        self.linear_1 = Linear(memories, head_width)
        self.attn_drop = nn.Dropout(attn_drop)
        self.proj = Linear(dim * self.coef, dim)
        self.proj_drop = nn.Dropout(proj_drop)

    def execute(self, x, return_attention: bool = False, *, summand=None):
        """Args:
            x: (B, N, C).
            return_attention: also return the map A, (B, H', N, S).
            summand: (B, N, C), added to y in the same pass, or None.
        """
        if x.ndim != 3 or x.shape[2] != self.dim:
            raise ValueError(f"MultiHeadExternalAttention({self.dim}): got shape {tuple(x.shape)}; "
                             f"expected (B, N, {self.dim})")
        b, n, _ = x.shape
        h = self.trans_dims(x).reshape(b, n, self.num_heads, -1)  # B N H' C/H
        attention = double_norm(self.linear_0(h), layout="bnhs")  # B N H' S
        y = self.linear_1(self.attn_drop(attention)).reshape(b, n, -1)  # B N 4C
        y = project(self.proj, self.proj_drop, y, summand)
        return (y, attention.transpose(0, 2, 1, 3)) if return_attention else y

    def fold(self):
        """See jea.nn.fold.folded."""
        separate = self.dim * self.coef * (self.dim + self.linear_0.weight.shape[0])  # multiplications of a token
        merged = self.dim * self.num_heads * self.linear_0.weight.shape[0]
        return MergedMultiHeadExternalAttention(self) if merged < separate else self


class MergedMultiHeadExternalAttention(nn.Module, Attends):
    """A MultiHeadExternalAttention for inference: trans_dims and linear_0 have nothing between them, nor have linear_1
    and proj. Each pair becomes one map."""

    map_axes = "bhns"

    def __init__(self, model):
        self.num_heads = model.num_heads
        trans, bias, key, key_bias, value, value_bias, proj, proj_bias = (
            v.numpy().astype(np.float64) for layer in (model.trans_dims, model.linear_0, model.linear_1, model.proj)
            for v in (layer.weight, layer.bias))
        heads = self.num_heads
        trans, proj = trans.reshape(heads, -1, model.dim), proj.reshape(model.dim, heads, -1)
        self.key = Linear.of((key @ trans).reshape(-1, model.dim),  # H' S, C
                             (bias.reshape(heads, -1) @ key.T + key_bias).reshape(-1))
        self.value = Linear.of((proj @ value).reshape(model.dim, -1),  # C, H' S
                               proj_bias + (proj @ value_bias).sum(1))

    def execute(self, x, return_attention: bool = False, *, summand=None):
        """As MultiHeadExternalAttention."""
        b, n, _ = x.shape
        logits = self.key(x).reshape(b, n, self.num_heads, -1)
        attention = double_norm(logits, layout="bnhs")  # B N H' S
        y = self.value(attention.reshape(b, n, -1), summand=summand)
        return (y, attention.transpose(0, 2, 1, 3)) if return_attention else y
