"""Pictures of clouds."""

import numpy as np
import pytest

from jea.draw.clouds import VIEWS, cloud_sheet, draw_cloud
from jea.draw.palettes import class_colours

POINTS = np.array([[0, 0, 0], [1, 0.5, -2], [1e-3, -7.25, 3]])
CUBE = [(x, y, z) for z in (0, 1) for y in (0, 1) for x in (0, 1)]
QUADS = [(0, 1, 3, 2), (4, 5, 7, 6), (0, 1, 5, 4), (2, 3, 7, 6), (0, 2, 6, 4), (1, 3, 7, 5)]


def rng(seed=0):
    return np.random.default_rng(seed)


# -- pictures --------------------------------------------------------------------------------------------------------

def test_a_picture_shows_what_is_in_front():
    red, blue = np.array([[255, 0, 0]]), np.array([[0, 0, 255]])
    points, colours = np.array([[1.0, 0, 0], [-1, 0, 0]]), np.concatenate([red, blue]).astype(np.uint8)
    for azimuth, wanted in ((0, 0), (180, 2)):
        picture = draw_cloud(points, colours, azimuth=azimuth, elevation=0, side=101)
        centre = picture[50, 50].astype(int)
        assert picture.shape == (101, 101, 3) and centre.argmax() == wanted and centre[2 - wanted] < 20
    assert (picture[0] == 255).all()


def test_up_is_up_and_right_is_right():
    points = np.array([[0, 0, 1.0], [0, 0, -1], [0, 1, 0]])
    picture = draw_cloud(points, np.eye(3, dtype=np.uint8) * 255, azimuth=0, elevation=0, side=100)
    rows, columns = zip(*(np.argwhere(picture[:, :, k] > picture.sum(2) * 0.6).mean(0) for k in range(3)))
    assert rows[0] < 40 < 60 < rows[1] and columns[2] > columns[0] + 20


def test_sheets_and_colours():
    points = rng().standard_normal((300, 3))
    label, prediction = np.arange(300) % 3, np.zeros(300, int)
    sheet = cloud_sheet(points, prediction, label, names=("a", "b", "c"), side=80)
    alone = cloud_sheet(points, prediction, names=("a", "b", "c"), side=80)
    assert sheet.dtype == np.uint8 and sheet.shape[1] == 8 + 3 * 88 and alone.shape[1] == 8 + 88
    assert sheet.shape[0] > len(VIEWS) * 88
    assert len(np.unique(class_colours(50), axis=0)) == 50
    with pytest.raises(ValueError, match="expected .N, 3. for both"):
        draw_cloud(points, class_colours(7), azimuth=0, elevation=0)
    large = np.repeat(points, 100, axis=0)
    assert draw_cloud(large, np.zeros((30_000, 3), np.uint8), azimuth=0, elevation=0, side=60).min() == 0
