"""One training step: its phases, one for each optimizer, in order."""
from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Callable

from jea._jittor import jt
from jea.data import Batch
from jea.errors import TrainingError
from jea.nn import precision
from jea.training.averages import WeightAverage
from jea.training.log import mean_over_ranks
from jea.training.scaling import LossScaler, clip, gradients


class Diverged(TrainingError):
    """A loss or gradient that is not finite. The step changed nothing; the loop adds what is saved."""


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

    def run(self, parts: list, step: int, options) -> dict:
        """Step the optimizer once, on all parts of a batch; returns numbers for the log.

        Raises Diverged before anything has changed. That is where the host waits for the device: reading the losses
        here, and the norm of the gradients, is all that a step waits for.
        """
        rate, values = self.set_rates(step), {}
        for part in parts:
            with precision.autocast(options.precision):
                losses = self.losses(part)
            for name, value in mean_over_ranks(losses, len(parts)).items():
                values[name] = values.get(name, 0.0) + value
            self._check_finite(values, step)
            loss = losses["loss"] * self.scaler.scale if self.scaler else losses["loss"]
            self.optimizer.backward(loss if len(parts) == 1 else loss / len(parts))
            if len(parts) > 1:
                jt.sync_all()  # frees this part's activations
        self.optimizer.n_step -= len(parts) - 1  # Jittor counts the backward passes; Adam's correction wants the steps
        if self._unscaled(values, step):
            if options.grad_clip:
                values["grad_norm"] = clip(self.optimizer, options.grad_clip)
                self._check_finite(values, step)
            self.optimizer.step()
            if self.average:
                self.average.update()
        for group in self.optimizer.param_groups:
            del group["grads"]  # Jittor would keep them through the next forward pass
        return {**values, "lr": rate}

    def _check_finite(self, values: dict, step: int) -> None:
        for name, value in values.items():
            if not math.isfinite(value):
                raise Diverged(f"step {step}, phase {self.name}: {name} is {value}")

    def _unscaled(self, values: dict, step: int) -> bool:
        """Undo the scaling of the loss in the gradients; False where they are not finite and the step is left out."""
        if not self.scaler:
            return True
        values["loss_scale"] = self.scaler.scale
        finite = self.scaler.unscale(gradients(self.optimizer))
        self.scaler.adjust(finite)
        if not finite:
            self.optimizer.zero_grad()  # or the next gradients would be added to zeros
            self.optimizer.n_step -= 1
            if self.scaler.scale < 1:
                raise Diverged(f"step {step}, phase {self.name}: the gradients are not finite in float16 at any scale "
                               "of the loss, down to 1; train.precision=bfloat16 or float32 may help")
        return finite


def run_step(phases: list, batch: Batch, step: int, options) -> dict:
    """Run the phases that are due on one batch; returns numbers for the log, named phase/name where there are
    several."""
    parts, logged = batch.parts(options.grad_accumulation), {}
    for phase in phases:
        if step % phase.every == 0:
            prefix = "" if len(phases) == 1 else f"{phase.name}/"
            logged.update({prefix + name: value for name, value in phase.run(parts, step, options).items()})
            jt.sync_all()
    return logged
