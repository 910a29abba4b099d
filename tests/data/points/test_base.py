"""What the point-cloud data sets share."""

import numpy as np
import pytest

from jea.data import DataError
from jea.data.points.base import PointCloudDataset

POINTS = np.array([[0, 0, 0], [1, 0.5, -2], [1e-3, -7.25, 3]])
CUBE = [(x, y, z) for z in (0, 1) for y in (0, 1) for x in (0, 1)]
QUADS = [(0, 1, 3, 2), (4, 5, 7, 6), (0, 1, 5, 4), (2, 3, 7, 6), (0, 2, 6, 4), (1, 3, 7, 5)]


def rng(seed=0):
    return np.random.default_rng(seed)


class Halves(PointCloudDataset):
    """Part 1 is where x > 0."""

    def __init__(self, **options):
        super().__init__(num_points=64, **{"dropout": 0.5, "scale": (0.5, 2.0), "shift": 0.0, "jitter": 0.0, **options})

    def cloud(self, index, generator=None):
        points = rng(index).standard_normal((64, 3)).astype(np.float32)
        return points, 3, (points[:, 0] > 0).astype(np.int32), str(index)


def test_parts_stay_with_their_points():
    data = Halves()
    sample = data.train_sample(0, rng(1))
    assert sample["points"].shape == (3, 64) and sample["points"].dtype == np.float32 and sample["category"] == 3
    assert sample["points"].flags.c_contiguous and sample["category"].dtype == sample["parts"].dtype == np.int32
    assert np.array_equal(sample["points"][0] > 0, sample["parts"] == 1) and 0 < sample["parts"].sum() < 64
    original = data.test_sample(0)
    assert not np.array_equal(np.sort(sample["points"][0]), np.sort(original["points"][0]))
    again = data.train_sample(0, rng(1))
    assert all(np.array_equal(sample[key], again[key]) for key in sample)


def test_without_augmentation_only_the_order_changes():
    data = Halves(dropout=0.0, scale=(1, 1))
    got, original = data.train_sample(0, rng(1))["points"], data.test_sample(0)["points"]
    assert not np.array_equal(got, original)
    assert np.array_equal(got[:, np.argsort(got[0])], original[:, np.argsort(original[0])])


@pytest.mark.parametrize("options", [{"dropout": 1.5}, {"dropout": -0.1}, {"scale": (0, 1)}, {"scale": (2, 1)},
                                     {"scale": (1,)}, {"shift": -1}, {"jitter": -1}])
def test_impossible_augmentation(options):
    with pytest.raises(DataError, match="expected dropout from 0 to 1"):
        Halves(**options)
    with pytest.raises(DataError, match="num_points is 0"):
        PointCloudDataset(num_points=0, dropout=0, scale=(1, 1), shift=0, jitter=0)
