"""Dilated deep-stem ResNet: the backbone of EANet (upstream model_torch.py; PyTorch-Encoding's ResNet).

Parameter names are those of the public resnet{50,101,152}-*.pth files of the deep-stem variant.
"""
from __future__ import annotations

from jea._jittor import nn
from jea.errors import ConfigError
from jea.nn.blocks import Conv, init_normal_fan_out, plain
from jea.nn.mode import checkpointed
from jea.nn.norm import BatchNorm2d
from jea.ops import can_block, max_pool_blocked
from jea.ops.products.half import single

# output stride -> (stride of layer3, dilations of layer3's first and other blocks, dilations of layer4 (multi-grid))
_DILATION = {
    8: (1, (1, 2), (2, 8, 16)),
    16: (2, (1, 1), (1, 4, 8)),
}
_PLAIN_LAYER4 = {8: (2, 4, 4), 16: (1, 2, 2)}  # without multi-grid


class Bottleneck(nn.Module):
    """1x1 -> 3x3 -> 1x1 with a residual; the stride sits in the 3x3. (B, C, H, W) -> (B, 4 planes, H', W')."""

    expansion = 4

    def __init__(self, in_channels: int, planes: int, *, stride: int = 1, dilation: int = 1):
        out_channels = planes * self.expansion
        self.conv1 = Conv(in_channels, planes, 1, bias=False)
        self.bn1 = BatchNorm2d(planes)
        self.conv2 = Conv(planes, planes, 3, stride=stride, padding=dilation, dilation=dilation, bias=False)
        self.bn2 = BatchNorm2d(planes)
        self.conv3 = Conv(planes, out_channels, 1, bias=False)
        self.bn3 = BatchNorm2d(out_channels)
        self.downsample = None
        if stride != 1 or in_channels != out_channels:
            self.downsample = nn.Sequential(Conv(in_channels, out_channels, 1, stride=stride, bias=False),
                                            BatchNorm2d(out_channels))

    def execute(self, x):
        y = self.bn1(self.conv1(x), relu=True)
        y = self.bn2(self.conv2(y), relu=True)
        return self.bn3(self.conv3(y), residual=x if self.downsample is None else self.downsample(x), relu=True)


class DeepStemResNet(nn.Module):
    """ResNet with a stem of three 3x3 convolutions and dilation in its last stages.

    (B, 3, H, W) -> (B, 32 width, H / output_stride, W / output_stride); sizes round up at each stride.

    Args:
        layers: blocks of the four stages; (3, 4, 6, 3) is ResNet-50.
        output_stride: 8 or 16. At 8 the dilations are layer3: 1, 2, 2, ...; layer4: 2, 8, 16; at 16 layer3: 1, ...;
            layer4: 1, 4, 8 (multi-grid; from its second block on, layer4 repeats the grid's last value).
        width: channels of the first stage before expansion, 64.
        stem_width: the stem has stem_width, stem_width, 2 stem_width channels; default: width. ResNetV1c
            (mmsegmentation, JSeg) has width / 2.
        multi_grid: False: layer4's dilations are 2, 4, 4, ... at output stride 8 and 1, 2, 2, ... at 16.

    With `checkpoint_activations` set to True, training keeps the blocks' inputs alone and runs each block again for its
    gradient: less memory for a fifth more time, the same numbers.
    """

    checkpoint_activations = False

    def __init__(self, *, layers, output_stride: int = 8, width: int = 64, stem_width: int | None = None,
                 multi_grid: bool = True):
        if output_stride not in _DILATION:
            raise ConfigError(f"DeepStemResNet: output_stride is {output_stride}; expected 8 or 16")
        if len(layers) != 4 or any(int(n) != n or n < 1 for n in layers):
            raise ConfigError(f"DeepStemResNet: layers is {layers!r}; expected four positive integers")
        stride3, (first3, others3), grid4 = _DILATION[output_stride]
        if not multi_grid:
            grid4 = _PLAIN_LAYER4[output_stride]
        stem = width if stem_width is None else stem_width
        self.output_stride = output_stride
        self.out_channels = 8 * width * Bottleneck.expansion
        self.conv1 = nn.Sequential(
            Conv(3, stem, 3, stride=2, padding=1, bias=False), BatchNorm2d(stem), nn.ReLU(),
            Conv(stem, stem, 3, padding=1, bias=False), BatchNorm2d(stem), nn.ReLU(),
            Conv(stem, 2 * stem, 3, padding=1, bias=False))
        self.bn1 = BatchNorm2d(2 * stem)
        self.maxpool = nn.Pool(3, stride=2, padding=1, op="maximum")
        channels = 2 * stem
        dilations = ([1] * layers[0], [1] * layers[1], [first3] + [others3] * (layers[2] - 1),
                     [grid4[min(block, 2)] for block in range(layers[3])])
        for stage, stride in enumerate((1, 2, stride3, 1)):
            planes = width * 2 ** stage
            blocks = []
            for block, dilation in enumerate(dilations[stage]):
                blocks.append(Bottleneck(channels, planes, stride=stride if block == 0 else 1, dilation=dilation))
                channels = planes * Bottleneck.expansion
            setattr(self, f"layer{stage + 1}", nn.Sequential(*blocks))
        for module in self.modules():
            if isinstance(module, Conv):
                init_normal_fan_out(module.weight)

    def execute(self, x):
        return single(plain(self.stages(x)[1]))

    def last_stages(self, x) -> tuple:
        """The outputs of layer3, which auxiliary heads take, and of layer4."""
        return tuple(single(plain(y)) for y in self.stages(x))

    def stages(self, x) -> tuple:
        """As last_stages, but as the network ran: blocked (jea.ops.blocked) where that is possible, in half precision under
        jea.nn.precision.autocast."""
        first, norm1, _, second, norm2, _, third = self.conv1
        blocked = x.dtype == "float32" and can_block(first.out_channels, self.layer1[0].conv1.out_channels)
        x = norm2(second(norm1(first(x, blocked=blocked), relu=True)), relu=True)
        x = self.bn1(third(x), relu=True)
        x = max_pool_blocked(x) if blocked else self.maxpool(single(x))
        x = self._run(self.layer3, self._run(self.layer2, self._run(self.layer1, x)))
        return x, self._run(self.layer4, x)

    def _run(self, layer, x):
        if not (self.checkpoint_activations and self.is_training()):
            return layer(x)
        for block in layer:
            x = checkpointed(block, x)
        return x
