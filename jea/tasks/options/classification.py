"""Options of image classification."""
from __future__ import annotations

from dataclasses import dataclass
from typing import Sequence

from jea.errors import ConfigError
from jea.tasks.options.limits import check_limits, check_range
from jea.tasks.options.training import TrainOptions

DATASETS = ("image_folder", "tiny_imagenet", "cifar10", "cifar100", "shape_classes", "digits")


@dataclass
class Train(TrainOptions):
    lr: float = 1.0e-3
    weight_decay: float = 0.03  # not of biases, other vectors, cls_token and pos_embed
    warmup_lr: float = 1.0e-6  # the rate rises from here to the cosine ...
    warmup_epochs: float = 5.0  # ... over this many epochs
    min_lr: float = 1.0e-5  # where the cosine ends ...
    cooldown_epochs: float = 0.0  # ... and stays for this many epochs, which are part of the run's length
    lr_per_epoch: bool = False  # change the rate only between epochs, as upstream does
    ema_decay: float = 0.0  # of the averaged weights, which are then evaluated and kept; 0: none
    label_smoothing: float = 0.1
    mixup: float = 0.0  # alpha; 0: none
    cutmix: float = 0.0  # alpha; 0: none
    mix_prob: float = 1.0  # of mixing a batch
    mix_switch_prob: float = 0.5  # of CutMix where both are on
    crop_scale: Sequence[float] = (0.08, 1.0)  # area of the random crop
    crop_ratio: Sequence[float] = (0.75, 1.3333333333333333)  # its width / height
    flip: float = 0.5
    rand_augment: float | None = None  # magnitude, 0 to 10
    rand_augment_std: float = 0.5
    color_jitter: float = 0.0
    erase: float = 0.0  # probability of random erasing

    def __post_init__(self):
        super().__post_init__()
        check_limits("train", self, positive=("lr",), decays=("ema_decay",),
                     not_negative=("weight_decay", "warmup_lr", "warmup_epochs", "min_lr", "cooldown_epochs",
                                   "mixup", "cutmix", "rand_augment", "rand_augment_std", "color_jitter"),
                     shares=("label_smoothing", "mix_prob", "mix_switch_prob", "flip", "erase"))
        check_range("train.crop_scale", self.crop_scale)
        check_range("train.crop_ratio", self.crop_ratio)
        if self.rand_augment is not None and self.rand_augment > 10:
            raise ConfigError(f"train.rand_augment is {self.rand_augment}; expected a magnitude from 0 to 10, or null")


@dataclass
class Eval:
    split: str | None = "val"
    batch_size: int = 64
    crop_pct: float = 0.9  # the resized shorter side is img_size / crop_pct
    num_workers: int = 2  # processes that read pictures ahead
    worst: int = 10  # how many classes with the lowest accuracy are shown
    pictures: int = 20  # how many of the worst pictures are written
    class_list: str | None = None  # text file with a class name per line, in the order of the model's outputs

    def __post_init__(self):
        check_limits("eval", self, counts=("batch_size",), not_negative=("num_workers", "worst", "pictures"))
        if not 0.1 <= self.crop_pct <= 1:
            raise ConfigError(f"eval.crop_pct is {self.crop_pct}; expected 0.1 to 1")
