"""The plain shapes."""
import numpy as np
import pytest

from jea.data import DataError, PlainShapes


def test_plain_shapes():
    train, val = PlainShapes(num_train=12), PlainShapes(split="val", num_val=7)
    assert (len(train), len(val)) == (12, 7) and train.num_classes == len(train.class_names) == 6
    assert [train.load(i)[1] for i in range(12)] == [0, 1, 2, 3, 4, 5] * 2
    first = train.load(0)[0]
    assert first.shape == (32, 32, 3) and np.array_equal(first, PlainShapes().load(0)[0])
    assert not np.array_equal(first, val.load(0)[0]) and not np.array_equal(first, train.load(6)[0])
    for index in range(6):  # an object of strong colour in the middle, light ground in the corners
        picture = train.load(index)[0].astype(int)
        assert picture[[0, 0, -1, -1], [0, -1, 0, -1]].min() >= 195
        assert np.ptp(picture, axis=2).max() > 60
    assert first[12:20, 12:20].std((0, 1)).max() < 2  # the disk's middle is plain
    ring = train.load(4)[0]
    assert ring[16, 16].min() >= 195 or ring[15, 15].min() >= 195  # the ring's is open


@pytest.mark.parametrize("arguments, said", [
    ({"split": "test"}, "plain_shapes: unknown split 'test'; there are train, val"), ({"size": 8}, "size is 8"),
    ({"num_val": 0}, "num_val 0")])
def test_bad_arguments(arguments, said):
    with pytest.raises(DataError, match=said):
        PlainShapes(**arguments)
