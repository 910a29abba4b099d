"""Inception-v3 as the Frechet inception distance uses it (mseitzer/pytorch-fid, the network of 2015-12-05).

Rethinking the Inception Architecture for Computer Vision, arXiv 1512.00567. The FID network differs from torchvision's:
1008 classes, average pools that do not count the padding, and a maximum pool in the last block (Mixed_7c).
Parameter names are torchvision's, which are those of pt_inception-2015-12-05-6726825d.pth.
"""
from __future__ import annotations

import math

import numpy as np

from jea._jittor import jt, nn
from jea.checkpoint.keymap import KeyMap
from jea.models.network import Network
from jea.nn.norm import BatchNorm2d
from jea.ops import transpose

SIZE = 299


class BasicConv2d(nn.Module):
    """Convolution without bias, BatchNorm (eps 1e-3), ReLU. kernel_size and padding: int or (height, width)."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size, *, stride: int = 1, padding=0):
        self.conv = nn.Conv(in_channels, out_channels, kernel_size, stride=stride, padding=padding, bias=False)
        self.bn = BatchNorm2d(out_channels, eps=1e-3)

    def execute(self, x):
        return self.bn(self.conv(x), relu=True)


class InceptionA(nn.Module):
    """1x1; 5x5; two 3x3; average pool: (B, C, 35, 35) -> (B, 224 + pool_features, 35, 35)."""

    def __init__(self, channels: int, pool_features: int):
        self.branch1x1 = BasicConv2d(channels, 64, 1)
        self.branch5x5_1 = BasicConv2d(channels, 48, 1)
        self.branch5x5_2 = BasicConv2d(48, 64, 5, padding=2)
        self.branch3x3dbl_1 = BasicConv2d(channels, 64, 1)
        self.branch3x3dbl_2 = BasicConv2d(64, 96, 3, padding=1)
        self.branch3x3dbl_3 = BasicConv2d(96, 96, 3, padding=1)
        self.branch_pool = BasicConv2d(channels, pool_features, 1)

    def execute(self, x):
        return jt.concat([self.branch1x1(x), self.branch5x5_2(self.branch5x5_1(x)),
                          self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x))),
                          self.branch_pool(average_pool3(x))], dim=1)


class InceptionB(nn.Module):
    """3x3; two 3x3; maximum pool, all with stride 2: (B, 288, 35, 35) -> (B, 768, 17, 17)."""

    def __init__(self, channels: int):
        self.branch3x3 = BasicConv2d(channels, 384, 3, stride=2)
        self.branch3x3dbl_1 = BasicConv2d(channels, 64, 1)
        self.branch3x3dbl_2 = BasicConv2d(64, 96, 3, padding=1)
        self.branch3x3dbl_3 = BasicConv2d(96, 96, 3, stride=2)

    def execute(self, x):
        return jt.concat([self.branch3x3(x), self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x))),
                          max_pool3(x, stride=2)], dim=1)


class InceptionC(nn.Module):
    """1x1; 7x7 in two parts; twice 7x7 in two parts; average pool: (B, 768, 17, 17) alike."""

    def __init__(self, channels: int, width: int):
        self.branch1x1 = BasicConv2d(channels, 192, 1)
        self.branch7x7_1 = BasicConv2d(channels, width, 1)
        self.branch7x7_2 = BasicConv2d(width, width, (1, 7), padding=(0, 3))
        self.branch7x7_3 = BasicConv2d(width, 192, (7, 1), padding=(3, 0))
        self.branch7x7dbl_1 = BasicConv2d(channels, width, 1)
        self.branch7x7dbl_2 = BasicConv2d(width, width, (7, 1), padding=(3, 0))
        self.branch7x7dbl_3 = BasicConv2d(width, width, (1, 7), padding=(0, 3))
        self.branch7x7dbl_4 = BasicConv2d(width, width, (7, 1), padding=(3, 0))
        self.branch7x7dbl_5 = BasicConv2d(width, 192, (1, 7), padding=(0, 3))
        self.branch_pool = BasicConv2d(channels, 192, 1)

    def execute(self, x):
        double = self.branch7x7dbl_3(self.branch7x7dbl_2(self.branch7x7dbl_1(x)))
        return jt.concat([self.branch1x1(x), self.branch7x7_3(self.branch7x7_2(self.branch7x7_1(x))),
                          self.branch7x7dbl_5(self.branch7x7dbl_4(double)), self.branch_pool(average_pool3(x))], dim=1)


class InceptionD(nn.Module):
    """3x3; 7x7 and 3x3; maximum pool, all with stride 2: (B, 768, 17, 17) -> (B, 1280, 8, 8)."""

    def __init__(self, channels: int):
        self.branch3x3_1 = BasicConv2d(channels, 192, 1)
        self.branch3x3_2 = BasicConv2d(192, 320, 3, stride=2)
        self.branch7x7x3_1 = BasicConv2d(channels, 192, 1)
        self.branch7x7x3_2 = BasicConv2d(192, 192, (1, 7), padding=(0, 3))
        self.branch7x7x3_3 = BasicConv2d(192, 192, (7, 1), padding=(3, 0))
        self.branch7x7x3_4 = BasicConv2d(192, 192, 3, stride=2)

    def execute(self, x):
        seven = self.branch7x7x3_3(self.branch7x7x3_2(self.branch7x7x3_1(x)))
        return jt.concat([self.branch3x3_2(self.branch3x3_1(x)), self.branch7x7x3_4(seven), max_pool3(x, stride=2)],
                         dim=1)


class InceptionE(nn.Module):
    """1x1; 3x3 as (1, 3) beside (3, 1); 3x3 and the same; pool: (B, C, 8, 8) -> (B, 2048, 8, 8).

    pool: function of x before branch_pool; the last block of the FID network has a maximum where the others
    have an average.
    """

    def __init__(self, channels: int, pool):
        self.pool = pool
        self.branch1x1 = BasicConv2d(channels, 320, 1)
        self.branch3x3_1 = BasicConv2d(channels, 384, 1)
        self.branch3x3_2a = BasicConv2d(384, 384, (1, 3), padding=(0, 1))
        self.branch3x3_2b = BasicConv2d(384, 384, (3, 1), padding=(1, 0))
        self.branch3x3dbl_1 = BasicConv2d(channels, 448, 1)
        self.branch3x3dbl_2 = BasicConv2d(448, 384, 3, padding=1)
        self.branch3x3dbl_3a = BasicConv2d(384, 384, (1, 3), padding=(0, 1))
        self.branch3x3dbl_3b = BasicConv2d(384, 384, (3, 1), padding=(1, 0))
        self.branch_pool = BasicConv2d(channels, 192, 1)

    def execute(self, x):
        one, two = self.branch3x3_1(x), self.branch3x3dbl_2(self.branch3x3dbl_1(x))
        return jt.concat([self.branch1x1(x), self.branch3x3_2a(one), self.branch3x3_2b(one), self.branch3x3dbl_3a(two),
                          self.branch3x3dbl_3b(two), self.branch_pool(self.pool(x))], dim=1)


class InceptionFID(Network):
    """Features for the FID and class scores for the Inception Score. 23,850,960 parameters.

    Shape:
        (B, 3, H, W) in [0, 1] -> features (B, 2048), the last average pooling ("pool3"). Pictures are resized to
        299 x 299 (bilinear, corners not aligned, no antialiasing, no rounding) and become 2x - 1.
    """

    solves = "features"

    def __init__(self):
        self.Conv2d_1a_3x3 = BasicConv2d(3, 32, 3, stride=2)
        self.Conv2d_2a_3x3 = BasicConv2d(32, 32, 3)
        self.Conv2d_2b_3x3 = BasicConv2d(32, 64, 3, padding=1)
        self.Conv2d_3b_1x1 = BasicConv2d(64, 80, 1)
        self.Conv2d_4a_3x3 = BasicConv2d(80, 192, 3)
        self.Mixed_5b = InceptionA(192, 32)
        self.Mixed_5c = InceptionA(256, 64)
        self.Mixed_5d = InceptionA(288, 64)
        self.Mixed_6a = InceptionB(288)
        self.Mixed_6b = InceptionC(768, 128)
        self.Mixed_6c = InceptionC(768, 160)
        self.Mixed_6d = InceptionC(768, 160)
        self.Mixed_6e = InceptionC(768, 192)
        self.Mixed_7a = InceptionD(768)
        self.Mixed_7b = InceptionE(1280, average_pool3)
        self.Mixed_7c = InceptionE(2048, lambda x: max_pool3(x, stride=1))
        self.fc = nn.Linear(2048, 1008)

    def execute(self, x, return_logits: bool = False):
        """return_logits: also return the scores of the 1008 classes, (B, 1008)."""
        if x.ndim != 4 or x.shape[1] != 3:
            raise ValueError(f"InceptionFID: got shape {tuple(x.shape)}; expected (B, 3, H, W)")
        x = self.resized(x)
        x = max_pool3(self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x))), stride=2)
        x = max_pool3(self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(x)), stride=2)
        for block in (self.Mixed_5b, self.Mixed_5c, self.Mixed_5d, self.Mixed_6a, self.Mixed_6b, self.Mixed_6c,
                      self.Mixed_6d, self.Mixed_6e, self.Mixed_7a, self.Mixed_7b, self.Mixed_7c):
            x = block(x)
        features = x.mean((2, 3))
        return (features, self.fc(features)) if return_logits else features

    @staticmethod
    def resized(x):
        """The network's input: (B, 3, H, W) in [0, 1] -> (B, 3, 299, 299) in [-1, 1]."""
        rows, columns = (jt.array(_bilinear_weights(n, SIZE)) for n in x.shape[2:])  # 299 H, 299 W
        b, c, h, w = x.shape
        x = nn.matmul_transpose(x.reshape(-1, w), columns).reshape(b * c, h, SIZE)
        x = nn.matmul_transpose(transpose(x, (0, 2, 1)).reshape(-1, h), rows).reshape(b, c, SIZE, SIZE)
        return 2 * transpose(x, (0, 1, 3, 2)) - 1


