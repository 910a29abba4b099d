"""Linear layers whose bias, GELU or summand run inside the matrix product."""
from __future__ import annotations

from jea._jittor import nn
from jea.ops import linear


class Linear(nn.Linear):
    """y = x W^T + b over the last axis; initialised as nn.Linear. See jea.ops.linear."""

    def execute(self, x, *, gelu: bool = False, summand=None):
        return linear(x, self.weight, self.bias, gelu=gelu, summand=summand)


def project(layer: Linear, dropout, x, summand=None):
    """dropout(layer(x)), plus the summand if there is one: in one pass where the dropout does nothing."""
    if dropout.p == 0 or not dropout.is_training():
        return layer(x, summand=summand)
    y = dropout(layer(x))
    return y if summand is None else y + summand
