"""ResNet with a feature pyramid, and external attention after one of its stages."""
from __future__ import annotations

import math

from jea._jittor import jt, nn
from jea.errors import ConfigError, quoted
from jea.nn.blocks import Conv, conv_norm, init_normal_fan_out
from jea.nn.external_attention import ExternalAttention
from jea.nn.fold import Foldable, fold_norms
from jea.nn.formats import Activation, convolution, enter, max_pool, upsample
from jea.nn.norm import BatchNorm2d

EXPECTED_SIZE = 800  # of pictures, for which the weights of a fused network are laid


class FrozenNorm(BatchNorm2d):
    """Batch normalisation that uses its stored statistics, also in training."""

    def is_training(self):
        return False

    def as_affine(self) -> tuple:
        """(factors, summands) of the channels: what it does to them."""
        factors = (self.weight.float64() / (self.running_var.float64() + self.eps).sqrt()).float32()
        found = factors, self.bias - self.running_mean * factors
        if self.weight.is_stop_grad() and self.bias.is_stop_grad():
            return tuple(value.stop_grad() for value in found)
        return found


def conv_and_norm(conv, norm, x, *, residual=None, relu: bool = True, reuse: bool = False):
    """conv_norm (jea.nn.blocks), where a FrozenNorm becomes part of the convolution in training on the CPU too: a pass
    over memory less, and an activation less to keep."""
    if not isinstance(norm, FrozenNorm) or x.format.layout != "blocked":
        return conv_norm(conv, norm, x, residual=residual, relu=relu, reuse=reuse)
    factors, summands = norm.as_affine()
    weight, scale = (conv.weight, factors) if factors.is_stop_grad() else \
        (conv.weight * factors.reshape(-1, 1, 1, 1), None)
    return convolution(x, weight, summands, stride=conv.stride[0], padding=conv.padding[0], residual=residual,
                       relu=relu, scale=scale)


class Bottleneck(Foldable):
    """1x1 -> 3x3 -> 1x1 with a residual; the stride sits in the 3x3. (B, C, H, W) -> (B, 4 planes, H', W')."""

    def __init__(self, in_channels: int, planes: int, stride: int, norm):
        self.conv1 = Conv(in_channels, planes, 1, bias=False)
        self.bn1 = norm(planes)
        self.conv2 = Conv(planes, planes, 3, stride=stride, padding=1, bias=False)
        self.bn2 = norm(planes)
        self.conv3 = Conv(planes, 4 * planes, 1, bias=False)
        self.bn3 = norm(4 * planes)
        self.downsample = None
        if stride != 1 or in_channels != 4 * planes:
            self.downsample = nn.Sequential(Conv(in_channels, 4 * planes, 1, stride=stride, bias=False),
                                            norm(4 * planes))

    def execute(self, x, *, reuse: bool = False):
        """reuse: nobody else reads x, so that the result may take over its memory."""
        y = conv_and_norm(self.conv2, self.bn2, conv_and_norm(self.conv1, self.bn1, x))
        if self.downsample is not None:
            x, reuse = conv_and_norm(*self.downsample, x, relu=False), True
        return conv_and_norm(self.conv3, self.bn3, y, residual=x, reuse=reuse)

    def fold(self):
        fold_norms(vars(self), ("conv1", "bn1"), ("conv2", "bn2"), ("conv3", "bn3"))
        if self.downsample is not None:
            fold_norms(self.downsample.layers, ("0", "1"))
        return self


