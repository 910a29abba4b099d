"""Activation checkpointing (Chen et al., arXiv 1604.06174): a block keeps its input and runs again for its gradient."""
from __future__ import annotations

from jea._jittor import jt
from jea.nn import precision
from jea.nn.mode import keeping_buffers
from jea.ops import kernels


class _Checkpoint(jt.Function):
    def __init__(self, block, parameters):
        self.block, self.parameters_of_block = block, parameters

    def execute(self, x, *_):
        self.x, self.dtype = x, precision.current()
        with jt.no_grad():
            return self.block(x)

    def grad(self, dy):
        # A second grad() inside the first is sound: the outer one has written down all that it needs of its graph
        # before it calls this. The executor runs operators in the order of their making, so that this block's second run
        # waits for the gradients of the later blocks.
        x = self.x.detach().start_grad()
        with precision.autocast(self.dtype), keeping_buffers(self.block), kernels.single_use():  # statistics moved already
            y = self.block(x)
        # Gradients that still had a gradient would keep the block's activations until the optimizer has used them.
        return [g.stop_grad() for g in jt.grad((y * dy.detach()).sum(), [x, *self.parameters_of_block])]


def checkpointed(block, x):
    """block(x), whose activations are freed after the forward pass and computed again in the backward pass.

    Output, gradients and running statistics are those of block(x). (Where x has other uses, its gradient is added up in
    another order.)

    Args:
        block: a module that maps one Var to one. It must draw no random numbers: dropout would draw others the second
            time.
        x: its input, the one activation that stays.
    """
    if jt.flags.no_grad:
        return block(x)
    parameters = [var for var in block.parameters() if not var.is_stop_grad()]
    # The parameters are inputs, since a Function hands gradients to its inputs alone.
    return _Checkpoint(block, parameters)(x, *parameters)
