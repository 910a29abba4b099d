"""Normalisation layers with PyTorch's semantics, which Jittor's own lack.

Jittor 1.3.11 keeps the biased variance in running_var and computes E[x^2] - E[x]^2 in float32, which cancels
for data far from zero (a LayerNorm over N(1000, 1) is off by 0.4). Parameter names are PyTorch's.
"""
from __future__ import annotations

import contextlib
import math

from jea import ranks
from jea._jittor import jt, nn
from jea.nn import formats
from jea.ops import batch_norm, layer_norm, moved


class _BatchNorm(nn.Module):
    """y = (x - E[x]) / sqrt(Var[x] + eps) * weight + bias per channel (axis 1), over all other axes.

    Training uses the batch's biased variance and moves the running statistics by `momentum` towards the batch's
    mean and *unbiased* variance; evaluation uses the running statistics. A call may add `residual`, of x's shape, and
    end with a ReLU (`relu=True`), both in the same pass over memory.

    Args:
        num_features: channels C.
        eps: added to the variance.
        momentum: share of the new batch in the running statistics.
    Raises:
        ValueError: input of another rank or channel count; a single value per channel while training.
    """

    ranks: tuple = ()
    folded = False  # into the layer before it

    def __init__(self, num_features: int, eps: float = 1e-5, momentum: float = 0.1):
        self.num_features, self.eps, self.momentum = num_features, eps, momentum
        self.weight = jt.ones((num_features,))
        self.bias = jt.zeros((num_features,))
        self.running_mean = jt.zeros((num_features,)).stop_grad()
        self.running_var = jt.ones((num_features,)).stop_grad()

    def execute(self, x, *, residual=None, relu: bool = False):
        shape = tuple(x.shape)
        if len(shape) not in self.ranks or shape[1] != self.num_features:
            raise ValueError(f"{type(self).__name__}({self.num_features}): got shape {shape}; expected rank "
                             f"{' or '.join(map(str, self.ranks))} with {self.num_features} channels on axis 1")
        normalise = formats.batch_norm if isinstance(x, formats.Activation) else batch_norm
        options = {"residual": residual, "relu": relu, "eps": self.eps}
        if not self.is_training():
            statistics = (self.running_mean, self.running_var)
            return normalise(x, self.weight, self.bias, statistics=statistics, **options)[0]
        y, mean, variance = normalise(x, self.weight, self.bias, **options)
        track(shape, type(self).__name__, (self.running_mean, self.running_var), (mean, variance), self.momentum)
        return y

    def extra_repr(self):
        return f"{self.num_features}, eps={self.eps}, momentum={self.momentum}"


def track(shape, name: str, running, batch, momentum: float) -> None:
    """Move running mean and variance towards those of a batch (B, C, ...), its variance unbiased over all ranks."""
    count = math.prod(shape) // shape[1] * ranks.size()
    if count < 2:
        raise ValueError(f"{name}: one value per channel (shape {shape}) has no variance; "
                         "train with a larger batch or picture")
    if _collecting[-1] is not None:
        _collecting[-1].add(running, batch, momentum, (1.0, count / (count - 1)))
        return
    for old, new, factor in zip(running, batch, (1, count / (count - 1))):
        new = new if factor == 1 else new * factor
        old.update(old + (new - old) * momentum)


class _Statistics:
    """Running statistics that move together, and those of batches that they will move towards."""

    def __init__(self):
        self._waiting: list = []

    def add(self, running, batch, momentum: float, factors) -> None:
        self._waiting += zip(running, batch, (momentum, momentum), factors)

    def move(self, control=None) -> None:
        """Move them, one operator for many; where `control` (jea/ops/training/finite.py) says 0, they stay."""
        while self._waiting:
            momentum, now, later, seen = self._waiting[0][2], [], [], set()
            for entry in self._waiting:  # a layer that ran twice moves its statistics twice, one after the other
                fits = entry[2] == momentum and id(entry[0]) not in seen
                seen.add(id(entry[0]))
                (now if fits else later).append(entry)
            running, batch, _, factors = map(list, zip(*now))
            for old, new in zip(running, moved(running, batch, momentum, factors, control=control)):
                old.update(new)
            self._waiting = later


_collecting: list = [None]


@contextlib.contextmanager
def collected(wanted: bool = True):
    """Running statistics of layers that train inside the block wait, if it is `wanted`, until `move` is called on what
    it yields."""
    statistics = _Statistics()
    _collecting.append(statistics if wanted else None)
    try:
        yield statistics
    finally:
        _collecting.pop()


class FoldedNorm(nn.Module):
    """What is left of a BatchNorm that was folded into the layer before it: the ReLU of the call."""

    folded = True

    def execute(self, x, *, relu: bool = False):
        return nn.relu(x) if relu else x


class BatchNorm1d(_BatchNorm):
    """BatchNorm over (B, C) or (B, C, N)."""
    ranks = (2, 3)


class BatchNorm2d(_BatchNorm):
    """BatchNorm over (B, C, H, W), or over an Activation (jea.nn.formats)."""
    ranks = (4,)


class LayerNorm(nn.Module):
    """y = (x - E[x]) / sqrt(Var[x] + eps) * weight + bias over the last axes, `normalized_shape`.

    Args:
        normalized_shape: int or tuple, the length of the last axes.
        eps: added to the variance; 1e-5 as in PyTorch.
        elementwise_affine: with weight and bias.
    """

    def __init__(self, normalized_shape, eps: float = 1e-5, elementwise_affine: bool = True):
        if isinstance(normalized_shape, int):
            normalized_shape = (normalized_shape,)
        self.normalized_shape, self.eps = tuple(normalized_shape), eps
        self.weight = jt.ones(self.normalized_shape) if elementwise_affine else None
        self.bias = jt.zeros(self.normalized_shape) if elementwise_affine else None

    def execute(self, x):
        rank = len(self.normalized_shape)
        if tuple(x.shape[-rank:]) != self.normalized_shape:
            raise ValueError(f"LayerNorm{self.normalized_shape}: got shape {tuple(x.shape)}; its last axes differ")
        if self.weight is None:
            return layer_norm(x, jt.ones(self.normalized_shape), jt.zeros(self.normalized_shape), eps=self.eps)
        return layer_norm(x, self.weight, self.bias, eps=self.eps)
