"""Metrics in pure numpy."""
from .segmentation import ConfusionMatrix

__all__ = ["ConfusionMatrix"]
