"""One training step: its phases, one for each optimizer, in order."""
from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from typing import Callable

from jea._jittor import jt
from jea.data import Batch
from jea.nn import norm, precision
from jea.training.averages import WeightAverage
from jea.training.optimizers import Controlled
from jea.training.reading import Diverged, Gate, Told, travelling
from jea.training.scaling import LossScaler, clip, gradients, square_sums_on_device


@dataclass
class Phase:
    """One optimizer's part of a step.

    losses(batch) -> {"loss": scalar Var that is stepped, other names: scalars for the log}. The learning rate of each
    parameter group is its base rate times schedule(step). The phase runs at every `every`-th step. The weights in
    `average` are what is evaluated and written to best.npz. The loop sets `scaler` for training in float16.
    """
    name: str
    optimizer: object
    losses: Callable[[Batch], dict]
    schedule: Callable[[int], float] = lambda step: 1.0
    every: int = 1
    average: WeightAverage | None = None
    scaler: LossScaler | None = None
    base_rates: list = field(init=False)

    def __post_init__(self):
        self.base_rates = [group.get("lr", self.optimizer.lr) for group in self.optimizer.param_groups]

    def set_rates(self, step: int) -> float:
        """Set each group's rate for this step; returns the first group's, for the log."""
        for group, base in zip(self.optimizer.param_groups, self.base_rates):
            group["lr"] = base * self.schedule(step)
        return self.optimizer.param_groups[0]["lr"]

    def begin(self, parts: list, step: int, options, gate: Gate) -> Callable[[], dict]:
        """Step the optimizer once, on all parts of a batch; returns what reads the numbers for the log.

        Where the host reads at once, Diverged is raised here, before anything has changed; where it reads later, by
        the function that is returned, and the device has left the step out. In float16 the host waits in either case,
        for whether the gradients are finite: the scale of the next loss depends on it.
        """
        rate, told = self.set_rates(step), Told(self.name, step, gate)
        for part in parts:
            with precision.autocast(options.precision), norm.collected(gate.later) as statistics, \
                    travelling(gate.later):
                losses = self.losses(part)
            told.losses(losses, len(parts))
            statistics.move(gate.control)
            loss = losses["loss"] * self.scaler.scale if self.scaler else losses["loss"]
            self.optimizer.backward(loss if len(parts) == 1 else loss / len(parts))
            if len(parts) > 1:
                jt.sync_all()  # frees this part's activations
        self.optimizer.n_step -= len(parts) - 1  # Jittor counts the backward passes; Adam's correction wants the steps
        if self._unscaled(told, step):
            control = gate.control
            if options.grad_clip and gate.later:
                control = told.clipped(square_sums_on_device(gradients(self.optimizer)), options.grad_clip)
            elif options.grad_clip:
                told.number("grad_norm", clip(self.optimizer, options.grad_clip))
            self._update(control)
        for group in self.optimizer.param_groups:
            del group["grads"]  # Jittor would keep them through the next forward pass
        return lambda: {**told.read(), "lr": rate}

    def _update(self, control) -> None:
        if isinstance(self.optimizer, Controlled):
            self.optimizer.step(control=control)
        else:
            with _only_if(control, self.optimizer):
                self.optimizer.step()
        if self.average:
            self.average.update(control)

    def _unscaled(self, told: Told, step: int) -> bool:
        """Undo the scaling of the loss in the gradients; False where they are not finite and the step is left out."""
        if not self.scaler:
            return True
        told.number("loss_scale", self.scaler.scale)
        finite = self.scaler.unscale(gradients(self.optimizer))
        self.scaler.adjust(finite)
        if not finite:
            self.optimizer.zero_grad()  # or the next gradients would be added to zeros
            self.optimizer.n_step -= 1
            if self.scaler.scale < 1:
                raise Diverged(f"step {step}, phase {self.name}: the gradients are not finite in float16 at any scale "
                               "of the loss, down to 1; train.precision=bfloat16 or float32 may help", step)
        return finite


@contextlib.contextmanager
def _only_if(control, optimizer):
    """What the block changes of an optimizer's Vars comes back where the control says 0. (None: it says 1.)"""
    if control is None:
        yield
        return
    lists = [values for group in optimizer.param_groups for kind, values in group.items()
             if kind != "grads" and isinstance(values, list)]
    before = [(var, var.detach()) for values in lists for var in values if isinstance(var, jt.Var)]
    for group in optimizer.param_groups:
        for gradient in group["grads"]:
            gradient.update(gradient * control[1])
    yield
    for var, old in before:
        var.update(jt.ternary((control[:1] > 0).broadcast(var.shape), var, old))


def begin_step(phases: list, batch: Batch, step: int, options, gate: Gate) -> Callable[[], dict]:
    """Run the phases that are due on one batch; returns what reads the numbers for the log, named phase/name where
    there are several: as Phase.begin."""
    parts, begun = batch.parts(options.grad_accumulation), []
    for phase in phases:
        if step % phase.every == 0:
            begun.append(("" if len(phases) == 1 else f"{phase.name}/", phase.begin(parts, step, options, gate)))
            jt.sync_all()
    return lambda: {prefix + name: value for prefix, read in begun for name, value in read().items()}


def run_step(phases: list, batch: Batch, step: int, options) -> dict:
    """Run one step and wait for its numbers: begin_step for those who do not go on training meanwhile."""
    return begin_step(phases, batch, step, options, Gate())()