def _bilinear_weights(n_in: int, n_out: int) -> np.ndarray:
    """(n_out, n_in): the share of each input in each output. Output i lies at (i + 1/2) n_in / n_out - 1/2 of the
    input, in float32 as in torch's interpolate(align_corners=False)."""
    scale, half = np.float32(n_in) / np.float32(n_out), np.float32(0.5)
    position = np.maximum(scale * (np.arange(n_out, dtype=np.float32) + half) - half, np.float32(0))
    first = np.minimum(position.astype(int), n_in - 1)
    share = position - first.astype(np.float32)
    weights = np.zeros((n_out, n_in), np.float32)
    np.add.at(weights, (np.arange(n_out), first), 1 - share)
    np.add.at(weights, (np.arange(n_out), np.minimum(first + 1, n_in - 1)), share)
    return weights


def max_pool3(x, *, stride: int):
    """3x3 maximum: with stride 2 without padding, with stride 1 to the same size."""
    return nn.Pool(3, stride=stride, padding=1 if stride == 1 else 0, op="maximum")(x)


def average_pool3(x):
    """3x3 average with stride 1 to the same size; what lies outside of the picture does not count."""
    # Jittor's own count_include_pad=False does not hold for averages: undo the counting instead.
    rows, columns = (3 - (np.arange(n) == 0) - (np.arange(n) == n - 1) for n in x.shape[2:])
    counts = (rows[:, None] * columns[None, :]).astype(np.float32)
    return nn.Pool(3, stride=1, padding=1, count_include_pad=True, op="mean")(x) * jt.array(9 / counts)


