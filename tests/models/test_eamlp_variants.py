"""Every variant of EAMLP and T2T-ViT against upstream's formulas in numpy."""
import math

import numpy as np
import pytest
import recipe

import jea
from jea._jittor import jt
from jea.checkpoint import save_npz
from jea.models.eamlp import EAMLP


def without_dropout(model):
    """Evaluation's mathematics with gradients: Jittor's own eval() stops those of all parameters."""
    for module in model.modules():
        module.is_train = False
    return model


class Upstream:
    """Upstream's forward in float64 numpy, of a state dict under upstream's names."""

    def __init__(self, state, heads):
        self.state, self.heads = {k: v.astype(np.float64) for k, v in state.items()}, heads

    def has(self, key):
        return key in self.state

    def linear(self, x, key):
        bias = self.state.get(f"{key}.bias", 0)
        return x @ self.state[f"{key}.weight"].reshape(len(self.state[f"{key}.weight"]), -1).T + bias

    def scale(self, x, key):
        return x * self.state[f"{key}.weight"][:, 0, 0]

    def norm(self, x, key):
        h = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
        return h * self.state[f"{key}.weight"] + self.state[f"{key}.bias"]

    def mlp(self, x, first, second):
        return self.linear(gelu(self.linear(x, first)), second)

    def heads_of(self, x, heads):  # B N C -> B H N C/H
        return x.reshape(*x.shape[:2], heads, -1).transpose(0, 2, 1, 3)

    def merged(self, x):
        return x.transpose(0, 2, 1, 3).reshape(x.shape[0], x.shape[2], -1)

    def softmax_attention(self, q, k, v, heads, scale):
        q, k, v = (self.heads_of(part, heads) for part in (q, k, v))
        return self.merged(softmax(scale * q @ k.transpose(0, 1, 3, 2), -1) @ v)

    def tokens(self, x, key):
        x = self.norm(x, f"{key}.norm1")
        if self.has(f"{key}.kqv.weight"):
            k, q, v = np.split(self.linear(x, f"{key}.kqv"), 3, -1)
            w = self.state[f"{key}.w"]
            k, q = (np.exp(part @ w.T - (part ** 2).sum(-1, keepdims=True) / 2) / len(w) ** 0.5 for part in (k, q))
            y = q @ (k.transpose(0, 2, 1) @ v) / ((q * k.sum(1, keepdims=True)).sum(-1, keepdims=True) + 1e-8)
            x = v + self.linear(y, f"{key}.proj")
            return x + self.mlp(self.norm(x, f"{key}.norm2"), f"{key}.mlp.0", f"{key}.mlp.2")
        if self.has(f"{key}.attn.qkv.weight"):
            scale = x.shape[-1] ** -0.5
            q, k, v = np.split(self.linear(x, f"{key}.attn.qkv"), 3, -1)
            x = v + self.linear(self.softmax_attention(q, k, v, 1, scale), f"{key}.attn.proj")
        else:
            q = self.linear(x, f"{key}.attn.q_linear")
            memories = (1, 2) if self.has(f"{key}.attn.linear_2.weight") else (0, 1)
            a = double_norm(self.linear(q, f"{key}.attn.linear_{memories[0]}"))
            x = q + self.linear(self.linear(a, f"{key}.attn.linear_{memories[1]}"), f"{key}.attn.proj")
        return x + self.mlp(self.norm(x, f"{key}.norm2"), f"{key}.mlp.fc1", f"{key}.mlp.fc2")

    def attention(self, x, key):
        if self.has(f"{key}.trans_dims.weight"):
            h = self.heads_of(self.linear(x, f"{key}.trans_dims"), 4 * self.heads)
            h = self.linear(double_norm(self.linear(h, f"{key}.linear_0")), f"{key}.linear_1")
            return self.linear(self.merged(h), f"{key}.proj")
        if self.has(f"{key}.q.weight"):
            parts = [self.linear(x, f"{key}.{name}") for name in "qkv"]
            q, k, v = (np.concatenate([part, self.scale(part, f"{key}.cheap_operation_{name}")], -1)
                       for name, part in zip("qkv", parts))
        else:
            q, k, v = np.split(self.linear(x, f"{key}.qkv"), 3, -1)
        scale = (x.shape[-1] // self.heads) ** -0.5
        y = self.linear(self.softmax_attention(q, k, v, self.heads, scale), f"{key}.proj")
        if self.has(f"{key}.se_layer.fc.0.weight"):
            squeezed = np.maximum(self.linear(y.mean(1), f"{key}.se_layer.fc.0"), 0)
            y = y / (1 + np.exp(-self.linear(squeezed, f"{key}.se_layer.fc.2")))[:, None]
        return y

    def block(self, x, key):
        if self.has(f"{key}.linear.weight"):
            return gelu(self.linear(x, f"{key}.linear"))
        y = x + self.attention(self.norm(x, f"{key}.norm1"), f"{key}.attn")
        h = self.norm(y, f"{key}.norm2")
        if self.has(f"{key}.mlp.cheap_operation2.weight"):
            first = gelu(self.linear(h, f"{key}.mlp.fc1"))
            parts = [first, *(gelu(self.scale(first, f"{key}.mlp.cheap_operation{i}")) for i in (2, 3))]
            y = y + self.linear(np.concatenate(parts, -1), f"{key}.mlp.fc2")
        else:
            y = y + self.mlp(h, f"{key}.mlp.fc1", f"{key}.mlp.fc2")
        if self.has(f"{key}.dense_linear.weight"):
            return np.concatenate([x, self.linear(y, f"{key}.dense_linear")], -1)
        return y

    def __call__(self, x):
        x = self.tokens(unfold(x, 7, 4, 2), "tokens_to_token.attention1")
        x = self.tokens(unfold(picture(x), 3, 2, 1), "tokens_to_token.attention2")
        x = self.linear(unfold(picture(x), 3, 2, 1), "tokens_to_token.project")
        x = np.concatenate([np.repeat(self.state["cls_token"], len(x), 0), x], 1) + self.state["pos_embed"]
        for i in range(len({key.split(".")[1] for key in self.state if key.startswith("blocks.")})):
            x = self.block(x, f"blocks.{i}")
        return self.linear(self.norm(x, "norm")[:, 0], "head")


def unfold(x, kernel, stride, padding):
    x = np.pad(x, [(0, 0), (0, 0), (padding, padding), (padding, padding)])
    steps = range(0, x.shape[2] - kernel + 1, stride)
    return np.stack([x[:, :, r:r + kernel, q:q + kernel].reshape(len(x), -1) for r in steps for q in steps], 1)


def picture(tokens):
    side = math.isqrt(tokens.shape[1])
    return tokens.transpose(0, 2, 1).reshape(len(tokens), -1, side, side)


def gelu(x):
    return x * np.vectorize(lambda v: 0.5 * math.erfc(-v / math.sqrt(2)))(x)


def softmax(x, axis):
    e = np.exp(x - x.max(axis, keepdims=True))
    return e / e.sum(axis, keepdims=True)


def double_norm(x):
    a = softmax(x, -2)
    return a / (1e-9 + a.sum(-1, keepdims=True))


VARIANTS = {
    "EAMLP": {}, "EAMLP with token_transformer": {"tokens": "ea_transformer"},
    "T2T-ViT": {"tokens": "performer", "attention": "self"},
    "T2T-ViT_t": {"tokens": "transformer", "attention": "self"},
    "T2T-ViT + EA": {"attention": "self"}, "SE": {"attention": "self", "squeeze_excite": True},
    "Ghost": {"attention": "self", "ghost": True, "mlp_ratio": 3.0},
    "Dense": {"attention": "self", "stages": (2, 1, 2), "growth_rate": 32, "depth": 12},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_variants_against_numpy(variant, tmp_path, close):
    options = {"img_size": 32, "num_classes": 5, "embed_dim": 64, "depth": 2, "num_heads": 4, **VARIANTS[variant]}
    model = without_dropout(EAMLP(**options))
    key_map = model.key_maps[0]
    state = {key_map.to_theirs(k): recipe.fill(key_map.to_theirs(k), v.shape) for k, v in model.state_dict().items()}
    save_npz(tmp_path / "x.npz", state)
    jea.load_weights(model, tmp_path / "x.npz")
    x = recipe.input_array("x", (2, 3, 32, 32))
    close(model(jt.array(x)).numpy(), Upstream(state, options["num_heads"])(x), 5e-6, variant)
