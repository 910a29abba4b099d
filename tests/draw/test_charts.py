"""Bars, confusion matrices and curves."""
import os

import numpy as np
import pytest
from PIL import Image

from jea.data import read_image
from jea.draw.charts import bars_png, confusion_png, curve_png
from jea.draw.palettes import voc_palette
from jea.metrics import ConfusionMatrix


def count(picture, colour):
    return int((picture == np.array(colour)).all(2).sum())


def widths(path, palette, rows):
    """Length in pixels of each bar, by its colour."""
    pixels = np.array(Image.open(path).convert("RGB")).astype(int)
    return [int((np.abs(pixels - palette[row]).sum(2) == 0).any(0).sum()) for row in range(rows)]


def test_bars_are_as_long_as_the_values(tmp_path):
    palette = np.array([[200, 30, 40], [20, 160, 60], [40, 60, 200]], np.uint8)
    values = {"road": 1.0, "traffic light": 0.25, "train": float("nan")}
    bars_png(tmp_path / "a.png", values, title="IoU", colours=palette)
    full, quarter, none = widths(tmp_path / "a.png", palette, 3)
    assert 510 <= full <= 520 and abs(quarter - full / 4) <= 3 and none == 0
    bars_png(tmp_path / "b.png", {f"class {i}": i / 150 for i in range(150)}, title="IoU", colours=voc_palette())
    assert Image.open(tmp_path / "b.png").size[1] > 150 * 20


def test_confusion_matrix_cells(tmp_path):
    shares = np.array([[1.0, 0.0, 0.0], [0.5, 0.5, 0.0], [np.nan] * 3])
    confusion_png(tmp_path / "a.png", shares, ["a", "b", "c"])
    pixels = np.array(Image.open(tmp_path / "a.png"))
    start = pixels.shape[0] - 10 - 3 * 34
    corner = pixels[start + 2::34, start + 2::34][:3, :3].astype(int)  # a cell's corner, beside its number
    assert corner[0, 0].tolist() == [31, 98, 168] and corner[0, 1].tolist() == [255] * 3
    assert abs(corner[1, 0] - corner[1, 1]).max() == 0 and corner[1, 0].tolist() == [143, 176, 212]
    assert (corner[2] == 255).all()
    with pytest.raises(ValueError, match=r"\(3, 3\) for 2 names"):
        confusion_png(tmp_path / "a.png", shares, ["a", "b"])
    confusion_png(tmp_path / "b.png", np.eye(150), [f"class {i}" for i in range(150)])
    assert Image.open(tmp_path / "b.png").size[0] > 150 * 12


def test_shares_of_the_confusion_matrix():
    matrix = ConfusionMatrix(3)
    matrix.update(np.array([0, 0, 1, 1]), np.array([0, 1, 1, 1]))
    shares = matrix.shares()
    assert shares[:2].tolist() == [[1, 0, 0], [1 / 3, 2 / 3, 0]] and np.isnan(shares[2]).all()


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
