"""The train and eval blocks of a config, one file per task: dataclasses that check their values. No Jittor is needed.

A module jea/tasks/options/<task>.py defines Train (a TrainOptions), Eval and DATASETS, the names of the data sets that
the task can take.
"""
from __future__ import annotations

import importlib

from jea.tasks import TASKS, task_class


def task_options(name: str) -> tuple:
    """(Train, Eval, names of data sets or None for any) of a task: one of jea.tasks.TASKS, or the user's own
    "module:Class", which is imported."""
    if name in TASKS:
        module = importlib.import_module(f"{__name__}.{name}")
        return module.Train, module.Eval, module.DATASETS
    task = task_class(name)
    return task.Train, task.Eval, task.datasets
