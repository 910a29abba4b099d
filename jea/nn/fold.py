"""`fuse(model)`: the same network for inference only, BatchNorm folded into the convolution or linear map before it.

    w' = w g / sqrt(var + eps),  b' = beta + (b - mean) g / sqrt(var + eps)

Linear maps with nothing between them become one, spectral normalisation its result.

EANets have classes of their own (fused_form_of); other networks are copied, and their layers fold themselves (folded).
Where oneDNN is at hand the fused network runs channels-last through jea.ops.conv, with bias, residual and ReLU inside
the convolutions; elsewhere it runs the folded convolutions with Jittor's own operators.
"""
from __future__ import annotations

import copy

import numpy as np

from jea._jittor import jt, nn
from jea.nn.blocks import ConvBNReLU, checked_pictures
from jea.nn.external_attention import ExternalAttention, MultiHeadExternalAttention
from jea.nn.norm import _BatchNorm
from jea.nn.resnet import Bottleneck, DeepStemResNet
from jea.ops import (
    conv2d_nhwc,
    conv_nhwc_unavailable,
    double_norm,
    kernels,
    max_pool_nhwc,
    pack_conv,
    resize_bilinear,
    transpose,
)

_FUSED: dict = {}  # class -> fused class


def fuse(model):
    """An inference-only copy of a model, with every BatchNorm folded into the convolution or linear map before it.

    A model in which there is nothing to fold, such as a T2T-ViT, is returned as it is. Else the result is called like
    the model and agrees with it in evaluation mode to about 1e-6 of the largest output. It holds its own weights: the
    model is neither changed nor kept alive. Device and operators (JEA_OPS) are decided here: fuse again after turning
    CUDA on or off.

    Raises:
        ValueError: there is no fused form of this class.
    """
    if isinstance(model, FusedModule):
        return model
    fused = _FUSED.get(type(model))
    if fused in (None, FoldedNetwork) and not any(map(_can_fold, model.modules())):
        return model
    if fused is None:
        names = ", ".join(sorted(cls.__name__ for cls in _FUSED))
        raise ValueError(f"fuse: there is no fused form of {type(model).__name__}; there is one of {names}. "
                         "Use the model as it is.")
    jt.gc()  # what Jittor keeps for reuse, such as the temporaries of the model's initialisation
    with jt.no_grad():
        return fused(model)


def _can_fold(layer) -> bool:
    return hasattr(layer, "fold") or isinstance(layer, (_BatchNorm, nn.BatchNorm))


def fused_form_of(cls):
    """Class decorator: this FusedModule is what `fuse` makes of `cls`. Its constructor takes the model."""
    def register(fused):
        _FUSED[cls] = fused
        return fused
    return register


class FusedModule(nn.Module):
    """Base of the fused networks: (B, C, H, W) in and out, `run` in the layout of the convolutions."""

    def __init__(self):
        self.is_train = False
        self.channels_last = _channels_last()

    def run(self, x):
        raise NotImplementedError

    def execute(self, x):
        return self._guarded(x, lambda x: self._to_nchw(self.run(self._from_nchw(x))))

    def train(self):
        raise RuntimeError(f"{type(self).__name__} is for inference only: train the model that it was made of, "
                           "then fuse that again")

    def eval(self):
        return self

    def _guarded(self, x, function):
        """function(x) without gradients; asking for one raises."""
        if self.channels_last and jt.flags.use_cuda:
            raise RuntimeError(f"{type(self).__name__} was fused for the CPU: fuse the model again with CUDA on")
        with jt.no_grad():
            y = function(x)
        return _NoGradient.apply(x, y) if isinstance(y, jt.Var) else tuple(_NoGradient.apply(x, part) for part in y)

    def _from_nchw(self, x):
        return transpose(x, (0, 2, 3, 1)) if self.channels_last else x

    def _to_nchw(self, x):
        return transpose(x, (0, 3, 1, 2)) if self.channels_last else x


class FusedSegmenter(FusedModule):
    """Base of the fused networks for segmentation, (B, 3, H, W) -> (B, num_classes, H, W): `run` gives logits at the
    backbone's resolution."""

    name: str  # of the network, for messages

    def execute(self, x):
        return self._guarded(checked_pictures(x, self.name), lambda x: resize_bilinear(
            self._to_nchw(self.run(self._from_nchw(x))), x.shape[2:]))

    def low_logits(self, x):
        """Logits at the backbone's resolution, (B, num_classes, H/os, W/os)."""
        return super().execute(checked_pictures(x, self.name))


