"""Options of instance segmentation: those of detection."""
from __future__ import annotations

from jea.tasks.options.detection import DATASETS, Eval, Train

__all__ = ["DATASETS", "Eval", "Train"]
