"""SAGAN with self-attention or external attention: class-conditional image generation (paper, section 4.5).

The host is StudioGAN's SAGAN (PyTorch-StudioGAN, models/resnet.py): residual networks with spectral normalisation,
conditional BatchNorm and a projection discriminator (Zhang et al., arXiv 1805.08318; Miyato & Koyama, 1802.05637).
The authors released no code of their GAN; how external attention takes the place of SAGAN's block is our choice.
"""
from __future__ import annotations

import functools

import numpy as np

from jea._jittor import jt, nn
from jea.checkpoint.keymap import KeyMap
from jea.errors import ConfigError, quoted
from jea.models.network import Network
from jea.nn.formats import channel_sums, enter, plain, relu
from jea.nn.gan import ATTENTIONS, EPSILON, ConditionalBatchNorm2d, DiscBlock, GenBlock, attention_of
from jea.nn.norm import BatchNorm2d
from jea.nn.spectral_norm import SNConv2d, SNEmbedding, SNLinear

# Channels in units of the width. The generator doubles the size in each block, from 4 x 4; the discriminator halves it
# in its first blocks.
_GENERATOR = {32: (4, 4, 4, 4), 64: (16, 8, 4, 2, 1), 128: (16, 16, 8, 4, 2, 1), 256: (16, 16, 8, 8, 4, 2, 1),
              512: (16, 16, 8, 8, 4, 2, 1, 1)}
_DISCRIMINATOR = {32: (2, 2, 2, 2), 64: (1, 2, 4, 8, 16), 128: (1, 2, 4, 8, 16, 16), 256: (1, 2, 4, 8, 8, 16, 16),
                  512: (1, 1, 2, 4, 8, 8, 16, 16)}


class Generator(nn.Module):
    """z (B, z_dim) ~ N(0, 1) and labels -> pictures (B, 3, S, S) in [-1, 1] (StudioGAN, models/resnet.py, Generator).

    Args: see EASAGAN. Labels are int (B,) or, for mixtures of classes, float (B, num_classes) whose rows sum to 1.
    """

    def __init__(self, *, num_classes: int, img_size: int, z_dim: int, width: int, attention: str, attention_after,
                 num_memories: int):
        self.num_classes, self.img_size, self.z_dim = num_classes, img_size, z_dim
        widths = [factor * width for factor in _GENERATOR[img_size]]
        self.bottom = (widths[0], 4, 4)
        self.linear0 = SNLinear(z_dim, widths[0] * 16)
        blocks = []
        for number, (in_channels, out_channels) in enumerate(zip(widths, widths[1:]), 1):
            blocks.append(GenBlock(in_channels, out_channels, num_classes))
            if number in attention_after:
                blocks.append(attention_of(attention, out_channels, num_memories))
        self.blocks = nn.Sequential(*[nn.Sequential(block) for block in blocks])
        self.bn4 = BatchNorm2d(widths[-1], eps=EPSILON)
        self.conv2d5 = SNConv2d(widths[-1], 3, 3)

    def execute(self, z, label):
        return jt.tanh(self.pre_tanh(z, label))

    def pre_tanh(self, z, label):
        """The picture before the tanh."""
        if z.ndim != 2 or z.shape[1] != self.z_dim:
            raise ValueError(f"Generator: z has shape {tuple(z.shape)}; expected (B, {self.z_dim})")
        y = _one_hot(label, self.num_classes, len(z))
        h = enter(self.linear0(z).reshape((-1,) + self.bottom), wide=True)
        for block, in self.blocks:
            h = block(h, y) if isinstance(block, GenBlock) else block(h)
        return plain(self.conv2d5(self.bn4(h, relu=True)))


