"""The keys that every task has: the training loop reads them, and each task's Train adds its own."""
from __future__ import annotations

from dataclasses import dataclass

from jea.errors import ConfigError
from jea.tasks.options.limits import check_choice, check_limits

PRECISIONS = ("float32", "float16", "bfloat16")


@dataclass
class TrainOptions:
    """The options of every training run."""
    steps: int | None = None  # exactly one of steps and epochs
    epochs: int | None = None
    batch_size: int = 16  # samples per step
    grad_accumulation: int = 1  # run a batch in this many parts, one after the other: less memory, the same step
    precision: str = "float32"  # of products: bfloat16, float16 (CUDA only); parameters, sums and losses stay float32
    grad_clip: float = 0.0  # largest global norm of a phase's gradients; 0: any
    seed: int = 0
    num_workers: int = 2  # processes that prepare batches; 0: this one
    log_every: int = 10  # steps between lines of the log
    eval_every: int = 600  # steps between evaluations; 0: only at the end
    save_every: int = 600  # steps between saves of last.npz; it is also saved at the end and by Ctrl-C
    init_weights: str | None = None  # checkpoint to start from, whole or backbone only

    def __post_init__(self):
        check_limits("train", self, counts=("steps", "epochs", "batch_size", "log_every", "save_every"),
                     not_negative=("eval_every", "num_workers", "seed"))
        if self.grad_accumulation < 1 or self.batch_size % self.grad_accumulation:
            raise ConfigError(f"train.grad_accumulation is {self.grad_accumulation}; expected a divisor of batch_size, "
                              f"which is {self.batch_size}")
        check_choice("train.precision", self.precision, PRECISIONS)
        if self.grad_clip < 0:
            raise ConfigError(f"train.grad_clip is {self.grad_clip}; expected a norm above 0, or 0 for no clipping")


@dataclass
class EvalOptions:
    """The options of an evaluation, where a task has no others."""
    split: str | None = "val"
    num_workers: int = 2  # processes that read samples ahead

    def __post_init__(self):
        check_limits("eval", self, not_negative=("num_workers",))
