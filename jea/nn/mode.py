"""Switching whole networks between training and evaluation.

Jittor's own eval() also stops the gradients of all parameters, and train() restarts them through bookkeeping by id.
Here only the modules' `is_train` flags change, and only for a while.
"""
from __future__ import annotations

import contextlib

from jea._jittor import jt
from jea.nn.norm import BatchNorm1d, BatchNorm2d

_BUFFERS = ("running_mean", "running_var", "weight_u", "weight_v")


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
    buffers = [var for name, var in network.state_dict().items() if name.endswith(_BUFFERS)]
    before = [var.clone() for var in buffers]
    try:
        yield
    finally:
        for var, value in zip(buffers, before):
            var.update(value)


def freeze_batch_norm(network) -> None:
    """Let BatchNorm use its running statistics while training; its weights and biases still train."""
    for module in network.modules():
        if isinstance(module, (BatchNorm1d, BatchNorm2d)):
            module.is_train = False
