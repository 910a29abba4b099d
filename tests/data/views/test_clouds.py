"""Clouds: normalisation, sampling of surfaces, augmentation."""

import numpy as np
import pytest

from jea.data.views.clouds import (
    choose,
    dropped,
    jittered,
    normalise_cloud,
    sample_surface,
    scaled,
    shifted,
)

POINTS = np.array([[0, 0, 0], [1, 0.5, -2], [1e-3, -7.25, 3]])
CUBE = [(x, y, z) for z in (0, 1) for y in (0, 1) for x in (0, 1)]
QUADS = [(0, 1, 3, 2), (4, 5, 7, 6), (0, 1, 5, 4), (2, 3, 7, 6), (0, 2, 6, 4), (1, 3, 7, 5)]


def rng(seed=0):
    return np.random.default_rng(seed)


# -- geometry --------------------------------------------------------------------------------------------------------

def test_normalise_by_hand():
    got = normalise_cloud(np.array([[7.0, 9, 0], [-1, 1, 0], [3, 7, 0], [3, 3, 0]]))  # about (3, 5, 0), up to sqrt(32)
    assert got.dtype == np.float32
    assert got * np.sqrt(32) == pytest.approx(np.array([[4, 4, 0], [-4, -4, 0], [0, 2, 0], [0, -2, 0]]), abs=1e-6)
    assert (normalise_cloud(np.full((3, 3), 7.0)) == 0).all()


def test_surface_is_sampled_by_area():
    vertices = np.array([[0, 0, 0], [3, 0, 0], [0, 2, 0], [0, 0, 5], [1, 0, 5], [0, 2, 5]])  # areas 3 and 1
    points, triangle = sample_surface(vertices, np.array([[0, 1, 2], [3, 4, 5]]), 8000, rng())
    assert np.array_equal(points[:, 2] == 5, triangle == 1)
    assert abs((triangle == 0).sum() - 6000) < 200  # 5 standard deviations
    first = points[triangle == 0]
    assert first.mean(0) == pytest.approx([1, 2 / 3, 0], abs=0.05)  # the centroid of the triangle
    assert (first[:, 0] / 3 + first[:, 1] / 2).max() <= 1 + 1e-6
    for triangles in (np.zeros((0, 3), int), np.array([[0, 0, 1]])):
        with pytest.raises(ValueError, match="no area"):
            sample_surface(vertices, triangles, 5, rng())


def test_choose():
    assert sorted(choose(5, 5, rng()).tolist()) == [0, 1, 2, 3, 4] and len(set(choose(50, 20, rng()).tolist())) == 20
    few = choose(3, 10, rng())
    assert len(few) == 10 and sorted(few[:3].tolist()) == [0, 1, 2] and set(few.tolist()) == {0, 1, 2}


# -- augmentation ----------------------------------------------------------------------------------------------------

def test_dropout_ratio_is_uniform_up_to_the_limit():
    shares = np.array([(dropped(2000, rng(seed), 0.875)[1:] == 0).mean() for seed in range(400)])
    assert 0.84 < shares.max() < 0.9 and shares.min() < 0.02
    assert abs(shares.mean() - 0.4375) < 0.065  # 5 standard deviations of the mean of U(0, 0.875)
    index = dropped(2000, rng(1), 0.875)
    kept = index != 0
    assert np.array_equal(index[kept], np.arange(2000)[kept])
    assert np.array_equal(dropped(50, rng(), 0.0), np.arange(50))


def test_scale_and_shift_have_one_factor_and_offset_per_axis():
    points = rng().standard_normal((40, 3)).astype(np.float32)
    factors = np.array([scaled(points, rng(seed), 2 / 3, 3 / 2)[0] / points[0] for seed in range(300)])
    assert 2 / 3 <= factors.min() < 0.68 and 1.48 < factors.max() <= 1.5 and (np.ptp(factors, axis=1) > 0).all()
    assert factors.mean() == pytest.approx(13 / 12, abs=0.04)
    big = scaled(points, rng(5), 2 / 3, 3 / 2)
    assert big.dtype == np.float32 and (big / points).std(0).max() < 1e-6
    offsets = np.array([shifted(points, rng(seed), 0.2)[0] - points[0] for seed in range(300)])
    assert -0.2 <= offsets.min() < -0.19 and 0.19 < offsets.max() <= 0.2001 and (np.ptp(offsets, axis=1) > 0).all()
    assert (shifted(points, rng(5), 0.2) - points).std(0).max() < 1e-6


def test_jitter_is_normal_and_cut_off():
    noise = jittered(np.zeros((200_000, 3), np.float32), rng(), 0.01)
    assert noise.dtype == np.float32 and noise.std() == pytest.approx(0.01, rel=0.01) and abs(noise.mean()) < 1e-4
    assert jittered(np.zeros((1, 3), np.float32), Constant(9.0), 0.01).tolist() == [[pytest.approx(0.05)] * 3]


class Constant:
    def __init__(self, value):
        self.value = value

    def standard_normal(self, shape):
        return np.full(shape, self.value)
