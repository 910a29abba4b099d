"""Transformer blocks with external or with self-attention (upstream transformer_block.py, t2t_vit_*.py).

Parameter names are upstream's. Tokens are (B, N, C) throughout.
"""
from __future__ import annotations

from jea._jittor import jt, nn
from jea.errors import ConfigError, quoted
from jea.nn import precision
from jea.nn.blocks import Linear, project
from jea.nn.external_attention import MultiHeadExternalAttention
from jea.nn.norm import LayerNorm


class Mlp(nn.Module):
    """fc2(gelu(fc1(x))) with dropout after each; (B, N, C) -> (B, N, C)."""

    def __init__(self, dim: int, hidden: int, *, drop: float = 0.0):
        self.fc1, self.fc2, self.drop = Linear(dim, hidden), Linear(hidden, dim), nn.Dropout(drop)

    def execute(self, x, *, summand=None):
        hidden = self.fc1(x, gelu=True, between=not self.drop.is_training())
        return project(self.fc2, self.drop, self.drop(hidden), summand)


class GhostMlp(nn.Module):
    """An Mlp of three times the width, of which two thirds are scaled copies of the first (T2T-ViT-Ghost)."""

    def __init__(self, dim: int, *, drop: float = 0.0):
        self.fc1, self.fc2, self.drop = Linear(dim, dim), Linear(3 * dim, dim), nn.Dropout(drop)
        self.cheap_operation2, self.cheap_operation3 = ChannelScale(dim), ChannelScale(dim)

    def execute(self, x, *, summand=None):
        x1 = self.fc1(x, gelu=True)
        parts = [x1, gelu(self.cheap_operation2(x1)), gelu(self.cheap_operation3(x1))]
        return project(self.fc2, self.drop, self.drop(jt.concat(parts, dim=2)), summand)


class ChannelScale(nn.Module):
    """x times one learned number per channel: upstream's depthwise Conv1d of size 1, with its initialisation."""

    def __init__(self, dim: int):
        self.weight = jt.rand((dim, 1, 1)) * 2 - 1

    def execute(self, x):
        return x * self.weight.reshape(1, 1, -1)


