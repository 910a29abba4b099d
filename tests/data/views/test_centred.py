"""Pictures for generators: square cut, range, mirror; the plain shapes."""
import numpy as np
import pytest

from jea.data import ClassificationDataset, DataError, PlainShapes
from jea.data.views.centred import CentredView, centre_square
from jea.draw.charts import sheet


class Two(ClassificationDataset):
    def __init__(self, picture):
        self.content = picture

    def __len__(self):
        return 2

    def load(self, index):
        return self.content, index


def test_range_and_mirror():
    picture = np.zeros((4, 4, 3), np.uint8)
    picture[0, 0] = (0, 51, 255)
    views = {flip: CentredView(Two(picture), size=4, flip=flip) for flip in (False, True)}
    sample = views[False].train_sample(1, np.random.default_rng(0))
    assert sample["image"].shape == (3, 4, 4) and sample["image"].dtype == np.float32 and sample["label"] == 1
    assert np.allclose(sample["image"][:, 0, 0], [-1, -0.6, 1], atol=1e-6) and (sample["image"][:, 1:] == -1).all()
    rng = np.random.default_rng(0)
    mirrored = [bool((views[True].train_sample(0, rng)["image"][2, 0] == [-1, -1, -1, 1]).all()) for _ in range(200)]
    assert 60 < sum(mirrored) < 140
    assert views[True].pictures([0, 1]).shape == (2, 4, 4, 3)


def test_square_is_the_middle():
    wide = np.arange(2 * 6 * 3, dtype=np.uint8).reshape(2, 6, 3)
    assert np.array_equal(centre_square(wide, 2), wide[:, 2:4])
    assert np.array_equal(centre_square(wide.transpose(1, 0, 2), 2), wide.transpose(1, 0, 2)[2:4])
    flat = np.full((9, 5, 3), 77, np.uint8)
    assert (centre_square(flat, 16) == 77).all() and centre_square(flat, 16).shape == (16, 16, 3)


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
    ({"split": "test"}, "unknown split 'test' of plain_shapes; there are train, val"), ({"size": 8}, "size is 8"),
    ({"num_val": 0}, "num_val 0")])
def test_bad_arguments(arguments, said):
    with pytest.raises(DataError, match=said):
        PlainShapes(**arguments)


def test_sheet():
    images = np.stack([np.full((2, 3, 3), value, np.uint8) for value in (10, 20, 30)])
    out = sheet(images, 2, zoom=2, gap=1)
    assert out.shape == (11, 15, 3)
    assert (out[1:5, 1:7] == 10).all() and (out[1:5, 8:14] == 20).all() and (out[6:10, 1:7] == 30).all()
    assert (out[0] == 255).all() and (out[6:10, 7:] == 255).all()
    with pytest.raises(ValueError, match="takes uint8"):
        sheet(images.astype(float), 2)
