"""`fuse(model)`: the same network for inference only: BatchNorm folded into the layer before it, weights packed.

    w' = w g / sqrt(var + eps),  b' = beta + (b - mean) g / sqrt(var + eps)

Linear maps with nothing between them become one, spectral normalisation its result. Then the same layers run, in the
format that packed weights have (jea.nn.formats): nhwc where oneDNN is at hand, with bias, residual and ReLU inside the
convolutions.
"""
from __future__ import annotations

import copy
import functools
import inspect

import numpy as np

from jea._jittor import jt, nn
from jea.errors import ConfigError, SetupError, quoted
from jea.nn import formats
from jea.nn.norm import FoldedNorm, _BatchNorm
from jea.nn.precision import PRECISIONS, unavailable


class Foldable(nn.Module):
    """Base of the layers that `fuse` prepares for inference: first all fold, the inner ones before the outer ones, then
    all pack. Both change the copy that they are called on."""

    def fold(self):
        """Merge what can be merged; returns what to put in this layer's place."""
        return self

    packs = PRECISIONS  # those in which `pack` does something

    def pack(self, dtype: str) -> None:
        """Bring the weights into the form in which `formats.inference(dtype)` takes them."""


def fuse(model, precision: str = "float32"):
    """An inference-only copy of a model, with every BatchNorm folded into the convolution or linear map before it.

    A model in which there is nothing to fold, such as a T2T-ViT, is returned as it is. Else the result is called like
    the model, has its attributes, and agrees with it in evaluation mode to about 1e-6 of the largest output. It holds
    its own weights: the model is neither changed nor kept alive. Device and operators (JEA_OPS) are decided here: fuse
    again after turning CUDA on or off.

    Args:
        precision: "float32"; or "bfloat16", on CUDA also "float16": activations and the operands of products are in it;
            sums, statistics, double normalisation, softmax and logits stay float32.
    Raises:
        ConfigError: an unknown precision, or a model that is fused in another one.
        SetupError: a precision that this device does not have.
    """
    if precision not in PRECISIONS:
        raise ConfigError(f"fuse: precision is {quoted(precision)}; expected {', '.join(PRECISIONS)}")
    reason = unavailable(precision)
    if reason:
        raise SetupError(f"fuse: {reason}")
    if isinstance(model, Fused):
        if model.dtype != precision:
            raise ConfigError(f"fuse: this model is fused in {model.dtype} already; fuse the model that it was made of "
                              f"in {precision}")
        return model
    if not any(_can_fold(layer, precision) for layer in model.modules()):
        return model
    jt.gc()  # what Jittor keeps for reuse, such as the temporaries of the model's initialisation
    with jt.no_grad():
        return Fused(model, precision)


def _can_fold(layer, dtype: str) -> bool:
    if isinstance(layer, Foldable):
        packs = type(layer).pack is not Foldable.pack and dtype in layer.packs
        return packs or type(layer).fold is not Foldable.fold
    return isinstance(layer, (_BatchNorm, nn.BatchNorm))


class Fused(nn.Module):
    """What jea.fuse makes of a model: `network`, a folded copy, for inference only.

    It is called as the model is, and has its attributes and methods.
    """

    def __init__(self, model, dtype: str):
        self.is_train, self.dtype, self.on_cuda = False, dtype, bool(jt.flags.use_cuda)
        self.network = folded(model)
        with formats.inference(dtype):
            self.layout = formats.chosen().layout
            for layer in self.network.modules():
                if isinstance(layer, Foldable) and dtype in layer.packs:
                    layer.pack(dtype)
        _own_values(self.network, {id(var) for module in model.modules() for var in vars(module).values()})

    def execute(self, *inputs, **options):
        return self._guarded(self.network, *inputs, **options)

    def __getattr__(self, name):
        if "network" not in vars(self):
            return super().__getattr__(name)
        value = getattr(self.network, name)
        if isinstance(value, nn.Module):  # a part runs as the whole does
            part = Fused.__new__(Fused)
            vars(part).update(vars(self), network=value)
            return part
        return functools.partial(self._guarded, value) if inspect.ismethod(value) else value

    def train(self):
        raise RuntimeError(f"the fused {type(self.network).__name__} is for inference only: train the model that it "
                           "was made of, then fuse that again")

    def eval(self):
        return self

    def _guarded(self, function, *inputs, **options):
        """function(*inputs) in the fused form's format; asking for a gradient raises."""
        if self.on_cuda != bool(jt.flags.use_cuda):
            device, now = ("CUDA", "off") if self.on_cuda else ("the CPU", "on")
            raise RuntimeError(f"the {type(self.network).__name__} was fused for {device}: fuse the model again with "
                               f"CUDA {now}")
        with jt.no_grad(), formats.inference(self.dtype):
            y = function(*inputs, **options)
        source = next((value for value in inputs if isinstance(value, jt.Var)), None)
        if source is None:
            return y
        if isinstance(y, tuple):
            return tuple(_NoGradient.apply(source, part) for part in y)
        return _NoGradient.apply(source, y) if isinstance(y, jt.Var) else y


class _NoGradient(jt.Function):
    """Hands y on; its gradient is an error instead of the zeros that Jittor would give."""

    def execute(self, x, y):
        return y

    def grad(self, dy):
        raise RuntimeError("a fused model has no gradient: use the model that it was made of")


def folded(network):
    """A copy of a network in evaluation mode, in which every Foldable has folded. Vars that no layer has replaced are
    still the network's own."""
    new = copy.copy(network)
    for name, value in vars(network).items():
        if isinstance(value, nn.Module):
            setattr(new, name, folded(value))
    if isinstance(network, nn.Sequential):
        new.layers = type(network.layers)((key, folded(child)) for key, child in network.layers.items())
    new.is_train = False
    return new.fold() if isinstance(new, Foldable) else new


def _own_values(network, others: set) -> None:
    """Copies in place of the Vars whose id is in `others`."""
    for module in network.modules():
        for name, value in list(vars(module).items()):
            if isinstance(value, jt.Var) and id(value) in others:
                setattr(module, name, jt.array(value.numpy()).stop_grad())


def fold(bias, bn, channels: int):
    """What a convolution's weights are multiplied with and its bias, given the BatchNorm after it: float32 numpy."""
    scale = np.ones(channels)
    bias = np.zeros(channels) if bias is None else bias.numpy().astype(np.float64)
    if bn is not None:
        scale = bn.weight.numpy() / np.sqrt(bn.running_var.numpy().astype(np.float64) + bn.eps)
        bias = bn.bias.numpy() + (bias - bn.running_mean.numpy()) * scale
    return scale.astype(np.float32), bias.astype(np.float32)


def fold_norms(layers: dict, *pairs) -> None:
    """Fold BatchNorms into the linear layers before them, given by pairs of names in `layers`: ("conv1", "bn1"), ..."""
    for before, norm in pairs:
        layer, bn = layers[before], layers[norm]
        scale, bias = fold(layer.bias, bn, layer.weight.shape[0])
        layer.bias = jt.array(bias)
        if isinstance(layer, nn.Conv):
            layer.scale = scale  # until its weights are packed
        else:
            layer.weight = layer.weight * jt.array(scale).reshape([-1] + [1] * (layer.weight.ndim - 1))
            jt.sync([layer.weight])
        layers[norm] = FoldedNorm()
