"""Layers of generative networks: StudioGAN's residual blocks, class-conditional BatchNorm (StudioGAN, utils/ops.py;
Dumoulin et al., arXiv 1610.07629), and the attention between the blocks."""
from __future__ import annotations

from jea._jittor import jt, nn
from jea.nn import formats, precision
from jea.nn.external_attention import Attends
from jea.nn.formats import on_pictures, plain
from jea.nn.norm import track
from jea.nn.spectral_norm import SNConv2d, SNLinear
from jea.ops import transpose

EPSILON = 1e-4  # of every BatchNorm of StudioGAN


class _Statistics(nn.Module):
    """The running statistics of a BatchNorm that has neither weight nor bias."""

    def __init__(self, channels: int):
        self.running_mean = jt.zeros((channels,)).stop_grad()
        self.running_var = jt.ones((channels,)).stop_grad()


class ConditionalBatchNorm2d(nn.Module):
    """relu?(h (1 + gain(y)) + bias(y)), h = BatchNorm(x) without weight and bias (eps 1e-4, momentum 0.1).

    x (B, C, H, W), y (B, num_classes) one-hot; gain and bias are linear maps with spectral normalisation, no bias.
    """

    def __init__(self, channels: int, num_classes: int):
        self.bn = _Statistics(channels)
        self.gain = SNLinear(num_classes, channels, bias=False)
        self.bias = SNLinear(num_classes, channels, bias=False)

    @on_pictures
    def execute(self, x, y, *, relu: bool = False):
        gain, bias = 1 + self.gain(y), self.bias(y)  # B C
        running, eps = (self.bn.running_mean, self.bn.running_var), EPSILON
        if self.is_training():
            ones, zeros = jt.ones((x.channels,)), jt.zeros((x.channels,))
            h, mean, variance = formats.batch_norm(x, ones, zeros, eps=EPSILON)
            track(x.shape, type(self).__name__, running, (mean, variance), 0.1)
            x, running, eps = h, (zeros, ones), 0.0
        return formats.norm_by_sample(x, gain, bias, running, relu=relu, eps=eps)


class SelfAttention(nn.Module):
    """SAGAN's block: x + sigma conv_attn(g A^T), A = softmax(theta^T phi) over the positions of phi, 2x2 max-pooled.

    (B, C, H, W) with even H and W. theta, phi have C/8 channels, g has C/2; 1x1 convolutions with spectral
    normalisation and without bias; sigma starts at 0; no 1/sqrt(d).
    """

    def __init__(self, channels: int):
        self.conv1x1_theta = SNConv2d(channels, channels // 8, 1, bias=False)
        self.conv1x1_phi = SNConv2d(channels, channels // 8, 1, bias=False)
        self.conv1x1_g = SNConv2d(channels, channels // 2, 1, bias=False)
        self.conv1x1_attn = SNConv2d(channels // 2, channels, 1, bias=False)
        self.sigma = jt.zeros((1,))

    @on_pictures
    def execute(self, x):
        b, _, h, w = x.shape
        theta = plain(self.conv1x1_theta(x)).reshape(b, -1, h * w)  # B C/8 N
        phi, g = (plain(formats.pairs(conv(x), "max")).reshape(b, -1, h * w // 4)
                  for conv in (self.conv1x1_phi, self.conv1x1_g))
        attention = nn.softmax(precision.matmul(transpose(theta, (0, 2, 1)), phi), dim=-1)  # B N N/4
        y = precision.bmm_transpose(g, attention).reshape(b, -1, h, w)  # B C/2 H W
        return x + self.conv1x1_attn(formats.Activation(y, "nchw", x.format)) * self.sigma


class SpectralExternalAttention(nn.Module, Attends):
    """External attention in the place of SelfAttention, over the positions of (B, C, H, W):

        x + sigma conv1x1_attn(linear_1 A),   A = double_norm(linear_0 conv1x1_in x)

    All four are 1x1 convolutions with spectral normalisation and without bias; the memories (num_memories x C and back)
    are not tied, sigma starts at 0, nothing is pooled.
    """

    def __init__(self, channels: int, num_memories: int = 64):
        self.conv1x1_in = SNConv2d(channels, channels, 1, bias=False)
        self.linear_0 = SNConv2d(channels, num_memories, 1, bias=False)
        self.linear_1 = SNConv2d(num_memories, channels, 1, bias=False)
        self.conv1x1_attn = SNConv2d(channels, channels, 1, bias=False)
        self.sigma = jt.zeros((1,))

    @on_pictures
    def execute(self, x, return_attention: bool = False):
        """return_attention: also return the map A, (B, S, H W)."""
        attention = formats.double_norm(self.linear_0(self.conv1x1_in(x)))
        y = x + self.conv1x1_attn(self.linear_1(attention)) * self.sigma
        b, s, h, w = attention.shape
        return (y, plain(attention).reshape(b, s, h * w)) if return_attention else y


ATTENTIONS = {"self": SelfAttention, "external": SpectralExternalAttention}


def attention_of(kind: str, channels: int, num_memories: int):
    return SelfAttention(channels) if kind == "self" else SpectralExternalAttention(channels, num_memories)


class GenBlock(nn.Module):
    """cBN, ReLU, upsampling, 3x3, cBN, ReLU, 3x3, beside an upsampling and 1x1: (B, C, H, W) -> (B, C', 2H, 2W)."""

    def __init__(self, in_channels: int, out_channels: int, num_classes: int):
        self.bn1 = ConditionalBatchNorm2d(in_channels, num_classes)
        self.bn2 = ConditionalBatchNorm2d(out_channels, num_classes)
        self.conv2d0 = SNConv2d(in_channels, out_channels, 1)
        self.conv2d1 = SNConv2d(in_channels, out_channels, 3)
        self.conv2d2 = SNConv2d(out_channels, out_channels, 3)

    @on_pictures
    def execute(self, x, y):
        h = self.conv2d1(formats.upsample(self.bn1(x, y, relu=True)))
        h = self.conv2d2(self.bn2(h, y, relu=True))
        # upstream upsamples first: the same values for four times the work
        return h + formats.upsample(self.conv2d0(x))


class DiscBlock(nn.Module):
    """ReLU, 3x3, ReLU, 3x3, beside a shortcut, both halved by averaging or not: (B, C, H, W) -> (B, C', H', W').

    Upstream's ReLU works in place and so changes the shortcut's input too: the shortcut sees relu(x). The network's
    first block has no ReLU at its start.
    """

    def __init__(self, in_channels: int, out_channels: int, *, downsample: bool, first: bool = False):
        self.downsample, self.first = downsample, first
        self.conv2d0 = SNConv2d(in_channels, out_channels, 1) if downsample or in_channels != out_channels else None
        self.conv2d1 = SNConv2d(in_channels, out_channels, 3)
        self.conv2d2 = SNConv2d(out_channels, out_channels, 3)

    @on_pictures
    def execute(self, x):
        if not self.first:
            x = formats.relu(x)
        h = self.conv2d2(formats.relu(self.conv2d1(x)))
        if self.downsample:
            # a 1x1 convolution and an average may change places
            h, x = formats.pairs(h, "mean"), formats.pairs(x, "mean")
        return h + (x if self.conv2d0 is None else self.conv2d0(x))
