"""EANet: semantic segmentation with external attention (paper, section 3; upstream model_torch.py).

Beyond Self-attention: External Attention using Two Linear Layers for Visual Tasks, arXiv 2105.02358.
"""
from __future__ import annotations

from dataclasses import replace

from jea._jittor import nn
from jea.checkpoint.keymap import KeyMap
from jea.errors import ConfigError
from jea.models.network import Network
from jea.nn import ConvBNReLU, DeepStemResNet, Dropout2d, ExternalAttention, FCNHead
from jea.nn.blocks import Conv, checked_pictures
from jea.nn.formats import plain, resize


class EANet(Network):
    """Dilated deep-stem ResNet, external attention, two convolutions and an aligned bilinear upsampling.

        backbone (B, 3, H, W) -> (B, 2048, H/os, W/os) -> fc0 3x3 -> 512 -> EA(512) -> fc1 3x3 -> 256, Dropout2d
        -> fc2 1x1 -> num_classes -> resize to (H, W)

    Parameters at num_classes=21: eanet_resnet50 34,846,933; eanet_resnet101 53,839,061; eanet_resnet152 69,482,709.

    Args:
        num_classes: channels of the logits, background included; 21 for VOC.
        output_stride: 8 (published results) or 16. It changes no weight.
        layers, width: of the backbone, see DeepStemResNet.
        head_channels: channels of the attention; the layer after it has half as many.
        num_memories: S of the external attention.
        dropout: probability of Dropout2d after fc1.
        auxiliary: with an FCN head on layer3 for training, as the recipes for ADE20K and Cityscapes have. The paper's
            network for VOC has none. It plays no part in inference.

    Shape:
        (B, 3, H, W), normalised RGB -> logits (B, num_classes, H, W). H and W of 8n + 1 keep the grid aligned.
    """

    solves = "segmentation"

    def __init__(self, *, num_classes: int = 21, output_stride: int = 8, layers=(3, 4, 6, 3), width: int = 64,
                 head_channels: int = 512, num_memories: int = 64, dropout: float = 0.1, auxiliary: bool = False):
        if num_classes < 1:
            raise ConfigError(f"EANet: num_classes is {num_classes}; expected at least 1")
        self.num_classes, self.output_stride = num_classes, output_stride
        self.backbone = DeepStemResNet(layers=layers, output_stride=output_stride, width=width)
        self.fc0 = ConvBNReLU(self.backbone.out_channels, head_channels, kernel_size=3)
        self.linu = ExternalAttention(head_channels, num_memories)
        self.fc1 = nn.Sequential(ConvBNReLU(head_channels, head_channels // 2, kernel_size=3), Dropout2d(dropout))
        self.fc2 = Conv(head_channels // 2, num_classes, 1)
        self.auxiliary_head = None
        if auxiliary:
            self.auxiliary_head = FCNHead(self.backbone.out_channels // 2, head_channels // 2, num_classes)
            self.key_maps = _KEY_MAPS_WITH_AUXILIARY

    def execute(self, x):
        return plain(resize(self._logits(x), x.shape[2:]))

    def low_logits(self, x):
        """Logits of a picture at the backbone's resolution, (B, num_classes, H/os, W/os)."""
        return plain(self._logits(x))

    def with_auxiliary(self, x) -> tuple:
        """Logits and those of the auxiliary head, both (B, num_classes, H, W)."""
        layer3, layer4 = self.backbone.stages(checked_pictures(x, "EANet"))
        return tuple(plain(resize(y, x.shape[2:])) for y in (self._head(layer4), self.auxiliary_head(layer3)))

    def _logits(self, x):
        return self._head(self.backbone.stages(checked_pictures(x, "EANet"))[1])

    def _head(self, feature):
        return self.fc2(self.fc1(self.linu(self.fc0(feature))), wide=True)

    def attention_map(self, x):
        """The external attention's map over the backbone's positions, (B, S, H/os, W/os)."""
        feature = self.fc0(self.backbone.stages(checked_pictures(x, "EANet"))[1])
        _, attention = self.linu(feature, return_attention=True)
        return attention.reshape(attention.shape[:2] + list(feature.size))


# -- checkpoints ------------------------------------------------------------------------------------------------
# Upstream numbers the backbone as nn.Sequential: [stem, bn1, relu, maxpool, layer1 .. layer4].
EANet.key_maps = (
    KeyMap(name="EANet, PyTorch (MenghaoGuo/EANet)", marker="extractor.",
           rules=(("extractor.0.", "backbone.conv1."), ("extractor.1.", "backbone.bn1."),
                  *((f"extractor.{3 + stage}.", f"backbone.layer{stage}.") for stage in (1, 2, 3, 4)))),
    KeyMap(name="deep-stem ResNet backbone (PyTorch-Encoding)", marker="layer1.",
           rules=tuple((f"{name}.", f"backbone.{name}.")
                       for name in ("conv1", "bn1", "layer1", "layer2", "layer3", "layer4")),
           drop=("fc.",), partial=("fc0.", "linu.", "fc1.", "fc2.")),
)
_KEY_MAPS_WITH_AUXILIARY = tuple(replace(key_map, partial=key_map.partial + ("auxiliary_head.",))
                                 for key_map in EANet.key_maps)


def infer_kwargs(tensors: dict) -> dict:
    """Constructor arguments that a checkpoint's shapes tell (keys of any layout)."""
    head = tensors.get("fc2.weight")
    if head is None:
        return {}
    auxiliary = {"auxiliary": True} if "auxiliary_head.conv_seg.weight" in tensors else {}
    return {"num_classes": int(head.shape[0]), **auxiliary}


ENTRY_POINTS = {
    "eanet_resnet50": (EANet, {"layers": (3, 4, 6, 3)}),
    "eanet_resnet101": (EANet, {"layers": (3, 4, 23, 3)}),
    "eanet_resnet152": (EANet, {"layers": (3, 8, 36, 3)}),
    # Ours, for the demo and for tests: the same network, small enough to train on two CPU cores.
    "eanet_tiny": (EANet, {"layers": (1, 1, 1, 1), "width": 16, "head_channels": 32, "num_memories": 32}),
}
