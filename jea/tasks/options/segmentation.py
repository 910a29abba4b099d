"""Options of semantic segmentation."""
from __future__ import annotations

from dataclasses import dataclass
from typing import Sequence

from jea.errors import ConfigError, quoted
from jea.tasks.options.limits import check_choice, check_limits, check_scales
from jea.tasks.options.training import TrainOptions

DATASETS = ("voc", "shapes", "ade20k", "cityscapes", "coco", "segmentation_folder")


@dataclass
class Train(TrainOptions):
    lr: float = 0.009  # of convolution weights and BatchNorm weights
    bias_lr: float = 2.0  # biases have this many times as much
    momentum: float = 0.9
    weight_decay: float = 1.0e-4  # of convolution weights only ...
    decay_all: bool = False  # ... or of BatchNorm weights and biases too
    lr_power: float = 0.9  # lr x (1 - step / steps) ^ lr_power ...
    lr_decay_every: int = 10  # ... evaluated at multiples of this many steps
    min_lr: float = 0.0  # the end of the schedule, which is stretched to lie between lr and this
    class_weights: Sequence[float] | None = None  # factors of the classes in the loss
    ohem_threshold: float | None = None  # only pixels whose label has a lower probability count; at least ...
    ohem_min_kept: int = 100_000  # ... this many per picture
    auxiliary_weight: float = 0.0  # of the auxiliary head's plain loss; 0: the head is not trained
    freeze_batch_norm: bool = False  # use the running statistics; for small batches
    checkpoint_activations: bool = False  # compute the backbone's blocks twice instead of keeping their activations

    def __post_init__(self):
        super().__post_init__()
        check_limits("train", self, positive=("lr",), decays=("momentum",), counts=("lr_decay_every",),
                     not_negative=("bias_lr", "weight_decay", "lr_power", "min_lr", "ohem_min_kept",
                                   "auxiliary_weight"), shares=("ohem_threshold",))


@dataclass
class Eval:
    split: str = "val"
    scales: Sequence[float] = (1.0,)
    flip: bool = False  # add the logits of the mirrored picture
    mode: str = "whole"  # or "slide": overlapping windows, whose logits are averaged
    window: int = 769  # side of the windows
    window_stride: int = 513  # steps between them
    fit: Sequence[int] | None = None  # fit pictures into (longer, shorter) side at scale 1; default: as is
    logit_stride: int = 1  # logits are added up at every n-th row and column, which bounds the memory
    probabilities: bool = False  # add up probabilities instead of logits
    pictures: int = 20  # how many side-by-side pictures are written
    num_workers: int = 2  # processes that read pictures ahead

    def __post_init__(self):
        check_limits("eval", self, counts=("logit_stride",), not_negative=("pictures", "num_workers"))
        check_scales(self.scales)
        if self.fit is not None and (len(self.fit) != 2 or min(self.fit) < 1):
            raise ConfigError(f"eval.fit is {quoted(list(self.fit))}; expected [longer, shorter] side in pixels, "
                              "or null")
        check_choice("eval.mode", self.mode, ("whole", "slide"))
        if not 1 <= self.window_stride <= self.window:
            raise ConfigError(f"eval.window_stride is {self.window_stride}; expected 1 to eval.window, {self.window}, "
                              "or pixels would be left out")
