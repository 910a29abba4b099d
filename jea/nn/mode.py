"""How whole networks run: in training or in evaluation mode, and with activations that are computed again.

Jittor's own eval() also stops the gradients of all parameters, and train() restarts them through bookkeeping by id.
Here only the modules' `is_train` flags change, and only for a while.

Activation checkpointing is Chen et al., arXiv 1604.06174: a block keeps its input and runs again for its gradient.
"""
from __future__ import annotations

import contextlib

from jea._jittor import jt
from jea.checkpoint.keymap import BUFFERS
from jea.nn import precision
from jea.nn.formats import Activation
from jea.nn.norm import BatchNorm1d, BatchNorm2d, collected
from jea.ops.function import single_use


@contextlib.contextmanager
def evaluating(*networks):
    """Evaluation mode without gradients inside the block; each module gets its own mode back afterwards."""
    modules = [module for network in networks for module in network.modules()]
    before = [module.is_training() for module in modules]
    try:
        for module in modules:
            module.is_train = False
        with jt.no_grad():
            yield
    finally:
        for module, mode in zip(modules, before):
            module.is_train = mode


@contextlib.contextmanager
def keeping_buffers(network):
    """Forward passes in the block leave running statistics and the vectors of spectral normalisation as they were."""
    buffers = [var for name, var in network.state_dict().items() if name.endswith(BUFFERS)]
    before = [var.clone() for var in buffers]
    try:
        with collected(False):  # what would move later would move after all
            yield
    finally:
        for var, value in zip(buffers, before):
            var.update(value)


def freeze_batch_norm(network) -> None:
    """Let BatchNorm use its running statistics while training; its weights and biases still train."""
    for module in network.modules():
        if isinstance(module, (BatchNorm1d, BatchNorm2d)):
            module.is_train = False


class _Checkpoint(jt.Function):
    def __init__(self, block, run, parameters):
        """run: the block as a function of one Var to one."""
        self.block, self.run, self.parameters_of_block = block, run, parameters

    def execute(self, x, *_):
        self.x, self.dtype = x, precision.current()
        with jt.no_grad():
            return self.run(x)

    def grad(self, dy):
        # A second grad() inside the first is sound: the outer one has written down all that it needs of its graph
        # before it calls this. The executor runs operators in the order of their making, so that this block's second
        # run waits for the gradients of the later blocks.
        x = self.x.detach().start_grad()
        with precision.autocast(self.dtype), keeping_buffers(self.block), single_use():  # statistics moved already
            y = self.run(x)
        # Gradients that still had a gradient would keep the block's activations until the optimizer has used them.
        return [g.stop_grad() for g in jt.grad((y * dy.detach()).sum(), [x, *self.parameters_of_block])]


def checkpointed(block, x):
    """block(x), whose activations are freed after the forward pass and computed again in the backward pass.

    Output, gradients and running statistics are those of block(x). (Where x has other uses, its gradient is added up in
    another order.)

    Args:
        block: a module that maps one Var, or one Activation, to one. It must draw no random numbers: dropout would draw
        others the second
            time.
        x: its input, the one activation that stays.
    """
    if jt.flags.no_grad:
        return block(x)
    parameters = [var for var in block.parameters() if not var.is_stop_grad()]
    # The parameters are inputs, since a Function hands gradients to its inputs alone.
    if not isinstance(x, Activation):
        return _Checkpoint(block, block, parameters)(x, *parameters)
    layout, format = x.layout, x.format  # not x, which the closure would keep alive

    def on_vars(var):
        nonlocal after
        y = block(Activation(var, layout, format))
        after = y.layout
        return y.var
    after = layout
    var = _Checkpoint(block, on_vars, parameters)(x.var, *parameters)
    return Activation(var, after, format)
