"""Overlays, and predictions beside labels."""
import numpy as np
import pytest

from jea.draw.comparisons import overlay, shrunk, shrunk_size, side_by_side
from jea.draw.objects import drawn_objects, enlarged
from jea.draw.palettes import voc_palette

PALETTE = voc_palette()
NAMES = ("background", "disk", "rectangle")
RED, GREY = [220, 30, 40], [150, 150, 150]


def test_overlay_by_hand():
    image = np.full((1, 3, 3), 100, np.uint8)
    out = overlay(image, np.array([[0, 1, 2]]), PALETTE, alpha=0.25)
    # 0.75 * 100 + 0.25 * (128, 0, 0), and (0, 128, 0) for class 2; class 0 stays
    assert out.dtype == np.uint8 and out.tolist() == [[[100, 100, 100], [107, 75, 75], [75, 107, 75]]]
    with pytest.raises(ValueError, match=r"\(1, 3, 3\), label is \(3, 1\)"):
        overlay(image, np.zeros((3, 1), int), PALETTE)


def scene():
    image = np.full((32, 40, 3), 120, np.uint8)
    label = np.zeros((32, 40), np.uint8)
    label[8:24, 8:24] = 1
    label[8:24, 24] = 255
    prediction = np.where(label == 255, 0, label)
    prediction[0:4] = 2  # 160 wrong pixels
    return image, prediction, label


def count(picture, colour):
    return int((picture == np.array(colour)).all(2).sum())


def test_side_by_side_shows_errors_and_ignored_pixels():
    image, prediction, label = scene()
    out = side_by_side(image, prediction, label, palette=PALETTE, class_names=NAMES, side=40)
    errors = out[22:22 + 32, 8 + 3 * 98:8 + 3 * 98 + 40]  # the fourth panel: columns are 90 wide, 8 apart
    assert count(errors, RED) == 160 and count(errors, GREY) == 16
    assert (errors[:4] == RED).all()
    assert (out[22:54, 8:48] == image).all()
    assert (out[22:54, 106:146] == overlay(image, prediction, PALETTE)).all()
    assert (out[22:54, 204:244] == overlay(image, label, PALETTE)).all()


def test_legend_holds_the_classes_that_occur():
    image, prediction, label = scene()

    def swatches(*arguments, side=200):
        bottom = side_by_side(image, *arguments, palette=PALETTE, class_names=NAMES, side=side)[22 + 160:]
        return [count(bottom, colour) > 50 for colour in (PALETTE[1], PALETTE[2], RED, GREY)]
    assert swatches(prediction, label) == [True, True, True, True]
    assert swatches(prediction) == [True, True, False, False]
    assert swatches(np.zeros_like(prediction)) == [False, False, False, False]


@pytest.mark.parametrize("height, width", [(400, 3), (3, 400), (1, 1), (700, 900)])
def test_side_by_side_of_odd_sizes(height, width):
    image, label = np.zeros((height, width, 3), np.uint8), np.zeros((height, width), np.uint8)
    out = side_by_side(image, label, label, palette=PALETTE, class_names=NAMES, side=160)
    assert out.dtype == np.uint8 and out.shape[2] == 3 and 22 < out.shape[0] < 260 and out.shape[1] < 700


def test_background_or_none():
    image, label = np.full((2, 2, 3), 100, np.uint8), np.array([[0, 1], [0, 1]])
    palette = np.zeros((256, 3), np.uint8)
    palette[0], palette[1] = (200, 0, 0), (0, 200, 0)
    assert (overlay(image, label, palette)[:, 0] == 100).all()
    assert overlay(image, label, palette, background=None)[0, 0].tolist() == [155, 45, 45]
    assert (overlay(image, label, palette, background=1)[:, 1] == 100).all()
    shown, hidden = (side_by_side(np.full((20, 20, 3), 100, np.uint8), np.zeros((20, 20), int), palette=palette,
                                  class_names=["road"], background=b) for b in (None, 0))
    assert shown.shape[0] > hidden.shape[0]  # the legend names the class


def test_masks_of_a_smaller_copy_are_stretched_over_the_picture():
    mask = np.array([[True, False], [False, True]])
    assert enlarged(mask, (4, 6)).astype(int).tolist() == [[1, 1, 1, 0, 0, 0]] * 2 + [[0, 0, 0, 1, 1, 1]] * 2
    assert enlarged(mask, (2, 2)) is mask and enlarged(np.ones((3, 5), bool), (7, 9)).all()
    image = np.zeros((4, 6, 3), np.uint8)
    none = np.zeros((1, 4)), np.array([0])
    small = np.asarray(drawn_objects(image, *none, names=["a"], masks=[mask]))
    whole = np.asarray(drawn_objects(image, *none, names=["a"], masks=[enlarged(mask, (4, 6))]))
    assert np.array_equal(small, whole) and small.any()


@pytest.mark.parametrize("size, most, wanted", [((30, 40), 1200, (30, 40)), ((30, 40), 300, (15, 20)),
                                                ((1, 5_000_000), 2 ** 21, (1, 2 ** 21)), ((5000, 1), 100, (100, 1))])
def test_the_size_of_a_copy(size, most, wanted):
    assert shrunk_size(*size, most) == wanted
    assert shrunk(np.zeros((*size, 3), np.uint8), most).shape[:2] == wanted