class SqueezeExcite(nn.Module):
    """x times sigmoid(fc(mean over the tokens)) per channel."""

    def __init__(self, dim: int, reduction: int = 16):
        self.fc = nn.Sequential(Linear(dim, dim // reduction, bias=False), nn.ReLU(),
                                Linear(dim // reduction, dim, bias=False), nn.Sigmoid())

    def execute(self, x):
        return x * self.fc(x.mean(1)).unsqueeze(1)


class SelfAttention(nn.Module):
    """softmax(Q K^T / sqrt(C / H)) V per head, then a projection.

    Args:
        dim, num_heads: C and H.
        drop: dropout of the output.
        squeeze_excite: scale the channels of the output (T2T-ViT-SE).
        ghost: half of the channels of Q, K and V are scaled copies of the others (T2T-ViT-Ghost).
    """

    def __init__(self, dim: int, num_heads: int, *, drop: float = 0.0, squeeze_excite: bool = False,
                 ghost: bool = False):
        if dim % num_heads:
            raise ConfigError(f"SelfAttention: dim {dim} is not a multiple of num_heads {num_heads}")
        self.num_heads, self.scale, self.ghost = num_heads, (dim // num_heads) ** -0.5, ghost
        if ghost:
            for name in "qkv":
                setattr(self, name, Linear(dim, dim // 2, bias=False))
                setattr(self, f"cheap_operation_{name}", ChannelScale(dim // 2))
        else:
            self.qkv = Linear(dim, 3 * dim, bias=False)
        self.proj, self.proj_drop = Linear(dim, dim), nn.Dropout(drop)
        self.se_layer = SqueezeExcite(dim) if squeeze_excite else None

    def execute(self, x, *, summand=None):
        if self.ghost:
            halves = [getattr(self, name)(x) for name in "qkv"]
            parts = [(half, getattr(self, f"cheap_operation_{name}")(half)) for name, half in zip("qkv", halves)]
            qkv = jt.concat([half for pair in parts for half in pair], dim=2)
        else:
            qkv = self.qkv(x)
        y = attention(qkv, num_heads=self.num_heads, scale=self.scale)
        if self.se_layer is None:
            return project(self.proj, self.proj_drop, y, summand)
        y = self.proj_drop(self.se_layer(self.proj(y)))
        return y if summand is None else y + summand


class DropPath(nn.Module):
    """Stochastic depth: zeroes whole samples with probability p while training, scales the others by 1 / (1 - p)."""

    def __init__(self, p: float):
        if not 0 <= p < 1:
            raise ConfigError(f"DropPath: p is {p}; expected 0 <= p < 1")
        self.p = p

    def execute(self, x):
        if self.p == 0 or not self.is_training():
            return x
        keep = (jt.rand(x.shape[:1] + [1] * (x.ndim - 1)) >= self.p).float32()
        return x * (keep / (1 - self.p))


class Block(nn.Module):
    """x + attn(norm1(x)), then x + mlp(norm2(x)), both under stochastic depth.

    Args:
        dim, num_heads, mlp_ratio: C, heads and width of the Mlp relative to C.
        attention: "external" (MultiHeadExternalAttention) or "self".
        drop, drop_path: probabilities of dropout and of stochastic depth.
        squeeze_excite, ghost: of the self-attention; `ghost` takes a GhostMlp too.
    """

    def __init__(self, dim: int, num_heads: int, mlp_ratio: float, *, attention: str, drop: float = 0.0,
                 drop_path: float = 0.0, squeeze_excite: bool = False, ghost: bool = False):
        if attention not in ("external", "self"):
            raise ConfigError(f'attention is {quoted(attention)}; expected "external" or "self"')
        self.norm1, self.norm2, self.drop_path = LayerNorm(dim), LayerNorm(dim), DropPath(drop_path)
        if attention == "external":
            self.attn = MultiHeadExternalAttention(dim, num_heads, proj_drop=drop)
        else:
            self.attn = SelfAttention(dim, num_heads, drop=drop, squeeze_excite=squeeze_excite, ghost=ghost)
        self.mlp = GhostMlp(dim, drop=drop) if ghost else Mlp(dim, int(dim * mlp_ratio), drop=drop)

    def execute(self, x):
        return self._plus(self._plus(x, self.norm1, self.attn), self.norm2, self.mlp)

    def _plus(self, x, norm, branch):
        if self.drop_path.p == 0 or not self.is_training():
            return branch(norm(x), summand=x)
        return x + self.drop_path(branch(norm(x)))


class DenseBlock(Block):
    """A Block whose output, mapped to `growth_rate` channels, is appended to its input (T2T-ViT-Dense)."""

    def __init__(self, dim: int, num_heads: int, mlp_ratio: float, *, growth_rate: int, **options):
        super().__init__(dim, num_heads, mlp_ratio, **options)
        self.dense_linear = Linear(dim, growth_rate)

    def execute(self, x):
        return jt.concat([x, self.dense_linear(super().execute(x))], dim=2)


class Transition(nn.Module):
    """gelu(linear(x)): fewer channels between the stages of T2T-ViT-Dense."""

    def __init__(self, dim: int, out_dim: int):
        self.linear = Linear(dim, out_dim)

    def execute(self, x):
        return self.linear(x, gelu=True)


def gelu(x):
    """x Phi(x), the exact GELU."""
    return x * 0.5 * (1 + jt.erf(x * 0.5 ** 0.5))


def attention(qkv, *, num_heads: int, scale: float):
    """softmax(scale Q K^T) V for each head: (B, N, 3C) of Q, K and V side by side -> (B, N, C)."""
    b, n, width = qkv.shape
    q, k, v = qkv.reshape(b, n, 3, num_heads, -1).transpose(2, 0, 3, 1, 4)  # B H N C/H
    weights = nn.softmax(precision.bmm_transpose(q, k) * scale, dim=-1)
    return precision.matmul(weights, v).transpose(0, 2, 1, 3).reshape(b, n, width // 3)
