"""EAMLP and T2T-ViT: image classification with external or self-attention (paper, section 4.3; upstream EAMLP/).

Beyond Self-attention: External Attention using Two Linear Layers for Visual Tasks, arXiv 2105.02358.
Tokens-to-Token ViT: Training Vision Transformers from Scratch on ImageNet, arXiv 2101.11986.
"""
from __future__ import annotations

import math

import numpy as np

from jea._jittor import jt, nn
from jea.checkpoint.keymap import KeyMap
from jea.errors import ConfigError
from jea.models.network import Network
from jea.nn import LayerNorm
from jea.nn.blocks import Linear, copy_transposed
from jea.nn.tokens import ExternalTokens, TokensToToken, grid
from jea.nn.transformer import Block, DenseBlock, Transition


class EAMLP(Network):
    """Tokens-to-token module, class token, fixed sinusoidal positions, transformer blocks, linear classifier.

        (B, 3, S, S) -> tokens (B, N, C), N = (S / 16)^2 -> + class token, + positions -> blocks -> norm -> head

    Both kinds of attention are chosen by arguments: external attention in tokens and blocks is EAMLP (eamlp_*),
    self-attention in both is T2T-ViT (t2t_vit_*), and the paper's "T2T-ViT + EA" (Table 2) is external attention in the
    tokens alone: create_model("t2t_vit_14", tokens="ea").

    Args:
        num_classes: width of the classifier.
        img_size: S, height and width of the picture, a multiple of 16. It changes the table of positions alone.
        tokens: attention among the small tokens: "ea", "ea_transformer", "performer" or "transformer", see
            TokensToToken.
        attention: of the blocks: "external" (MultiHeadExternalAttention) or "self".
        embed_dim, depth, num_heads, mlp_ratio: C, number of blocks, their heads and the width of their Mlp over C.
        squeeze_excite, ghost: variants of self-attention blocks, see SelfAttention.
        stages, growth_rate: T2T-ViT-Dense: blocks of each stage, and the channels that each block appends.
        drop_rate: dropout of positions, projections and Mlps. (The tokens of "ea" and "performer" have their own, 0.1.)
        drop_path_rate: stochastic depth of the last block; it grows linearly from 0.
        init_std: of the Linear layers' initial weights; upstream's 0.02 is too small for narrow networks.
    Raises:
        ValueError: unknown kinds, or an img_size that the soft splits do not divide.

    Shape:
        (B, 3, img_size, img_size), normalised RGB -> logits (B, num_classes).
    """

    solves = "classification"

    def __init__(self, *, num_classes: int = 1000, img_size: int = 224, tokens: str = "ea", attention: str = "external",
                 embed_dim: int = 256, depth: int = 7, num_heads: int = 4, mlp_ratio: float = 2.0,
                 squeeze_excite: bool = False, ghost: bool = False, stages=(), growth_rate: int = 0,
                 drop_rate: float = 0.0, drop_path_rate: float = 0.0, init_std: float = 0.02):
        if num_classes < 1:
            raise ConfigError(f"EAMLP: num_classes is {num_classes}; expected at least 1")
        side = img_size // 16
        if side < 1 or grid(img_size) != side:
            raise ConfigError(f"EAMLP: img_size is {img_size}; expected a multiple of 16, such as {max(side, 1) * 16}")
        if not 0 <= drop_path_rate < 1 or not 0 <= drop_rate < 1:
            raise ConfigError(f"EAMLP: drop_rate {drop_rate}, drop_path_rate {drop_path_rate}; expected 0 <= rate < 1")
        self.num_classes, self.img_size = num_classes, img_size
        self.tokens_to_token = TokensToToken(kind=tokens, embed_dim=embed_dim)
        self.cls_token = jt.zeros((1, 1, embed_dim))
        self.pos_embed = jt.array(sinusoids(side * side + 1, embed_dim)).stop_grad()
        self.pos_drop = nn.Dropout(drop_rate)
        rates = np.linspace(0, drop_path_rate, depth).tolist()
        options = {"attention": attention, "drop": drop_rate}
        blocks, width = [], embed_dim
        if stages:
            for stage, count in enumerate(stages):  # upstream's rates go by stage, not by block
                if stage:
                    blocks.append(Transition(width, width // 2))
                    width //= 2
                for _ in range(count):
                    blocks.append(DenseBlock(width, num_heads, mlp_ratio, growth_rate=growth_rate,
                                             drop_path=rates[stage], **options))
                    width += growth_rate
        else:
            blocks = [Block(embed_dim, num_heads, mlp_ratio, drop_path=rate, squeeze_excite=squeeze_excite, ghost=ghost,
                            **options) for rate in rates]
        self.blocks = nn.ModuleList(blocks)
        self.norm, self.num_features = LayerNorm(width), width
        self.head = Linear(width, num_classes)
        self._initialise(init_std)
        self.key_maps = _key_maps(tokens)

    def execute(self, x):
        return self.head(self.forward_features(x))

    def forward_features(self, x):
        """The normalised class token, (B, num_features): what the classifier sees."""
        return self.forward_tokens(x)[:, 0]

    def forward_tokens(self, x):
        """All normalised tokens, the class token first: (B, 1 + N, num_features)."""
        if x.ndim != 4 or tuple(x.shape[1:]) != (3, self.img_size, self.img_size):
            raise ValueError(f"EAMLP: got shape {tuple(x.shape)}; expected (B, 3, {self.img_size}, {self.img_size}). "
                             "Another size needs a model made with img_size=...")
        x = self.tokens_to_token(x)
        x = jt.concat([self.cls_token.expand(x.shape[0], 1, x.shape[2]), x], dim=1)
        x = self.pos_drop(x + self.pos_embed)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)

    def attention_places(self, positions: int, *inputs) -> dict:
        """A square; in the blocks the class token stands before it."""
        side = math.isqrt(positions)
        return {"grid": (side, side)}

    def _initialise(self, std: float):
        """Upstream's: N(0, std) for every Linear and the class token, biases 0. (Its truncation at 2 is 100 sigma.)"""
        self.cls_token.assign(jt.randn(self.cls_token.shape) * std)
        for module in self.modules():
            if isinstance(module, Linear):
                module.weight.assign(jt.randn(module.weight.shape) * std)
                if module.bias is not None:
                    module.bias.assign(jt.zeros(module.bias.shape))
        for stage in (self.tokens_to_token.attention1, self.tokens_to_token.attention2):
            if isinstance(stage, ExternalTokens):  # upstream writes both memories through one storage
                copy_transposed(stage.attn.linear_1.weight, stage.attn.linear_0.weight)


class T2TViT(EAMLP):
    """EAMLP with self-attention by default: the original T2T-ViT. The arguments are EAMLP's."""

    def __init__(self, *, num_classes: int = 1000, img_size: int = 224, tokens: str = "performer",
                 attention: str = "self", embed_dim: int = 256, depth: int = 7, num_heads: int = 4,
                 mlp_ratio: float = 2.0, drop_rate: float = 0.0, drop_path_rate: float = 0.0):
        super().__init__(num_classes=num_classes, img_size=img_size, tokens=tokens, attention=attention,
                         embed_dim=embed_dim, depth=depth, num_heads=num_heads, mlp_ratio=mlp_ratio,
                         drop_rate=drop_rate, drop_path_rate=drop_path_rate)


def sinusoids(positions: int, dim: int) -> np.ndarray:
    """Table (1, positions, dim), float32: sin and cos in turn of position / 10000^(2 (i // 2) / dim)."""
    channel = np.arange(dim)
    angles = np.arange(positions)[:, None] / np.power(10000, 2 * (channel // 2) / dim)
    return np.where(channel % 2, np.cos(angles), np.sin(angles)).astype(np.float32)[None]


# -- checkpoints ------------------------------------------------------------------------------------------------
# Names are upstream's but for these: the Performer's Mlp is a Sequential there, and token_transformer.py counts the
# memories from 1.
_STAGES = ("tokens_to_token.attention1.", "tokens_to_token.attention2.")
_RENAMED = {
    "performer": (("mlp.0.", "mlp.fc1."), ("mlp.2.", "mlp.fc2.")),
    "ea_transformer": (("attn.linear_1.", "attn.linear_0."), ("attn.linear_2.", "attn.linear_1.")),
}


def _key_maps(tokens: str) -> tuple:
    rules = tuple((stage + theirs, stage + ours) for stage in _STAGES for theirs, ours in _RENAMED.get(tokens, ()))
    common = {"head": ("head.",), "hint": _hint}
    plain = KeyMap(name="" if rules else "EAMLP and T2T-ViT, PyTorch", marker="tokens_to_token.", **common)
    if not rules:
        return (plain,)
    return (KeyMap(name="EAMLP and T2T-ViT, PyTorch", marker=rules[1][0], rules=rules, **common), plain)


def _hint(key: str, shape: tuple) -> str:
    if key == "pos_embed" and len(shape) == 3:
        return f"it is for another size of picture: create the model with img_size={_img_size(shape)}"
    return ""


def _img_size(shape) -> int:
    return 16 * math.isqrt(max(int(shape[1]) - 1, 0))


def infer_kwargs(tensors: dict) -> dict:
    """Constructor arguments that a checkpoint's shapes tell (keys of any layout)."""
    kwargs = {}
    if "head.weight" in tensors:
        kwargs["num_classes"] = int(tensors["head.weight"].shape[0])
    if "pos_embed" in tensors:
        kwargs["img_size"] = _img_size(tensors["pos_embed"].shape)
    return kwargs


_SIZES = {
    7: {"embed_dim": 256, "depth": 7, "num_heads": 4, "mlp_ratio": 2.0},
    10: {"embed_dim": 256, "depth": 10, "num_heads": 4, "mlp_ratio": 2.0},
    12: {"embed_dim": 256, "depth": 12, "num_heads": 4, "mlp_ratio": 2.0},
    14: {"embed_dim": 384, "depth": 14, "num_heads": 6, "mlp_ratio": 3.0},
    19: {"embed_dim": 448, "depth": 19, "num_heads": 7, "mlp_ratio": 3.0},
    24: {"embed_dim": 512, "depth": 24, "num_heads": 8, "mlp_ratio": 3.0},
    "14_resnext": {"embed_dim": 384, "depth": 14, "num_heads": 32, "mlp_ratio": 3.0},
    "14_wide": {"embed_dim": 768, "depth": 4, "num_heads": 12, "mlp_ratio": 3.0},
}

ENTRY_POINTS = {
    **{f"eamlp_{size}": (EAMLP, _SIZES[size]) for size in _SIZES},
    **{f"eamlp_t_{size}": (EAMLP, {**_SIZES[size], "tokens": "ea_transformer"}) for size in (14, 19, 24)},
    "eamlp_14_se": (EAMLP, {**_SIZES[14], "attention": "self", "squeeze_excite": True}),
    "eamlp_16_ghost": (EAMLP, {**_SIZES[14], "depth": 16, "attention": "self", "ghost": True}),
    "eamlp_dense": (EAMLP, {"embed_dim": 128, "depth": 12, "num_heads": 8, "mlp_ratio": 2.0, "attention": "self",
                            "stages": (3, 6, 6, 4), "growth_rate": 64}),
    **{f"t2t_vit_{size}": (T2TViT, _SIZES[size]) for size in _SIZES},
    **{f"t2t_vit_t_{size}": (T2TViT, {**_SIZES[size], "tokens": "transformer"}) for size in (14, 19, 24)},
    # Ours, for the demo and for tests: the same network, small enough to train on two CPU cores.
    "eamlp_tiny": (EAMLP, {"embed_dim": 64, "depth": 3, "num_heads": 1, "mlp_ratio": 2.0, "init_std": 0.08}),
}