class Discriminator(nn.Module):
    """Pictures (B, 3, S, S) in [-1, 1] and labels -> scores (B,), high for real (models/resnet.py, Discriminator).

    score = linear1(h) + <embedding(label), h>, h = sum over the positions of the last ReLU.
    """

    def __init__(self, *, num_classes: int, img_size: int, width: int, attention: str, attention_after,
                 num_memories: int):
        self.num_classes, self.img_size = num_classes, img_size
        widths = [3] + [factor * width for factor in _DISCRIMINATOR[img_size]]
        halvings = 2 if img_size == 32 else len(widths) - 2
        blocks = []
        for number, (in_channels, out_channels) in enumerate(zip(widths, widths[1:]), 1):
            blocks.append(DiscBlock(in_channels, out_channels, downsample=number <= halvings, first=number == 1))
            if number in attention_after:
                blocks.append(attention_of(attention, out_channels, num_memories))
        self.blocks = nn.Sequential(*[nn.Sequential(block) for block in blocks])
        self.linear1 = SNLinear(widths[-1], 1)
        self.embedding = SNEmbedding(num_classes, widths[-1])

    def execute(self, x, label, return_features: bool = False):
        """return_features: also return h, (B, C)."""
        size = self.img_size
        if x.ndim != 4 or tuple(x.shape[1:]) != (3, size, size):
            raise ValueError(f"Discriminator: got shape {tuple(x.shape)}; expected (B, 3, {size}, {size})")
        y = _one_hot(label, self.num_classes, len(x))
        h = enter(x, wide=True)
        for block, in self.blocks:
            h = block(h)
        h = channel_sums(relu(h))
        score = self.linear1(h)[:, 0] + (self.embedding(y) * h).sum(1)
        return (score, h) if return_features else score


class EASAGAN(Network):
    """A generator and its discriminator: `model.generator(z, label)`, `model.discriminator(x, label)`.

    Parameters: ea_sagan_cifar10 4,468,228 and 1,104,258 (attention="self": 4,386,308 and 1,075,586);
    ea_sagan_tiny_imagenet 13,416,068 and 19,763,906 (13,387,396 and 19,752,642).

    Args:
        num_classes: 10 for CIFAR-10, 200 for Tiny-ImageNet.
        img_size: side of the pictures: 32, 64, 128, 256 or 512.
        z_dim: length of the noise vector.
        width: the unit of the channels, 64 upstream (CIFAR-10: 256 channels in G, 128 in D); a multiple of 8.
        discriminator_width: of the discriminator, if it is another.
        attention: "external", or "self" for StudioGAN's SAGAN.
        generator_attention, discriminator_attention: after which blocks, counted from 1. Default: the generator's last
            but one (16 x 16 at 32, 32 x 32 at 64) and the discriminator's first.
        num_memories: S of the external attention.
    """

    solves = "generation"

    def __init__(self, *, num_classes: int = 10, img_size: int = 32, z_dim: int = 128, width: int = 64,
                 discriminator_width=None, attention: str = "external", generator_attention=None,
                 discriminator_attention=(1,), num_memories: int = 64):
        if img_size not in _GENERATOR:
            raise ConfigError(f"EASAGAN: img_size is {img_size}; expected one of {', '.join(map(str, _GENERATOR))}")
        if attention not in ATTENTIONS:
            raise ConfigError(f'EASAGAN: attention is {quoted(attention)}; expected "external" or "self"')
        for name, value in (("num_classes", num_classes), ("z_dim", z_dim), ("num_memories", num_memories)):
            if value < 1:
                raise ConfigError(f"EASAGAN: {name} is {value}; expected at least 1")
        discriminator_width = width if discriminator_width is None else discriminator_width
        for name, value in (("width", width), ("discriminator_width", discriminator_width)):
            if value < 8 or value % 8:
                raise ConfigError(f"EASAGAN: {name} is {value}; expected a positive multiple of 8")
        if generator_attention is None:
            generator_attention = (len(_GENERATOR[img_size]) - 2,)
        for name, places, blocks in (("generator_attention", generator_attention, len(_GENERATOR[img_size]) - 1),
                                     ("discriminator_attention", discriminator_attention,
                                      len(_DISCRIMINATOR[img_size]))):
            if any(place not in range(1, blocks + 1) for place in places):
                raise ConfigError(f"EASAGAN: {name} is {quoted(places)}; expected block numbers from 1 to {blocks}")
        self.num_classes, self.img_size, self.z_dim = num_classes, img_size, z_dim
        shared = dict(num_classes=num_classes, img_size=img_size, attention=attention, num_memories=num_memories)
        self.generator = Generator(**shared, z_dim=z_dim, width=width, attention_after=tuple(generator_attention))
        self.discriminator = Discriminator(**shared, width=discriminator_width,
                                           attention_after=tuple(discriminator_attention))
        self.generator.key_maps = (_label_embeddings(self.generator),)
        self.key_maps = _pair_key_maps(self.generator)

    def execute(self, z, label):
        """The discriminator's scores of generated pictures, (B,)."""
        return self.discriminator(self.generator(z, label), label)