@fused_form_of(MultiHeadExternalAttention)
class FoldedNetwork(FusedModule):
    """What jea.fuse makes of networks without a fused form of their own: a folded copy, inference only.

    It is called as the network is, and has its attributes.
    """

    def __init__(self, model):
        super().__init__()
        self.channels_last = False
        self.network = folded(model)

    def execute(self, x, *inputs, **options):
        return self._guarded(x, lambda x: self.network(x, *inputs, **options))

    def __getattr__(self, name):
        if "network" in vars(self):
            return getattr(self.network, name)
        return super().__getattr__(name)


def folded(network):
    """A copy of a network, in evaluation mode and with its own values, in which every layer with a method `fold` has
    done so: fold() changes the copy that it is called on, and returns what to put in its place."""
    new = copy.copy(network)
    for name, value in vars(network).items():
        if isinstance(value, nn.Module):
            setattr(new, name, folded(value))
        elif isinstance(value, jt.Var):
            setattr(new, name, jt.array(value.numpy()).stop_grad())
    if isinstance(network, nn.Sequential):
        new.layers = type(network.layers)((key, folded(child)) for key, child in network.layers.items())
    new.is_train = False
    return new.fold() if hasattr(new, "fold") else new


class FoldedNorm(nn.Module):
    """What is left of a BatchNorm that was folded into the layer before it: the ReLU of the call."""

    def execute(self, x, *, relu: bool = False):
        return nn.relu(x) if relu else x


def fold_norms(layers: dict, *pairs) -> None:
    """Fold BatchNorms into the linear layers before them, given by pairs of names in `layers`: ("conv1", "bn1"), ..."""
    for before, norm in pairs:
        layer, bn = layers[before], layers[norm]
        scale, bias = fold(layer.bias, bn, layer.weight.shape[0])
        layer.weight = layer.weight * jt.array(scale).reshape([-1] + [1] * (layer.weight.ndim - 1))
        layer.bias = jt.array(bias)
        jt.sync([layer.weight])
        layers[norm] = FoldedNorm()


class _NoGradient(jt.Function):
    """Hands y on; its gradient is an error instead of the zeros that Jittor would give."""

    def execute(self, x, y):
        return y

    def grad(self, dy):
        raise RuntimeError("a fused model has no gradient: use the model that it was made of")


def _channels_last() -> bool:
    return not (conv_nhwc_unavailable() or kernels.references_only())


class _Conv:
    """A convolution with bias, optional residual and ReLU, in the layout of this process."""

    def __init__(self, weight, scale, bias, *, stride=1, padding=0, dilation=1, size=65):
        """weight: Var (O, I, kH, kW); scale of the weights and bias: float32 numpy arrays (O,); size: height and width
        to expect; the others as in nn.Conv."""
        scale, bias = jt.array(scale), jt.array(bias)
        self.packed = None
        if _channels_last():
            self.packed = pack_conv(weight, bias, scale=scale, stride=stride, padding=padding, dilation=dilation,
                                    size=(size, size))
        else:
            self.weight, self.bias = weight * scale.reshape(-1, 1, 1, 1), bias
            self.geometry = (stride, padding, dilation)
            jt.sync([self.weight, self.bias])  # what is not computed yet would keep the model's weights alive

    def __call__(self, x, *, relu=False, residual=None, reuse_residual=False):
        if self.packed is not None:
            return conv2d_nhwc(x, self.packed, relu=relu, residual=residual, reuse_residual=reuse_residual)
        y = nn.conv2d(x, self.weight, self.bias, *self.geometry)
        if residual is not None:
            y = y + residual
        return nn.relu(y) if relu else y


def fold(bias, bn, channels: int):
    """What a convolution's weights are multiplied with and its bias, given the BatchNorm after it: float32 numpy."""
    scale = np.ones(channels)
    bias = np.zeros(channels) if bias is None else bias.numpy().astype(np.float64)
    if bn is not None:
        scale = bn.weight.numpy() / np.sqrt(bn.running_var.numpy().astype(np.float64) + bn.eps)
        bias = bn.bias.numpy() + (bias - bn.running_mean.numpy()) * scale
    return scale.astype(np.float32), bias.astype(np.float32)


def folded_conv(conv, bn=None, *, size: int = 65) -> _Conv:
    """The folded form of an nn.Conv and the BatchNorm after it; `size`: height and width of input to expect."""
    for name in ("stride", "padding", "dilation"):
        value = getattr(conv, name)
        if value[0] != value[1]:
            raise ValueError(f"fuse: a convolution has {name} {tuple(value)}; expected equal values on both axes")
    if conv.groups != 1:
        raise ValueError(f"fuse: a convolution has {conv.groups} groups; expected 1")
    return _Conv(conv.weight, *fold(conv.bias, bn, conv.weight.shape[0]), stride=conv.stride[0], padding=conv.padding[0],
                 dilation=conv.dilation[0], size=size)