class ResNet(Foldable):
    """The plain ResNet of torchvision: (B, 3, H, W) -> C2 to C5, Activations (jea.nn.formats) of strides 4 to 32 and 4
    to 32 times `width` channels.

    Args:
        layers: blocks of the four stages. width: channels of the stem, 64.
        norm: makes a normalisation of a number of channels.
        attention_stage: 1 to 4: ExternalAttention takes and replaces what this stage gives; 0: none.
        live_attention: its normalisation uses the batch's statistics in training.
        zero_attention: its last scale starts at 0, so that the block starts as y = relu(x) = x.
    """

    def __init__(self, layers, width: int, norm, *, attention_stage: int, live_attention: bool, zero_attention: bool):
        self.attention_stage = attention_stage
        self.conv1 = Conv(3, width, 7, stride=2, padding=3, bias=False)
        self.bn1 = norm(width)
        channels = width
        for stage, blocks in enumerate(layers):
            planes, made = width * 2 ** stage, []
            for block in range(blocks):
                made.append(Bottleneck(channels, planes, 2 if stage and block == 0 else 1, norm))
                channels = 4 * planes
            setattr(self, f"layer{stage + 1}", nn.Sequential(*made))
        self.out_channels = [4 * width * 2 ** stage for stage in range(4)]
        if attention_stage:
            channels = self.out_channels[attention_stage - 1]
            self.attention = ExternalAttention(channels)
            if not live_attention:
                self.attention.conv2 = nn.Sequential(self.attention.conv2[0], FrozenNorm(channels))
            if zero_attention:
                self.attention.conv2[1].weight.assign(jt.zeros((channels,)))
        for name, module in self.named_modules():
            if isinstance(module, Conv) and not name.startswith("attention"):
                init_normal_fan_out(module.weight)

    def execute(self, x):
        x = enter(x, self.conv1.out_channels, self.layer1[0].conv1.out_channels)
        x = max_pool(conv_and_norm(self.conv1, self.bn1, x))
        found = []
        for stage in range(1, 5):
            for number, block in enumerate(getattr(self, f"layer{stage}")):
                x = block(x, reuse=number > 0)  # the pyramid reads the stage's input
            if stage == self.attention_stage:
                x = self.attention(x)
            found.append(x)
        return found

    def fold(self):
        fold_norms(vars(self), ("conv1", "bn1"))
        side = self.conv1.expected_size = EXPECTED_SIZE
        side //= 4
        for stage in range(1, 5):
            for block in getattr(self, f"layer{stage}"):
                for conv in (block.conv1, block.conv2, *list(block.downsample or ())[:1]):
                    conv.expected_size = side
                side = block.conv3.expected_size = side // block.conv2.stride[0]
        return self

    def freeze(self, stages: int, affine: bool) -> None:
        """Stop the gradients of the stem (stages >= 0) and the first stages; `affine`: and of all norms' parameters."""
        frozen = [self.conv1, self.bn1] if stages >= 0 else []
        frozen += [getattr(self, f"layer{stage}") for stage in range(1, stages + 1)]
        parameters = [p for module in frozen for p in module.parameters()]
        if affine:
            parameters += [p for name, module in self.named_modules() for p in module.parameters()
                           if isinstance(module, FrozenNorm) and not name.startswith("attention")]
        for parameter in parameters:
            parameter.stop_grad()


def upsampled(x: Activation, size) -> Activation:
    """x enlarged to `size`, each cell from floor(i H / H')."""
    b, c, h, w = x.shape
    if (h, w) == tuple(size):
        return x
    if (2 * h, 2 * w) == tuple(size):
        return upsample(x)
    x = x.to("nchw")
    return x.like(x.var.reindex([b, c, *size], ["i0", "i1", f"i2*{h}/{size[0]}", f"i3*{w}/{size[1]}"]))


class _Last(nn.Module):
    """RetinaNet's P6 = conv(P5 or C5) and P7 = conv(P6), 3x3 with stride 2."""

    def __init__(self, in_channels: int, channels: int, relu: bool):
        self.p6 = Conv(in_channels, channels, 3, stride=2, padding=1)
        self.p7 = Conv(channels, channels, 3, stride=2, padding=1)
        self.relu = relu

    def execute(self, x):
        p6 = self.p6(x)
        return [p6, self.p7(p6.like(nn.relu(p6.var)) if self.relu else p6)]


