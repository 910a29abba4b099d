"""The tasks by name. A task is the only place that knows model, data and metric together."""
from __future__ import annotations

from jea.errors import ConfigError, nearest, quoted
from jea.named import find_class

TASKS = {
    "segmentation": "jea.tasks.segmentation:Segmentation",
    "point_classification": "jea.tasks.point_classification:PointClassification",
    "part_segmentation": "jea.tasks.part_segmentation:PartSegmentation",
    "classification": "jea.tasks.classification:Classification",
    "generation": "jea.tasks.generation:Generation",
    "detection": "jea.tasks.detection:Detection",
    "instance_segmentation": "jea.tasks.detection:InstanceSegmentation",
}


def task_class(name: str) -> type:
    """The class of a task: of one of TASKS, or of the user's own "module:Class", found on Python's path."""
    if name not in TASKS and ":" not in name:
        raise ConfigError(f"task: unknown task {quoted(name)}; there are {', '.join(TASKS)}, or module:Class for "
                          f"one of your own{nearest(name, TASKS)}")
    return find_class(TASKS.get(name, name), "task")


def create_task(config: dict, *, draw: bool = True):
    """The task of a checked config (jea.config.load). draw: as jea.tasks.task.Task; False where weights are loaded
    next."""
    return task_class(config["task"])(draw=draw, **{block: config[block] for block in ("model", "data", "train",
                                                                                       "eval")})
