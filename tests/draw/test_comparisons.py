import os

import numpy as np
import pytest

from jea.data import read_image, voc_palette
from jea.draw.charts import curve_png
from jea.draw.comparisons import overlay, side_by_side

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


def test_curve_has_both_lines_and_is_atomic(tmp_path, monkeypatch):
    path = tmp_path / "curve.png"
    steps = list(range(100))
    panels = {"loss": {"train": (steps, [2 / (1 + s) for s in steps]), "val": ([0, 50, 99], [2.5, 1, 0.5])},
              "mIoU": {"val": ([50, 99], [0.5, 0.9])}}
    curve_png(path, panels, title="shapes", xlabel="step")
    picture = read_image(path)
    assert picture.shape == (44 + 2 * 250 + 44, 900, 3)
    blue, orange = (31, 98, 168), (214, 96, 22)
    upper, lower = picture[:290], picture[310:]
    assert count(upper, blue) > 100 and count(upper, orange) > 100 and count(lower, blue) > 100
    assert count(lower, orange) == 0

    before = path.read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        curve_png(path, {"loss": {"train": ([0, 1], [1, 0])}}, title="", xlabel="")
    assert path.read_bytes() == before and os.listdir(tmp_path) == ["curve.png"]


def test_line_runs_from_corner_to_corner(tmp_path):
    curve_png(tmp_path / "c.png", {"y": {"a": ([0, 10], [0, 1])}}, title="", xlabel="")
    picture = read_image(tmp_path / "c.png").astype(int)
    rows, columns = np.nonzero((np.abs(picture - (31, 98, 168)).sum(2) < 30)[70:])
    left, right = columns.argmin(), columns.argmax()
    assert (columns.min(), columns.max()) == pytest.approx((73, 879), abs=2)  # the points are 6 pixels wide
    assert rows[left] + 70 == pytest.approx(284, abs=2) and rows[right] + 70 == pytest.approx(70, abs=2)


@pytest.mark.parametrize("series", [
    {}, {"a": ([], [])}, {"a": ([3], [0.5])}, {"a": ([0, 1], [2, 2])}, {"a": ([0, 1], [0, 0])},
    {"a": ([0, 1, 2], [1, float("nan"), float("inf")])}, {"a": ([0, 1e9], [1e-12, 1e12])},
    {"a": ([0, 1], [-5, 5])},
    {"a": ([1, 2], [1e300, -1e300])},
])
def test_curve_of_odd_data(tmp_path, series):
    curve_png(tmp_path / "c.png", {"y": series}, title="t", xlabel="x")
    assert read_image(tmp_path / "c.png").shape == (338, 900, 3)


def test_curve_refuses_lengths_that_differ(tmp_path):
    with pytest.raises(ValueError, match="series a"):
        curve_png(tmp_path / "c.png", {"y": {"a": ([1, 2], [1])}}, title="", xlabel="")
