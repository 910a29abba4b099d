"""JSeg's EANet: another network than the paper's, with public weights for Cityscapes (Jittor/JSeg, project/eanet).

Backbone ResNetV1c, external attention straight on its 2048 channels, a 1x1 classifier, an auxiliary head for training.
JSeg reports 79.9 mIoU (single scale) and 81.0 (multi-scale) on Cityscapes val for ResNet-50.
"""
from __future__ import annotations

from jea._jittor import nn
from jea.checkpoint.keymap import KeyMap
from jea.errors import ConfigError
from jea.models.network import Network
from jea.nn import DeepStemResNet, FCNHead
from jea.nn.blocks import Conv, checked_pictures, dropout
from jea.nn.external_attention import Attends
from jea.nn.formats import double_norm, on_pictures, plain, resize


class ConvReLU(nn.Module):
    """1x1 convolution with bias, ReLU. (B, C, H, W) -> (B, out_channels, H, W)."""

    def __init__(self, in_channels: int, out_channels: int):
        self.conv = Conv(in_channels, out_channels, 1)

    def execute(self, x, wide: bool = False):
        return self.conv(x, relu=True, wide=wide)


class JSegExternalAttention(nn.Module, Attends):
    """JSeg's External_attention: (B, in_channels, H, W) -> (B, channels, H, W).

        h = conv1(x);  A = double_norm(linear_0(h));  y = conv2(linear_1(A) + h)

    Each of the four maps has a bias and ends in a ReLU, that before the softmax too; the residual is conv1's output.
    """

    def __init__(self, in_channels: int, channels: int, num_memories: int):
        self.conv1 = ConvReLU(in_channels, channels)
        self.linear_0 = ConvReLU(channels, num_memories)
        self.linear_1 = ConvReLU(num_memories, channels)
        self.conv2 = ConvReLU(channels, channels)

    @on_pictures
    def execute(self, x, return_attention: bool = False):
        """return_attention: also return the map A, (B, S, H W)."""
        h = self.conv1(x)
        attention = double_norm(self.linear_0(h, wide=True))
        y = self.conv2(self.linear_1(attention, wide=True) + h)
        b, s, height, width = attention.shape
        return (y, plain(attention).reshape(b, s, height * width)) if return_attention else y


class EAHead(nn.Module):
    """External attention, Dropout and the classifier: (B, C, H, W) -> logits (B, num_classes, H, W)."""

    def __init__(self, in_channels: int, channels: int, num_classes: int, *, num_memories: int, dropout: float):
        self.ea = JSegExternalAttention(in_channels, channels, num_memories)
        self.dropout = nn.Dropout(dropout)
        self.conv_seg = Conv(channels, num_classes, 1)

    @on_pictures
    def execute(self, x):
        return self.conv_seg(dropout(self.dropout, self.ea(x)), wide=True)