class FeaturePyramid(nn.Module):
    """Lateral 1x1 convolutions, a nearest-neighbour way down, 3x3 convolutions (Lin et al.): C_k... -> P_k... and P6,
    P7.

    Args:
        in_channels: of the levels that come in. channels: of all that go out.
        retina: P6 and P7 are convolutions, see _Last; else P6 is every other cell of P5.
        from_c5: P6 is a convolution of the last level that comes in. relu: P7 = conv(relu(P6)).
    """

    def __init__(self, in_channels, channels: int, *, retina: bool, from_c5: bool, relu: bool):
        self.from_c5 = from_c5
        self.inner_blocks = nn.Sequential(*(nn.Sequential(Conv(c, channels, 1)) for c in in_channels))
        self.layer_blocks = nn.Sequential(*(nn.Sequential(Conv(channels, channels, 3, padding=1)) for _ in in_channels))
        self.extra_blocks = _Last(in_channels[-1] if from_c5 else channels, channels, relu) if retina else None
        for module in self.modules():
            if isinstance(module, Conv):
                fan_in = module.weight.shape[1] * math.prod(module.weight.shape[2:])
                bound = math.sqrt(3 / fan_in)  # variance 1 / fan_in
                module.weight.assign(jt.rand(module.weight.shape) * (2 * bound) - bound)
                module.bias.assign(jt.zeros(module.bias.shape))

    def execute(self, features):
        lateral = [self.inner_blocks[-1][0](features[-1])]
        for block, x in zip(list(self.inner_blocks)[-2::-1], features[-2::-1]):
            above = lateral[0]
            if above.layout != "blocked" or x.size != tuple(2 * side for side in above.size):
                above = upsampled(above, x.size)  # else the convolution enlarges it
            lateral.insert(0, block[0](x, residual=above, reuse=above is not lateral[0]))
        levels = [block[0](x) for block, x in zip(self.layer_blocks, lateral)]
        if self.extra_blocks is not None:
            return levels + self.extra_blocks(features[-1] if self.from_c5 else levels[-1])
        last = levels[-1]
        return levels + [last.like(last.var[:, ::2, ::2] if last.layout == "nhwc" else last.var[:, :, ::2, ::2])]


class Backbone(nn.Module):
    """ResNet and pyramid, under torchvision's names: (B, 3, H, W) -> [P2 .. P6], or [P3 .. P7] for RetinaNet,
    Activations."""

    def __init__(self, layers, width: int, channels: int, *, style, retina: bool, norm: str, norm_eps: float,
                 frozen_stages: int, attention: str, attention_stage: int, live_attention: bool, zero_attention: bool):
        if attention not in ("external", "none"):
            raise ConfigError(f'attention is {quoted(attention)}; expected "external" or "none"')
        if attention_stage not in (1, 2, 3, 4):
            raise ConfigError(f"attention_stage is {attention_stage}; expected 1 to 4")
        if norm not in ("frozen", "live"):
            raise ConfigError(f'norm is {quoted(norm)}; expected "frozen" or "live"')
        if not -1 <= frozen_stages <= 4:
            raise ConfigError(f"frozen_stages is {frozen_stages}; expected -1 (none), 0 (the stem) or up to 4")
        kind = FrozenNorm if norm == "frozen" else BatchNorm2d
        self.body = ResNet(layers, width, lambda c: kind(c, eps=norm_eps),
                           attention_stage=attention_stage if attention == "external" else 0,
                           live_attention=live_attention, zero_attention=zero_attention)
        self.body.freeze(frozen_stages, style.frozen_affine and norm == "frozen")
        taken = self.body.out_channels[1:] if retina else self.body.out_channels
        self.fpn = FeaturePyramid(taken, channels, retina=retina, from_c5=retina and style.retina_from_c5,
                                  relu=style.retina_relu)
        self.skipped = int(retina)

    def execute(self, x):
        return self.fpn(self.body(x)[self.skipped:])


def init_normal(layer, deviation: float, bias: float = 0.0) -> None:
    """Weights from N(0, deviation), the bias constant."""
    layer.weight.assign(jt.randn(layer.weight.shape) * deviation)
    layer.bias.assign(jt.full(layer.bias.shape, bias))