@fused_form_of(ConvBNReLU)
class FusedConvBNReLU(FusedModule):
    def __init__(self, model):
        super().__init__()
        self.conv = folded_conv(model.conv, model.bn)

    def run(self, x):
        return self.conv(x, relu=True)


@fused_form_of(Bottleneck)
class FusedBottleneck(FusedModule):
    def __init__(self, model, *, size: int = 65):
        super().__init__()
        self.conv1, self.conv2 = (folded_conv(getattr(model, f"conv{i}"), getattr(model, f"bn{i}"), size=size)
                                  for i in (1, 2))
        self.conv3 = folded_conv(model.conv3, model.bn3, size=-(-size // model.conv2.stride[0]))
        self.downsample = None if model.downsample is None else folded_conv(*model.downsample, size=size)

    def run(self, x, *, reuse_input: bool = False):
        """reuse_input: x may be overwritten."""
        y = self.conv2(self.conv1(x, relu=True), relu=True)
        if self.downsample is not None:
            x, reuse_input = self.downsample(x), True
        return self.conv3(y, relu=True, residual=x, reuse_residual=reuse_input)


@fused_form_of(DeepStemResNet)
class FusedDeepStemResNet(FusedModule):
    def __init__(self, model):
        super().__init__()
        self.output_stride, self.out_channels = model.output_stride, model.out_channels
        stem, size = model.conv1, 513  # the size that the configurations use
        self.stem = [folded_conv(stem[0], stem[1], size=size), folded_conv(stem[3], stem[4], size=size // 2 + 1),
                     folded_conv(stem[6], model.bn1, size=size // 2 + 1)]
        self.pool = nn.Pool(3, stride=2, padding=1, op="maximum")
        self.blocks, size = [], size // 4 + 1
        for block in (*model.layer1, *model.layer2, *model.layer3, *model.layer4):
            self.blocks.append(FusedBottleneck(block, size=size))
            size = -(-size // block.conv2.stride[0])

    def run(self, x):
        for conv in self.stem:
            x = conv(x, relu=True)
        x = max_pool_nhwc(x) if self.channels_last else self.pool(x)
        for block in self.blocks:
            x = block.run(x, reuse_input=True)
        return x


@fused_form_of(ExternalAttention)
class FusedExternalAttention(FusedModule):
    """conv1 and linear_0 have nothing between them, nor have linear_1, conv2 and BatchNorm: each becomes one map."""

    def __init__(self, model):
        super().__init__()
        self.channels, self.layout = model.channels, model.layout
        self.eps, self.projections = model.eps, model.projections
        key, value = (layer.weight.numpy().reshape(layer.weight.shape[:2]).astype(np.float64)
                      for layer in (model.linear_0, model.linear_1))
        key_bias, scale, value_bias = np.zeros(len(key)), np.ones(len(value)), np.zeros(len(value))
        if self.projections:
            key, key_bias = key @ model.conv1.weight.numpy()[:, :, 0, 0], key @ model.conv1.bias.numpy()
            value = model.conv2[0].weight.numpy()[:, :, 0, 0] @ value
            scale, value_bias = fold(None, model.conv2[1], len(value))
        self.key, self.value = (
            _Conv(jt.array(weight.astype(np.float32)[:, :, None, None]), *(v.astype(np.float32) for v in vectors))
            for weight, *vectors in ((key, np.ones(len(key)), key_bias), (value, scale, value_bias)))

    def run(self, x, return_attention=False):
        logits = self.key(x)  # B H W S, or B S H W
        shape = tuple(logits.shape)
        if self.channels_last:
            attention = double_norm(logits.reshape(shape[0], -1, shape[3]), layout="bns", eps=self.eps)  # B N S
        else:
            attention = double_norm(logits.reshape(shape[0], shape[1], -1), layout="bsn", eps=self.eps)  # B S N
        y = self.value(attention.reshape(shape), relu=self.projections, residual=x if self.projections else None)
        if not return_attention:
            return y
        return y, transpose(attention, (0, 2, 1)) if self.channels_last else attention

    def execute(self, x, return_attention: bool = False):
        return self._guarded(x, lambda x: self._any_layout(x, return_attention))

    def _any_layout(self, x, return_attention):
        shape = tuple(x.shape)
        tokens_first = ExternalAttention._channels_last(self, shape)
        if tokens_first:
            x = transpose(x, (0, 2, 1))
        y, attention = self.run(self._from_nchw(x.reshape(shape[0], self.channels, -1, 1)), True)
        y = self._to_nchw(y).reshape(shape[0], self.channels, -1)
        y = transpose(y, (0, 2, 1)) if tokens_first else y.reshape(shape)
        return (y, attention) if return_attention else y
