"""Class-conditional BatchNorm (StudioGAN, utils/ops.py; Dumoulin et al., arXiv 1610.07629)."""
from __future__ import annotations

from jea import ranks
from jea._jittor import jt, nn
from jea.nn.spectral_norm import SNLinear
from jea.ops import batch_norm, batch_norm_blocked

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

    def execute(self, x, y, *, relu: bool = False):
        shape, (b, groups, h, w, *block) = x.shape, x.shape
        c = groups * block[0] if block else groups
        normalise = batch_norm_blocked if block else batch_norm
        gain, bias = (1 + self.gain(y)).reshape(-1), self.bias(y).reshape(-1)  # B C
        if self.is_training():
            count = b * h * w * ranks.size()
            if count < 2:
                raise ValueError(f"ConditionalBatchNorm2d: one value per channel (shape {tuple(x.shape)}) has no "
                                 "variance; train with a larger batch or picture")
            x, mean, variance = normalise(x, jt.ones((c,)), jt.zeros((c,)), eps=EPSILON)
            for running, batch in ((self.bn.running_mean, mean),
                                   (self.bn.running_var, variance * (count / (count - 1)))):
                running.update(running + (batch - running) * 0.1)
            statistics, eps = (jt.zeros((b * c,)), jt.ones((b * c,))), 0.0
        else:
            statistics, eps = tuple(v.broadcast((b, c)).reshape(-1)
                                    for v in (self.bn.running_mean, self.bn.running_var)), EPSILON
        # Each channel of each picture has a gain and a bias of its own: channels of one large picture.
        x = x.reshape([1, b * groups, h, w] + block)
        return normalise(x, gain, bias, statistics=statistics, relu=relu, eps=eps)[0].reshape(shape)
