"""The drawn shape classes."""

import numpy as np
import pytest

from jea.data import DataError, ShapeClasses
from jea.data.classification import shapes as shape_classes
from jea.data.classification.shapes import SHAPE_CLASSES

# -- the synthetic one

def test_shape_classes_are_a_function_of_seed_split_and_index():
    a, b = ShapeClasses(), ShapeClasses(num_train=20)
    assert len(a) == 5000 and len(b) == 20 and len(ShapeClasses(split="val")) == 1000
    order = [7, 3, 7]
    assert all(np.array_equal(a.load(i)[0], b.load(i)[0]) for i in order)
    assert a.load(3)[0].shape == (48, 48, 3) and a.load(3)[0].dtype == np.uint8
    others = (ShapeClasses(split="val"), ShapeClasses(seed=1))
    assert not any(np.array_equal(a.load(3)[0], other.load(3)[0]) for other in others)
    assert ShapeClasses(size=32).load(0)[0].shape == (32, 32, 3)


def test_shape_classes_take_turns_and_have_names():
    data = ShapeClasses(num_train=30)
    assert [data.load(i)[1] for i in range(12)] == [*range(10), 0, 1]
    assert data.num_classes == len(set(SHAPE_CLASSES)) == 10 and SHAPE_CLASSES[:3] == ("plain disk", "plain cross",
                                                                                       "barred disk")
    with pytest.raises(IndexError):
        data.load(30)


def test_what_is_drawn(monkeypatch):
    drawn = []
    for name, argument in (("_pattern", 1), ("outline_distance", 0)):
        real = getattr(shape_classes, name)
        monkeypatch.setattr(shape_classes, name, lambda *a, real=real, k=argument: drawn.append(a[k]) or real(*a))
    data = ShapeClasses()
    for label in range(10):
        data.load(label)
    found = [f"{texture} {outline}" for outline, texture in zip(drawn[::2], drawn[1::2])]
    assert found == list(SHAPE_CLASSES)
    for label in range(10):  # the object's colours are far from the ground's; noise alone spans 14 levels
        picture = data.load(label)[0].astype(int)
        assert np.abs(picture - np.median(picture, axis=(0, 1))).max() > 40


def test_textures():
    """Bars vary from row to row, stripes from column to column, the others in both; turned by at most 0.15."""
    for seed in range(5):
        along = {}
        for texture in shape_classes.TEXTURES:
            pattern = shape_classes._pattern(np.random.default_rng(seed), texture, 200)
            assert pattern.shape == (200, 200) and pattern.min() >= -1 and pattern.max() <= 1
            along[texture] = np.abs(np.diff(pattern, axis=0)).mean(), np.abs(np.diff(pattern, axis=1)).mean()
        assert along["plain"] == (0, 0)
        assert along["barred"][0] > 6 * along["barred"][1] and along["striped"][1] > 6 * along["striped"][0]
        assert all(0.8 < along[texture][0] / along[texture][1] < 1.25 for texture in ("checked", "dotted"))
        # A period of 5 to 7 pixels: sin goes up and down by 4 in one.
        assert 4 / 7.2 < along["barred"][0] < 4 / 4.9


@pytest.mark.parametrize("options, said", [({"split": "test"}, "unknown split 'test'"), ({"size": 8}, "size is 8"),
                                           ({"num_val": 0}, "num_val 0")])
def test_wrong_arguments(options, said):
    with pytest.raises(DataError, match=said):
        ShapeClasses(**options)


# -- all
