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
from jea.nn.blocks import checked_pictures
from jea.nn.fold import FusedSegmenter, folded_conv, fuse, fused_form_of
from jea.ops import double_norm, resize_bilinear


class ConvReLU(nn.Module):
    """1x1 convolution with bias, ReLU. (B, C, H, W) -> (B, out_channels, H, W)."""

    def __init__(self, in_channels: int, out_channels: int):
        self.conv = nn.Conv(in_channels, out_channels, 1)

    def execute(self, x):
        return nn.relu(self.conv(x))


class JSegExternalAttention(nn.Module):
    """JSeg's External_attention: (B, in_channels, H, W) -> (B, channels, H, W).

        h = conv1(x);  A = double_norm(linear_0(h));  y = conv2(linear_1(A) + h)

    Each of the four maps has a bias and ends in a ReLU, that before the softmax too; the residual is conv1's output.
    """

    def __init__(self, in_channels: int, channels: int, num_memories: int):
        self.conv1 = ConvReLU(in_channels, channels)
        self.linear_0 = ConvReLU(channels, num_memories)
        self.linear_1 = ConvReLU(num_memories, channels)
        self.conv2 = ConvReLU(channels, channels)

    def execute(self, x, return_attention: bool = False):
        """return_attention: also return the map A, (B, S, H W)."""
        h = self.conv1(x)
        logits = self.linear_0(h)  # B S H W
        attention = double_norm(logits.reshape(logits.shape[:2] + [-1]), layout="bsn")  # B S N
        y = self.conv2(self.linear_1(attention.reshape(logits.shape)) + h)
        return (y, attention) if return_attention else y


class EAHead(nn.Module):
    """External attention, Dropout and the classifier: (B, C, H, W) -> logits (B, num_classes, H, W)."""

    def __init__(self, in_channels: int, channels: int, num_classes: int, *, num_memories: int, dropout: float):
        self.ea = JSegExternalAttention(in_channels, channels, num_memories)
        self.dropout = nn.Dropout(dropout)
        self.conv_seg = nn.Conv(channels, num_classes, 1)

    def execute(self, x):
        return self.conv_seg(self.dropout(self.ea(x)))


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
        return resize_bilinear(self.low_logits(x), x.shape[2:])

    def low_logits(self, x):
        """Logits at the backbone's resolution, (B, num_classes, H/os, W/os)."""
        return self.decode_head(self.backbone(checked_pictures(x, "JSegEANet")))

    def with_auxiliary(self, x) -> tuple:
        """Logits and those of the auxiliary head, both (B, num_classes, H, W)."""
        layer3, layer4 = self.backbone.last_stages(checked_pictures(x, "JSegEANet"))
        return tuple(resize_bilinear(y, x.shape[2:]) for y in (self.decode_head(layer4), self.auxiliary_head(layer3)))

    def attention_map(self, x):
        """The external attention's map over the backbone's positions, (B, S, H/os, W/os)."""
        feature = self.backbone(checked_pictures(x, "JSegEANet"))
        _, attention = self.decode_head.ea(feature, return_attention=True)
        return attention.reshape(attention.shape[:2] + feature.shape[2:])


@fused_form_of(JSegEANet)
class FusedJSegEANet(FusedSegmenter):
    """What jea.fuse makes of a JSegEANet: (B, 3, H, W) -> logits (B, num_classes, H, W), inference only."""

    name = "JSegEANet"

    def __init__(self, model):
        super().__init__()
        self.num_classes, self.output_stride = model.num_classes, model.output_stride
        self.backbone = fuse(model.backbone)
        ea = model.decode_head.ea
        self.conv1, self.linear_0, self.linear_1, self.conv2 = (
            folded_conv(layer.conv) for layer in (ea.conv1, ea.linear_0, ea.linear_1, ea.conv2))
        self.conv_seg = folded_conv(model.decode_head.conv_seg)

    def _attention(self, x):
        """conv1's output and the attention map, both in the layout of the convolutions."""
        h = self.conv1(self.backbone.run(x), relu=True)
        logits = self.linear_0(h, relu=True)  # B H W S, or B S H W
        shape = tuple(logits.shape)
        if self.channels_last:
            flat, layout = logits.reshape(shape[0], -1, shape[3]), "bns"
        else:
            flat, layout = logits.reshape(shape[0], shape[1], -1), "bsn"
        return h, double_norm(flat, layout=layout).reshape(shape)

    def run(self, x):
        h, attention = self._attention(x)
        return self.conv_seg(self.conv2(self.linear_1(attention, relu=True) + h, relu=True))

    def attention_map(self, x):
        """As JSegEANet.attention_map."""
        return self._guarded(checked_pictures(x, "JSegEANet"), lambda x: self._to_nchw(self._attention(self._from_nchw(x))[1]))


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