class JSegEANet(Network):
    """ResNetV1c, external attention head and an aligned bilinear upsampling.

        backbone (B, 3, H, W) -> (B, 2048, H/os, W/os) -> decode_head -> num_classes -> resize to (H, W)

    Parameters at num_classes=19: eanet_jseg_resnet50 27,476,358, of which the auxiliary head has 2,364,691.

    Args:
        num_classes: channels of the logits; 19 for Cityscapes.
        output_stride: 8 (published) or 16. It changes no weight.
        layers, width: of the backbone, see DeepStemResNet.
        head_channels: channels of the attention.
        num_memories: S of the external attention.
        dropout: before both classifiers.
        auxiliary: with the auxiliary FCN head on layer3. It plays no part in inference.

    Shape:
        (B, 3, H, W), normalised RGB -> logits (B, num_classes, H, W). H and W of 8n + 1 keep the grid aligned.
    """

    solves = "segmentation"

    def __init__(self, *, num_classes: int = 19, output_stride: int = 8, layers=(3, 4, 6, 3), width: int = 64,
                 head_channels: int = 512, num_memories: int = 256, dropout: float = 0.1, auxiliary: bool = True):
        if not 0 <= dropout < 1:
            raise ConfigError(f"JSegEANet: dropout is {dropout}; expected 0 <= dropout < 1")
        if num_classes < 1:
            raise ConfigError(f"JSegEANet: num_classes is {num_classes}; expected at least 1")
        self.num_classes, self.output_stride = num_classes, output_stride
        self.backbone = DeepStemResNet(layers=layers, output_stride=output_stride, width=width, stem_width=width // 2,
                                       multi_grid=False)
        channels = self.backbone.out_channels
        self.decode_head = EAHead(channels, head_channels, num_classes, num_memories=num_memories, dropout=dropout)
        self.auxiliary_head = None
        if auxiliary:
            self.auxiliary_head = FCNHead(channels // 2, head_channels // 2, num_classes, dropout=dropout)
        else:
            self.key_maps = _KEY_MAPS_WITHOUT_AUXILIARY

    def execute(self, x):
        return plain(resize(self._logits(x), x.shape[2:]))

    def low_logits(self, x):
        """Logits at the backbone's resolution, (B, num_classes, H/os, W/os)."""
        return plain(self._logits(x))

    def with_auxiliary(self, x) -> tuple:
        """Logits and those of the auxiliary head, both (B, num_classes, H, W)."""
        layer3, layer4 = self.backbone.stages(checked_pictures(x, "JSegEANet"))
        return tuple(plain(resize(y, x.shape[2:])) for y in (self.decode_head(layer4), self.auxiliary_head(layer3)))

    def _logits(self, x):
        return self.decode_head(self.backbone.stages(checked_pictures(x, "JSegEANet"))[1])

    def attention_map(self, x):
        """The external attention's map over the backbone's positions, (B, S, H/os, W/os)."""
        feature = self.backbone.stages(checked_pictures(x, "JSegEANet"))[1]
        _, attention = self.decode_head.ea(feature, return_attention=True)
        return attention.reshape(attention.shape[:2] + list(feature.size))


# -- checkpoints ------------------------------------------------------------------------------------------------
_JSEG = dict(name="EANet, Jittor (Jittor/JSeg)", marker="backbone.stem.",
             rules=(("backbone.stem.7.", "backbone.bn1."), ("backbone.stem.", "backbone.conv1.")))
_BACKBONE = KeyMap(name="ResNetV1c backbone (mmsegmentation, JSeg)", marker="stem.",
                   rules=(("stem.7.", "backbone.bn1."), ("stem.", "backbone.conv1."),
                          *((f"layer{stage}.", f"backbone.layer{stage}.") for stage in (1, 2, 3, 4))),
                   drop=("fc.",), partial=("decode_head.", "auxiliary_head."))
JSegEANet.key_maps = (KeyMap(**_JSEG), _BACKBONE)
_KEY_MAPS_WITHOUT_AUXILIARY = (
    KeyMap(**_JSEG, drop=("auxiliary_head.",)), _BACKBONE,
    KeyMap(name="EANet, jea, with auxiliary head", marker="auxiliary_head.", drop=("auxiliary_head.",)))


def infer_kwargs(tensors: dict) -> dict:
    """Constructor arguments that a checkpoint's shapes tell (keys of any layout)."""
    classifier = tensors.get("decode_head.conv_seg.weight")
    if classifier is None:
        return {}
    found = {"num_classes": int(classifier.shape[0]), "auxiliary": "auxiliary_head.conv_seg.weight" in tensors}
    memory = tensors.get("decode_head.ea.linear_0.conv.weight")
    return found if memory is None else dict(found, num_memories=int(memory.shape[0]))


ENTRY_POINTS = {
    "eanet_jseg_resnet50": (JSegEANet, {"layers": (3, 4, 6, 3)}),
    "eanet_jseg_resnet101": (JSegEANet, {"layers": (3, 4, 23, 3)}),
}
