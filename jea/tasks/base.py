"""What the engine and the tasks agree on.

A task is a plain class with
    modules             name -> Module: the networks, saved in checkpoints
    options             TrainOptions, or a dataclass that extends it
    description         dict for the checkpoints: task, model, data, train
    batches_per_epoch   int
    batches(epoch, start_batch)     iterator of dicts of numpy arrays, a pure function of the seed and its arguments
    phases(total_steps)             list of Phase, made once per run
    begin_training()                puts the modules into the right mode
    evaluate(out_dir, progress=)    dict of results; the first value judges "best", higher is better
    close()                         ends worker processes
"""
from __future__ import annotations

from dataclasses import dataclass, field
from typing import Callable, Optional


class TrainingError(RuntimeError):
    """Training cannot go on; the message names the step and the phase."""


@dataclass
class TrainOptions:
    """The train block's keys that the engine reads; a task's Train dataclass adds its own."""
    steps: Optional[int] = None  # exactly one of steps and epochs
    epochs: Optional[int] = None
    batch_size: int = 16
    seed: int = 0
    num_workers: int = 2  # processes that prepare batches; 0: this one
    log_every: int = 10  # steps between lines of the log
    eval_every: int = 600  # steps between evaluations; 0: only at the end
    save_every: int = 600  # steps between saves of last.npz; it is also saved at the end and by Ctrl-C
    init_weights: Optional[str] = None  # checkpoint to start from, whole or backbone only


@dataclass
class Phase:
    """One optimizer's part of a step.

    losses(batch) -> {"loss": scalar Var that is stepped, other names: scalars for the log}. The learning rate of each
    parameter group is its base rate times schedule(step). The phase runs at every `every`-th step.
    """
    name: str
    optimizer: object
    losses: Callable[[dict], dict]
    schedule: Callable[[int], float] = lambda step: 1.0
    every: int = 1
    base_rates: list = field(init=False)

    def __post_init__(self):
        self.base_rates = [group.get("lr", self.optimizer.lr) for group in self.optimizer.param_groups]

    def set_rates(self, step: int) -> float:
        """Set each group's rate for this step; returns the first group's, for the log."""
        for group, base in zip(self.optimizer.param_groups, self.base_rates):
            group["lr"] = base * self.schedule(step)
        return self.optimizer.param_groups[0]["lr"]
