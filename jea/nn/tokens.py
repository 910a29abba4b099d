"""The tokens-to-token module: soft splits of the picture, with attention among the small tokens between them.

Yuan et al., Tokens-to-Token ViT, arXiv 2101.11986; with external attention as in upstream's EAMLP. Parameter names are
those of upstream's token_performer.py, except that the two layers of every Mlp are fc1 and fc2.
"""
from __future__ import annotations

import math

import numpy as np

from jea._jittor import jt, nn
from jea.errors import ConfigError, quoted
from jea.nn.blocks import Linear, project
from jea.nn.external_attention import Attends
from jea.nn.fold import Foldable
from jea.nn.norm import LayerNorm
from jea.nn.transformer import Mlp, attention
from jea.ops import double_norm, linear, soft_split, transpose

_SPLITS = ({"kernel_size": 7, "stride": 4, "padding": 2}, {"kernel_size": 3, "stride": 2, "padding": 1},
           {"kernel_size": 3, "stride": 2, "padding": 1})


class TokensToToken(nn.Module):
    """Three soft splits (7x7, 3x3, 3x3; strides 4, 2, 2) with a token transformer after each of the first two.

    (B, 3, H, W) -> (B, N, embed_dim), N = H/16 W/16 for sides that are multiples of 16.

    Args:
        kind: "ea", external attention with its dropout of 0.1 (EAMLP); "ea_transformer", the same without dropout
            (upstream's token_transformer.py); "performer" or "transformer", T2T-ViT's self-attention.
        embed_dim, token_dim: channels of the result and of the small tokens.
    """

    def __init__(self, *, kind: str, embed_dim: int, token_dim: int = 64):
        if kind not in TOKENS:
            raise ConfigError(f"tokens is {quoted(kind)}; expected one of {', '.join(TOKENS)}")
        first, second = (3 * _SPLITS[0]["kernel_size"] ** 2, token_dim * _SPLITS[1]["kernel_size"] ** 2)
        self.attention1, self.attention2 = TOKENS[kind](first, token_dim), TOKENS[kind](second, token_dim)
        self.project = Linear(token_dim * _SPLITS[2]["kernel_size"] ** 2, embed_dim)

    def execute(self, x):
        h, w = grid(x.shape[2], 1), grid(x.shape[3], 1)
        x = self.attention1(soft_split(x, **_SPLITS[0]))  # B N0 C
        x = soft_split(x.reshape(x.shape[0], h, w, -1), channels_last=True, **_SPLITS[1])
        h, w = grid(h, 1, first=1), grid(w, 1, first=1)
        x = self.attention2(x)  # B N1 C
        return self.project(soft_split(x.reshape(x.shape[0], h, w, -1), channels_last=True, **_SPLITS[2]))


def grid(size: int, splits: int = 3, *, first: int = 0) -> int:
    """Tokens along a side of `size` pixels (or tokens) after so many soft splits, the `first`-th being the first."""
    for split in _SPLITS[first:first + splits]:
        size = (size + 2 * split["padding"] - split["kernel_size"]) // split["stride"] + 1
    return size


class _TokenTransformer(nn.Module):
    """x = attn(norm1(x)), then x + mlp(norm2(x)): (B, N, dim) -> (B, N, token_dim)."""

    def __init__(self, dim: int, token_dim: int):
        self.norm1, self.norm2, self.mlp = LayerNorm(dim), LayerNorm(token_dim), Mlp(token_dim, token_dim)

    def execute(self, x):
        x = self.attn(self.norm1(x))
        return self.mlp(self.norm2(x), summand=x)


class ExternalTokens(_TokenTransformer):
    """A token transformer with external attention."""

    def __init__(self, dim: int, token_dim: int, *, drop: float = 0.0):
        super().__init__(dim, token_dim)
        self.attn = _ExternalTokenAttention(dim, token_dim, drop=drop)


