"""Graph: what the families' functions write into. A value is the name of a tensor; a method adds nodes and gives one
back."""
from __future__ import annotations

import numpy as np

from jea.errors import SetupError

OPSET = 17


def onnx_package():
    """The package onnx, or a SetupError that says how to install it."""
    try:
        import onnx
    except ImportError as error:
        raise SetupError(f"export to ONNX needs the package onnx ({error}): pip install 'jea[onnx]'") from None
    return onnx


class Graph:
    """Nodes and constants of an ONNX graph that is being built.

    Activations of pictures are (B, C, H, W), tokens (B, N, C), features of point clouds (B, C, N).
    """

    def __init__(self, outer: Graph | None = None):
        """outer: the graph around the body of a loop, whose values and constants the body sees too."""
        self.helper, self.numpy_helper = onnx_package().helper, onnx_package().numpy_helper
        self.nodes, self.outer = [], outer
        self.constants = {} if outer is None else outer.constants
        self._counts = {} if outer is None else outer._counts

    # -- values ---------------------------------------------------------------------------------------------------

    def constant(self, array) -> str:
        """A float32 or int64 array; equal ones are kept once."""
        array = np.asarray(array)
        array = np.ascontiguousarray(array, np.int64 if array.dtype.kind in "iu" else np.float32).reshape(array.shape)
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self.constants:
            self.constants[key] = f"constant_{len(self.constants)}"
        return self.constants[key]

    def node(self, operator: str, *inputs, outputs: int = 1, **attributes):
        """One node; arrays and numbers among the inputs become constants, None is an input that is left out."""
        names = ["" if value is None else value if isinstance(value, str) else self.constant(value) for value in inputs]
        self._counts[operator] = number = self._counts.get(operator, 0) + 1
        results = [f"{operator}_{number}" + (f"_{k}" if outputs > 1 else "") for k in range(outputs)]
        self.nodes.append(self.helper.make_node(operator, names, results, name=f"{operator}_{number}", **attributes))
        return results[0] if outputs == 1 else tuple(results)

    def initializers(self) -> list:
        return [self.numpy_helper.from_array(np.frombuffer(data, kind).reshape(shape), name)
                for (kind, shape, data), name in self.constants.items()]

    # -- what the families share ----------------------------------------------------------------------------------

    def add(self, a, b):
        return self.node("Add", a, b)

    def mul(self, a, b):
        return self.node("Mul", a, b)

    def relu(self, x):
        return self.node("Relu", x)

    def concat(self, values, axis: int):
        return self.node("Concat", *values, axis=axis)

    def reshape(self, x, shape):
        """shape: numbers, of which 0 keeps the input's and -1 is what is left, or a value."""
        return self.node("Reshape", x, shape if isinstance(shape, str) else np.array(shape))

    def transpose(self, x, axes):
        return self.node("Transpose", x, perm=list(axes))

    def shape(self, x, start: int = 0, end: int | None = None):
        limits = {"start": start} if end is None else {"start": start, "end": end}
        return self.node("Shape", x, **limits)

    def conv(self, x, weight, bias=None, *, stride: int = 1, padding: int = 0, dilation: int = 1, groups: int = 1):
        """Convolution over the axes after the second; weight (O, I / groups, ...)."""
        axes = weight.ndim - 2
        return self.node("Conv", x, weight, *([] if bias is None else [bias]), strides=[stride] * axes,
                         pads=[padding] * (2 * axes), dilations=[dilation] * axes, group=groups)

    def linear(self, x, layer):
        """x W^T + b over the last axis, of a layer with `weight` (O, I) and `bias` or None."""
        y = self.node("MatMul", x, np.ascontiguousarray(layer.weight.numpy().T))
        return y if layer.bias is None else self.add(y, layer.bias.numpy())

    def softmax(self, x, axis: int):
        return self.node("Softmax", x, axis=axis)

    def double_norm(self, x, *, positions: int, memories: int, eps: float = 1e-9):
        """Softmax over the positions, then each position's entries over the memories divided by their sum and eps
        (paper, section 3). Without eps the result is off where a position has no mass."""
        a = self.softmax(x, positions)
        total = self.node("ReduceSum", a, np.array([memories]), keepdims=1)
        return self.node("Div", a, self.add(total, np.float32(eps)) if eps else total)

    def layer_norm(self, x, layer):
        return self.node("LayerNormalization", x, layer.weight.numpy(), layer.bias.numpy(), axis=-1,
                         epsilon=float(layer.eps))

    def gelu(self, x):
        """x Phi(x), the exact one."""
        half = self.mul(x, np.float32(0.5))
        return self.mul(half, self.add(self.node("Erf", self.mul(x, np.float32(0.5 ** 0.5))), np.float32(1)))


def folded(weight, bias, norm) -> tuple:
    """Weights (O, ...) and bias of a linear layer and the BatchNorm after it as one layer, in float32.

        w' = w g / sqrt(var + eps),   b' = beta + (b - mean) g / sqrt(var + eps)
    """
    scale, shift = scale_and_shift(norm)
    bias = np.zeros(len(scale)) if bias is None else bias.numpy().astype(np.float64)
    weight = weight.numpy().astype(np.float64) * scale.reshape(-1, *[1] * (weight.ndim - 1))
    return weight.astype(np.float32), (bias * scale + shift).astype(np.float32)


def scale_and_shift(norm) -> tuple:
    """BatchNorm in evaluation mode as x scale + shift, in float64."""
    scale = norm.weight.numpy() / np.sqrt(norm.running_var.numpy().astype(np.float64) + norm.eps)
    return scale, norm.bias.numpy() - norm.running_mean.numpy() * scale
