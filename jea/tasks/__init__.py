"""The tasks by name. A task is the only place that knows model, data and metric together."""
from __future__ import annotations

import importlib

from jea.errors import ConfigError, nearest

TASKS = {
    "segmentation": "jea.tasks.segmentation:Segmentation",
    "point_classification": "jea.tasks.point_classification:PointClassification",
    "part_segmentation": "jea.tasks.part_segmentation:PartSegmentation",
    "classification": "jea.tasks.classification:Classification",
    "generation": "jea.tasks.generation:Generation",
}


def task_class(name: str) -> type:
    """The class of a task: of one of TASKS, or of the user's own "module:Class", found on Python's path."""
    module, colon, attribute = TASKS.get(name, name).partition(":")
    if not colon:
        raise ConfigError(f"task: unknown task {name!r}; there are {', '.join(TASKS)}, or module:Class for one of your "
                          f"own{nearest(name, TASKS)}")
    try:
        found = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name != module and not module.startswith(f"{error.name}."):
            raise  # the module is there, and one that it imports is not
        raise ConfigError(f"task: {name}: there is no module {module} in the config's folder or on Python's path") from None
    if not isinstance(getattr(found, attribute, None), type):
        classes = [key for key, value in vars(found).items() if isinstance(value, type)]
        raise ConfigError(f"task: {name}: {module} has no class {attribute!r}{nearest(attribute, classes)}")
    return getattr(found, attribute)


def create_task(config: dict):
    """The task of a checked config (jea.config.load)."""
    return task_class(config["task"])(**{block: config[block] for block in ("model", "data", "train", "eval")})
