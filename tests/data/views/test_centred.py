"""Pictures for generators: the centred square, its range, its mirror."""
import numpy as np

from jea.data import ClassificationDataset
from jea.data.views.centred import CentredView, centre_square


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
