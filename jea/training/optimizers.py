"""Optimizers whose steps can wait on the device for whether they count, with few operators; Adam as PyTorch has it too.

On CUDA a step is one operator for up to sixteen parameters (jea/ops/training/updates.py). On the CPU, without a
`control`, it is Jittor's own, whose bits all runs have.
"""
from __future__ import annotations

import math

from jea._jittor import jt, nn
from jea.ops import adam_update, sgd_update


class Controlled:
    """An optimizer whose `step` takes a `control` (jea/ops/training/finite.py): where it says 0, nothing changes."""

    kept: tuple = ()  # the lists of state in a group, in the order of the update's results

    def step(self, loss=None, retain_graph=False, *, control=None):
        if control is None and not jt.flags.use_cuda:
            self.own_step(loss, retain_graph)
            return
        self.pre_step(loss, retain_graph)
        for group in self.param_groups:
            trained = [i for i, var in enumerate(group["params"]) if not var.is_stop_grad()]
            lists = [[group[name][i] for i in trained] for name in ("params", "grads", *self.kept)]
            if trained:
                results = self.update(group, *lists, control=control)
                for before, after in zip([lists[0], *lists[2:]], results):
                    for old, new in zip(before, after):
                        old.update(new)
        self.post_step()

    def update(self, group: dict, *lists, control) -> tuple:
        """The group's parameters and what is kept of each, after the step."""
        raise NotImplementedError

    def own_step(self, loss, retain_graph) -> None:
        """Jittor's own step."""
        super().step(loss, retain_graph)


class SGD(Controlled, nn.SGD):
    """Jittor's SGD: momentum, weight decay, dampening (from the first step on), Nesterov's form."""

    kept = ("values",)

    def update(self, group, parameters, gradients, velocities, *, control):
        options = {name: group.get(name, getattr(self, name)) for name in ("lr", "momentum", "weight_decay",
                                                                           "dampening", "nesterov")}
        return sgd_update(parameters, gradients, velocities, **options, control=control)


class _Adam(Controlled):
    kept = ("values", "m")
    decoupled = eps_inside = False

    def update(self, group, parameters, gradients, second, first, *, control):
        options = {name: group.get(name, getattr(self, name)) for name in ("lr", "betas", "weight_decay")}
        return adam_update(parameters, gradients, second, first, **options, eps=self.eps, steps=self.n_step,
                           decoupled=self.decoupled, eps_inside=self.eps_inside, control=control)


class AdamW(_Adam, nn.AdamW):
    """AdamW: weight decay apart from the gradient."""

    decoupled = True


class AdamOfJittor(_Adam, nn.Adam):
    """Jittor's Adam: eps is added to sqrt(v) before its correction; with beta2 = 0.999 that is, at the first step,
    1 / sqrt(1 - beta2) = 32 times as much."""

    eps_inside = True


class Adam(_Adam, nn.Adam):
    """Adam as PyTorch has it: p <- p - lr m' / (sqrt(v') + eps) with m' = m / (1 - beta1^t), v' = v / (1 - beta2^t)."""

    def own_step(self, loss, retain_graph):
        steps = self.n_step + (loss is not None)  # the backward pass counts
        for group in self.param_groups:
            group["eps"] = self.eps * math.sqrt(1 - self.betas[1] ** steps)
        super().own_step(loss, retain_graph)
