"""Averaged weights, which are evaluated and kept instead of the raw ones."""
from __future__ import annotations

import contextlib

from jea._jittor import jt
from jea.errors import ConfigError
from jea.ops import moved


class WeightAverage:
    """Exponential moving average of a module's parameters and buffers: a <- a + (1 - decay) (w - a) after each step.

    What ends in one of `copied` is not averaged: the vectors of power iterations, say, whose mean is no unit vector.

    It starts at the module's weights when `reset` is called, which the training loop does before the first step.
    """

    def __init__(self, module, decay: float, *, copied: tuple = ()):
        if not 0 <= decay < 1:
            raise ConfigError(f"the decay of averaged weights is {decay}; expected 0 <= decay < 1")
        self.decay, self.copied = decay, copied
        self._weights = module.state_dict()
        self.state = {name: jt.zeros_like(var).stop_grad() for name, var in self._weights.items()}

    def reset(self) -> None:
        """Start at the module's weights of now."""
        for name, var in self._weights.items():
            self.state[name].assign(var.numpy())

    def update(self, control=None) -> None:
        """Take in the weights after a step, unless `control` (jea/ops/training/finite.py) says that it did not
        count."""
        if control is None and not jt.flags.use_cuda:
            for name, var in self._weights.items():
                average = self.state[name]
                average.update(var.clone() if name.endswith(self.copied) else
                               average + (1 - self.decay) * (var - average))
            return
        names = [name for name in self._weights if not name.endswith(self.copied)]
        averages = [self.state[name] for name in names]
        results = moved(averages, [self._weights[name] for name in names], 1 - self.decay, control=control)
        for name in self._weights.keys() - set(names):
            averages.append(self.state[name])
            results.append(self._weights[name].clone() if control is None else
                           jt.ternary((control[:1] > 0).broadcast(averages[-1].shape), self._weights[name],
                                      averages[-1]))
        for average, result in zip(averages, results):
            average.update(result)

    @contextlib.contextmanager
    def applied(self):
        """Give the module the averaged weights inside the block, and its own again afterwards."""
        own = {name: var.numpy() for name, var in self._weights.items()}
        try:
            for name, var in self._weights.items():
                var.assign(self.state[name].numpy())
            yield
        finally:
            for name, var in self._weights.items():
                var.assign(own[name])


@contextlib.contextmanager
def averages_applied(phases):
    """Give the modules the averaged weights of all phases that keep some, inside the block."""
    with contextlib.ExitStack() as stack:
        for phase in phases:
            if phase.average:
                stack.enter_context(phase.average.applied())
        yield
