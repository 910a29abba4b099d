"""Dilated deep-stem ResNet: the backbone of EANet (upstream model_torch.py; PyTorch-Encoding's ResNet).

Parameter names are those of the public resnet{50,101,152}-*.pth files of the deep-stem variant.
"""
from __future__ import annotations

from jea._jittor import nn
from jea.errors import ConfigError, quoted
from jea.nn.blocks import Conv, conv_norm, init_normal_fan_out
from jea.nn.fold import Foldable, fold_norms
from jea.nn.formats import enter, max_pool, on_pictures, plain
from jea.nn.mode import checkpointed
from jea.nn.norm import BatchNorm2d

# output stride -> (stride of layer3, dilations of layer3's first and other blocks, dilations of layer4 (multi-grid))
_DILATION = {
    8: (1, (1, 2), (2, 8, 16)),
    16: (2, (1, 1), (1, 4, 8)),
}
_PLAIN_LAYER4 = {8: (2, 4, 4), 16: (1, 2, 2)}  # without multi-grid


class Bottleneck(Foldable):
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

    @on_pictures
    def execute(self, x, *, reuse: bool = False):
        """reuse: nobody else reads x, so that the result may take over its memory."""
        y = conv_norm(self.conv1, self.bn1, x)
        y = conv_norm(self.conv2, self.bn2, y)
        if self.downsample is not None:
            x, reuse = conv_norm(*self.downsample, x, relu=False), True
        return conv_norm(self.conv3, self.bn3, y, residual=x, reuse=reuse)

    def fold(self):
        fold_norms(vars(self), ("conv1", "bn1"), ("conv2", "bn2"), ("conv3", "bn3"))
        if self.downsample is not None:
            fold_norms(self.downsample.layers, ("0", "1"))
        return self


class Stage(nn.Sequential):
    """Bottlenecks one after the other; with `checkpointing` their inputs alone are kept, see DeepStemResNet."""

    def execute(self, x, *, checkpointing: bool = False):
        for block in self:
            # Another reader of a stage's input: its first block has a downsampling, and so leaves it as it is.
            x = checkpointed(block, x) if checkpointing else block(x, reuse=True)
        return x


class DeepStemResNet(Foldable):
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
            raise ConfigError(f"DeepStemResNet: layers is {quoted(layers)}; expected four positive integers")
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
            setattr(self, f"layer{stage + 1}", Stage(*blocks))
        for module in self.modules():
            if isinstance(module, Conv):
                init_normal_fan_out(module.weight)

    def execute(self, x):
        return plain(self.stages(x)[1])

    def last_stages(self, x) -> tuple:
        """The outputs of layer3, which auxiliary heads take, and of layer4."""
        return tuple(plain(y) for y in self.stages(x))

    def stages(self, x) -> tuple:
        """As last_stages, but Activations in the format that the network runs in (jea.nn.formats)."""
        first, norm1, _, second, norm2, _, third = self.conv1
        x = enter(x, first.out_channels, self.layer1[0].conv1.out_channels)
        x = conv_norm(second, norm2, conv_norm(first, norm1, x))
        x = max_pool(conv_norm(third, self.bn1, x))
        again = self.checkpoint_activations and self.is_training()
        for layer in (self.layer1, self.layer2, self.layer3):
            x = layer(x, checkpointing=again)
        return x, self.layer4(x, checkpointing=again)

    def fold(self):
        fold_norms(self.conv1.layers, ("0", "1"), ("3", "4"))
        rest = {"conv": self.conv1[6], "bn": self.bn1}
        fold_norms(rest, ("conv", "bn"))
        self.bn1 = rest["bn"]
        size = 513  # of the pictures that the configurations use
        for conv, expected in zip(self.conv1[::3], (size, size // 2 + 1, size // 2 + 1)):
            conv.expected_size = expected
        size = size // 4 + 1
        for block in (*self.layer1, *self.layer2, *self.layer3, *self.layer4):
            for conv in (block.conv1, block.conv2, *(block.downsample or ())[:1]):
                conv.expected_size = size
            size = block.conv3.expected_size = -(-size // block.conv2.stride[0])
        return self