class _ExternalTokenAttention(Foldable, Attends):
    """q = q_linear(x);  y = q + proj(linear_1 double_norm(linear_0 q)), with one head and 128 memories.

    As in ExternalAttention the memories start with equal values and train independently.
    """

    def __init__(self, dim: int, token_dim: int, *, num_memories: int = 128, drop: float):
        self.q_linear = Linear(dim, token_dim)
        self.linear_0, self.linear_1 = Linear(token_dim, num_memories, bias=False), Linear(num_memories, token_dim)
        self.attn_drop, self.proj, self.proj_drop = nn.Dropout(drop), Linear(token_dim, token_dim), nn.Dropout(drop)

    def execute(self, x, return_attention: bool = False):
        """return_attention: also return the map A, (B, S, N)."""
        q = self.q_linear(x)
        attention = double_norm(self.linear_0(q), layout="bns")  # B N S
        y = project(self.proj, self.proj_drop, self.linear_1(self.attn_drop(attention)), q)
        return (y, transpose(attention, (0, 2, 1))) if return_attention else y

    def fold(self):
        """See jea.nn.fold.folded. linear_1 and proj have nothing between them: they become one map, `proj`."""
        values, proj = self.linear_1, self.proj
        matrix = proj.weight.numpy().astype(np.float64)
        proj.bias = jt.array((matrix @ values.bias.numpy() + proj.bias.numpy()).astype(np.float32))
        proj.weight = jt.array((matrix @ values.weight.numpy()).astype(np.float32))
        self.linear_1 = lambda x: x
        return self


class SelfTokens(_TokenTransformer):
    """A token transformer with self-attention of one head, whose skip is V (T2T-ViT_t)."""

    def __init__(self, dim: int, token_dim: int):
        super().__init__(dim, token_dim)
        self.attn = _SelfTokenAttention(dim, token_dim)


class _SelfTokenAttention(nn.Module):
    def __init__(self, dim: int, token_dim: int):
        self.scale = dim ** -0.5  # of the input's channels, as upstream has it
        self.qkv, self.proj = Linear(dim, 3 * token_dim, bias=False), Linear(token_dim, token_dim)

    def execute(self, x):
        qkv = self.qkv(x)
        y = attention(qkv, num_heads=1, scale=self.scale)
        return self.proj(y, summand=qkv[:, :, 2 * y.shape[2]:])


class PerformerTokens(_TokenTransformer):
    """A token transformer whose attention is linear in the tokens by random features (Choromanski et al., 2009.14794).

        f(x) = exp(w x - |x|^2 / 2) / sqrt(m);  y = f(q) sum_n f(k_n) v_n^T / (f(q) sum_n f(k_n) + 1e-8);  v + proj(y)

    `w` (m, token_dim) is drawn once, with orthogonal rows of length sqrt(m), and not trained.
    """

    epsilon = 1e-8

    def __init__(self, dim: int, token_dim: int, *, drop: float = 0.1):
        super().__init__(dim, token_dim)
        self.m = token_dim // 2
        self.w = jt.array(_orthogonal(self.m, token_dim)).stop_grad()
        self.kqv, self.proj = Linear(dim, 3 * token_dim), Linear(token_dim, token_dim)
        self.dp, self.mlp_drop = nn.Dropout(drop), nn.Dropout(drop)

    def execute(self, x):
        x = self.attn(self.norm1(x))
        if self.mlp_drop.is_training():
            return x + self.mlp_drop(self.mlp(self.norm2(x)))
        return self.mlp(self.norm2(x), summand=x)

    def attn(self, x):
        k, q, v = self.kqv(x).chunk(3, dim=2)  # B N C
        k, q = self._features(k), self._features(q)  # B N m
        keys = transpose(k, (0, 2, 1))  # B m N
        denominator = (q * keys.sum(2).unsqueeze(1)).sum(2).unsqueeze(2)  # B N 1
        y = nn.bmm(q, nn.bmm(keys, v)) / (denominator + self.epsilon)  # B N C
        return project(self.proj, self.dp, y, v)

    def _features(self, x):
        return (linear(x, self.w) - (x * x).sum(2, keepdims=True) * 0.5).exp() * self.m ** -0.5


def _orthogonal(rows: int, columns: int) -> np.ndarray:
    """Random orthogonal rows of length sqrt(rows)."""
    q, r = np.linalg.qr(np.random.standard_normal((columns, rows)))
    return np.ascontiguousarray((q * np.sign(np.diag(r))).T * math.sqrt(rows), np.float32)


TOKENS = {
    "ea": lambda dim, token_dim: ExternalTokens(dim, token_dim, drop=0.1),
    "ea_transformer": ExternalTokens,
    "performer": PerformerTokens,
    "transformer": SelfTokens,
}
