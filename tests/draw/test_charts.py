"""Per-class bars, confusion matrices, and overlays without a background class."""
import numpy as np
import pytest
from PIL import Image

from jea.draw.charts import bars_png, confusion_png
from jea.draw.comparisons import overlay, side_by_side
from jea.draw.palettes import voc_palette
from jea.metrics import ConfusionMatrix


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
