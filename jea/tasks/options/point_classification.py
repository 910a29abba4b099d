"""Options of the classification of point clouds."""
from __future__ import annotations

from dataclasses import dataclass

from jea.tasks.options.clouds import CloudEval, CloudTrain

DATASETS = ("modelnet40", "shapenet_part", "solids", "solid_parts")


@dataclass
class Train(CloudTrain):
    pass


@dataclass
class Eval(CloudEval):
    pass
