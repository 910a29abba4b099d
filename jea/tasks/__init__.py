"""The tasks by name. A task is the only place that knows model, data and metric together."""
from __future__ import annotations

import importlib

TASKS = {
    "segmentation": "jea.tasks.segmentation:Segmentation",
    "point_classification": "jea.tasks.point_classification:PointClassification",
    "part_segmentation": "jea.tasks.part_segmentation:PartSegmentation",
    "classification": "jea.tasks.classification:Classification",
    "generation": "jea.tasks.generation:Generation",
}


def task_class(name: str):
    module, _, attribute = TASKS[name].partition(":")
    return getattr(importlib.import_module(module), attribute)


def create_task(config: dict):
    """The task of a checked config (jea.config.load)."""
    return task_class(config["task"])(**{block: config[block] for block in ("model", "data", "train", "eval")})
