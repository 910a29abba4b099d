"""Options of object detection and instance segmentation."""
from __future__ import annotations

from dataclasses import dataclass
from typing import Sequence

from jea.errors import ConfigError, quoted
from jea.tasks.options.limits import check_limits
from jea.tasks.options.training import EvalOptions, TrainOptions

DATASETS = ("coco_detection", "coco_json", "voc_detection", "shape_scenes")


@dataclass
class Train(TrainOptions):
    lr: float = 0.02  # for batches of 16
    momentum: float = 0.9
    weight_decay: float = 1.0e-4  # of everything that trains
    warmup_steps: int = 500  # the rate rises linearly ...
    warmup_factor: float = 0.001  # ... from this share of it
    milestones: Sequence[float] = (8, 11)  # epochs after which the rate falls ...
    lr_decay: float = 0.1  # ... to this share

    def __post_init__(self):
        super().__post_init__()
        check_limits("train", self, positive=("lr",), decays=("momentum",),
                     not_negative=("weight_decay", "warmup_steps"),
                     shares=("warmup_factor", "lr_decay"))
        if any(later <= earlier for earlier, later in zip((0, *self.milestones), self.milestones)):
            raise ConfigError(f"train.milestones is {quoted(list(self.milestones))}; expected rising epochs, such as "
                              "[8, 11]")


@dataclass
class Eval(EvalOptions):
    pictures: int = 20  # how many pictures with boxes are written
    min_score: float = 0.5  # of the boxes that pictures and lists of your own files show; scores count all

    def __post_init__(self):
        super().__post_init__()
        check_limits("eval", self, not_negative=("pictures",), shares=("min_score",))
