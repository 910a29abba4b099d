"""Small building blocks that two or more models share."""
from __future__ import annotations

import math

from jea._jittor import jt, nn
from jea.nn.norm import BatchNorm2d


class ConvBNReLU(nn.Module):
    """Convolution without bias, BatchNorm, ReLU; "same" padding. (B, C, H, W) -> (B, out_channels, H, W)."""

    def __init__(self, in_channels: int, out_channels: int, *, kernel_size: int):
        self.conv = nn.Conv(in_channels, out_channels, kernel_size, padding=kernel_size // 2, bias=False)
        self.bn = BatchNorm2d(out_channels)

    def execute(self, x):
        return self.bn(self.conv(x), relu=True)


class Dropout2d(nn.Module):
    """Zeroes whole channels with probability p while training and scales the others by 1 / (1 - p)."""

    def __init__(self, p: float):
        if not 0 <= p < 1:
            raise ValueError(f"Dropout2d: p is {p}; expected 0 <= p < 1")
        self.p = p

    def execute(self, x):
        if self.p == 0 or not self.is_training():
            return x
        keep = (jt.rand(x.shape[:2] + [1, 1]) >= self.p).float32()
        return x * (keep / (1 - self.p))


def init_normal_fan_out(weight) -> None:
    """w ~ N(0, sqrt(2 / (kernel size x output channels))): He initialisation by fan-out (upstream model_torch.py)."""
    fan_out = weight.shape[0] * math.prod(weight.shape[2:])
    weight.assign(jt.randn(weight.shape) * math.sqrt(2.0 / fan_out))
