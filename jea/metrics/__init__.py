"""Metrics in pure numpy."""
from .classification import ClassificationScores
from .generation import Gaussian, Moments, frechet_distance, inception_score
from .parts import PartScores
from .segmentation import ConfusionMatrix

__all__ = ["ClassificationScores", "ConfusionMatrix", "Gaussian", "Moments", "PartScores", "frechet_distance",
           "inception_score"]
