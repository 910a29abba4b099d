"""What the engine and the tasks agree on.

A task is a plain class with
    modules             name -> Module: the networks, saved in checkpoints
    options             TrainOptions (jea/tasks/options/training.py), or a dataclass that extends it
    description         dict for the checkpoints: task, model, data, train
    batches_per_epoch   int
    batches(epoch, start_batch)     iterator of dicts of numpy arrays, a pure function of the seed and its arguments
    phases(total_steps)             list of Phase, made once per run
    begin_training()                puts the modules into the right mode
    evaluate(out_dir, progress=)    dict of results; the first value judges "best", higher is better
    shares_evaluation               True: under mpirun all ranks call `evaluate`, each runs a part, all return the whole
                                    result; without it rank 0 evaluates alone
    close()                         ends worker processes
and, where the task has such a thing,
    datasets            names of the data sets (jea.data.DATASETS) that it can take; without it, all
    fuse()                          evaluates the fused form of its network from now on
    multi_scale()                   evaluates at several scales from now on
    weight_files(path)              [(network, file), ...] of checkpoints that are more than one file for `model`
    predict_files(path, out_dir)    runs on pictures that are no data set; dict for printing
"""
from __future__ import annotations

import contextlib
import resource
from dataclasses import dataclass, field
from typing import Callable, Optional

from jea import ranks
from jea._jittor import jt
from jea.data import DATASETS, Loader
from jea.errors import DataError
from jea.nn.precision import LossScaler


def peak_memory_mb() -> int:
    """The most memory so far, in MB.

    On the CPU: of this process, resident (VmHWM; where /proc lacks it, getrusage's ru_maxrss, which begins with that of
    the process that started this one). On CUDA: what Jittor's allocators have taken from the device. They keep freed blocks for the next
    step, so that the figure after a step is its peak; cuDNN's and cuBLAS's own memory is not in it.
    """
    if jt.flags.use_cuda:
        return jt.get_mem_info().total_cuda_used >> 20
    try:
        with open("/proc/self/status", encoding="ascii", errors="replace") as file:
            return next(int(line.split()[1]) for line in file if line.startswith("VmHWM:")) >> 10
    except (OSError, StopIteration):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10


class WeightAverage:
    """Exponential moving average of a module's parameters and buffers: a <- a + (1 - decay) (w - a) after each step.

    What ends in one of `copied` is not averaged: the vectors of power iterations, say, whose mean is no unit vector.

    It starts at the module's weights when `reset` is called, which the engine does before the first step.
    """

    def __init__(self, module, decay: float, *, copied: tuple = ()):
        if not 0 <= decay < 1:
            raise ValueError(f"the decay of averaged weights is {decay}; expected 0 <= decay < 1")
        self.decay, self.copied = decay, copied
        self._weights = module.state_dict()
        self.state = {name: jt.zeros_like(var).stop_grad() for name, var in self._weights.items()}

    def reset(self) -> None:
        for name, var in self._weights.items():
            self.state[name].assign(var.numpy())

    def update(self) -> None:
        for name, var in self._weights.items():
            average = self.state[name]
            average.update(var.clone() if name.endswith(self.copied) else average + (1 - self.decay) * (var - average))

    @contextlib.contextmanager
    def applied(self):
        """Inside the block the module has the averaged weights, afterwards its own again."""
        own = {name: var.numpy() for name, var in self._weights.items()}
        try:
            for name, var in self._weights.items():
                var.assign(self.state[name].numpy())
            yield
        finally:
            for name, var in self._weights.items():
                var.assign(own[name])


class DataTask:
    """What the tasks share: their data set, its batches, and the training mode. A task sets `options`, `model`,
    `num_classes` (of the model) and `_data`, the config's block."""

    _loader: Optional[Loader] = None

    def close(self) -> None:
        """End the worker processes."""
        if self._loader is not None:
            self._loader.close()
            self._loader = None

    def dataset(self, split: Optional[str] = None):
        """The data set of the config, of the config's split or of another one."""
        arguments = {k: v for k, v in self._data.items() if k != "name"}
        if split is not None:
            arguments["split"] = split
        dataset = DATASETS[self._data["name"]](**arguments)
        self.check_sizes(dataset)
        return dataset

    def check_sizes(self, dataset) -> None:
        """DataError unless the model has the outputs that the data set needs."""
        if dataset.num_classes != self.num_classes:
            raise DataError(f"{dataset.root}: has {dataset.num_classes} classes, the model {self.num_classes}; "
                            "set model.num_classes")

    def training_data(self):
        """The data set as the loader takes it."""
        return self.dataset()

    @property
    def loader(self) -> Loader:
        if self._loader is None:
            self._loader = Loader(self.training_data(), batch_size=self.options.batch_size, seed=self.options.seed,
                                  num_workers=self.options.num_workers, share=(ranks.rank(), ranks.size()))
        return self._loader

    @property
    def batches_per_epoch(self) -> int:
        return len(self.loader)

    def batches(self, epoch: int, start_batch: int):
        return self.loader.epoch(epoch, start_batch)

    def begin_training(self) -> None:
        self.model.train()


@dataclass
class Phase:
    """One optimizer's part of a step.

    losses(batch) -> {"loss": scalar Var that is stepped, other names: scalars for the log}. The learning rate of each
    parameter group is its base rate times schedule(step). The phase runs at every `every`-th step. The weights in
    `average` are what is evaluated and written to best.npz. The engine sets `scaler` for training in float16.
    """
    name: str
    optimizer: object
    losses: Callable[[dict], dict]
    schedule: Callable[[int], float] = lambda step: 1.0
    every: int = 1
    average: Optional[WeightAverage] = None
    scaler: Optional[LossScaler] = None
    base_rates: list = field(init=False)

    def __post_init__(self):
        self.base_rates = [group.get("lr", self.optimizer.lr) for group in self.optimizer.param_groups]

    def set_rates(self, step: int) -> float:
        """Set each group's rate for this step; returns the first group's, for the log."""
        for group, base in zip(self.optimizer.param_groups, self.base_rates):
            group["lr"] = base * self.schedule(step)
        return self.optimizer.param_groups[0]["lr"]
