"""EANet in PyTorch, with jea's parameter names."""
from __future__ import annotations

from jea.commands.bench import threads


def torch_eanet(output_stride: int = 8):
    import torch
    from torch import nn
    from torch.nn import functional as F

    def conv(i, o, k=1, stride=1, dilation=1, bias=False):
        return nn.Conv2d(i, o, k, stride, dilation * (k // 2), dilation, bias=bias)

    class Bottleneck(nn.Module):
        def __init__(self, i, planes, stride, dilation):
            super().__init__()
            o = 4 * planes
            self.conv1, self.bn1 = conv(i, planes), nn.BatchNorm2d(planes)
            self.conv2, self.bn2 = conv(planes, planes, 3, stride, dilation), nn.BatchNorm2d(planes)
            self.conv3, self.bn3 = conv(planes, o), nn.BatchNorm2d(o)
            self.downsample = None
            if stride != 1 or i != o:
                self.downsample = nn.Sequential(conv(i, o, 1, stride), nn.BatchNorm2d(o))

        def forward(self, x):
            y = F.relu(self.bn1(self.conv1(x)), inplace=True)
            y = F.relu(self.bn2(self.conv2(y)), inplace=True)
            y = self.bn3(self.conv3(y))
            y += x if self.downsample is None else self.downsample(x)
            return F.relu(y, inplace=True)

    class Backbone(nn.Module):
        def __init__(self):
            super().__init__()
            relu = nn.ReLU(inplace=True)
            self.conv1 = nn.Sequential(conv(3, 64, 3, 2), nn.BatchNorm2d(64), relu, conv(64, 64, 3),
                                       nn.BatchNorm2d(64), relu, conv(64, 128, 3))
            self.bn1, self.maxpool, i = nn.BatchNorm2d(128), nn.MaxPool2d(3, 2, 1), 128
            stages = (1, (1, 1, 1)), (2, (1, 1, 1, 1)), (1, (1, 2, 2, 2, 2, 2)), (1, (2, 8, 16))
            if output_stride == 16:
                stages = (*stages[:2], (2, (1,) * 6), (1, (1, 4, 8)))
            for number, (stride, dilations) in enumerate(stages):
                blocks = []
                for block, dilation in enumerate(dilations):
                    blocks.append(Bottleneck(i, 64 << number, stride if block == 0 else 1, dilation))
                    i = 256 << number
                setattr(self, f"layer{number + 1}", nn.Sequential(*blocks))

        def forward(self, x):
            x = self.maxpool(F.relu(self.bn1(self.conv1(x)), inplace=True))
            return self.layer4(self.layer3(self.layer2(self.layer1(x))))

    class ConvBNReLU(nn.Module):
        def __init__(self, i, o):
            super().__init__()
            self.conv, self.bn = conv(i, o, 3), nn.BatchNorm2d(o)

        def forward(self, x):
            return F.relu(self.bn(self.conv(x)), inplace=True)

    class ExternalAttention(nn.Module):
        def __init__(self, c):
            super().__init__()
            self.conv1 = conv(c, c, bias=True)
            self.linear_0, self.linear_1 = nn.Conv1d(c, 64, 1, bias=False), nn.Conv1d(64, c, 1, bias=False)
            self.conv2 = nn.Sequential(conv(c, c), nn.BatchNorm2d(c))

        def forward(self, x):
            b, c, h, w = x.shape
            a = self.linear_0(self.conv1(x).reshape(b, c, h * w)).softmax(-1)
            a = a / (1e-9 + a.sum(1, keepdim=True))
            return F.relu(self.conv2(self.linear_1(a).view(b, c, h, w)) + x)

    class EANet(nn.Module):
        def __init__(self):
            super().__init__()
            self.backbone, self.fc0, self.linu = Backbone(), ConvBNReLU(2048, 512), ExternalAttention(512)
            self.fc1, self.fc2 = nn.Sequential(ConvBNReLU(512, 256)), conv(256, 21, bias=True)

        def forward(self, x):
            y = self.fc2(self.fc1(self.linu(self.fc0(self.backbone(x)))))
            return F.interpolate(y, size=x.shape[2:], mode="bilinear", align_corners=True)

    torch.set_num_threads(threads())
    return EANet()
