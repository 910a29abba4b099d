"""Scores of generated pictures from a network's features: Frechet (inception) distance and Inception Score.

FID: Heusel et al., arXiv 1706.08500; Inception Score: Salimans et al., arXiv 1606.03498. The features come from
elsewhere: with those of jea's `inception_fid` the distance is the FID, with others it is not.
"""
from __future__ import annotations

from dataclasses import dataclass
from typing import Tuple

import numpy as np


@dataclass(frozen=True)
class Gaussian:
    """Mean (C,) and covariance (C, C) of features, float64, and how many there were."""
    mean: np.ndarray
    covariance: np.ndarray
    count: int

    @staticmethod
    def of(features: np.ndarray) -> "Gaussian":
        """Of (N, C) features, N at least 2."""
        moments = Moments()
        moments.update(features)
        return moments.gaussian()


class Moments:
    """Mean and covariance over any number of batches of features, in float64.

    Batches are merged by the differences of their means (Chan et al., 1979): features far from zero keep their digits.
    """

    def __init__(self):
        self.count, self.mean, self.scatter = 0, None, None

    def update(self, features: np.ndarray) -> None:
        """Count a batch of features (N, C).

        Raises ValueError for another shape, and for another C than before.
        """
        features = np.asarray(features, np.float64)
        if features.ndim != 2 or (self.count and features.shape[1] != len(self.mean)):
            wanted = f"(N, {len(self.mean)})" if self.count else "(N, C)"
            raise ValueError(f"features are {features.shape}; expected {wanted}")
        if not len(features):
            return
        mean = features.mean(0)
        centred = features - mean
        scatter = centred.T @ centred
        if self.count:
            total, difference = self.count + len(features), mean - self.mean
            scatter += self.scatter + np.outer(difference, difference) * (self.count * len(features) / total)
            mean = self.mean + difference * (len(features) / total)
        self.count, self.mean, self.scatter = self.count + len(features), mean, scatter

    def gaussian(self) -> Gaussian:
        """Raises ValueError for fewer than two features, which have no covariance."""
        if self.count < 2:
            raise ValueError(f"a covariance needs at least 2 pictures, got {self.count}")
        return Gaussian(self.mean, self.scatter / (self.count - 1), self.count)


def frechet_distance(a: Gaussian, b: Gaussian) -> float:
    """|mean_a - mean_b|^2 + tr(A + B - 2 (A B)^(1/2)), for covariances A and B; nan where a value is not finite.

    tr (A B)^(1/2) is the sum of the roots of the eigenvalues of R B R, R = A^(1/2). R and R B R are symmetric and have
    no negative eigenvalues, so singular covariances (fewer pictures than features) need no correction and nothing
    becomes complex, unlike with a general matrix square root of A B.
    Raises ValueError for different numbers of features.
    """
    if a.mean.shape != b.mean.shape or a.covariance.shape != b.covariance.shape:
        raise ValueError(f"features have {len(a.mean)} and {len(b.mean)} entries; expected equal numbers")
    if not all(np.isfinite(array).all() for g in (a, b) for array in (g.mean, g.covariance)):
        return float("nan")
    values, vectors = np.linalg.eigh(a.covariance)
    root = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
    product = root @ b.covariance @ root
    trace_root = np.sqrt(np.maximum(np.linalg.eigvalsh((product + product.T) / 2), 0)).sum()
    difference = a.mean - b.mean
    distance = difference @ difference + np.trace(a.covariance) + np.trace(b.covariance) - 2 * trace_root
    return float(max(distance, 0))  # of equal Gaussians: 0 up to rounding


def inception_score(logits: np.ndarray, splits: int = 1) -> Tuple[float, float]:
    """exp(mean KL(p(y|x) || p(y))) over `splits` equal parts of the pictures: mean and standard deviation of the parts.

    logits: (N, classes), before the softmax. Without a remainder: the last N mod splits pictures do not count.
    Raises ValueError for another rank or fewer pictures than splits.
    """
    logits = np.asarray(logits, np.float64)
    if logits.ndim != 2 or splits < 1 or len(logits) < splits:
        raise ValueError(f"logits are {logits.shape} for {splits} splits; expected (N, classes) with N >= splits >= 1")
    shifted = logits - logits.max(1, keepdims=True)
    log_p = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
    scores = []
    for part in np.split(log_p[:len(log_p) // splits * splits], splits):
        p = np.exp(part)
        marginal = p.mean(0)
        log_marginal = np.log(np.maximum(marginal, 1e-300))
        scores.append(np.exp((p * (part - log_marginal)).sum(1).mean()))
    return float(np.mean(scores)), float(np.std(scores))