def _one_hot(label, num_classes: int, count: int):
    """(B,) integers or (B, num_classes) floats -> (B, num_classes) float32."""
    if not isinstance(label, jt.Var):
        label = np.ascontiguousarray(label)
        if label.dtype.kind in "iu" and label.size and not 0 <= label.min() <= label.max() < num_classes:
            raise ValueError(f"labels go from {label.min()} to {label.max()}; expected 0 to {num_classes - 1}")
        label = jt.array(label)
    if tuple(label.shape) == (count, num_classes) and label.dtype == "float32":
        return label
    if tuple(label.shape) != (count,) or "int" not in str(label.dtype):
        raise ValueError(f"labels are {label.dtype} {tuple(label.shape)}; expected integers ({count},), or float32 "
                         f"({count}, {num_classes})")
    return (label.int32().unsqueeze(1) == jt.arange(num_classes).unsqueeze(0)).float32()


# -- checkpoints ------------------------------------------------------------------------------------------------
# StudioGAN writes a file for each network, with the names used here. Its older versions keep a cBN's gain and bias as
# embeddings (num_classes, C): the transposed weight of a Linear, with u and v exchanged.

def _label_embeddings(generator, prefix: str = "", **options) -> KeyMap:
    """`prefix`: of the generator's names in the model that is loaded."""
    rules, transposed = [], []
    for name, module in generator.named_modules():
        if isinstance(module, ConditionalBatchNorm2d):
            for theirs, ours in (("embed0", "gain"), ("embed1", "bias")):
                for their_part, our_part in (("weight_orig", "weight_orig"), ("weight_u", "weight_v"),
                                             ("weight_v", "weight_u")):
                    rules.append((f"{name}.{theirs}.{their_part}", f"{prefix}{name}.{ours}.{our_part}"))
                transposed.append(f"{prefix}{name}.{ours}.weight_orig")
    return KeyMap(name="generator of StudioGAN's first versions", marker=rules[0][0],
                  rules=tuple(rules) + ((("", prefix),) if prefix else ()), transposed=tuple(transposed), **options)


def _pair_key_maps(generator) -> tuple:
    """Either network's file fits the pair; the other network stays as it is."""
    g, d = "generator.", "discriminator."
    return (_label_embeddings(generator, g, partial=(d,)),
            KeyMap(name="StudioGAN, generator", marker="linear0.", rules=(("", g),), partial=(d,)),
            KeyMap(name="StudioGAN, discriminator", marker="linear1.", rules=(("", d),), partial=(g,)))


def infer_kwargs(tensors: dict) -> dict:
    """Constructor arguments that a checkpoint's shapes tell: of the pair, or of StudioGAN's G or D."""
    found = {}
    for prefix in ("generator.", "discriminator.", ""):
        shapes = {key[len(prefix):]: tensor.shape for key, tensor in tensors.items() if key.startswith(prefix)}
        last, embedding = shapes.get("conv2d5.weight_orig"), shapes.get("embedding.weight_orig")
        count = len({key.split(".")[1] for key in shapes if key.endswith(".conv2d1.weight_orig")})
        if last is not None:
            labels = shapes.get("blocks.0.0.bn1.gain.weight_orig") or shapes["blocks.0.0.bn1.embed0.weight_orig"][::-1]
            table = {len(factors) - 1: (size, factors[-1]) for size, factors in _GENERATOR.items()}
            found.update(num_classes=int(labels[1]), z_dim=int(shapes["linear0.weight_orig"][1]))
            width = last[1]
        elif embedding is not None:
            table = {len(factors): (size, factors[-1]) for size, factors in _DISCRIMINATOR.items()}
            found["num_classes"], width = int(embedding[0]), embedding[1]
        else:
            continue
        if count in table:
            width = int(width) // table[count][1]
            found.update(img_size=table[count][0])
            found["width" if found.get("width", width) == width else "discriminator_width"] = width
        memories = next((shape[0] for key, shape in shapes.items() if key.endswith(".linear_0.weight_orig")), None)
        found.update({"attention": "self"} if memories is None else {"num_memories": int(memories)})
    return found


_TINY_IMAGENET = functools.partial(EASAGAN, num_classes=200, img_size=64)

ENTRY_POINTS = {
    "ea_sagan_cifar10": (EASAGAN, {}),
    "ea_sagan_tiny_imagenet": (_TINY_IMAGENET, {}),
    # Ours, for the demo and for tests: the same networks, small enough to train on two CPU cores.
    "ea_sagan_tiny": (functools.partial(EASAGAN, num_classes=6, z_dim=32, width=8, discriminator_width=16,
                                        num_memories=32), {}),
}
