"""PCT and EA-PCT in PyTorch as upstream has them: every neighbour through every convolution, no operator of jea's.

Names are upstream's, so that state dicts are those of their files.
"""
import torch
from torch import nn
from torch.nn import functional as F


def square_distance(a, b):
    return (a ** 2).sum(-1)[:, :, None] + (b ** 2).sum(-1)[:, None] - 2 * a @ b.transpose(1, 2)


def take(points, index):
    """(B, N, C) at (B, ...) -> (B, ..., C)"""
    return points[torch.arange(len(points)).view(-1, *[1] * (index.ndim - 1)), index]


def farthest_points(xyz, m):
    chosen = torch.zeros(len(xyz), m, dtype=torch.long)
    nearest = torch.where((xyz ** 2).sum(-1) <= 1e-3, -1.0, 1e10).to(xyz)
    for j in range(1, m):
        last = take(xyz, chosen[:, j - 1:j])
        nearest = torch.minimum(nearest, ((xyz - last) ** 2).sum(-1))
        chosen[:, j] = nearest.argmax(-1)
    return chosen


def nearest_points(query, points, k):
    return square_distance(query, points).topk(k, largest=False).indices


def sample_and_group(m, k, xyz, features):
    chosen = farthest_points(xyz, m)
    sampled, centres = take(xyz, chosen), take(features, chosen)
    grouped = take(features, nearest_points(sampled, xyz, k))
    centres = centres[:, :, None].expand_as(grouped)
    return sampled, torch.cat([grouped - centres, centres], -1)


def conv(i, o, bias=False):
    return nn.Conv1d(i, o, 1, bias=bias)


class LocalOp(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.conv1, self.conv2, self.bn1, self.bn2 = conv(c, c), conv(c, c), nn.BatchNorm1d(c), nn.BatchNorm1d(c)

    def forward(self, x):
        b, n, k, c = x.shape
        x = x.transpose(2, 3).reshape(b * n, c, k)
        x = F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))))
        return F.adaptive_max_pool1d(x, 1).view(b, n, c).transpose(1, 2)


class SelfAttention(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.q_conv, self.k_conv, self.v_conv = conv(c, c // 4), conv(c, c // 4), conv(c, c, True)
        self.q_conv.weight = self.k_conv.weight
        self.trans_conv, self.after_norm = conv(c, c, True), nn.BatchNorm1d(c)

    def forward(self, x):
        a = torch.bmm(self.q_conv(x).transpose(1, 2), self.k_conv(x)).softmax(-1)
        r = torch.bmm(self.v_conv(x), a / (1e-9 + a.sum(1, keepdim=True)))
        return x + F.relu(self.after_norm(self.trans_conv(x - r)))


class ExternalAttention(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.linear_0, self.linear_1 = conv(c, 64), conv(64, c)
        self.trans_conv, self.after_norm = conv(c, c, True), nn.BatchNorm1d(c)

    def forward(self, x):
        a = self.linear_0(x).softmax(-1)
        r = self.linear_1(a / (1e-9 + a.sum(1, keepdim=True)))
        return x + F.relu(self.after_norm(self.trans_conv(x - r)))


class Last(nn.Module):
    """position: the name of its convolution ("conv_pos", no bias; "pos_xyz", with bias) or None."""

    def __init__(self, attention, position):
        super().__init__()
        self.conv1, self.bn1, self.position = conv(256, 256), nn.BatchNorm1d(256), position
        if position is None:
            self.conv2, self.bn2 = conv(256, 256), nn.BatchNorm1d(256)
        else:
            setattr(self, position, conv(3, 256, position == "pos_xyz"))
        for i in range(1, 5):
            setattr(self, f"sa{i}", attention(256))

    def forward(self, x, xyz):
        x, term = F.relu(self.bn1(self.conv1(x))), 0
        if self.position is None:
            x = F.relu(self.bn2(self.conv2(x)))
        else:
            term = getattr(self, self.position)(xyz.transpose(1, 2))
        outputs = []
        for i in range(1, 5):
            x = getattr(self, f"sa{i}")(x + term)
            outputs.append(x)
        return torch.cat(outputs, 1)


class Classifier(nn.Module):
    def __init__(self, attention="external", position="conv_pos", head_slope=0.0, num_classes=40):
        super().__init__()
        self.head_slope = head_slope
        self.conv1, self.conv2, self.bn1, self.bn2 = conv(3, 64), conv(64, 64), nn.BatchNorm1d(64), nn.BatchNorm1d(64)
        self.gather_local_0, self.gather_local_1 = LocalOp(128), LocalOp(256)
        self.pt_last = Last(ExternalAttention if attention == "external" else SelfAttention, position)
        self.conv_fuse = nn.Sequential(conv(1280, 1024), nn.BatchNorm1d(1024), nn.LeakyReLU(0.2))
        self.linear1, self.bn6 = nn.Linear(1024, 512, bias=False), nn.BatchNorm1d(512)
        self.linear2, self.bn7 = nn.Linear(512, 256), nn.BatchNorm1d(256)
        self.linear3 = nn.Linear(256, num_classes)

    def forward(self, x):
        xyz = x.transpose(1, 2)
        x = F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))))
        xyz, x = sample_and_group(512, 32, xyz, x.transpose(1, 2))
        x = self.gather_local_0(x)
        xyz, x = sample_and_group(256, 32, xyz, x.transpose(1, 2))
        x = self.gather_local_1(x)
        x = self.conv_fuse(torch.cat([self.pt_last(x, xyz), x], 1))
        x = F.adaptive_max_pool1d(x, 1).squeeze(-1)
        x = F.leaky_relu(self.bn6(self.linear1(x)), self.head_slope)
        x = F.leaky_relu(self.bn7(self.linear2(x)), self.head_slope)
        return self.linear3(x)


class SimpleClassifier(nn.Module):
    def __init__(self, attention="external", num_classes=40):
        super().__init__()
        layer = ExternalAttention if attention == "external" else SelfAttention
        self.conv1, self.conv2 = conv(3, 128), conv(128, 128)
        self.bn1, self.bn2 = nn.BatchNorm1d(128), nn.BatchNorm1d(128)
        for i in range(1, 5):
            setattr(self, f"sa{i}", layer(128))
        self.conv_fuse = nn.Sequential(conv(512, 1024), nn.BatchNorm1d(1024), nn.LeakyReLU(0.2))
        self.linear1, self.bn6 = nn.Linear(1024, 512, bias=False), nn.BatchNorm1d(512)
        self.linear2, self.bn7 = nn.Linear(512, 256), nn.BatchNorm1d(256)
        self.linear3 = nn.Linear(256, num_classes)

    def forward(self, x):
        x = F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))))
        outputs = []
        for i in range(1, 5):
            x = getattr(self, f"sa{i}")(x)
            outputs.append(x)
        x = F.adaptive_max_pool1d(self.conv_fuse(torch.cat(outputs, 1)), 1).squeeze(-1)
        return self.linear3(F.relu(self.bn7(self.linear2(F.relu(self.bn6(self.linear1(x)))))))