# -- checkpoints ------------------------------------------------------------------------------------------------
# pytorch-fid's own module numbers the layers by their output blocks and has no fc.
_BLOCKS = (("Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_2b_3x3"), ("Conv2d_3b_1x1", "Conv2d_4a_3x3"),
           ("Mixed_5b", "Mixed_5c", "Mixed_5d", "Mixed_6a", "Mixed_6b", "Mixed_6c", "Mixed_6d", "Mixed_6e"),
           ("Mixed_7a", "Mixed_7b", "Mixed_7c"))
InceptionFID.key_maps = (
    KeyMap(name="pytorch-fid, InceptionV3", marker="blocks.0.", partial=("fc.",),
           rules=tuple((f"blocks.{i}.{j}.", f"{name}.")
                       for i, names in enumerate(_BLOCKS) for j, name in enumerate(names))),
)


def infer_kwargs(tensors: dict) -> dict:
    """Constructor arguments that a checkpoint's shapes tell: there are none."""
    return {}


class RandomFeatures(nn.Module):
    """Features of a small fixed network with random weights, for a Frechet distance without a download.

    Four 3x3 convolutions (32, 64, 64, 128 channels) with leaky ReLUs, each followed by a halving (average); the mean
    and the standard deviation of each channel after each: (B, 3, H, W) in [0, 1], H and W at least 16 -> (B, 576).
    The weights are N(0, 2 / fan-in), drawn by numpy's PCG64 with seed 0: the same everywhere, nothing is trained.
    It sees colours, edges and coarse layout; distances are comparable among themselves only, and never an FID.
    """

    widths = (32, 64, 64, 128)

    def __init__(self):
        rng, channels, weights = np.random.Generator(np.random.PCG64(0)), 3, []
        for width in self.widths:
            std = math.sqrt(2 / (9 * channels))
            weight = rng.standard_normal((width, channels, 3, 3)) * std
            weights.append(jt.array(weight.astype(np.float32)).stop_grad())
            channels = width
        self.convolutions = nn.ParameterList(weights)

    def execute(self, x):
        x, features = 2 * x - 1, []
        for weight in self.convolutions:
            x = nn.leaky_relu(nn.conv2d(x, weight, padding=1), 0.2)
            mean = x.mean((2, 3), keepdims=True)
            features += [mean, ((x - mean) * (x - mean)).mean((2, 3), keepdims=True).sqrt()]
            b, c, h, w = x.shape
            x = x[:, :, :h // 2 * 2, :w // 2 * 2].reshape(b, c, h // 2, 2, w // 2, 2).mean((3, 5))
        return jt.concat([f.reshape(f.shape[0], -1) for f in features], dim=1)


ENTRY_POINTS = {"inception_fid": (InceptionFID, {})}
