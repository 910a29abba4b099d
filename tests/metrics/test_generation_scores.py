"""Frechet distance and Inception Score against cases worked out by hand, and scipy's matrix root where it is there."""
import numpy as np
import pytest

from jea.metrics.generation import Gaussian, Moments, frechet_distance, inception_score


def gaussian(mean, covariance):
    return Gaussian(np.array(mean, float), np.array(covariance, float), 10)


@pytest.mark.parametrize("a, b, wanted", [
    # one axis: (m - n)^2 + (s - t)^2
    (gaussian([1], [[4]]), gaussian([4], [[25]]), 9 + 9),
    # independent axes add up
    (gaussian([0, 0], [[1, 0], [0, 9]]), gaussian([3, 4], [[4, 0], [0, 16]]), 25 + 1 + 1),
    # equal covariances leave the means
    (gaussian([0, 0], [[2, 1], [1, 2]]), gaussian([1, 1], [[2, 1], [1, 2]]), 2),
    # rank 1 each, at right angles: (A B)^(1/2) is 0, the traces are left
    (gaussian([0, 0], [[4, 0], [0, 0]]), gaussian([0, 0], [[0, 0], [0, 9]]), 13),
    # commuting, turned by 45 degrees: eigenvalues 3, 1 against 1, 9 of the same vectors -> (sqrt3-1)^2 + (1-3)^2
    (gaussian([0, 0], [[2, 1], [1, 2]]), gaussian([0, 0], [[5, -4], [-4, 5]]), (np.sqrt(3) - 1) ** 2 + 4),
    # not commuting, 2 x 2: tr (A B)^(1/2) = sqrt(tr(A B) + 2 sqrt(det A det B)); tr A B = 10, det = 3 and 4
    (gaussian([0, 0], [[2, 1], [1, 2]]), gaussian([0, 0], [[4, 0], [0, 1]]), 4 + 5 - 2 * np.sqrt(10 + 2 * np.sqrt(12))),
])
def test_distance_by_hand(a, b, wanted):
    assert frechet_distance(a, b) == pytest.approx(wanted, rel=1e-12, abs=1e-7)
    assert frechet_distance(b, a) == pytest.approx(wanted, rel=1e-12, abs=1e-7)


def test_distance_of_equal_and_singular():
    rng = np.random.default_rng(0)
    features = rng.standard_normal((20, 64)) * np.linspace(1, 9, 64)  # fewer than features: singular
    a = Gaussian.of(features)
    assert (np.linalg.eigvalsh(a.covariance) > 1e-9).sum() == 19
    assert 0 <= frechet_distance(a, a) < 1e-4 * np.trace(a.covariance)
    shifted = Gaussian(a.mean + 2, a.covariance, 20)
    assert frechet_distance(a, shifted) == pytest.approx(256, rel=1e-3)
    with pytest.raises(ValueError, match="64 and 2 entries"):
        frechet_distance(a, gaussian([0, 0], np.eye(2)))
    broken = Gaussian(np.full(64, np.nan), a.covariance, 20)
    assert np.isnan(frechet_distance(a, broken))


def test_distance_equals_scipys_root():
    linalg = pytest.importorskip("scipy.linalg")
    rng = np.random.default_rng(1)
    a, b = (Gaussian.of(rng.standard_normal((200, 24)) @ rng.standard_normal((24, 24))) for _ in range(2))
    root = linalg.sqrtm(a.covariance @ b.covariance).real
    difference = a.mean - b.mean
    wanted = difference @ difference + np.trace(a.covariance + b.covariance - 2 * root)
    assert frechet_distance(a, b) == pytest.approx(wanted, rel=1e-9)


def test_distance_equals_the_eigenvalues_of_the_product():
    """The same trace by another road, without scipy: A B has real eigenvalues >= 0."""
    rng = np.random.default_rng(2)
    a, b = (Gaussian.of(rng.standard_normal((300, 16)) @ rng.standard_normal((16, 16))) for _ in range(2))
    roots = np.sqrt(np.linalg.eigvals(a.covariance @ b.covariance).real).sum()
    wanted = ((a.mean - b.mean) ** 2).sum() + np.trace(a.covariance) + np.trace(b.covariance) - 2 * roots
    assert frechet_distance(a, b) == pytest.approx(wanted, rel=1e-9)


def test_moments_of_batches_equal_those_of_all():
    rng = np.random.default_rng(3)
    features = (rng.standard_normal((101, 7)) + 1e5).astype(np.float32)
    moments = Moments()
    for part in np.split(features, [0, 1, 40, 99]):
        moments.update(part)
    g = moments.gaussian()
    assert g.count == 101 and np.allclose(g.mean, features.astype(float).mean(0), rtol=1e-14)
    assert np.allclose(g.covariance, np.cov(features.astype(float), rowvar=False), rtol=1e-9, atol=1e-9)


def test_moments_by_hand():
    g = Gaussian.of(np.array([[0, 0], [2, 0], [4, 6]]))
    assert np.array_equal(g.mean, [2, 2]) and np.allclose(g.covariance, [[4, 6], [6, 12]]) and g.count == 3


def test_what_has_no_covariance():
    with pytest.raises(ValueError, match="at least 2 pictures, got 1"):
        Gaussian.of(np.zeros((1, 3)))
    moments = Moments()
    moments.update(np.zeros((2, 3)))
    with pytest.raises(ValueError, match=r"features are \(2, 4\); expected \(N, 3\)"):
        moments.update(np.zeros((2, 4)))


def test_inception_score_by_hand():
    sure = np.full((6, 3), -1e4)
    sure[np.arange(6), np.arange(6) % 3] = 1e4
    assert inception_score(sure)[0] == pytest.approx(3)  # sure of each, all classes alike
    assert inception_score(np.zeros((5, 4))) == (pytest.approx(1), 0)  # knows nothing
    assert inception_score(sure[[0, 0, 0]])[0] == pytest.approx(1)  # always the same class
    # p = (3/4, 1/4) and (1/4, 3/4): the marginal is even, KL = 3/4 log(3/2) + 1/4 log(1/2)
    logits = np.log([[0.75, 0.25], [0.25, 0.75]])
    wanted = np.exp(0.75 * np.log(1.5) + 0.25 * np.log(0.5))
    assert inception_score(logits + 7)[0] == pytest.approx(wanted)


def test_inception_score_of_parts():
    sure = np.full((8, 2), -1e4)
    sure[np.arange(8), [0, 1, 0, 1, 0, 0, 0, 0]] = 1e4
    assert inception_score(sure, 2) == (pytest.approx(1.5), pytest.approx(0.5))  # 2 in the first half, 1 in the second
    assert inception_score(np.concatenate([sure, sure[:1]]), 2) == inception_score(sure, 2)
    with pytest.raises(ValueError, match=r"logits are \(8, 2\) for 9 splits"):
        inception_score(sure, 9)
