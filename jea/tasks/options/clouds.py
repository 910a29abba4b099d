"""What the options of the tasks on point clouds share."""
from __future__ import annotations

from dataclasses import dataclass
from typing import Sequence

from jea.tasks.options.limits import check_choice, check_limits, check_scales
from jea.tasks.options.training import TrainOptions


@dataclass
class CloudTrain(TrainOptions):
    optimizer: str = "sgd"  # sgd, or adam; with adam PCT's author advises lr 1e-4
    lr: float = 0.01
    momentum: float = 0.9  # of sgd
    weight_decay: float = 5.0e-4  # of all parameters, as in the published recipe
    lr_floor: float = 1.0e-4  # lr falls from `lr` to this along half a cosine
    label_smoothing: float = 0.2  # share of the target that goes to the other classes, evenly

    def __post_init__(self):
        super().__post_init__()
        check_limits("train", self, positive=("lr",), decays=("momentum",), shares=("label_smoothing",),
                     not_negative=("weight_decay", "lr_floor"))
        check_choice("train.optimizer", self.optimizer, ("sgd", "adam"))


@dataclass
class CloudEval:
    split: str = "test"
    scales: Sequence[float] = (1.0,)  # a vote for each
    votes: int = 1  # times as many; those after the first stretch each axis at random
    batch_size: int = 16
    pictures: int = 20  # how many pictures are written
    num_workers: int = 2  # processes that read clouds ahead

    def __post_init__(self):
        check_limits("eval", self, counts=("votes", "batch_size"), not_negative=("pictures", "num_workers"))
        check_scales(self.scales)
