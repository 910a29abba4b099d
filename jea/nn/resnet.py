"""Dilated deep-stem ResNet: the backbone of EANet (upstream model_torch.py; PyTorch-Encoding's ResNet).

Parameter names are those of the public resnet{50,101,152}-*.pth files of the deep-stem variant.
"""
from __future__ import annotations

from jea._jittor import nn
from jea.nn.blocks import init_normal_fan_out
from jea.nn.norm import BatchNorm2d

# output stride -> (stride of layer3, dilations of layer3's first and other blocks, dilations of layer4 (multi-grid))
_DILATION = {
    8: (1, (1, 2), (2, 8, 16)),
    16: (2, (1, 1), (1, 4, 8)),
}


class Bottleneck(nn.Module):
    """1x1 -> 3x3 -> 1x1 with a residual; the stride sits in the 3x3. (B, C, H, W) -> (B, 4 planes, H', W')."""

    expansion = 4

    def __init__(self, in_channels: int, planes: int, *, stride: int = 1, dilation: int = 1):
        out_channels = planes * self.expansion
        self.conv1 = nn.Conv(in_channels, planes, 1, bias=False)
        self.bn1 = BatchNorm2d(planes)
        self.conv2 = nn.Conv(planes, planes, 3, stride=stride, padding=dilation, dilation=dilation, bias=False)
        self.bn2 = BatchNorm2d(planes)
        self.conv3 = nn.Conv(planes, out_channels, 1, bias=False)
        self.bn3 = BatchNorm2d(out_channels)
        self.downsample = None
        if stride != 1 or in_channels != out_channels:
            self.downsample = nn.Sequential(nn.Conv(in_channels, out_channels, 1, stride=stride, bias=False),
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
        width: channels of the first stage before expansion, 64; the stem has width, width, 2 width.
    """

    def __init__(self, *, layers, output_stride: int = 8, width: int = 64):
        if output_stride not in _DILATION:
            raise ValueError(f"DeepStemResNet: output_stride is {output_stride}; expected 8 or 16")
        if len(layers) != 4 or any(int(n) != n or n < 1 for n in layers):
            raise ValueError(f"DeepStemResNet: layers is {layers!r}; expected four positive integers")
        stride3, (first3, others3), grid4 = _DILATION[output_stride]
        self.output_stride = output_stride
        self.out_channels = 8 * width * Bottleneck.expansion
        self.conv1 = nn.Sequential(
            nn.Conv(3, width, 3, stride=2, padding=1, bias=False), BatchNorm2d(width), nn.ReLU(),
            nn.Conv(width, width, 3, padding=1, bias=False), BatchNorm2d(width), nn.ReLU(),
            nn.Conv(width, 2 * width, 3, padding=1, bias=False))
        self.bn1 = BatchNorm2d(2 * width)
        self.maxpool = nn.Pool(3, stride=2, padding=1, op="maximum")
        channels = 2 * width
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
            if isinstance(module, nn.Conv):
                init_normal_fan_out(module.weight)

    def execute(self, x):
        first, norm1, _, second, norm2, _, third = self.conv1
        x = norm2(second(norm1(first(x), relu=True)), relu=True)
        x = self.maxpool(self.bn1(third(x), relu=True))
        return self.layer4(self.layer3(self.layer2(self.layer1(x))))
