"""Options of class-conditional image generation."""
from __future__ import annotations

from dataclasses import dataclass

from jea.errors import ConfigError, quoted
from jea.tasks.options.limits import check_limits
from jea.tasks.options.training import TrainOptions

DATASETS = ("cifar10", "cifar100", "tiny_imagenet", "image_folder", "shape_classes", "plain_shapes", "digits")


@dataclass
class Train(TrainOptions):
    batch_size: int = 64
    lr_g: float = 2.0e-4
    lr_d: float = 2.0e-4
    beta1: float = 0.5
    beta2: float = 0.999
    d_steps: int = 5  # discriminator steps per generator step; `steps` counts the former
    flip: bool = True  # mirror half of the pictures
    ema_decay: float = 0.0  # of the averaged generator, which is then evaluated and kept; 0: none

    def __post_init__(self):
        super().__post_init__()
        check_limits("train", self, positive=("lr_g", "lr_d"), decays=("beta1", "beta2", "ema_decay"),
                     counts=("d_steps",))


@dataclass
class Eval:
    split: str | None = "test"  # what the samples are compared with
    samples: int = 10000  # how many pictures are generated, the classes in turn
    batch_size: int = 100
    batch_statistics: bool = False  # BatchNorm with each batch's statistics, as StudioGAN's -stat_otf
    inception: str | None = None  # file with the weights of inception_fid
    splits: int = 1  # of the Inception Score
    metrics: bool = True  # False: only draw
    save: str | None = None  # also write the samples: "png" (a folder) or "npz"
    num_workers: int = 2  # processes that read pictures ahead

    def __post_init__(self):
        check_limits("eval", self, counts=("splits",), not_negative=("num_workers",))
        if self.samples < 2 or self.batch_size < 2:
            raise ConfigError(f"eval.samples is {self.samples}, eval.batch_size {self.batch_size}; "
                              "expected at least 2")
        if self.splits > self.samples // 2:
            raise ConfigError(f"eval.splits is {self.splits}; expected at most half of eval.samples, {self.samples}")
        if self.save not in (None, "png", "npz"):
            raise ConfigError(f'eval.save is {quoted(self.save)}; expected "png", "npz" or null')
