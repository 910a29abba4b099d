"""Linear layers whose bias, GELU or summand run inside the matrix product."""
from __future__ import annotations

from jea._jittor import nn
from jea.nn import precision
from jea.ops import linear
from jea.ops.products.half import single


class Linear(nn.Linear):
    """y = x W^T + b over the last axis; initialised as nn.Linear. See jea.ops.linear.

    Under jea.nn.precision.autocast all but the summand is half precision; what comes out is float32.
    """

    def execute(self, x, *, gelu: bool = False, summand=None):
        if precision.current() == "float32":
            return linear(x, self.weight, self.bias, gelu=gelu, summand=summand)
        y = single(linear(*precision.operands(x, self.weight, self.bias), gelu=gelu))
        return y if summand is None else y + summand


def project(layer: Linear, dropout, x, summand=None):
    """dropout(layer(x)), plus the summand if there is one: in one pass where the dropout does nothing."""
    if dropout.p == 0 or not dropout.is_training():
        return layer(x, summand=summand)
    y = dropout(layer(x))
    return y if summand is None else y + summand
