"""Options of the part segmentation of point clouds."""
from __future__ import annotations

from dataclasses import dataclass

from jea.tasks.options.clouds import CloudEval, CloudTrain

DATASETS = ("shapenet_part", "solid_parts")


@dataclass
class Train(CloudTrain):
    pass


@dataclass
class Eval(CloudEval):
    within_category: bool = False  # predict only parts of the category; published results choose among all
    category: str | None = None  # of the clouds of --input; default: guessed
