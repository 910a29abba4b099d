"""Metrics in pure numpy."""
from jea.metrics.classification import ClassificationScores
from jea.metrics.generation import Gaussian, Moments, frechet_distance, inception_score
from jea.metrics.parts import PartScores
from jea.metrics.segmentation import ConfusionMatrix

__all__ = ["ClassificationScores", "ConfusionMatrix", "Gaussian", "Moments", "PartScores", "frechet_distance",
           "inception_score"]
