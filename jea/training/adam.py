"""Optimizers where Jittor's differ from PyTorch's."""
from __future__ import annotations

import math

from jea._jittor import nn


class Adam(nn.Adam):
    """Adam as PyTorch has it: p <- p - lr m' / (sqrt(v') + eps), with m' = m / (1 - beta1^t), v' = v / (1 - beta2^t).

    Jittor's own adds eps to sqrt(v): with beta2 = 0.999, at the first step 1 / sqrt(1 - beta2) = 32 times as much.
    """

    def step(self, loss=None, retain_graph=False):
        steps = self.n_step + (loss is not None)  # the backward pass counts
        for group in self.param_groups:
            group["eps"] = self.eps * math.sqrt(1 - self.betas[1] ** steps)
        super().step(loss, retain_graph)
